"""What people post to `experiments`: start, cancel, pause, resume. Unknown fields are refused.

A person can write these: `kind`, `experiment`, `task` and `rounds` start an experiment, everything else has a default.
All durations are seconds.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

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


class Schedule(Operator):
    """A hyperparameter that changes with the round: the value of the greatest listed round not above the current."""

    by_round: dict[Annotated[int, Field(ge=1, le=99_999, strict=False)], Scalar] = Field(min_length=1, max_length=1000)

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
                return max(1, math.ceil(share * silos - 1e-9))  # 0.07 of 100 is 7, whatever binary fractions say
            case int(number):
                return number


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


class Strategy(Operator):
    """How updates become the next global weights."""

    name: Name = "fedavg"
    options: dict[ParameterName, Scalar] = {}


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
    """Who takes part; null: every enrolled silo that offers the task."""
    quorum: Quorum = Quorum()
    initial: FromExperiment | FromDigest | None = None
    """Where the first weights come from; null: one silo initialises the model."""
    hyperparameters: Hyperparameters = {}
    overrides: dict[Name, Hyperparameters] = {}
    """Per silo: hyperparameters that replace the common ones there."""
    metric: Metric | None = None
    transfer: Transfer = Transfer()
    strategy: Strategy = Strategy()
    share: Annotated[list[ShareGlob], Field(min_length=1, max_length=200)] = ["*"]

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        if self.silos is not None:
            if len(set(self.silos)) != len(self.silos):
                raise ValueError("silos: a silo is listed twice")
            if strangers := sorted(set(self.overrides) - set(self.silos)):
                raise ValueError(f"overrides: not among the silos: {', '.join(strangers)}")
            if self.quorum.needed(len(self.silos)) > len(self.silos):
                raise ValueError(f"quorum: {self.quorum.minimum} silos needed, but {len(self.silos)} listed")
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
