"""A runner that trains in no time: what it makes of a round is known, and it counts its commits in private state.

The model has two tensors: `w`, to which training adds the silo's constant, and `n`, which training replaces by the
number of rounds that this silo has committed before. A lost or doubled commit changes the bytes of every later model.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load_file, save

from silo_agent.runners.port import Finished, Job, Outcome, Runner

SIZE = 3


@dataclass(frozen=True, slots=True)
class Member:
    """A silo as these runs know it."""

    constant: float
    samples: int


class Trainer(Runner):
    """Trains where it is called: its files are the agent's calls, and it dies with the agent."""

    def __init__(self, member: Member) -> None:
        self._member = member

    async def run(self, job: Job) -> Outcome:
        await asyncio.to_thread(self._one_round, job)
        return Finished()

    def _one_round(self, job: Job) -> None:
        asked = json.loads((job.input / "round.json").read_bytes())
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
