"""Coordinate-wise median: each number is the median of the silos' numbers.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018
(arXiv:1803.01498), Definition 1 and Algorithm 1 (Option I). Every silo counts the same. Of an even number of silos it
is the mean of the two in the middle. Holds while fewer than half of the silos lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from orchestrator.aggregation.columns import Columns


@dataclass(frozen=True, slots=True)
class Median(Columns):
    """See the module's text."""

    name: ClassVar[str] = "median"

    @property
    def least(self) -> int:
        return 3  # of two, the middle is their mean, which one of them can put anywhere

    def trim(self, silos: int) -> int:
        return (silos - 1) // 2
