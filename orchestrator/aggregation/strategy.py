"""What an aggregation strategy is. No strategy lives here, and no I/O, clock, random number or log ever does.

A strategy is a small frozen object. Before any number is read, `weigh` says how much each update counts. Then the
driver (or `in_memory`) shows it one chunk of one floating-point tensor at a time: `init` makes an accumulator,
`accumulate` takes one silo's numbers, in silo order, `mean` says what the silos say together, and `step` what the
server does about it. So memory does not grow with the model or the number of silos. What else it needs (the base,
distances, numbers kept from round to round, room) it declares, and gets.

All of it works number by number: a chunk may be cut anywhere. Integer and boolean tensors never reach a strategy: they
follow the rule in `integers`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import numpy as np

from messages.fields import Scalar
from messages.schemas import Role
from orchestrator.aggregation.distances import Distances
from orchestrator.aggregation.options import Options

Array = np.ndarray[Any, np.dtype[Any]]
Wide = np.ndarray[Any, np.dtype[np.float64]]
State = Mapping[str, Wide]
BLOCK: Final = 1 << 15
"""Numbers worked on at a time, so that they stay in the processor's cache."""
GREATEST_KEPT: Final = 3.4e38
"""What a strategy keeps is float32: nothing in it begins as more."""
STATISTICS: Final = ("running_mean", "running_var", "moving_mean", "moving_variance")
"""How the names end that frameworks give to the statistics of their normalisation."""
_LIMIT: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a silo's update before a number of it is read."""

    silo: str
    samples: int
    steps: int


@dataclass(frozen=True, slots=True)
class Cohort:
    """A frozen set of updates, in silo order, before they are summed."""

    facts: tuple[Facts, ...]
    members: int
    """How many silos take part in the run, asked this time or not; at least as many as there are updates."""
    distances: Distances | None = None
    """How far updates are from the base and from each other; there for a strategy that `measures`."""

    def __len__(self) -> int:
        return len(self.facts)

    @property
    def measured(self) -> Distances:
        """The distances. Raises ValueError when nobody took them."""
        if self.distances is None:
            raise ValueError("a strategy that looks at distances says that it measures")
        return self.distances


@dataclass(frozen=True, slots=True)
class Shares:
    """How much each update counts, in silo order."""

    floats: tuple[float, ...]
    """What each silo's numbers are multiplied with."""
    integers: tuple[int, ...]
    """What it counts in the integer rule: whole numbers, not all 0, that add up to at most 2^30."""

    @staticmethod
    def of(weights: Sequence[int]) -> Shares:
        """Shares that add up to 1, for weights in whole numbers, not all 0."""
        total = sum(weights)
        return _Parts(tuple(weight / total for weight in weights), whole(weights))

    def scaled(self, floats: Sequence[float]) -> Shares:
        """The same silos' numbers, multiplied with something else; integers count as they did."""
        return Shares(tuple(floats), self.integers)

    @property
    def total(self) -> float:
        """The sum of `floats`. Where it is not 1 the base has the rest."""
        return math.fsum(self.floats)


class _Parts(Shares):
    """Parts of one whole: they add up to 1, though each of them is rounded."""

    __slots__ = ()

    @property
    def total(self) -> float:
        return 1.0


