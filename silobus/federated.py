"""A round for an agent: files in, files out, and the report last.

Here lives the contract's order of reading and writing (docs/training-contract.md). Of several ranks every one
reads, and only rank 0 writes. Nothing of this module knows of queues, other silos or how the agent moves the files.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from silobus.files import TensorFile, Written, make_names_durable, sha256_of, write_json
from silobus.metrics import Metric
from silobus.round import Round, Told
from silobus.share import checked
from silobus.state import Origins, read_state, restore, structure_of, write_state
from silobus.tensors import kind_of
from silobus.tracking import track
from silobus.weights import copy_private, divide, load, write_private, write_update

PURPOSES = ("initialise", "train", "evaluate")
PRIVATE = "model.safetensors"


class FederatedRound(Round):
    alone = False

    def __init__(
        self,
        source: Path,
        target: Path,
        *,
        defaults: Mapping[str, Any],
        writes: bool,
        origins: Origins | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        asked = json.loads((source / "round.json").read_text(encoding="utf-8"))
        if asked["schema_version"] != 1:
            raise ValueError(f"round.json is of schema version {asked['schema_version']}; this silobus reads 1")
        if asked["purpose"] not in PURPOSES:
            raise ValueError(f"round.json has the purpose {asked['purpose']!r}; known are {', '.join(PURPOSES)}")
        super().__init__(
            Told(
                round=asked["round"],
                experiment=asked["experiment"],
                run=asked["run"],
                task=asked["task"],
                purpose=asked["purpose"],
                params={**defaults, **asked["hyperparameters"]},
                data=asked["data"],
                seed=asked["seed"],
            )
        )
        self._asked = asked
        self._source = source
        self._target = target
        self._writes = writes
        self._origins = origins
        self._received = _received(source, asked["purpose"], asked["weights"])
        self._update: Written | None = None
        self._share: tuple[tuple[str, ...], ...] = ()
        self._sign_of_life = SignOfLife(target / "progress.json", clock)
        if writes:
            _clear(target)

    def _load(self, model: Any, share: tuple[str, ...]) -> None:
        self._share = (share, checked(self._asked["share"], whose="round.json"))
        mine = divide(model, *self._share)
        if self._received is None:
            if self._origins and self._origins.used:
                raise RuntimeError("this process has run other rounds: its model is no longer as first constructed")
            if self._writes:
                # As the model has it, whole: these become the weights that everyone starts from.
                self._update = write_update(self._target / "update.safetensors", mine, None)
            return
        original = self._origins.first("model", lambda: copy_private(mine)) if self._origins else None
        kept = self._source / "state" / PRIVATE
        load(mine, self._received, TensorFile(kept) if kept.exists() else None, self._received, original)

    def _restore(self, name: str, obj: Any) -> None:
        def take() -> tuple[Any, dict[str, Any]]:
            tensors: dict[str, Any] = {}
            structure = structure_of(obj, name, tensors)
            return structure, {key: _copy(value) for key, value in tensors.items()}

        original = self._origins.first(f"keep.{name}", take) if self._origins else None
        if not read_state(self._source / "state", name, obj) and original is not None:
            structure, tensors = original
            restore(obj, structure, lambda key, _: _copy(tensors[key]))

    def _scored(self, phase: str, metrics: Mapping[str, Metric]) -> None:
        pass  # it is in the report

    def _progress(self, steps: int | None) -> None:
        if self._writes:
            self._sign_of_life.note(steps)

    def _submit(self, model: Any, samples: int, steps: int) -> None:
        mine = divide(model, *self._share)
        if not self._writes:
            return
        transfer = self._asked["transfer"]
        self._update = write_update(
            self._target / "update.safetensors",
            mine,
            self._received,
            form=transfer["form"],
            dtype=transfer["dtype"],
        )
        if mine.private:
            write_private(_made(self._target / "state") / PRIVATE, mine)

    def _finish(self) -> None:
        if not self._writes:
            return
        if self.trains:
            for name, obj in self._kept.items():
                write_state(_made(self._target / "state"), name, obj)
        if (self._target / "state").exists():
            make_names_durable(self._target / "state")
        track(self._metrics, round_number=self.round)
        samples, steps = self._submitted or (0, 0)
        write_json(
            self._target / "report.json",
            {
                "schema_version": 1,
                "samples": samples,
                "steps": steps,
                "update": asdict(self._update) if self._update else None,
                "metrics": [metric.report(name, phase) for (name, phase), metric in self._metrics.items()],
            },
        )


class SignOfLife:
    """progress.json, written at once and then at most once a second."""

    def __init__(self, path: Path, clock: Callable[[], float], every: float = 1.0) -> None:
        self._path = path
        self._clock = clock
        self._every = every
        self._due = -float("inf")
        self._steps = 0

    def note(self, steps: int | None) -> None:
        self._steps = self._steps + 1 if steps is None else steps
        now = self._clock()
        if now >= self._due:
            self._due = now + self._every
            write_json(self._path, {"steps": self._steps}, durable=False)


def _received(source: Path, purpose: str, expected: Mapping[str, Any] | None) -> TensorFile | None:
    """The weights this round starts from, if they are the ones that were announced."""
    if (purpose == "initialise") != (expected is None):
        raise ValueError(f"round.json: a round to {purpose} comes {'with' if expected else 'without'} weights")
    if expected is None:
        return None
    path = source / "weights.safetensors"
    if path.stat().st_size != expected["bytes"] or sha256_of(path) != expected["sha256"]:
        raise ValueError(f"{path} is not the file that round.json describes: its size or digest differs")
    return TensorFile(path)


def _clear(target: Path) -> None:
    """Take away what an earlier run of this round left, the report first: it must not vouch for anything new."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("report.json", "update.safetensors", "progress.json"):
        (target / name).unlink(missing_ok=True)
    shutil.rmtree(target / "state", ignore_errors=True)


def _made(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    return directory


def _copy(value: Any) -> Any:
    kind = kind_of(value)
    return value if kind is None else kind.copy(value)
