"""Does federated training do any good? The digits example, over silos that hardly share a digit, against each alone.

The real script runs in the real runner, one warm process per silo, and the real aggregation makes the models between.
Over five splits (Dirichlet 0.1, three silos) what silos train together has to be more accurate on all ten digits than
the best of what each trains alone in as many rounds. An aggregation that leaves silos out does not pass.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import runpy
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import pytest

from messages.transport.directory import DirectoryStore
from orchestrator.aggregation import FedAvg, Strategy, strategy_named
from orchestrator.aggregation.driver import Contribution, Source, aggregate
from orchestrator.aggregation.strategy import Cohort, Shares
from silo_agent.policy import Task
from silo_agent.runners.local import LocalRunner
from silo_agent.runners.port import Finished, Job

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits"
SILOS = ("silo-0", "silo-1", "silo-2")
SEEDS = range(5)
ROUNDS = 6


@dataclass(frozen=True, slots=True)
class Weights:
    """A weights file, and what it took to make it."""

    path: Path
    sha256: str
    bytes: int
    samples: int
    steps: int


@dataclass(frozen=True, slots=True)
class Laboratory:
    """Runs rounds of the script through the contract's directories, and sums what comes out."""

    folder: Path
    runner: LocalRunner
    store: DirectoryStore
    task: Task

    async def together(self, seed: int, strategy: Strategy, model: Weights) -> float:
        """Accuracy of what the silos train together."""
        name = f"together-{seed}-{type(strategy).__name__}"
        for number in range(1, ROUNDS + 1):
            silos = await asyncio.gather(*(self.trained(silo, seed, f"{name}/{number}", model) for silo in SILOS))
            model = await self.summed(f"{name}/{number}", strategy, model, silos)
        return await self.accuracy(seed, name, model)

    async def best_alone(self, seed: int, model: Weights) -> float:
        """Accuracy of the best of what each silo trains by itself."""

        async def alone(silo: str, model: Weights) -> float:
            name = f"alone-{seed}-{silo}"
            for number in range(1, ROUNDS + 1):
                model = await self.trained(silo, seed, f"{name}/{number}", model)
            return await self.accuracy(seed, name, model, silo)

        return max(await asyncio.gather(*(alone(silo, model) for silo in SILOS)))

    async def first_model(self) -> Weights:
        """As the script constructs it: the same for all, since its generator is seeded."""
        await self._round("first", self.folder / "first", "initialise", None, None)
        return _weights(self.folder / "first" / "out")

    async def trained(self, silo: str, seed: int, name: str, model: Weights) -> Weights:
        """What a silo makes of a model in one round."""
        place = self.folder / name / silo
        await self._round(silo, place, "train", model, self.data(silo, seed))
        return _weights(place / "out")

    async def accuracy(self, seed: int, name: str, model: Weights, silo: str = SILOS[0]) -> float:
        """Of a model, on as many images of every digit."""
        place = self.folder / name / "evaluation"
        await self._round(silo, place, "evaluate", model, self.data(silo, seed))
        metrics = json.loads((place / "out" / "report.json").read_text())["metrics"]
        return next(float(metric["value"]) for metric in metrics if metric["name"] == "accuracy")

    async def summed(self, name: str, strategy: Strategy, base: Weights, silos: Sequence[Weights]) -> Weights:
        """The next global weights."""
        await self.store.create("global", f"{name}/base", base.path)
        contributions = []
        for silo, update in zip(SILOS, silos, strict=True):
            await self.store.create(f"updates-{silo}", f"{name}/update", update.path)
            contributions.append(
                Contribution(
                    silo=silo,
                    container=f"updates-{silo}",
                    blob=f"{name}/update",
                    sha256=update.sha256,
                    bytes=update.bytes,
                    form="weights",
                    samples=update.samples,
                    steps=update.steps,
                )
            )
        source = Source("global", f"{name}/base", base.sha256, base.bytes)
        target = self.folder / name / "global.safetensors"
        summed = await aggregate(self.store, strategy, base=source, contributions=contributions, target=target)
        scan = summed.scan
        return Weights(target, scan.sha256, scan.bytes, 0, 0)

    def data(self, silo: str, seed: int) -> dict[str, str]:
        """What a silo has in this split."""
        place = self.folder / f"data-{seed}"
        return {"train": str(place / f"{silo}.safetensors"), "test": str(place / "test.safetensors")}

    async def _round(
        self, silo: str, place: Path, purpose: str, model: Weights | None, data: dict[str, str] | None
    ) -> None:
        given, output = place / "in", place / "out"
        given.mkdir(parents=True)
        output.mkdir()
        (given / "state").mkdir()
        if model is not None:
            (given / "weights.safetensors").symlink_to(model.path)
        asked = {
            "schema_version": 1,
            "experiment": "digits",
            "run": "digits_00000000",
            "round": 0 if model is None else 1,
            "task": "digits",
            "purpose": purpose,
            "share": ["*"],
            "transfer": {"form": "weights", "dtype": None},
            "hyperparameters": {},
            "data": data or {},
            "seed": int.from_bytes(hashlib.sha256(str(place.relative_to(self.folder)).encode()).digest()[:7], "big"),
            "weights": None if model is None else {"sha256": model.sha256, "bytes": model.bytes},
        }
        (given / "round.json").write_text(json.dumps(asked))
        mode = self.task.model_copy(update={"mode": "per-round" if model is None else "warm"})
        log = place / "output.txt"
        job = Job(run=silo, round=1, name="digits", task=mode, input=given, output=output, log=log, version=None)
        assert await self.runner.run(job) == Finished(), log.read_text()
        self.runner.committed(silo, None)


