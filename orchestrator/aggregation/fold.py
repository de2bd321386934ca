"""One chunk of one tensor over all silos: floating-point numbers by the strategy, the others by the integer rule. Pure.

The one place where the two meet, so that the driver and `in_memory` cannot come to differ. It works in blocks that stay
in the processor's cache, and holds nothing of a chunk's length but the strategy's accumulator and the results.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np

from messages.errors import Poison
from messages.safetensors_layout import DTYPES, FLOATING
from orchestrator.aggregation import integers
from orchestrator.aggregation.columns import rows_of
from orchestrator.aggregation.strategy import BLOCK, Array, Cohort, Shares, Strategy, Wide

Form = Literal["weights", "delta"]
_ROUNDING: Final = 1e-6
"""How far from 1 shares may be that somebody worked out in float32."""


@dataclass(frozen=True, slots=True)
class Sum:
    """What one sum is of: the same for each of its chunks."""

    strategy: Strategy
    shares: Shares
    integer_trim: int
    """Of integers, which are summed without the strategy: what it said once is what was looked at."""
    form: Form
    """What floating tensors of updates hold: weights, or changes to the base."""

    @classmethod
    def of(cls, strategy: Strategy, cohort: Cohort, form: Form) -> Sum:
        """Raises Poison when the strategy cannot weigh these updates, or when they are too few for it."""
        with blamed(strategy):
            least = whole_number("least", strategy.least)
            if len(cohort) < least:
                raise Poison(
                    "too-few-updates",
                    f"Strategy {strategy.name} with these options needs {least} updates, and there are "
                    f"{len(cohort)}. Ask for a quorum of {least}.",
                )
            trim = check_needs(strategy, len(cohort))
            shares = strategy.weigh(cohort)
            _check(shares, len(cohort), rest=strategy.reads_base)
        return cls(strategy, shares, trim, form)

    @property
    def reads_base(self) -> bool:
        """Whether the base's numbers are needed."""
        return self.form == "delta" or self.strategy.reads_base

    def fold(self, tensor: str, dtype: str, widest: str, elements: int) -> Fold:
        """For one chunk; `dtype` is safetensors' code of the model's tensor, `widest` that of the updates'."""
        if dtype not in FLOATING:
            return _Integers(self, DTYPES[dtype], elements)
        wide = np.dtype(np.float64 if widest == "F64" else np.float32)
        with blamed(self.strategy):
            return _Floats(self, DTYPES[dtype], wide, elements, averages=self.strategy.averages(tensor))


