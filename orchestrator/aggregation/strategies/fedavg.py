"""FedAvg: the next weights are the mean of the silos' weights, each counting by its samples.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from Decentralized
Data, AISTATS 2017 (arXiv:1602.05629), Algorithm 1, last line of the server's loop: w ← Σₖ (nₖ / n) wₖ.

Sums are float64, in the order given. Options: `weighting`, `clip`, `clip_factor` (see `weighing`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from orchestrator.aggregation.options import Options
from orchestrator.aggregation.strategy import Cohort, Shares, Strategy
from orchestrator.aggregation.weighing import BY_SAMPLES, Weighing


@dataclass(frozen=True, slots=True)
class FedAvg(Strategy):
    """See the module's text."""

    name: ClassVar[str] = "fedavg"
    weighing: Weighing = BY_SAMPLES

    @classmethod
    def from_options(cls, options: Options) -> Self:
        weighing = Weighing.from_options(options)
        options.end()
        return cls(weighing)

    @property
    def least(self) -> int:
        return self.weighing.least

    @property
    def reads_base(self) -> bool:
        return self.weighing.clips

    @property
    def measures(self) -> bool:
        return self.weighing.clips

    def weigh(self, cohort: Cohort) -> Shares:
        return self.weighing.weigh(cohort)