@asynccontextmanager
async def laboratory() -> AsyncIterator[Laboratory]:
    with tempfile.TemporaryDirectory() as folder:
        runner = LocalRunner(Path(folder) / "runtime")
        await runner.prepare()
        task = Task.model_validate(
            {
                "command": [sys.executable, "train.py"],
                "directory": EXAMPLE,
                "code": {"path": EXAMPLE / "train.py", "sha256": "0" * 64},
                "at_once": len(SILOS),
                "environment": {"OMP_NUM_THREADS": "1"},
                "limits": {"rounds": 0},
            }
        )
        make_data = runpy.run_path(str(EXAMPLE / "make_data.py"))["main"]
        for seed in SEEDS:
            make_data(Path(folder) / f"data-{seed}", seed)
        try:
            yield Laboratory(Path(folder), runner, DirectoryStore(Path(folder) / "store"), task)
        finally:
            await runner.close()


def _weights(output: Path) -> Weights:
    report = json.loads((output / "report.json").read_text())
    path = output / "update.safetensors"
    data = path.read_bytes()
    return Weights(path, hashlib.sha256(data).hexdigest(), len(data), report["samples"], report["steps"])


@dataclass(frozen=True, slots=True)
class Compared:
    """Accuracies over the splits."""

    together: tuple[float, ...]
    best_alone: tuple[float, ...]

    @property
    def worth_it(self) -> bool:
        """The criterion: better in the mean over the splits, and better in every one."""
        each = all(t > a for t, a in zip(self.together, self.best_alone, strict=True))
        return each and fmean(self.together) > fmean(self.best_alone)


class FirstUpdate(FedAvg):
    """An aggregation that is wrong: whatever the others sent, the first update is the result."""

    def weigh(self, cohort: Cohort) -> Shares:
        return Shares.of((1, *(0 for _ in cohort.facts[1:])))


async def test_together_silos_train_a_better_model_than_the_best_of_them_alone() -> None:
    """And an aggregation that returns the first update would be noticed; two splits are enough for that."""
    async with laboratory() as lab:
        first = await lab.first_model()
        alone = tuple([await lab.best_alone(seed, first) for seed in SEEDS])
        summed = [await lab.together(seed, strategy_named("fedavg", {}), first) for seed in SEEDS]
        wrong = [await lab.together(seed, FirstUpdate(), first) for seed in SEEDS[:2]]
    right = Compared(tuple(summed), alone)
    assert right.worth_it, right
    noticed = Compared(tuple(wrong), alone[:2])
    assert not noticed.worth_it, noticed
    assert fmean(noticed.together) < fmean(noticed.best_alone), noticed
