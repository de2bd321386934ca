"""Coordinate-wise trimmed mean: of each number, the mean of the silos' without the smallest and the greatest few.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018
(arXiv:1803.01498), Definition 2 and Algorithm 1 (Option II). Every silo counts the same. Holds while at most as many
silos lie as are left out on each side: option `fraction` (β, of the silos that sent one, rounded down) or `count`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final, Self

from orchestrator.aggregation.columns import Columns
from orchestrator.aggregation.options import Options

_LEAST_FRACTION: Final = 1e-4
"""No experiment has more than 10,000 silos: of fewer, less than this leaves nobody out."""


@dataclass(frozen=True, slots=True)
class TrimmedMean(Columns):
    """See the module's text; one of the two is None."""

    name: ClassVar[str] = "trimmed-mean"
    fraction: float | None = 0.1
    count: int | None = None

    @classmethod
    def from_options(cls, options: Options) -> Self:
        fraction = (
            options.number("fraction", None, least=_LEAST_FRACTION, below=0.5) if options.has("fraction") else None
        )
        count = options.count("count", None, least=1) if options.has("count") else None
        options.end()
        if (fraction is None) == (count is None):
            raise options.refusal("how many are left out on each side? Give either fraction (below 0.5) or count.")
        return cls(fraction, count)

    @property
    def least(self) -> int:
        if self.count is not None:
            return 2 * self.count + 1
        return max(3, math.ceil(1 / (self.fraction or 1.0) - 1e-9))  # with fewer it would leave nobody out

    def trim(self, silos: int) -> int:
        if self.count is not None:
            return self.count
        return min(int((self.fraction or 0.0) * silos + 1e-9), (silos - 1) // 2)
