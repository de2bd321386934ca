"""The same number of every silo, sorted: what leaves out the smallest and the greatest shares this. Pure.

A chunk of every update is held at once, so chunks are the shorter the more silos there are.
"""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

import numpy as np

from orchestrator.aggregation.strategy import Array, Strategy, Wide

COLUMNS: Final = 1 << 13
"""Columns sorted at a time: with some dozens of silos they stay in the processor's cache."""


class Columns(Strategy, ABC):
    """A strategy that takes the mean of each number without its `trim` smallest and greatest; integers too."""

    __slots__ = ()

    @abstractmethod
    def trim(self, silos: int) -> int:
        """How many of each side; less than half."""

    def rows(self, silos: int) -> int:
        return silos

    def integer_trim(self, silos: int) -> int:
        return self.trim(silos)

    def init(self, silos: int, elements: int, dtype: np.dtype[Any]) -> Array:
        return rows_of(silos, elements, dtype)

    def accumulate(self, total: Array, index: int, values: Array, share: float) -> None:
        np.copyto(total[index], values)

    def mean(self, total: Array, part: slice) -> Wide:
        trim = self.trim(len(total))
        found = np.empty(len(range(*part.indices(total.shape[1]))), np.float64)
        for start in range(0, len(found), COLUMNS):
            columns = total[:, part][:, start : start + COLUMNS]
            sort_columns(columns)
            kept = columns[trim : len(total) - trim]
            np.mean(kept, axis=0, dtype=np.float64, out=found[start : start + COLUMNS])
        return found


def rows_of(silos: int, elements: int, dtype: np.dtype[Any]) -> Array:
    """Room for every silo's numbers, taken from the system, which has it back as soon as nobody uses it.

    Of what an allocator has back it may keep what it can neither reuse nor return: a batch more than the budget has.
    """
    room = mmap.mmap(-1, max(1, silos * elements * dtype.itemsize))
    return np.ndarray((silos, elements), dtype, room)


def sort_columns(rows: Array) -> None:
    """Sorts each column of (silos, numbers) in place, row by row: a few passes over rows that are in the cache.

    Batcher: Sorting Networks and Their Applications, AFIPS 1968 (odd-even merging, for any number of rows).
    """
    spare = np.empty_like(rows[0]) if len(rows) else rows
    for low, high in _comparators(len(rows)):
        np.minimum(rows[low], rows[high], out=spare)
        np.maximum(rows[low], rows[high], out=rows[high])
        rows[low] = spare


@lru_cache(maxsize=64)
def _comparators(count: int) -> tuple[tuple[int, int], ...]:
    """Which two rows are compared, one after the other."""
    return tuple(_merges(count))


def _merges(count: int) -> Iterator[tuple[int, int]]:
    width = 1
    while width < count:
        step = width
        while step >= 1:
            for first in range(step % width, count - step, 2 * step):
                for row in range(first, min(first + step, count - step)):
                    if row // (2 * width) == (row + step) // (2 * width):
                        yield row, row + step
            step //= 2
        width *= 2
