"""FedAvgM: FedAvg with momentum at the server.

Hsu, Qi, Brown: Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification, 2019
(arXiv:1909.06335), Section 3: with Δ = Σ pᵢ (wᵢ − w), v ← β v + Δ and w ← w + η v. v begins as 0.

Options: `server_lr` (η, 1), `momentum` (β, 0.9), and those of FedAvg. It keeps `momentum`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from orchestrator.aggregation.options import Options
from orchestrator.aggregation.strategies.fedavg import FedAvg
from orchestrator.aggregation.strategy import State, Wide
from orchestrator.aggregation.weighing import Weighing


@dataclass(frozen=True, slots=True)
class FedAvgM(FedAvg):
    """See the module's text."""

    name: ClassVar[str] = "fedavgm"
    server_lr: float = 1.0
    momentum: float = 0.9

    @classmethod
    def from_options(cls, options: Options) -> Self:
        weighing = Weighing.from_options(options)
        server_lr = options.number("server_lr", 1.0, above=0)
        momentum = options.number("momentum", 0.9, least=0, below=1)
        options.end()
        return cls(weighing, server_lr, momentum)

    @property
    def reads_base(self) -> bool:
        return True

    @property
    def state(self) -> Mapping[str, float]:
        return {"momentum": 0.0}

    def step(self, change: Wide, state: State) -> Wide:
        momentum = state["momentum"]
        momentum *= self.momentum
        momentum += change
        return self.server_lr * momentum
