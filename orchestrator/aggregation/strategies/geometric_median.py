"""The geometric median (RFA): the point whose distances to the silos' weights add up to the least.

Pillutla, Kakade, Harchaoui: Robust Aggregation for Federated Learning, IEEE Transactions on Signal Processing 70, 2022
(arXiv:1912.13445), Algorithm 2, the smoothed Weiszfeld iteration: z ← Σ βᵢ wᵢ / Σ βᵢ with βᵢ = pᵢ / max(ν, ‖z − wᵢ‖).
Holds while silos that count less than half lie.

Every z is Σ αⱼ wⱼ with Σ αⱼ = 1. So is the next one, with α proportional to β, and for β only the distances ‖wᵢ − z‖
are needed: those follow from α and the inner products of the updates (`distances`). So the iteration runs on n numbers
to its end (no αᵢ moves by 1e-10 of itself), and updates are read once for the products and once for the last mean.
Shares have 24 bits, which puts the result at most 6e-8 Σ αᵢ ‖wᵢ − w‖ from the iteration's.

Two things differ from the paper, which takes a fixed number of steps from any point. Where the iteration begins changes
how long it takes, and not where it ends, for what it minimises is convex. But from the mean, which far liars choose, it
comes back by what liars count over what the honest do with each step: with 15 of 31 that are 1e38 away, not in a
thousand. So it begins among the honest: at the mean of the updates nearest to the medoid, until they count half. The
medoid is the update from which the distances to all others add up to the least; how far it can be from the honest
depends on how far those are from each other, and not on where liars are. And an iteration that `iterations` stops is no
silent result: either the pulls of silos are in balance to a thousandth by then, which is worth as much as so many more
liars, or there is none (`not-converged`).

Options: `smoothing` (ν, 1e-6), `iterations` (at most, 1000), `weighting` (what pᵢ is; `uniform` unless it is given:
samples are what a liar says of itself). Integers: see `integers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Self

import numpy as np

from messages.errors import Poison
from orchestrator.aggregation.distances import Distances, Wide, to_24_bits
from orchestrator.aggregation.options import Options
from orchestrator.aggregation.strategy import Cohort, Shares, Strategy
from orchestrator.aggregation.weighing import UNIFORMLY, Weighing, Weighting

_LEAST_SMOOTHING: Final = 1e-100
"""Below, what is divided by it could be infinite."""
_NOTHING: Final = 1e-100
"""Shares below count as 0: they are those of float64 numbers so huge that their distances are only bounded below."""
_BALANCE: Final = 1e-3
"""How much of 1 the pulls of silos may differ from none, where the iteration was stopped."""
_ROUNDING: Final = 2.0**-24
"""A step shorter than so much of the mean length of changes is none: shares have no more bits."""


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
        smoothing = options.number("smoothing", 1e-6, least=_LEAST_SMOOTHING)
        iterations = options.count("iterations", 1000, least=1, most=100_000)
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
    """The α of the last iteration, given p as `weights` that add up to 1. Raises Poison `not-converged`."""
    after = nearest_half(distances, weights)
    for _ in range(iterations):
        shares = after
        pulls = weights / np.maximum(smoothing, distances.to_mean(shares))
        after = pulls / pulls.sum()
        # Of itself: the share of what is 1e30 away is 1e-30 in the end, and far too large as long as it is 1e-20.
        if (np.abs(after - shares) <= 1e-10 * after).all():
            break
    else:
        _check_balance(distances, after - shares, float(pulls.sum()), after)
    return np.where(after < _NOTHING, 0.0, after)


def nearest_half(distances: Distances, weights: Wide) -> Wide:
    """The α of the mean of those nearest to the medoid, so many that they count half or more."""
    apart = np.sqrt(distances.squared)
    order = np.argsort(apart[np.argmin(apart @ weights)], kind="stable")
    chosen = order[: int(np.searchsorted(np.cumsum(weights[order]), 0.5)) + 1]
    shares = np.zeros_like(weights)
    shares[chosen] = weights[chosen]
    found: Wide = shares / shares.sum()
    return found


def _check_balance(distances: Distances, moved: Wide, pull: float, shares: Wide) -> None:
    """Σ pᵢ (wᵢ − z) / max(ν, ‖wᵢ − z‖), which is 0 at the end, is as long as the last step times Σ β."""
    step = float(np.sqrt(max(0.0, (distances.inner * moved[None, :] * moved[:, None]).sum())))
    lost = pull * max(0.0, step - _ROUNDING * float(shares @ distances.norms))
    if not lost <= _BALANCE:
        raise Poison(
            "not-converged",
            f"The geometric median was not found in the iterations that it was given: the pulls of silos still differ "
            f"by {lost:.2g}, and {_BALANCE:g} would do. Start again with a greater option `iterations`.",
        )
