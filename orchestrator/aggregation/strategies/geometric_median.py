"""The geometric median (RFA): the point whose distances to the silos' weights add up to the least.

Pillutla, Kakade, Harchaoui: Robust Aggregation for Federated Learning, IEEE Transactions on Signal Processing 70, 2022
(arXiv:1912.13445), Algorithm 2, the smoothed Weiszfeld iteration: z ← Σ βᵢ wᵢ / Σ βᵢ with βᵢ = pᵢ / max(ν, ‖z − wᵢ‖),
beginning at the mean Σ pᵢ wᵢ. Holds while silos that count less than half lie.

Every z is Σ αⱼ wⱼ with Σ αⱼ = 1. So is the next one, with α proportional to β, and for β only the distances ‖wᵢ − z‖
are needed: those follow from α and the inner products of the updates (`distances`). So the iteration runs on n numbers
to its end (no αᵢ moves by 1e-10 of itself, or `iterations` are done), and updates are read once for the products and
once for the last mean. Shares have 24 bits, which puts the result at most 6e-8 Σ αᵢ ‖wᵢ − w‖ from the iteration's.

Options: `smoothing` (ν, 1e-6), `iterations` (at most, 1000), `weighting` (what pᵢ is; `uniform` unless it is given:
samples are what a liar says of itself). Integers: see `integers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Self

import numpy as np

from orchestrator.aggregation.distances import Distances, Wide, to_24_bits
from orchestrator.aggregation.options import Options
from orchestrator.aggregation.strategy import Cohort, Shares, Strategy
from orchestrator.aggregation.weighing import UNIFORMLY, Weighing, Weighting

_NOTHING: Final = 1e-100
"""Shares below count as 0: they are those of float64 numbers so huge that their distances are only bounded below."""


@dataclass(frozen=True, slots=True)
class GeometricMedian(Strategy):
    """See the module's text."""

    name: ClassVar[str] = "geometric-median"
    weighing: Weighing = UNIFORMLY
    smoothing: float = 1e-6
    iterations: int = 1000

    @classmethod
    def from_options(cls, options: Options) -> Self:
        weighing = Weighing.from_options(options, Weighting.UNIFORM, clips=False)
        smoothing = options.number("smoothing", 1e-6, above=0)
        iterations = options.count("iterations", 1000, least=1)
        options.end()
        return cls(weighing, smoothing, iterations)

    @property
    def least(self) -> int:
        return 3  # between two, every point is as good

    @property
    def reads_base(self) -> bool:
        return True

    @property
    def measures(self) -> bool:
        return True

    def rows(self, silos: int) -> int:
        return silos  # of integers

    def integer_trim(self, silos: int) -> int:
        return (silos - 1) // 2

    def weigh(self, cohort: Cohort) -> Shares:
        equal = Shares.of(self.weighing.weights(cohort.facts))
        found = weiszfeld(cohort.measured, np.array(equal.floats), self.smoothing, self.iterations)
        return equal.scaled([to_24_bits(share) for share in found.tolist()])


def weiszfeld(distances: Distances, weights: Wide, smoothing: float, iterations: int) -> Wide:
    """The α of the last iteration, given p as `weights` that add up to 1."""
    shares = weights
    for _ in range(iterations):
        closeness = weights / np.maximum(smoothing, distances.to_mean(shares))
        before, shares = shares, closeness / closeness.sum()
        # Of itself: the share of what is 1e30 away is 1e-30 in the end, and far too large as long as it is 1e-20.
        if (np.abs(shares - before) <= 1e-10 * shares).all():
            break
    return np.where(shares < _NOTHING, 0.0, shares)
