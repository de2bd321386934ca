"""What people post to `experiments`: start, cancel, pause, resume, hold, release. Unknown fields are refused.

A person can write these: `kind`, `experiment`, `task` and `rounds` start an experiment, everything else has a default.
All durations are seconds.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from messages.explain import short
from messages.fields import (
    SCHEMA_VERSION,
    MetricName,
    Name,
    Operator,
    ParameterName,
    RoundNumber,
    RunId,
    Scalar,
    Seconds,
    Sha256,
    ShareGlob,
)
from messages.share import lets_nothing_through


def _rounded_up(number: float) -> int:
    return math.ceil(number - 1e-9)  # 0.07 of 100 is 7, whatever binary fractions say


class Schedule(Operator):
    """A hyperparameter that changes with the round: the value of the greatest listed round not above the current."""

    by_round: dict[Annotated[int, Field(ge=1, le=99_999, strict=False)], Scalar] = Field(min_length=1, max_length=1000)

    @model_validator(mode="before")
    @classmethod
    def _is_meant_as_one(cls, said: Any) -> Any:
        if isinstance(said, dict) and "by_round" not in said:
            raise ValueError('should be one value, or a schedule such as {"by_round": {"1": 0.1, "10": 0.01}}')
        return said

    @model_validator(mode="after")
    def _begins_with_the_first_round(self) -> Self:
        if 1 not in self.by_round:
            raise ValueError("a schedule needs a value for round 1")
        return self

    def at(self, round_number: int) -> Scalar:
        """The value in force in `round_number` (1 is the first training round)."""
        return self.by_round[max(r for r in self.by_round if r <= max(1, round_number))]


Hyperparameters = dict[ParameterName, Scalar | Schedule]


class Quorum(Operator):
    """How many updates close a round, and how long it waits for them."""

    minimum: Annotated[int, Field(ge=1, le=10_000)] | Annotated[float, Field(gt=0, lt=1)] | Literal["all"] = "all"
    """A number of silos; a share of those announced to, between 0 and 1 (rounded up); or all of them."""
    grace: Annotated[float, Field(ge=0, le=30 * 86400)] = 60.0
    """Seconds that stragglers get once the quorum is there."""
    deadline: Seconds = 3600.0
    """Seconds after which a round closes with a quorum, and without one is announced again."""
    reminders: Annotated[int, Field(ge=0, le=1000)] = 2
    """How often a round without a quorum is announced again, each time with a new deadline, before the run fails.

    When too many silos failed for a quorum, that is after 10 s, then 30 s, 90 s …, if the deadline is later.
    """

    def needed(self, silos: int) -> int:
        """The number of updates that make a quorum of `silos`; at least 1."""
        match self.minimum:
            case "all":
                return silos
            case float(share):
                return max(1, _rounded_up(share * silos))
            case int(number):
                return number


class Sample(Operator):
    """Ask only some of the silos in each training round, drawn anew each time by a seed: see docs/operate.md.

    The client fraction C of McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data,
    AISTATS 2017 (arXiv:1602.05629), Algorithm 1. The last round, which only evaluates, asks everybody.
    """

    share: Annotated[float, Field(gt=0, le=1)]
    """The share of the silos that a round asks, rounded up."""
    seed: Annotated[int, Field(ge=0, lt=1 << 53)] | None = None
    """The draw follows from it, the round and the silos' names alone; null: it follows from the run's id."""
    minimum: Annotated[int, Field(ge=1, le=10_000)] = 1
    """A round asks at least so many silos, as long as there are so many."""

    def size(self, silos: int) -> int:
        """How many of so many `silos` a round asks."""
        return min(silos, max(self.minimum, _rounded_up(self.share * silos)))


class Metric(Operator):
    """The pooled metric that picks the best model and stops early."""

    name: MetricName
    mode: Literal["max", "min"] = "max"
    patience: Annotated[int, Field(ge=1, le=99_999)] | None = None
    """Training rounds without improvement after which the run ends; null: never before the last round."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """What counts as an improvement."""


class Transfer(Operator):
    """How weights travel from the silos."""

    form: Literal["weights", "delta"] = "weights"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Floating-point tensors are converted to it; null: as the model has them."""


