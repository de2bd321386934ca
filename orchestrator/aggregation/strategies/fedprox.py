"""FedProx: FedAvg of silos that stay near the weights they were given.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks, MLSys 2020
(arXiv:1812.06127), Algorithm 2: silos minimise F_k(w) + (μ/2) ‖w − wᵗ‖²; the server takes the mean as FedAvg does.

The option `mu` is announced to silos as the hyperparameter `proximal_mu`, so that owners may limit it like any other;
what adds the term is the training API. With `mu` 0 this is FedAvg. Other options: those of FedAvg.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from messages.fields import Scalar
from orchestrator.aggregation.options import Options
from orchestrator.aggregation.strategies.fedavg import FedAvg
from orchestrator.aggregation.weighing import Weighing


@dataclass(frozen=True, slots=True)
class FedProx(FedAvg):
    """See the module's text."""

    name: ClassVar[str] = "fedprox"
    mu: float = 0.0

    @classmethod
    def from_options(cls, options: Options) -> Self:
        weighing = Weighing.from_options(options)
        mu = options.number("mu", None, least=0)
        options.end()
        return cls(weighing, mu)

    @property
    def hyperparameters(self) -> Mapping[str, Scalar]:
        return {"proximal_mu": self.mu}