def whole(weights: Sequence[int]) -> tuple[int, ...]:
    """The same proportions in whole numbers that add up to at most 2^30."""
    divisor = math.gcd(*weights)
    reduced = tuple(weight // divisor for weight in weights)
    total = sum(reduced)
    if total <= _LIMIT:
        return reduced
    return tuple(weight * _LIMIT // total for weight in reduced)


class Strategy:
    """How updates become the next global weights: their plain mean, unless a subclass says otherwise.

    Subclasses are frozen dataclasses and override what differs. Nothing here may depend on which machine runs it, or
    two workers would make two models.
    """

    __slots__ = ()
    name: ClassVar[str]
    """As an experiment spells it."""

    @classmethod
    def from_options(cls, options: Options) -> Self:
        """The strategy with an experiment's options. Raises Poison for one that makes no sense: see `Options`."""
        options.end()
        return cls()

    # --- what it asks for ----------------------------------------------------------------------------------------

    @property
    def roles(self) -> Mapping[Role, Strategy]:
        """What updates bring, and what sums each of it."""
        return {"weights": self}

    @property
    def hyperparameters(self) -> Mapping[str, Scalar]:
        """What silos have to train with, because of the strategy."""
        return {}

    @property
    def least(self) -> int:
        """How many updates there have to be for it to mean anything. No sum is made of fewer: quorums are at least so
        many, and a run that has fewer members pauses."""
        return 1

    @property
    def reads_base(self) -> bool:
        """Whether the new numbers are the base and a step from there, rather than the mean itself."""
        return False

    @property
    def from_zeros(self) -> bool:
        """Whether a round without a base starts from zeros."""
        return False

    @property
    def measures(self) -> bool:
        """Whether `weigh` looks at distances: the updates are read twice."""
        return False

    @property
    def bounded(self) -> bool:
        """Whether bounds on how long updates are bound the sum. Not where a silo's word, such as its steps, makes the
        others' changes longer: then bounds in an experiment's `checks` would promise what they do not hold."""
        return True

    @property
    def state(self) -> Mapping[str, float]:
        """Names of what it keeps from round to round, and what each is before the first.

        `step` makes it, so whoever keeps something `reads_base`. Names are blobs': lower-case letters, digits and
        hyphens, and none that is a role's.

        Each has a float32 for every number in a floating tensor: half of what float64 would cost, and its rounding is
        far below what silos differ by.
        """
        return {}

    def rows(self, silos: int) -> int:
        """How many numbers it holds for each number of the model; chunks are cut by it."""
        return 1

    def averages(self, tensor: str) -> bool:
        """Whether a floating tensor is no weight but counted while training: it takes the silos' mean, and no step.

        It counts by `Shares.floats`, as weights do, and by `Shares.integers` where those add up to more than 1 and no
        integers are trimmed. So, but for negative shares and for rounding, what is new is between what was there.
        """
        return tensor.endswith(STATISTICS)

    def integer_trim(self, silos: int) -> int:
        """How many of the smallest, and as many of the greatest, integers are left out of their mean.

        With 0 it is the mean by `Shares.integers`; else the mean of those left, each counting the same.
        """
        return 0

    def admit(self, facts: Facts) -> None:
        """Raises Poison for an update that could not be weighed."""

    # --- what it does --------------------------------------------------------------------------------------------

    def weigh(self, cohort: Cohort) -> Shares:
        """How much each update counts: here, all the same. Raises Poison when the facts give no answer."""
        return Shares.of((1,) * len(cohort))

    def init(self, silos: int, elements: int, dtype: np.dtype[Any]) -> Any:
        """An accumulator for a chunk of so many numbers; `dtype` (float32, float64) holds each update's exactly."""
        return np.empty(elements, np.float64)

    def accumulate(self, total: Any, index: int, values: Array, share: float) -> None:
        """Takes the chunk of the silo at `index`, in place; the first is 0. `values` may have any floating dtype.

        They are weights or changes to the base: the same for all silos.
        """
        scratch = np.empty(min(BLOCK, len(total)), np.float64)
        for start in range(0, len(total), BLOCK):
            part = total[start : start + BLOCK]
            wide = part if index == 0 else scratch[: len(part)]
            np.copyto(wide, values[start : start + BLOCK])
            wide *= share
            if index:
                part += wide

    def mean(self, total: Any, part: slice) -> Wide:
        """What the silos say together, for some of the chunk's numbers. May be worked on in place afterwards."""
        found: Wide = total[part]
        return found

    def step(self, change: Wide, state: State) -> Wide:
        """How far the new numbers are from the base, given how far the silos' mean is from it.

        `state` is replaced in place, by names; it is asked for with `reads_base`.
        """
        return change
