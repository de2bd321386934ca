"""FedAvg: the next weights are the mean of the silos' weights, each counting by its samples.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas: Communication-Efficient Learning of Deep Networks from Decentralized
Data, AISTATS 2017 (arXiv:1602.05629), Algorithm 1, last line of the server's loop: w ← Σₖ (nₖ / n) wₖ.

Sums are float64, in the order given. Option `weighting`: `samples` (the paper's) or `uniform` (every silo counts 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

import numpy as np

from messages.errors import Poison
from orchestrator.aggregation.strategy import Array, Facts, Options, Wide, invalid_options

_BLOCK: Final = 1 << 15
"""Numbers converted at a time, so that the conversion stays in the processor's cache."""


class Weighting(StrEnum):
    """What a silo's update counts by."""

    SAMPLES = "samples"
    UNIFORM = "uniform"


@dataclass(frozen=True, slots=True)
class FedAvg:
    """See the module's text."""

    weighting: Weighting = Weighting.SAMPLES

    @classmethod
    def from_options(cls, options: Options) -> Self:
        """Raises Poison for an option or value that is not known."""
        if unknown := sorted(set(options) - {"weighting"}):
            raise invalid_options("fedavg", f"there is no option {unknown[0]!r}; it has: weighting.")
        try:
            return cls(Weighting(str(options.get("weighting", "samples"))))
        except ValueError:
            raise invalid_options("fedavg", "weighting is one of: samples, uniform.") from None

    @property
    def name(self) -> str:
        return "fedavg"

    @property
    def reads_base(self) -> bool:
        return False

    def weigh(self, facts: Sequence[Facts]) -> tuple[int, ...]:
        if self.weighting is Weighting.UNIFORM:
            return (1,) * len(facts)
        if not any(fact.samples for fact in facts):
            raise Poison(
                "no-samples",
                f"None of the {len(facts)} updates was trained on any sample, so none can be weighed by its samples. "
                "Have the training script report its samples, or use weighting: uniform.",
            )
        return tuple(fact.samples for fact in facts)

    def init(self, elements: int) -> Wide:
        return np.zeros(elements, np.float64)

    def accumulate(self, total: Wide, values: Array, share: float) -> None:
        scratch = np.empty(min(_BLOCK, len(total)), np.float64)
        for start in range(0, len(total), _BLOCK):
            part = total[start : start + _BLOCK]
            wide = scratch[: len(part)]
            np.copyto(wide, values[start : start + _BLOCK])
            wide *= share
            part += wide

    def finish(self, total: Wide, base: Array | None) -> Wide:
        return total
