"""Our strategies beside Flower's, on identical updates, round after round.

    python -m benchmarks.peers.equality

Flower's run in an environment of their own, on arrays in `.npz` files. With float64 updates a difference is one of
definition; with float32 ones it is rounding, too: Flower sums in float32, we in float64. Where definitions differ, the
case is brought to Flower's by options where there are any, the reason is printed, and a second line shows how far
apart the two are as they come. Ends with 1 if a pair that should be equal is not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.peers.environments import INSIDE, python_of, version
from messages.fields import Scalar
from orchestrator.aggregation import combine, strategy_named

Model = Mapping[str, np.ndarray[Any, np.dtype[Any]]]

SILOS: Final = 7
ROUNDS: Final = 4
SAMPLES: Final = (10, 20, 30, 40, 50, 60, 70)
SHAPES: Final[dict[str, tuple[int, ...]]] = {"matrix": (37, 11), "vector": (101,), "scalar": (), "empty": (0, 3)}
EXACT: Final = 1e-12
ROUNDED: Final = 2e-6


@dataclass(frozen=True, slots=True)
class Case:
    """A strategy of Flower's and ours that should give the same, or (`why`) one where they do not."""

    name: str
    flower: str
    options: Mapping[str, Scalar]
    """Of Flower's."""
    ours: str
    our_options: Callable[[int], Mapping[str, Scalar]]
    """Of ours, in the round of that number, from 1."""
    note: str = ""
    equal: bool = True
    samples: Sequence[int] = SAMPLES
    keeps: bool = False
    """Whether it keeps numbers from round to round; ours are float32, so equality is to their rounding."""
    dtype: str = "float64"

    def passes(self, found: Difference) -> bool:
        """Whether so large a difference passes for equal."""
        if self.dtype == "int64":
            return found.absolute <= 0.5 + EXACT
        return found.relative <= (EXACT if self.dtype == "float64" and not self.keeps else ROUNDED)


def corrected(number: int) -> float:
    """Flower's learning rate of FedAdam in round `number`, where 0.05 is asked for."""
    return float(0.05 * np.sqrt(1 - 0.99 ** (number + 1)) / (1 - 0.9 ** (number + 1)))


