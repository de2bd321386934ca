"""FedAdagrad, FedAdam and FedYogi: FedAvg whose mean change is the gradient of an adaptive optimizer at the server.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan: Adaptive Federated Optimization, ICLR 2021
(arXiv:2003.00295), Algorithm 2. With Δ = Σ pᵢ (wᵢ − w):

    m ← β₁ m + (1 − β₁) Δ
    v ← v + Δ²                              FedAdagrad
    v ← v − (1 − β₂) Δ² sign(v − Δ²)        FedYogi
    v ← β₂ v + (1 − β₂) Δ²                  FedAdam
    w ← w + η m / (√v + τ)

m begins as 0 and v as τ², the least the paper allows. There is no correction of bias, as in the paper.

Options: `server_lr` (η, 0.1), `beta_1` (β₁, 0.9; for FedAdagrad 0), `beta_2` (β₂, 0.99; not for FedAdagrad), `tau` (τ,
0.001), `variance` (what v begins as, τ²), and those of FedAvg. They keep `variance` and, unless β₁ is 0, `momentum`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Self

import numpy as np

from orchestrator.aggregation.options import Options
from orchestrator.aggregation.strategies.fedavg import FedAvg
from orchestrator.aggregation.strategy import GREATEST_KEPT, State, Wide
from orchestrator.aggregation.weighing import Weighing

_GREATEST_TAU: Final = 1.8e19
"""Its square is kept."""


@dataclass(frozen=True, slots=True)
class _Adaptive(FedAvg, ABC):
    server_lr: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3
    variance: float | None = None
    """What v begins as; None: τ²."""

    @classmethod
    def from_options(cls, options: Options) -> Self:
        weighing = Weighing.from_options(options)
        server_lr = options.number("server_lr", 0.1, above=0)
        beta_1 = options.number("beta_1", cls._beta_1, least=0, below=1)
        beta_2 = options.number("beta_2", 0.99, least=0, below=1) if cls._has_beta_2 else 0.0
        tau = options.number("tau", 1e-3, above=0, most=_GREATEST_TAU)
        variance = options.number("variance", None, least=0, most=GREATEST_KEPT) if options.has("variance") else None
        options.end()
        return cls(weighing, server_lr, beta_1, beta_2, tau, variance)

    _beta_1: ClassVar[float] = 0.9
    _has_beta_2: ClassVar[bool] = True

    @property
    def reads_base(self) -> bool:
        return True

    @property
    def state(self) -> Mapping[str, float]:
        variance = {"variance": self.tau**2 if self.variance is None else self.variance}
        return {"momentum": 0.0, **variance} if self.beta_1 else variance

    def step(self, change: Wide, state: State) -> Wide:
        variance = state["variance"]
        with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is refused when it is written
            self._next_variance(variance, np.square(change))
            if self.beta_1:
                momentum = state["momentum"]
                momentum *= self.beta_1
                momentum += (1 - self.beta_1) * change
                change = momentum
            return self.server_lr * change / (np.sqrt(variance) + self.tau)

    @abstractmethod
    def _next_variance(self, variance: Wide, square: Wide) -> None:
        """In place."""


@dataclass(frozen=True, slots=True)
class FedAdagrad(_Adaptive):
    """See the module's text."""

    name: ClassVar[str] = "fedadagrad"
    _beta_1: ClassVar[float] = 0.0
    _has_beta_2: ClassVar[bool] = False

    def _next_variance(self, variance: Wide, square: Wide) -> None:
        variance += square


@dataclass(frozen=True, slots=True)
class FedAdam(_Adaptive):
    """See the module's text."""

    name: ClassVar[str] = "fedadam"

    def _next_variance(self, variance: Wide, square: Wide) -> None:
        variance *= self.beta_2
        variance += (1 - self.beta_2) * square


@dataclass(frozen=True, slots=True)
class FedYogi(_Adaptive):
    """See the module's text."""

    name: ClassVar[str] = "fedyogi"

    def _next_variance(self, variance: Wide, square: Wide) -> None:
        variance -= (1 - self.beta_2) * square * np.sign(variance - square)
