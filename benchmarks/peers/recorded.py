"""What Flower's strategies gave of the updates of `cases`, kept beside the test that holds ours to it.

`outputs.safetensors` has a tensor `<case>-<dtype>.<round>.<tensor>` for each case that should be equal; `flower.json`
tells of which Flower they are, and for each case the digest of what Flower was given.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.peers.cases import CASES, ROUNDS, SHAPES, Case, Model, updates, worst
from benchmarks.peers.environments import PINS, ROOT
from messages import weights
from messages.errors import InvalidWeights

FOLDER: Final = ROOT / "tests" / "unit" / "aggregation" / "flower"
WRITE: Final = "python -m benchmarks.peers.equality --write"
KEPT: Final = tuple(case for case in CASES if case.equal)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What Flower gave."""

    pins: Sequence[str]
    """Of the environment it ran in, its own version first."""
    given: Mapping[str, str]
    """The digest of what it was given, by case."""
    outputs: Mapping[str, Sequence[Model]]
    """Its model after each round, by case."""


def digest(case: Case) -> str:
    """SHA-256 of all that Flower is given: strategy, options, samples, and every number."""
    base, rounds = updates(case)
    words = [case.flower, sorted(case.options.items()), list(case.samples), case.dtype, ROUNDS, list(SHAPES.items())]
    found = hashlib.sha256(json.dumps(words).encode())
    for model in [base, *(model for models in rounds for model in models)]:
        for array in model.values():
            found.update(array.tobytes())
    return found.hexdigest()


def write(outputs: Mapping[str, Sequence[Model]], folder: Path = FOLDER) -> None:
    """Replaces what is in `folder` by `outputs`, which Flower gave just now. Raises OSError."""
    tensors = {
        f"{case.label}.{number}.{name}": array
        for case in KEPT
        for number, model in enumerate(outputs[case.label], 1)
        for name, array in model.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "outputs.safetensors").unlink(missing_ok=True)
    weights.write_file(folder / "outputs.safetensors", tensors)
    words = {"environment": list(PINS["flwr"]), "given": {case.label: digest(case) for case in KEPT}}
    (folder / "flower.json").write_text(json.dumps(words, indent=2) + "\n")


def read(folder: Path = FOLDER) -> Recorded:
    """What was written. Raises OSError, and KeyError or ValueError when it is something else."""
    words = json.loads((folder / "flower.json").read_text())
    tensors = weights.read_tensors(folder / "outputs.safetensors")
    outputs = {
        label: [{name: tensors[f"{label}.{number}.{name}"] for name in SHAPES} for number in range(1, ROUNDS + 1)]
        for label in words["given"]
    }
    return Recorded(words["environment"], words["given"], outputs)


def outdated(recorded: Recorded) -> list[str]:
    """What was recorded of another Flower, or of other updates or options, than are compared now."""
    pins, expected = list(PINS["flwr"]), {case.label: digest(case) for case in KEPT}
    found = []
    if list(recorded.pins) != pins:
        found.append(f"it is of {', '.join(recorded.pins)}, and the pins are {', '.join(pins)}")
    for label in sorted({*expected, *recorded.given}):
        if label not in recorded.given:
            found.append(f"{label} is missing")
        elif label not in expected:
            found.append(f"{label} is no case any more")
        elif recorded.given[label] != expected[label]:
            found.append(f"{label} is of other updates or options")
    return found


def changed(recorded: Recorded, live: Mapping[str, Sequence[Model]]) -> list[str]:
    """Of which cases Flower now gives something else, and how far from what was recorded it is."""
    found = []
    for case in KEPT:
        if case.label in recorded.outputs:
            gap = worst(zip(recorded.outputs[case.label], live[case.label], strict=True))
            if not case.is_same(gap):
                found.append(f"{case.label} is {gap.relative:.1e} from what Flower gives")
    return found


def problems(live: Mapping[str, Sequence[Model]], folder: Path = FOLDER) -> list[str]:
    """All of it that keeps what is in `folder` from being what Flower gives of today's cases; none, if it is."""
    try:
        kept = read(folder)
    except (OSError, KeyError, ValueError, InvalidWeights) as error:
        return [f"{folder} cannot be read: {error!r}"]
    return [*outdated(kept), *changed(kept, live)]