class Fold(Protocol):
    """Takes the silos' numbers for one chunk, in silo order, then gives the chunk's new numbers."""

    def add(self, index: int, values: Array) -> None:
        """The numbers of the silo at `index`."""
        ...

    def finish(self, base: Array | None, state: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
        """The new numbers, in the tensor's dtype, and what the strategy keeps; both were given for the round before.

        Without a base it is zeros; what the strategy keeps and is not in `state` begins as the strategy says.
        """
        ...


class _Floats:
    def __init__(self, task: Sum, dtype: np.dtype[Any], wide: np.dtype[Any], elements: int, *, averages: bool) -> None:
        self._sum, self._strategy, self._dtype, self._elements = task, task.strategy, dtype, elements
        self._averages, shares = averages, task.shares
        if averages and not task.integer_trim and shares.total > 1 + _ROUNDING:  # as FedNova's, beyond all silos
            shares = Shares.of(shares.integers)
        self._floats, self._share = shares.floats, shares.total
        self._total: Any = task.strategy.init(len(self._floats), elements, wide)

    def add(self, index: int, values: Array) -> None:
        with blamed(self._strategy):
            self._strategy.accumulate(self._total, index, values, self._floats[index])

    def finish(self, base: Array | None, state: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
        new = np.empty(self._elements, self._dtype)
        kept = {name: np.empty(self._elements, np.float32) for name in self._strategy.state}
        with blamed(self._strategy), np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, self._elements, BLOCK):  # what does not fit becomes infinite, and is refused later
                part = slice(start, min(start + BLOCK, self._elements))
                numbers = self._strategy.mean(self._total, part)
                if self._sum.reads_base:
                    numbers = self._stepped(numbers, base, state, kept, part)
                if numbers.shape != (part.stop - part.start,):
                    raise ValueError(f"{numbers.shape} numbers for a part of {part.stop - part.start}")
                new[part] = numbers
        return new, kept

    def _stepped(
        self, numbers: Wide, base: Array | None, state: Mapping[str, Array], kept: dict[str, Array], part: slice
    ) -> Wide:
        anchor = np.zeros(len(numbers)) if base is None else base[part].astype(np.float64)
        if self._sum.form == "weights":
            numbers -= anchor if self._share == 1.0 else self._share * anchor
        if self._strategy.reads_base:
            initial = self._strategy.state
            numbers_kept = {
                name: state[name][part].astype(np.float64) if name in state else np.full(len(numbers), initial[name])
                for name in initial
            }
            if not self._averages:
                numbers = self._strategy.step(numbers, numbers_kept)
            for name in initial:  # all of them: what is not written is what stood in memory before
                kept[name][part] = numbers_kept[name]
        return anchor + numbers


class _Integers:
    def __init__(self, task: Sum, dtype: np.dtype[Any], elements: int) -> None:
        silos = len(task.shares.integers)
        self._weights, self._dtype = task.shares.integers, dtype
        self._trim = task.integer_trim
        self._total: Any = rows_of(silos, elements, dtype) if self._trim else integers.init(elements)

    def add(self, index: int, values: Array) -> None:
        if self._trim:
            self._total[index] = values
        else:
            integers.accumulate(self._total, values, self._weights[index])

    def finish(self, base: Array | None, state: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
        if self._trim:
            return integers.trimmed(self._total, self._trim), {}
        return integers.finish(self._total, sum(self._weights), self._dtype), {}


@contextmanager
def blamed(strategy: Strategy) -> Iterator[None]:
    """What a strategy that is not ours does wrong is Poison with its name. What one of ours does is our bug."""
    try:
        yield
    except (Poison, MemoryError):
        raise
    except Exception as error:
        kind = type(strategy)
        if kind.__module__.startswith(__name__.rpartition(".")[0]):
            raise
        raise Poison(
            "strategy-failed",
            f"{kind.__module__}.{kind.__qualname__} failed: {type(error).__name__}: {str(error)[:300]}"
            f"{_line_of(kind, error)}. Mend it, and start the experiment again.",
        ) from error


def _line_of(kind: type[Strategy], error: Exception) -> str:
    """Where in the strategy's own file it happened, if it did."""
    path = getattr(sys.modules.get(kind.__module__), "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f" ({path.rpartition('/')[2]}, line {lines[-1]})" if path and lines else ""


def check_needs(strategy: Strategy, silos: int) -> int:
    """How many integers are left out on each side of so many.

    Raises ValueError for what a strategy asks for and cannot have with so many updates: it need not be ours.
    """
    if strategy.state and not strategy.reads_base:
        raise ValueError("what keeps `state` says that it `reads_base`: it is `step` that fills it")
    rows, trim = whole_number("rows", strategy.rows(silos)), whole_number("integer_trim", strategy.integer_trim(silos))
    if rows < 1:
        raise ValueError(f"it holds {rows} rows for {silos} updates; one at least")
    if not 0 <= 2 * trim < silos:
        raise ValueError(f"of {silos} integers, {trim} on each side cannot be left out")
    return trim


def whole_number(what: str, value: object) -> int:
    """What a strategy says that has to be an `int`: it need not be ours. Raises ValueError."""
    if not isinstance(value, int):
        raise ValueError(f"`{what}` is {value!r}, which is no `int`")
    return value


def _check(shares: Shares, silos: int, *, rest: bool) -> None:
    """Raises ValueError: a strategy need not be ours. With `rest` the base has what shares leave of 1."""
    if len(shares.floats) != silos or len(shares.integers) != silos:
        raise ValueError(f"{len(shares.floats)} and {len(shares.integers)} shares for {silos} updates")
    if not np.isfinite([*shares.floats, shares.total]).all():
        raise ValueError("a share is not finite")
    if not rest and abs(shares.total - 1) > _ROUNDING:
        raise ValueError(f"its shares add up to {shares.total:g}, not 1: to leave the rest to the base it `reads_base`")
    for share in shares.integers:
        whole_number("integers", share)
    if min(shares.integers) < 0 or not 0 < sum(shares.integers) <= 1 << 30:
        raise ValueError("whole numbers of shares are 0 or more, and add up to 1 at least and 2^30 at most")
