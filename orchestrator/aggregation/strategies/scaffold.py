"""SCAFFOLD: silos correct their steps by how the direction of all differs from their own (control variates).

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: SCAFFOLD: Stochastic Controlled Averaging for Federated Learning,
ICML 2020 (arXiv:1910.06378), Algorithm 1, lines 16 and 17, for N silos of which S sent an update:

    x ← x + (η_g / |S|) Σ (yᵢ − x)
    c ← c + (1 / N) Σ Δcᵢ

Two roles: `weights` (yᵢ, as weights or deltas), and `control`, where a silo sends Δcᵢ = cᵢ⁺ − cᵢ as a delta and is
given c with the next round; c is 0 before. The training API keeps cᵢ in the silo (option II of line 12). N is the
number of silos that took part in the run when the round was opened. `control` has the model's floating tensors as
float32, whatever dtype weights travel in: it is added up for as long as the run lasts.

Options: `server_lr` (η_g, 1), and `weighting` as FedAvg has it, but `uniform` unless it is given, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from messages.schemas import Role
from orchestrator.aggregation.options import Options
from orchestrator.aggregation.strategy import Cohort, Shares, State, Strategy, Wide
from orchestrator.aggregation.weighing import UNIFORMLY, Weighing, Weighting


@dataclass(frozen=True, slots=True)
class Scaffold(Strategy):
    """See the module's text."""

    name: ClassVar[str] = "scaffold"
    weighing: Weighing = UNIFORMLY
    server_lr: float = 1.0

    @classmethod
    def from_options(cls, options: Options) -> Self:
        weighing = Weighing.from_options(options, Weighting.UNIFORM, clips=False)
        server_lr = options.number("server_lr", 1.0, above=0)
        options.end()
        return cls(weighing, server_lr)

    @property
    def roles(self) -> Mapping[Role, Strategy]:
        return {"weights": self, "control": Control()}

    @property
    def reads_base(self) -> bool:
        return True

    def weigh(self, cohort: Cohort) -> Shares:
        return self.weighing.weigh(cohort)

    def step(self, change: Wide, state: State) -> Wide:
        return self.server_lr * change


@dataclass(frozen=True, slots=True)
class Control(Strategy):
    """The server's control variate: the second of the two lines."""

    name: ClassVar[str] = "scaffold"

    @property
    def reads_base(self) -> bool:
        return True

    @property
    def from_zeros(self) -> bool:
        return True

    def weigh(self, cohort: Cohort) -> Shares:
        every = (1,) * len(cohort)
        return Shares.of(every).scaled([1 / max(cohort.members, len(cohort))] * len(cohort))
