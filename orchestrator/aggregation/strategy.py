"""What an aggregation strategy is. No strategy lives here, and no I/O, clock, random number or log ever does.

A strategy is a small frozen object. The driver (or `in_memory`) shows it one chunk of one floating-point tensor at a
time: `init` makes an accumulator, `accumulate` adds one silo's numbers, in silo order, `finish` gives the chunk's new
numbers. So memory does not grow with the model or the number of silos. Integer and boolean tensors never reach a
strategy: they follow the rule in `integers`, whichever strategy is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from messages.errors import Poison

Array = np.ndarray[Any, np.dtype[Any]]
Wide = np.ndarray[Any, np.dtype[np.float64]]
Options = Mapping[str, bool | int | float | str]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a silo's update before a number of it is read."""

    silo: str
    samples: int
    steps: int


class Strategy(Protocol):
    """How updates become the next global weights."""

    @property
    def name(self) -> str:
        """As an experiment spells it."""
        ...

    @property
    def reads_base(self) -> bool:
        """Whether `finish` wants to see the weights that the round started from."""
        ...

    def weigh(self, facts: Sequence[Facts]) -> tuple[int, ...]:
        """A weight for each update, as whole numbers, not all zero. Raises Poison when the facts give none."""
        ...

    def init(self, elements: int) -> Wide:
        """An accumulator for a chunk of so many numbers."""
        ...

    def accumulate(self, total: Wide, values: Array, share: float) -> None:
        """Adds one silo's chunk, in place. `values` are weights (never deltas) in any floating dtype.

        `share` is the silo's weight divided by the sum of all.
        """
        ...

    def finish(self, total: Wide, base: Array | None) -> Wide:
        """The new numbers of the chunk."""
        ...


def invalid_options(strategy: str, description: str) -> Poison:
    """The error for options of an experiment's strategy that make no sense."""
    return Poison("invalid-strategy-options", f"Strategy {strategy}: {description}")
