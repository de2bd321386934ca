"""One chunk of one tensor over all silos: floating-point numbers by the strategy, the others by the integer rule. Pure.

The one place where the two meet, so that the driver and `in_memory` cannot come to differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from messages.safetensors_layout import DTYPES, FLOATING
from orchestrator.aggregation import integers
from orchestrator.aggregation.strategy import Array, Facts, Strategy


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each silo counts, in silo order: shares that add up to 1, and whole numbers for integers."""

    shares: tuple[float, ...]
    integers: tuple[int, ...]

    @classmethod
    def of(cls, strategy: Strategy, facts: Sequence[Facts]) -> Weights:
        """Raises Poison when the strategy cannot weigh these updates."""
        weights = strategy.weigh(facts)
        total = sum(weights)
        return cls(tuple(weight / total for weight in weights), integers.integer_weights(weights))


class Fold:
    """Takes the silos' numbers for one chunk, in silo order, then gives the chunk's new numbers."""

    def __init__(self, strategy: Strategy, weights: Weights, dtype: str, elements: int) -> None:
        """`dtype` is safetensors' code: that of the model, which an update's need not be."""
        self._strategy, self._weights = strategy, weights
        self._dtype = DTYPES[dtype]
        self._floating = dtype in FLOATING
        self._total: Any = strategy.init(elements) if self._floating else integers.init(elements)

    def add(self, index: int, values: Array, base: Array | None) -> None:
        """The numbers of the silo at `index`: weights, or with `base` a delta to it. Integers are never deltas."""
        if not self._floating:
            integers.accumulate(self._total, values, self._weights.integers[index])
        elif base is None:
            self._strategy.accumulate(self._total, values, self._weights.shares[index])
        else:
            trained = base.astype(np.float64)
            trained += values.astype(np.float64)
            self._strategy.accumulate(self._total, trained, self._weights.shares[index])

    def finish(self, base: Array | None) -> Array:
        """The new numbers, in the tensor's dtype; `base` when the strategy reads it."""
        if not self._floating:
            return integers.finish(self._total, sum(self._weights.integers), self._dtype)
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused when it is written
            return self._strategy.finish(self._total, base).astype(self._dtype)
