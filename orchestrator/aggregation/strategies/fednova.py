"""FedNova: the mean of the silos' changes per step, times the mean number of steps.

Wang, Liu, Liang, Joshi, Poor: Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization,
NeurIPS 2020 (arXiv:2007.07481), Equation 6 with vanilla SGD as the local solver, for which ‖aᵢ‖₁ is the number of local
steps τᵢ: w ← w + τ_eff Σ pᵢ (wᵢ − w) / τᵢ with pᵢ = nᵢ / n and τ_eff = Σ pᵢ τᵢ. For a local momentum or a proximal term
aᵢ is another vector, and this normalisation is an approximation.

Steps are what the training script reports; silos that all took as many give FedAvg. Integers count by samples.
Option: `weighting` (what pᵢ is; see `weighing`).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Self

from messages.errors import Poison
from orchestrator.aggregation.options import Options
from orchestrator.aggregation.strategy import Cohort, Facts, Shares, Strategy
from orchestrator.aggregation.weighing import BY_SAMPLES, Weighing


@dataclass(frozen=True, slots=True)
class FedNova(Strategy):
    """See the module's text."""

    name: ClassVar[str] = "fednova"
    weighing: Weighing = BY_SAMPLES

    @classmethod
    def from_options(cls, options: Options) -> Self:
        weighing = Weighing.from_options(options, clips=False)
        options.end()
        return cls(weighing)

    @property
    def reads_base(self) -> bool:
        return True

    @property
    def bounded(self) -> bool:
        return False  # who claims 10^12 steps makes τ_eff of them, and everybody else's change so many times longer

    def admit(self, facts: Facts) -> None:
        if facts.steps == 0:
            raise Poison(
                "no-steps",
                f"Strategy fednova divides the change of {facts.silo} by its steps, and it reports none. "
                "Have the training script report its steps, or use another strategy.",
            )

    def weigh(self, cohort: Cohort) -> Shares:
        for facts in cohort.facts:
            self.admit(facts)
        weights = self.weighing.weights(cohort.facts)
        steps = [facts.steps for facts in cohort.facts]
        effective = Fraction(sum(n * tau for n, tau in zip(weights, steps, strict=True)), sum(weights))
        floats = [float(Fraction(n, sum(weights)) * effective / tau) for n, tau in zip(weights, steps, strict=True)]
        return Shares.of(weights).scaled(floats)
