"""The rule for integer and boolean tensors, whichever strategy is used. Pure.

An integer tensor (a count of batches, a vocabulary) becomes the silos' weighted mean, computed exactly and rounded half
to even. A boolean tensor becomes the weighted majority; a tie is false, which is the same rule on 0 and 1. Integers are
never deltas, whatever travels.

Robust strategies leave out the smallest and the greatest of the silos' numbers, as many as they say, and take the same
mean of the rest, each counting the same; with Krum and the geometric median only the middle is left: the median, and
of booleans the majority. Those two judge silos by floating tensors alone, so that a silo of good weights may still lie
about its integers: what it says must not reach the model by itself.

Exactly: each number is summed as two 32-bit halves in 64 bits, which cannot overflow while the weights add up to at
most 2^30 (`strategy.whole`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from orchestrator.aggregation.columns import COLUMNS, sort_columns
from orchestrator.aggregation.strategy import BLOCK, Array

Halves = np.ndarray[Any, np.dtype[np.int64]]


def init(elements: int) -> Halves:
    """Sums of the upper and the lower halves."""
    return np.zeros((2, elements), np.int64)


def accumulate(total: Halves, values: Array, weight: int) -> None:
    """Adds one silo's numbers, in place."""
    for start in range(0, len(values), BLOCK):
        part = values[start : start + BLOCK]
        wide = part if part.dtype == np.uint64 else part.astype(np.int64)
        total[0, start : start + BLOCK] += (wide >> 32).astype(np.int64) * weight
        total[1, start : start + BLOCK] += (wide & 0xFFFFFFFF).astype(np.int64) * weight


def finish(total: Halves, weight: int, dtype: np.dtype[Any]) -> Array:
    """The mean, given the sum of all weights."""
    result = np.empty(total.shape[1], dtype)
    for start in range(0, total.shape[1], BLOCK):
        part = slice(start, start + BLOCK)
        upper, rest = np.divmod(total[0, part], weight)
        lower, rest = np.divmod((rest << 32) + total[1, part], weight)
        mean = (upper.astype(np.uint64) << 32) + lower.astype(np.uint64)
        up = (2 * rest > weight) | ((2 * rest == weight) & ((mean & 1) == 1))
        mean += up.astype(np.uint64)
        result[part] = mean if dtype == np.uint64 else mean.view(np.int64).astype(dtype)
    return result


def trimmed(rows: Array, trim: int) -> Array:
    """The mean of what is left in each column of (silos, numbers) without the `trim` smallest and greatest."""
    result = np.empty(rows.shape[1], rows.dtype)
    for start in range(0, rows.shape[1], COLUMNS):
        part = rows[:, start : start + COLUMNS]
        sort_columns(part)
        result[start : start + COLUMNS] = _plain_mean(part[trim : len(rows) - trim])
    return result


def _plain_mean(rows: Array) -> Array:
    total = init(len(rows[0]))
    for row in rows:
        accumulate(total, row, 1)
    return finish(total, len(rows), rows[0].dtype)