class Checks(Operator):
    """What is measured of the updates of rounds that train, and what leaves one out of the sum: docs/operate.md.

    All of it is about an update's change: its floating-point tensors minus the weights that the round started from.
    Each name costs the orchestrator reading; where silos send deltas, those need no base to be read beside them.
    """

    measure: bool = False
    """Record each change's norm and cosines. Costs: the base and the silo's last update are read beside each update
    that arrives, and all updates of a round once more before they are summed."""
    max_norm: Annotated[float, Field(gt=0)] | None = None
    """Leave an update out whose change is longer (L2), as soon as it arrives. Costs: the base, read beside it."""
    max_norm_ratio: Annotated[float, Field(gt=1)] | None = None
    """Leave an update out whose change is longer than so many times the median of its round. Costs as `max_norm`."""
    min_cosine: Annotated[float, Field(ge=-1, lt=1)] | None = None
    """Leave an update out whose change has a smaller cosine to the mean direction of the round's other changes.

    Costs: all updates of the round are read once more before they are summed.
    """

    @property
    def bounds(self) -> tuple[str, ...]:
        """The names of those that leave updates out."""
        named = {
            "max_norm": self.max_norm,
            "max_norm_ratio": self.max_norm_ratio,
            "min_cosine": self.min_cosine,
        }
        return tuple(name for name, bound in named.items() if bound is not None)

    @property
    def at_arrival(self) -> bool:
        """Whether something is measured of each update when it arrives."""
        return self.measure or self.max_norm is not None or self.max_norm_ratio is not None

    @property
    def with_others(self) -> bool:
        """Whether a round's changes are compared with each other, which takes another look at their numbers."""
        return self.measure or self.min_cosine is not None

    @property
    def of_the_set(self) -> bool:
        """Whether something can only be known once a round's set is frozen."""
        return self.with_others or self.max_norm_ratio is not None

    @property
    def least(self) -> int:
        """Updates that a round needs for the bounds to mean anything: of two that differ, none is the odd one."""
        return 1 if self.max_norm_ratio is None and self.min_cosine is None else 3


class Strategy(Operator):
    """How updates become the next global weights."""

    name: Name = "fedavg"
    options: dict[ParameterName, Scalar] = {}
    weights: dict[Name, Annotated[float, Field(gt=0, le=1e12)]] = {}
    """What each silo counts by, with the option `weighting: given`."""

    @model_validator(mode="before")
    @classmethod
    def _has_its_options_in_their_place(cls, said: Any) -> Any:
        if isinstance(said, dict) and (strangers := [str(name) for name in said if name not in cls.model_fields]):
            raise ValueError(
                f"there is no field {short(strangers[0], 70)}; what a strategy is told stands under `options`: "
                '{"name": …, "options": {…}}'
            )
        return said


class FromExperiment(Operator):
    """Initial weights: those of another experiment's run (its latest of that name)."""

    experiment: Name
    round: RoundNumber | Literal["best", "last"] = "last"


class FromDigest(Operator):
    """Initial weights: a blob in the `initial` container."""

    sha256: Sha256