EVEN: Final = (50,) * SILOS
ADAM: Final = {"eta": 0.05, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}
BETAS: Final = {"beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}
START: Final = "v begins as 0; ours as τ², the least the paper allows (option variance)"

CASES: Final = (
    Case("fedavg", "FedAvg", {}, "fedavg", lambda _: {}),
    Case("fedprox", "FedProx", {"proximal_mu": 0.1}, "fedprox", lambda _: {"mu": 0.1}, "the server's part is FedAvg"),
    Case(
        "fedavgm",
        "FedAvgM",
        {"server_learning_rate": 0.7, "server_momentum": 0.9},
        "fedavgm",
        lambda _: {"server_lr": 0.7, "momentum": 0.9},
        "its gradient is the mean change with the sign turned, and turned again",
        keeps=True,
    ),
    Case(
        "fedadagrad",
        "FedAdagrad",
        {"eta": 0.05, "tau": 1e-3},
        "fedadagrad",
        lambda _: {"server_lr": 0.05, "tau": 1e-3, "variance": 0.0},
        START,
        keeps=True,
    ),
    Case(
        "fedyogi",
        "FedYogi",
        ADAM,
        "fedyogi",
        lambda _: {"server_lr": 0.05, **BETAS, "variance": 0.0},
        START,
        keeps=True,
    ),
    Case(
        "fedadam",
        "FedAdam",
        ADAM,
        "fedadam",
        lambda number: {"server_lr": corrected(number), **BETAS, "variance": 0.0},
        f"{START}; Flower corrects bias by √(1 − β₂^(t+1)) / (1 − β₁^(t+1)), here given to ours as its rate",
        keeps=True,
    ),
    Case("median", "FedMedian", {}, "median", lambda _: {}),
    Case("trimmed-mean", "FedTrimmedAvg", {"beta": 0.2}, "trimmed-mean", lambda _: {"fraction": 0.2}),
    Case("krum", "Krum", {"num_malicious_nodes": 2}, "krum", lambda _: {"f": 2}),
    Case(
        "multi-krum",
        "MultiKrum",
        {"num_malicious_nodes": 2, "num_nodes_to_select": 4},
        "multi-krum",
        lambda _: {"f": 2, "m": 4},
        "with equal numbers of samples: Flower weighs the chosen by them, ours and the paper do not",
        samples=EVEN,
    ),
    Case(
        "fedavg-integers",
        "FedAvg",
        {},
        "fedavg",
        lambda _: {},
        "Flower's mean of integers is float64; ours is the same, rounded half to even to the tensor's dtype",
        dtype="int64",
    ),
    Case("fedadagrad-as-it-comes", "FedAdagrad", {}, "fedadagrad", lambda _: {}, START, equal=False),
    Case(
        "fedyogi-as-it-comes",
        "FedYogi",
        {},
        "fedyogi",
        lambda _: {"server_lr": 0.01},
        f"{START}; the rate is 0.01 there and 0.1 here, set to theirs",
        equal=False,
    ),
    Case(
        "fedadam-as-it-comes",
        "FedAdam",
        {},
        "fedadam",
        lambda _: {},
        "v begins as 0 and bias is corrected in Flower; in ours, as in the paper's Algorithm 2, neither",
        equal=False,
    ),
    Case(
        "multi-krum-by-samples",
        "MultiKrum",
        {"num_malicious_nodes": 2, "num_nodes_to_select": 4},
        "multi-krum",
        lambda _: {"f": 2, "m": 4},
        "Flower weighs the chosen by a number that each of them states; ours counts each the same",
        equal=False,
    ),
)


@dataclass(frozen=True, slots=True)
class Difference:
    """How far apart two models are."""

    absolute: float
    relative: float
    """To the largest number of the tensor."""


def difference(ours: Model, theirs: Model) -> Difference:
    """The largest over all tensors. Raises ValueError when names or shapes differ."""
    if ours.keys() != theirs.keys() or any(ours[name].shape != theirs[name].shape for name in ours):
        raise ValueError("the two models do not have the same tensors")
    absolute = relative = 0.0
    for name, array in theirs.items():
        if array.size:
            gap = float(np.max(np.abs(ours[name].astype(np.float64) - array.astype(np.float64))))
            absolute = max(absolute, gap)
            relative = max(relative, gap / max(float(np.max(np.abs(array))), 1e-300))
    return Difference(absolute, relative)


def updates(case: Case) -> tuple[Model, list[list[Model]]]:
    """The weights it starts with, and what each silo sends in each round."""
    rng = np.random.default_rng(7)
    scale = 1000 if case.dtype == "int64" else 1

    def drawn(around: Model, width: float) -> Model:
        return {
            name: (array + rng.normal(scale=scale * width, size=array.shape)).astype(case.dtype)
            for name, array in around.items()
        }

    base = drawn({name: np.zeros(shape) for name, shape in SHAPES.items()}, 1.0)
    return base, [[drawn(base, 0.3) for _ in case.samples] for _ in range(ROUNDS)]


def ours(case: Case) -> Iterator[Model]:
    """Our model after each round."""
    base, rounds = updates(case)
    state: Mapping[str, Model] | None = None
    for number, models in enumerate(rounds, 1):
        strategy = strategy_named(case.ours, case.our_options(number))
        made = combine(strategy, models, samples=case.samples, base=base, state=state)
        base, state = made.model, made.state
        yield base


def theirs(cases: Sequence[Case], folder: Path) -> dict[str, list[Model]]:
    """Flower's model after each round, by case. Raises SystemExit when it fails."""
    for case in cases:
        base, rounds = updates(case)
        _save(folder / f"{case.name}.start.npz", base)
        for number, models in enumerate(rounds, 1):
            for silo, model in enumerate(models):
                _save(folder / f"{case.name}.{number}.{silo}.npz", model)
    words = [
        {"name": c.name, "strategy": c.flower, "options": dict(c.options), "rounds": ROUNDS, "samples": list(c.samples)}
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
        case.name: [_load(folder / f"{case.name}.{number}.theirs.npz") for number in range(1, ROUNDS + 1)]
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
    args = parser.parse_args()
    lines = []
    narrow = [replace(case, dtype="float32") for case in CASES if case.equal and case.dtype == "float64"]
    for cases in (CASES, narrow):
        with tempfile.TemporaryDirectory(prefix="silobus-equality-") as folder:
            flower = theirs(cases, Path(folder))
        for case in cases:
            pairs = [difference(*pair) for pair in zip(ours(case), flower[case.name], strict=True)]
            lines.append(line(case, max(pairs, key=lambda one: one.relative)))
    if args.json:
        print(json.dumps({"flwr": version("flwr"), "silos": SILOS, "rounds": ROUNDS, "cases": lines}, indent=2))
    else:
        print(f"Flower {version('flwr')}, {SILOS} silos, {ROUNDS} rounds; differences over all rounds and tensors")
        for one in lines:
            print(
                f"{one['case']:<24}{one['dtype']:<9}abs {one['max_abs']:.1e}  rel {one['max_rel']:.1e}  "
                f"{one['verdict']:<10}{one['note']}"
            )
    sys.exit(any(one["verdict"] == "NOT EQUAL" for one in lines))


if __name__ == "__main__":
    main()
