"""A runner that trains in no time: what it makes of a round is known, and it counts its commits in private state.

The model has two tensors: `w`, to which training adds the silo's constant, and `n`, which training replaces by the
number of rounds that this silo has committed before. A lost or doubled commit changes the bytes of every later model.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from messages.ports import Clock
from messages.schemas import FailureCategory
from silo_agent.runners.port import Failed, Finished, Job, Outcome, Runner

SIZE = 3
FOR_EVER = 10 * 86400.0
"""Seconds."""


class Does(StrEnum):
    """What a silo does in rounds that train. In others it answers, unless it declines."""

    TRAIN = "train"
    FAIL = "fail"
    """Its training fails, each time."""
    HANG = "hang"
    """Its training goes on for longer than anybody waits."""
    STRAY = "stray"
    """It trains, and the orchestrator leaves its update out."""
    DECLINE = "decline"
    """Its owner refuses every round; that is not the trainer's business."""


@dataclass(frozen=True, slots=True)
class Member:
    """A silo as these runs know it."""

    constant: float
    samples: int
    does: Does = Does.TRAIN

    @property
    def counts(self) -> bool:
        """Whether its updates are summed."""
        return self.does is Does.TRAIN

    @property
    def publishes(self) -> bool:
        """Whether it sends an update when it is asked to train."""
        return self.does in {Does.TRAIN, Does.STRAY}


class Trainer(Runner):
    """Trains where it is called: its files are the agent's calls, and it dies with the agent."""

    def __init__(self, member: Member, clock: Clock) -> None:
        self._member, self._clock = member, clock

    async def run(self, job: Job) -> Outcome:
        asked = json.loads((job.input / "round.json").read_bytes())
        if asked["purpose"] == "train":
            match self._member.does:
                case Does.FAIL:
                    return Failed(FailureCategory.SCRIPT_ERROR)
                case Does.HANG:
                    await self._clock.sleep(FOR_EVER)
        await asyncio.to_thread(self._one_round, job, asked)
        return Finished()

    def _one_round(self, job: Job, asked: Mapping[str, Any]) -> None:
        kept = job.input / "state" / "count"
        count = int(kept.read_text()) if kept.exists() else 0
        (job.output / "state").mkdir()
        (job.output / "state" / "count").write_text(str(count + 1))
        update = None
        if asked["purpose"] != "evaluate":
            data = weights(self._member.constant, count)
            if asked["weights"]:
                received = load_file(job.input / "weights.safetensors")
                data = weights(float(received["w"][0]) + self._member.constant, count)
            (job.output / "update.safetensors").write_bytes(data)
            update = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        samples = self._member.samples
        loss = {"name": "loss", "phase": "received", "kind": "mean", "count": samples, "value": 1 / (1 + job.round)}
        scores = {"name": "auroc", "phase": "received", "kind": "histogram", "count": 8}
        report = {
            "schema_version": 1,
            "samples": samples,
            "steps": 7,
            "update": update,
            "metrics": [loss, {**scores, "positive": [1, 3], "negative": [4, 0]}],
        }
        (job.output / "report.new").write_text(json.dumps(report))
        (job.output / "report.new").replace(job.output / "report.json")

    async def abandon(self, run: str, round_number: int) -> None:
        """Nothing runs elsewhere."""

    def committed(self, run: str, version: int | None) -> None:
        """Nothing is remembered."""

    async def end(self, run: str) -> None:
        """Nothing is remembered."""

    async def close(self) -> None:
        """Nothing runs."""


def weights(value: float, count: int) -> bytes:
    """A model of this value."""
    return save({"w": np.full(SIZE, value, np.float32), "n": np.full(1, count, np.float32)})
