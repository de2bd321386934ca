"""The demo's hospitals: which tasks there are, who gets which data, and the policy that each hospital's owner wrote.

A task's folder under examples/ brings its own data (`make_data.py`) and script (`train.py`).
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orchestrator
from orchestrator.cli.folder import Folder
from orchestrator.cli.patients import share_out
from orchestrator.cli.processes import Command, spawn, terminate
from orchestrator.cli.terminal import Complaint

_PACKAGE: Final = Path(orchestrator.__file__).resolve().parent
EXAMPLES: Final = next(
    (p for p in (_PACKAGE.parent / "examples", _PACKAGE / "examples") if (p / "breast_cancer").is_dir()), _PACKAGE
)
NAMES: Final = ("north", "south", "island", "east", "west", "valley", "harbour", "lake")
FEWEST: Final = 20
"""Rows of the smallest hospital."""
FEWEST_HELD_OUT: Final = 10
"""Held-out rows of a hospital, below which it says no numbers about them."""


@dataclass(frozen=True, slots=True)
class Task:
    """One of the examples, as the demo runs it."""

    name: str
    folder: str
    suffix: str
    """Of its data files."""
    rows: str
    """What a row is."""
    alpha: float
    """How even the hospitals are: the smaller, the more each has labels of its own."""
    hyperparameters: Mapping[str, Any]
    limits: Mapping[str, Any]
    metrics: Mapping[str, Any]


_LIMITS: Final = {
    "lr": {"min": 0.0001, "max": 1.0},
    "epochs": {"min": 1, "max": 20},
    "batch": {"min": 1, "max": 256},
    "proximal_mu": {"min": 0.0, "max": 1.0},
}
_METRICS: Final = {"loss": {"min": 0, "max": 1000}, "accuracy": {"min": 0, "max": 1}}
TASKS: Final = {
    task.name: task
    for task in (
        Task(
            name="breast-cancer",
            folder="breast_cancer",
            suffix=".csv",
            rows="patients",
            alpha=1.0,
            hyperparameters={"lr": 0.05},
            limits=_LIMITS | {"momentum": {"min": 0.0, "max": 0.99}},
            metrics=_METRICS | {"auroc": {}},
        ),
        Task(
            name="digits",
            folder="digits",
            suffix=".safetensors",
            rows="images",
            alpha=0.1,
            hyperparameters={"epochs": 2},
            limits=_LIMITS,
            metrics=_METRICS | {"confusion": {}},
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Data:
    """Where a task's data is in a federation's folder."""

    folder: Folder
    task: Task

    @property
    def pooled(self) -> Path:
        """All that anybody trains with: what no one has in reality."""
        return self.folder.patients(self.task.name) / f"pooled{self.task.suffix}"

    @property
    def held_out(self) -> Path:
        """What nobody trains with."""
        return self.folder.patients(self.task.name) / f"test{self.task.suffix}"

    def train(self, silo: str) -> Path:
        return self.folder.data(silo, self.task.name) / f"train{self.task.suffix}"

    def test(self, silo: str) -> Path:
        return self.folder.data(silo, self.task.name) / f"test{self.task.suffix}"


def task_named(name: str) -> Task:
    """One of the examples. Raises Complaint with those there are."""
    if name not in TASKS:
        raise Complaint(f"There is no demo task {name!r}. There are: {', '.join(TASKS)}.")
    return TASKS[name]


def silo_names(count: int) -> list[str]:
    """So many hospitals."""
    return [NAMES[i] if i < len(NAMES) else f"hospital-{i + 1}" for i in range(count)]


def script(task: Task) -> Path:
    """The task's training script. Raises Complaint when it is not there."""
    path = EXAMPLES / task.folder / "train.py"
    if not path.exists():
        raise Complaint(f"{path} is missing. Install Silobus again, or run this in a checkout of its source.")
    return path


async def admit(task: Task, folder: Folder, silos: Sequence[str], *, seed: int) -> None:
    """Gives every hospital its data; that of an earlier start with the same settings is kept."""
    data = Data(folder, task)
    mark = data.pooled.with_name("shared-out.json")
    terms = {"silos": list(silos), "alpha": task.alpha, "seed": seed}
    there = [data.pooled, data.held_out, *(path for silo in silos for path in (data.train(silo), data.test(silo)))]
    if _reads(mark) == terms and all(path.is_file() for path in there):
        return
    mark.unlink(missing_ok=True)
    mark.parent.mkdir(parents=True, exist_ok=True)
    log = folder.log("data")
    make_data = script(task).with_name("make_data.py")
    made = await spawn(Command("data", [sys.executable, str(make_data), str(mark.parent)], log))
    try:
        status = await made.wait()
    finally:
        await terminate(made)
    if status != 0:
        raise Complaint(f"The demo's data could not be made; scikit-learn is needed. Look into {log}.")
    targets = [folder.data(silo, task.name) for silo in silos]
    share_out(data.pooled, data.held_out, targets, alpha=task.alpha, seed=seed, fewest=FEWEST)
    mark.write_text(json.dumps(terms), encoding="utf-8")


def _reads(mark: Path) -> Any:
    try:
        return json.loads(mark.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # what it says is only known to be false: the data is made anew
        return None


def policy(task: Task, folder: Folder, silo: str, silos: int) -> dict[str, Any]:
    """What this hospital's owner allows."""
    code, data = script(task), Data(folder, task)
    return {
        "tasks": {
            task.name: {
                "command": [sys.executable, code.name],
                "directory": str(code.parent),
                "code": {"path": str(code), "sha256": hashlib.sha256(code.read_bytes()).hexdigest()},
                "mode": "warm",
                "data": {"train": str(data.train(silo)), "test": str(data.test(silo))},
                "environment": {"OMP_NUM_THREADS": "1"},
                "timeout": 600,
                "tries": 2,
                "limits": {
                    "rounds": 100_000,
                    "quorum": min(2, silos),
                    "silos": min(2, silos),
                    "hyperparameters": dict(task.limits),
                },
                "outbound": {
                    "roles": ["weights", "control"],
                    "tensors": ["*"],
                    "dtypes": ["float32", "int64", "bfloat16"],
                    "max_bytes": 10_000_000,
                    "metrics": dict(task.metrics),
                    "min_samples": FEWEST_HELD_OUT,
                    "min_cell": 1,
                },
            }
        }
    }
