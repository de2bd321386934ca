"""What the demo compares with: the same script, over the same rounds, by each hospital alone and on all data.

A process of its own (`python -m orchestrator.cli.baselines`), since the script imports torch, once, and runs again for
every round by the training contract's directories. A line of JSON in is a job, a line of JSON out its answer:

    {"trains": {NAME: CSV, …}, "test": CSV, "rounds": 5}     {NAME: {"accuracy": …}, …}
    {"weights": FILE, "test": CSV}                           {"accuracy": …}

Its rounds' directories go into a folder that whoever starts it gives and takes away: it may be killed at any time.
Every round starts from the weights of the one before, the first from those the script makes, as in a federated run.
"""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from messages.schemas import MetricReport
from orchestrator.experiment.metrics import number_of

_METRIC: Final[TypeAdapter[Any]] = TypeAdapter(MetricReport)


class Trainer:
    """The script, run in this process round after round."""

    def __init__(self, script: Path, hyperparameters: Mapping[str, Any], scratch: Path) -> None:
        self._script = script
        self._hyperparameters = dict(hyperparameters)
        self._scratch = scratch
        self._count = 0

    def initialise(self) -> Path:
        """The weights a run starts from."""
        return self._run("initialise", 0, None, {}) / "update.safetensors"

    def train(self, weights: Path, train: str, test: str, round_number: int) -> Path:
        """The weights after one more round."""
        data = {"train": train, "test": test}
        return self._run("train", round_number, weights, data) / "update.safetensors"

    def evaluate(self, weights: Path, test: str) -> dict[str, float]:
        """What the script itself says about weights, on data that nobody trained with."""
        output = self._run("evaluate", 1, weights, {"train": test, "test": test})
        return _numbers(json.loads((output / "report.json").read_text()))

    def _run(self, purpose: str, round_number: int, weights: Path | None, data: Mapping[str, str]) -> Path:
        self._count += 1
        place = self._scratch / f"{self._count:05d}"
        given, output = place / "in", place / "out"
        (given / "state").mkdir(parents=True)
        output.mkdir()
        if weights is not None:
            shutil.copyfile(weights, given / "weights.safetensors")
        (given / "round.json").write_text(json.dumps(self._round(purpose, round_number, weights, data)))
        os.environ.update(SILOBUS_INPUT=str(given), SILOBUS_OUTPUT=str(output))
        sys.argv = [str(self._script)]
        runpy.run_path(str(self._script), run_name="__main__")
        return output

    def _round(self, purpose: str, number: int, weights: Path | None, data: Mapping[str, str]) -> dict[str, Any]:
        claim = None
        if weights is not None:
            content = weights.read_bytes()
            claim = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        return {
            "schema_version": 1,
            "experiment": "baseline",
            "run": "baseline_00000000",
            "round": number,
            "task": self._script.parent.name.replace("_", "-"),
            "purpose": purpose,
            "share": ["*"],
            "transfer": {"form": "weights", "dtype": None},
            "hyperparameters": self._hyperparameters,
            "data": dict(data),
            "seed": number,
            "weights": claim,
        }


def _numbers(report: Mapping[str, Any]) -> dict[str, float]:
    metrics = [number_of(_METRIC.validate_python(metric)) for metric in report["metrics"]]
    return {metric.name: metric.number for metric in metrics if metric.number is not None}


def answer(trainer: Trainer, job: Mapping[str, Any]) -> Any:
    """One job done."""
    if "weights" in job:
        return trainer.evaluate(Path(job["weights"]), job["test"])
    answers = {}
    first = trainer.initialise()
    for name, train in job["trains"].items():
        weights = first
        for number in range(1, job["rounds"] + 1):
            weights = trainer.train(weights, train, job["test"], number)
        answers[name] = trainer.evaluate(weights, job["test"])
    return answers


def main() -> None:
    script, hyperparameters, scratch = Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever the script prints is not an answer
    trainer = Trainer(script, hyperparameters, scratch)
    for line in sys.stdin:
        answers.write(json.dumps(answer(trainer, json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
