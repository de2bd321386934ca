"""What a silo's update counts by, and how long it may be: the options of every strategy that takes a mean.

`weighting`: `samples` (n_k / n, McMahan et al. 2017), `uniform` (every silo counts 1), or `given` (the experiment's
`weights`, by silo).

`clip` and `clip_factor`: a change wᵢ − w that is longer than a bound is made as long as the bound, before the mean is
taken: w + Σ pᵢ min(1, bound / ‖wᵢ − w‖) (wᵢ − w). The bound is `clip`, or `clip_factor` times the median of the round's
lengths. Sun, Kairouz, Suresh, McMahan: Can You Really Backdoor Federated Learning?, 2019 (arXiv:1911.07963), Section 5,
"norm thresholding"; clipping is also the first half of DP-FedAvg (McMahan, Ramage, Talwar, Zhang, ICLR 2018), whose
noise is not here. Integers are not clipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Final, Self

import numpy as np

from messages.errors import Poison
from orchestrator.aggregation.distances import GREATEST, to_24_bits
from orchestrator.aggregation.options import Options
from orchestrator.aggregation.strategy import Cohort, Facts, Shares


class Weighting(StrEnum):
    """What a silo's update counts by."""

    SAMPLES = "samples"
    UNIFORM = "uniform"
    GIVEN = "given"


@dataclass(frozen=True, slots=True)
class Weighing:
    """See the module's text."""

    weighting: Weighting = Weighting.SAMPLES
    given: tuple[tuple[str, float], ...] = ()
    """Silo and weight."""
    clip: float | None = None
    clip_factor: float | None = None

    @classmethod
    def from_options(cls, options: Options, default: Weighting = Weighting.SAMPLES, *, clips: bool = True) -> Self:
        """Raises Poison for what makes no sense. With `clips` updates may be clipped."""
        weighting = Weighting(options.choice("weighting", default, *Weighting))
        given = options.weights(weighting is Weighting.GIVEN)
        clip = options.number("clip", None, above=0) if clips and options.has("clip") else None
        factor = options.number("clip_factor", None, above=0) if clips and options.has("clip_factor") else None
        if clip is not None and factor is not None:
            raise options.refusal("clip and clip_factor are two bounds for the same thing; give one of them.")
        return cls(weighting, tuple(sorted(given.items())), clip, factor)

    @property
    def clips(self) -> bool:
        """Whether long updates are shortened."""
        return self.clip is not None or self.clip_factor is not None

    @property
    def least(self) -> int:
        """How many updates `clip_factor` needs: the median of two lengths is their mean, which one can put anywhere."""
        return 1 if self.clip_factor is None else 3

    def weights(self, facts: Sequence[Facts]) -> tuple[int, ...]:
        """A whole number for each update, not all 0. Raises Poison when the facts give none."""
        match self.weighting:
            case Weighting.UNIFORM:
                return (1,) * len(facts)
            case Weighting.GIVEN:
                return self._given(facts)
            case Weighting.SAMPLES:
                if not any(fact.samples for fact in facts):
                    raise Poison(
                        "no-samples",
                        f"None of the {len(facts)} updates was trained on any sample, so none can be weighed by its "
                        "samples. Have the training script report its samples, or use weighting: uniform.",
                    )
                return tuple(fact.samples for fact in facts)

    def weigh(self, cohort: Cohort) -> Shares:
        """How much each update counts, clipped if that is asked for. Raises Poison."""
        shares = Shares.of(self.weights(cohort.facts))
        if not self.clips:
            return shares
        norms = cohort.measured.norms
        bound = self.clip if self.clip is not None else float(np.median(norms)) * (self.clip_factor or 0.0)
        factors = [_factor(norm, bound) for norm in norms.tolist()]
        return shares.scaled([share * factor for share, factor in zip(shares.floats, factors, strict=True)])

    def _given(self, facts: Sequence[Facts]) -> tuple[int, ...]:
        given = dict(self.given)
        if missing := [fact.silo for fact in facts if fact.silo not in given]:
            raise Poison(
                "no-weight-given",
                f"The experiment's strategy gives silo {missing[0]} no weight. Name every silo in `weights`.",
            )
        fractions = [Fraction(given[fact.silo]) for fact in facts]
        common = math.lcm(*(fraction.denominator for fraction in fractions))
        return tuple(int(fraction * common) for fraction in fractions)


def _factor(norm: float, bound: float) -> float:
    if norm >= GREATEST:  # how long it really is, is not known: no factor would be small enough for sure
        return 0.0
    return 1.0 if norm <= bound else to_24_bits(bound / norm)


BY_SAMPLES: Final = Weighing()
UNIFORMLY: Final = Weighing(Weighting.UNIFORM)
