"""The rule for integer and boolean tensors, whichever strategy is used. Pure.

An integer tensor (a count of batches, a vocabulary) becomes the silos' weighted mean, computed exactly and rounded half
to even. A boolean tensor becomes the weighted majority; a tie is false, which is the same rule on 0 and 1.

Exactly: each number is summed as two 32-bit halves in 64 bits, which cannot overflow while the weights add up to at
most 2^30. Weights are divided by their greatest common divisor, and beyond that limit scaled down to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from orchestrator.aggregation.strategy import Array

Halves = np.ndarray[Any, np.dtype[np.int64]]
_LIMIT: Final = 1 << 30


def integer_weights(weights: Sequence[int]) -> tuple[int, ...]:
    """The same proportions in whole numbers that add up to at most 2^30."""
    divisor = math.gcd(*weights)
    reduced = tuple(weight // divisor for weight in weights)
    total = sum(reduced)
    if total <= _LIMIT:
        return reduced
    return tuple(weight * _LIMIT // total for weight in reduced)


def init(elements: int) -> Halves:
    """Sums of the upper and the lower halves."""
    return np.zeros((2, elements), np.int64)


def accumulate(total: Halves, values: Array, weight: int) -> None:
    """Adds one silo's numbers, in place."""
    wide = values if values.dtype == np.uint64 else values.astype(np.int64)
    total[0] += (wide >> 32).astype(np.int64) * weight
    total[1] += (wide & 0xFFFFFFFF).astype(np.int64) * weight


def finish(total: Halves, weight: int, dtype: np.dtype[Any]) -> Array:
    """The mean, given the sum of all weights."""
    upper, rest = np.divmod(total[0], weight)
    lower, rest = np.divmod((rest << 32) + total[1], weight)
    mean = (upper.astype(np.uint64) << 32) + lower.astype(np.uint64)
    up = (2 * rest > weight) | ((2 * rest == weight) & ((mean & 1) == 1))
    mean += up.astype(np.uint64)
    result: Array = mean if dtype == np.uint64 else mean.view(np.int64).astype(dtype)
    return result