class StartExperiment(Operator):
    """Start an experiment. `kind`, `experiment`, `task` and `rounds` are enough; everything else has a default."""

    kind: Literal["start-experiment"] = "start-experiment"
    schema_version: Literal[1] = SCHEMA_VERSION
    experiment: Name
    task: Name
    rounds: Annotated[int, Field(ge=1, le=99_000)]
    silos: Annotated[list[Name], Field(min_length=1, max_length=10_000)] | None = None
    """Who takes part, from start to end; null: every enrolled silo that offers the task.

    Then a silo that begins to offer it while the run goes on takes part from the next round on, and one that offers it
    no longer takes part no more.
    """
    quorum: Quorum = Quorum()
    sample: Sample | None = None
    """Which of them each training round asks; null: all."""
    initial: FromExperiment | FromDigest | None = None
    """Where the first weights come from; null: one silo initialises the model."""
    hyperparameters: Hyperparameters = {}
    overrides: dict[Name, Hyperparameters] = {}
    """Per silo: hyperparameters that replace the common ones there."""
    metric: Metric | None = None
    transfer: Transfer = Transfer()
    strategy: Strategy = Strategy()
    checks: Checks | None = None
    """What is measured of updates, and which are left out; null: nothing beyond what every update has to be."""
    share: Annotated[list[ShareGlob], Field(min_length=1, max_length=200)] = ["*"]

    def asked(self, silos: int) -> int:
        """How many of so many `silos` a training round asks."""
        return silos if self.sample is None else self.sample.size(silos)

    def too_few_to_check(self, quorum: int) -> str | None:
        """Why the bounds of `checks` mean nothing with a quorum of so many; None when they do."""
        if self.checks is None or quorum >= self.checks.least:
            return None
        bound = "min_cosine" if self.checks.max_norm_ratio is None else "max_norm_ratio"
        return (
            f"{bound} needs a quorum of at least {self.checks.least} updates, and it is {quorum}: of two that differ "
            "nobody can say which is wrong. Raise `quorum.minimum`, or bound with `max_norm` alone."
        )

    def shares_nothing(self) -> str | None:
        """Why no model has anything that silos could exchange; None when one may have.

        Asked at the start alone, and no rule of the message: a run that began before it was asked is still read.
        """
        if not lets_nothing_through(self.share):
            return None
        return (
            f"share: {', '.join(self.share)} lets no tensor through, whatever it is called. A pattern with `!` takes "
            'out of what those before it let in: ["*", "!head.*"].'
        )

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        if self.silos is not None:
            if len(set(self.silos)) != len(self.silos):
                raise ValueError("silos: a silo is listed twice")
            if strangers := sorted(set(self.overrides) - set(self.silos)):
                raise ValueError(f"overrides: not among the silos: {', '.join(strangers)}")
            if self.sample is not None and self.sample.minimum > len(self.silos):
                raise ValueError(f"sample: at least {self.sample.minimum} silos a round, but {len(self.silos)} listed")
            if self.quorum.needed(len(self.silos)) > len(self.silos):
                raise ValueError(f"quorum: {self.quorum.minimum} silos needed, but {len(self.silos)} listed")
            if (needed := self.quorum.needed(asked := self.asked(len(self.silos)))) > asked:
                raise ValueError(f"quorum: {needed} silos needed, but a round's sample is of {asked}")
            if why := self.too_few_to_check(needed):
                raise ValueError(f"checks: {why}")
        if self.checks == Checks():
            raise ValueError("checks: nothing is asked for; give a bound, or `measure: true`")
        return self


class CancelExperiment(Operator):
    """End an experiment now; its last model is kept. An unknown name is remembered, so that a late start is refused."""

    kind: Literal["cancel-experiment"] = "cancel-experiment"
    schema_version: Literal[1] = SCHEMA_VERSION
    experiment: Name
    run: RunId | None = None
    """Only this run; null: whichever is live."""


class PauseExperiment(Operator):
    """Finish the round in progress, then wait."""

    kind: Literal["pause-experiment"] = "pause-experiment"
    schema_version: Literal[1] = SCHEMA_VERSION
    experiment: Name


class ResumeExperiment(Operator):
    """Go on after a pause."""

    kind: Literal["resume-experiment"] = "resume-experiment"
    schema_version: Literal[1] = SCHEMA_VERSION
    experiment: Name


class HoldExperiment(Operator):
    """Delete nothing more of a run, whatever the settings say of retention; of one that is over too."""

    kind: Literal["hold-experiment"] = "hold-experiment"
    schema_version: Literal[1] = SCHEMA_VERSION
    experiment: Name
    run: RunId | None = None
    """This run; null: the one that is live, or was the last."""


class ReleaseExperiment(Operator):
    """Take a hold back: what retention would have deleted meanwhile is deleted now."""

    kind: Literal["release-experiment"] = "release-experiment"
    schema_version: Literal[1] = SCHEMA_VERSION
    experiment: Name
    run: RunId | None = None
