"""Krum and Multi-Krum: the update with the nearest neighbours, or the mean of the few that have them.

Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent,
NeurIPS 2017 (arXiv:1703.02757), Section 4: an update's score is the sum of its squared distances to its n − f − 2
nearest others; the one with the least is taken (of equals, the first in silo order), or with Multi-Krum the mean of the
`m` with the least, each counting the same. Holds for f liars among n ≥ 2f + 3 silos.

Options: `f`, and for `multi-krum` `m` (at most n − f: more would surely take in a liar). Integers: see `integers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from orchestrator.aggregation.distances import Wide
from orchestrator.aggregation.options import Options
from orchestrator.aggregation.strategy import Cohort, Shares, Strategy


@dataclass(frozen=True, slots=True)
class Krum(Strategy):
    """See the module's text."""

    name: ClassVar[str] = "krum"
    f: int = 0
    m: int = 1

    @classmethod
    def from_options(cls, options: Options) -> Self:
        f = options.count("f", None)
        options.end()
        return cls(f)

    @property
    def least(self) -> int:
        return max(2 * self.f + 3, self.f + self.m)

    @property
    def measures(self) -> bool:
        return True

    def rows(self, silos: int) -> int:
        return silos  # of integers

    def integer_trim(self, silos: int) -> int:
        return (silos - 1) // 2

    def weigh(self, cohort: Cohort) -> Shares:
        order = np.argsort(scores(cohort.measured.squared, self.f), kind="stable")
        chosen = set(order[: self.m].tolist())
        return Shares.of([1 if index in chosen else 0 for index in range(len(cohort))])


@dataclass(frozen=True, slots=True)
class MultiKrum(Krum):
    """See the module's text."""

    name: ClassVar[str] = "multi-krum"

    @classmethod
    def from_options(cls, options: Options) -> Self:
        f, m = options.count("f", None), options.count("m", None, least=1)
        options.end()
        return cls(f, m)


def scores(squared: Wide, f: int) -> Wide:
    """Of each update, given the squared distances between each two."""
    others = np.sort(squared + np.diag(np.full(len(squared), np.inf)), axis=1)
    found: Wide = others[:, : len(squared) - f - 2].sum(axis=1)
    return found
