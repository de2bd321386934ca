"""What a round must come to: every weight is one number, worked out here once more, by other code than theirs.

Each round's weights are float32 of the float64 mean of what its silos must have added to the round before; with
momentum at the server they are one velocity more than before, which is half of what it was and the mean's change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.chaos.load import SERVER_MOMENTUM, Row
from benchmarks.chaos.stage import SILOS
from orchestrator.experiment.state import UpdateRecord


@dataclass(frozen=True, slots=True)
class Made:
    """Every number of the weights that a round made, and every number of what its strategy keeps, by name."""

    weights: float
    kept: Mapping[str, float]


INITIAL = Made(0.0, {})


def after(row: Row, before: Made, updates: Sequence[UpdateRecord], trained: Mapping[str, int]) -> Made:
    """What comes of a round with these updates; `trained`: how many rounds each silo had trained, with this one."""
    mean = _mean(row.adds, before.weights, updates, trained)
    if row.strategy.name == "fedavg":
        return Made(float(np.float32(mean)), {})
    velocity = SERVER_MOMENTUM * before.kept.get("momentum", 0.0) + (mean - before.weights)
    return Made(float(np.float32(before.weights + velocity)), {"momentum": float(np.float32(velocity))})


def _mean(adds: str, before: float, updates: Sequence[UpdateRecord], trained: Mapping[str, int]) -> float:
    silos = {silo.name: silo for silo in SILOS}
    total = sum(silos[update.silo].samples for update in updates)
    mean = 0.0
    for update in updates:
        silo, rounds = silos[update.silo], trained[update.silo]
        added = {
            "constant": silo.adds,
            "count": silo.adds * rounds,
            "momentum": silo.adds * (2 - 0.5 ** (rounds - 1)),
        }[adds]
        mean += float(np.float32(before) + np.float32(added)) * (silo.samples / total)
    return mean
