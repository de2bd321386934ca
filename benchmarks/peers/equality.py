"""Our strategies beside Flower's, on identical updates, round after round.

    python -m benchmarks.peers.equality
    python -m benchmarks.peers.equality --write       # keeps what Flower gave for the tests

Flower's run in an environment of their own, on arrays in `.npz` files. `cases` says what is compared and how nearly;
a case that should not be equal shows how far apart the two are as they come. Ends with 1 if a pair that should be equal
is not, or if Flower now gives something else than the tests compare with (`recorded`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import recorded
from benchmarks.peers.cases import CASES, ROUNDS, SILOS, Case, Difference, Model, ours, updates, worst
from benchmarks.peers.environments import INSIDE, python_of, version


def theirs(cases: Sequence[Case], folder: Path) -> dict[str, list[Model]]:
    """Flower's model after each round, by case. Raises SystemExit when it fails."""
    for case in cases:
        base, rounds = updates(case)
        _save(folder / f"{case.label}.start.npz", base)
        for number, models in enumerate(rounds, 1):
            for silo, model in enumerate(models):
                _save(folder / f"{case.label}.{number}.{silo}.npz", model)
    words = [
        {
            "name": c.label,
            "strategy": c.flower,
            "options": dict(c.options),
            "rounds": ROUNDS,
            "samples": list(c.samples),
        }
        for c in cases
    ]
    (folder / "cases.json").write_text(json.dumps(words))
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "FLWR_HOME": str(folder)}
    environment |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    done = subprocess.run(
        [str(python_of("flwr")), str(INSIDE / "flower_aggregates.py"), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(
            f"Flower's strategies ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
    return {
        case.label: [_load(folder / f"{case.label}.{number}.theirs.npz") for number in range(1, ROUNDS + 1)]
        for case in cases
    }


def _save(path: Path, model: Model) -> None:
    np.savez(path, **model)  # type: ignore[arg-type]  # numpy's stub takes `allow_pickle` for one of the arrays


def _load(path: Path) -> Model:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def line(case: Case, found: Difference) -> dict[str, Any]:
    """What is told of a case."""
    equal = "equal" if case.passes(found) else "NOT EQUAL"
    return {
        "case": case.name,
        "dtype": case.dtype,
        "max_abs": found.absolute,
        "max_rel": found.relative,
        "verdict": equal if case.equal else "differs",
        "note": case.note,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help=f"keep what Flower gave in {recorded.FOLDER}")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="silobus-equality-") as folder:
        flower = theirs(CASES, Path(folder))
    lines = [line(case, worst(zip(ours(case), flower[case.label], strict=True))) for case in CASES]
    if args.write:
        recorded.write(flower)
    problems = recorded.problems(flower)
    if args.json:
        found = {"flwr": version("flwr"), "silos": SILOS, "rounds": ROUNDS, "cases": lines, "recorded": problems}
        print(json.dumps(found, indent=2))
    else:
        print(f"Flower {version('flwr')}, {SILOS} silos, {ROUNDS} rounds; differences over all rounds and tensors")
        for one in lines:
            print(
                f"{one['case']:<24}{one['dtype']:<9}abs {one['max_abs']:.1e}  rel {one['max_rel']:.1e}  "
                f"{one['verdict']:<10}{one['note']}"
            )
        for problem in problems:
            print(f"What the tests compare with is outdated: {problem}")
        if problems:
            print(f"Look why, then write it anew: {recorded.WRITE}")
        else:
            print("What the tests compare with is what Flower gives")
    sys.exit(bool(problems) or any(one["verdict"] == "NOT EQUAL" for one in lines))


if __name__ == "__main__":
    main()
