"""A round for an agent: files in, files out, and the report last.

Here lives the contract's order of reading and writing (docs/training-contract.md). Of several ranks every one
reads, and only rank 0 writes. Nothing of this module knows of queues, other silos or how the agent moves the files.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from silobus.drift import Control, Proximal
from silobus.files import TensorFile, Written, make_names_durable, sha256_of, write_json
from silobus.metrics import Metric
from silobus.round import Round, Told
from silobus.share import checked
from silobus.state import Origins, read_state, restore, structure_of, write_state
from silobus.tensors import kind_of
from silobus.tracking import track
from silobus.unmet import NoProximalTerm, NotCorrected
from silobus.weights import copy_private, divide, load, write_private, write_update

PURPOSES = ("initialise", "train", "evaluate")
PRIVATE = "model.safetensors"
CONTROL = "control.safetensors"
"""The server's control variate in the input, the silo's own in the state, how that changed in the output."""


class FederatedRound(Round):
    alone = False

    def __init__(
        self,
        source: Path,
        target: Path,
        *,
        defaults: Mapping[str, Any],
        writes: bool,
        hashes: bool = True,
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
        self._hashes = hashes
        self._origins = origins
        if (asked["purpose"] == "initialise") != (asked["weights"] is None):
            how = "with" if asked["weights"] else "without"
            raise ValueError(f"round.json: a round to {asked['purpose']} comes {how} weights")
        self._received = _given(source / "weights.safetensors", asked["weights"], hashes)
        self._wants_control = "control" in asked.get("roles", ())
        self._common = _given(source / CONTROL, asked.get("control"), hashes)
        self._near: Proximal | None = None
        self._control: Control | None = None
        self._update: Written | None = None
        self._change: Written | None = None
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
                self._update = write_update(self._target / "update.safetensors", mine, None, hashes=self._hashes)
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

    def _proximal(self, model: Any, mu: float) -> Any:
        assert self._received is not None  # noqa: S101  # a round that trains has it
        if self._near is None or self._near.owner is not model:
            self._near = Proximal(divide(model, *self._share), self._received)
        return self._near.term(mu)

    def _correct(self, model: Any) -> None:
        if not self._wants_control:
            return
        assert self._received is not None  # noqa: S101  # a round that trains has it
        if self._control is None:
            kept = self._source / "state" / CONTROL
            own = TensorFile(kept) if kept.exists() else None
            self._control = Control(divide(model, *self._share), self._received, self._common, own)
        elif self._control.owner is not model:
            raise RuntimeError("correct() was given another model before in this round")
        self._control.correct()

    def _submit(self, model: Any, samples: int, steps: int, lr: float | None) -> None:
        mine = divide(model, *self._share)
        if self._wants_control:
            _check_corrected(self._control, steps, lr)
        if self._asked["hyperparameters"].get("proximal_mu") and not self._knows_mu:
            raise NoProximalTerm(
                f"this round wants FedProx's term (proximal_mu is {self._asked['hyperparameters']['proximal_mu']}), "
                "and the script has none: add rnd.proximal(model) to the loss, or μ (w - x) to the gradient with μ = "
                "rnd.proximal_mu"
            )
        self._near = None  # its copy of the weights is not needed any more
        if not self._writes:
            return
        transfer = self._asked["transfer"]
        self._update = write_update(
            self._target / "update.safetensors",
            mine,
            self._received,
            hashes=self._hashes,
            form=transfer["form"],
            dtype=transfer["dtype"],
        )
        state = self._target / "state"
        if mine.private:
            write_private(_made(state) / PRIVATE, mine)
        if self._control is not None and lr is not None:
            told, kept = self._target / CONTROL, _made(state) / CONTROL
            self._change = self._control.write(mine, steps, lr, told, kept, hashes=self._hashes)

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
                "update": self._update.report() if self._update else None,
                **({"control": self._change.report()} if self._change else {}),
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


def _given(path: Path, expected: Mapping[str, Any] | None, hashes: bool) -> TensorFile | None:
    """A file of the input, if it is the one that was announced; None when none was."""
    if expected is None:
        return None
    if path.stat().st_size != expected["bytes"] or (hashes and sha256_of(path) != expected["sha256"]):
        raise ValueError(f"{path} is not the file that round.json describes: its size or digest differs")
    return TensorFile(path)


def _check_corrected(control: Control | None, steps: int, lr: float | None) -> None:
    """SCAFFOLD's sums are right only if every step was corrected, and the length of the steps is known."""
    calls = control.calls if control else 0
    if calls != steps:
        raise NotCorrected(
            f"this round wants control variates (SCAFFOLD): {steps} steps were submitted, but correct() was called "
            f"{calls} times; call rnd.correct(model) after backward(), before each step of the optimizer"
        )
    if lr is None:
        raise NotCorrected("this round wants control variates (SCAFFOLD): give submit() the learning rate, lr=…")


def _clear(target: Path) -> None:
    """Take away what an earlier run of this round left, the report first: it must not vouch for anything new."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("report.json", "update.safetensors", CONTROL, "progress.json"):
        (target / name).unlink(missing_ok=True)
    shutil.rmtree(target / "state", ignore_errors=True)


def _made(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    return directory


def _copy(value: Any) -> Any:
    kind = kind_of(value)
    return value if kind is None else kind.copy(value)
