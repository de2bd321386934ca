"""What has happened: facts, named in the past, that the shell has already established.

Who a silo is comes from the queue its message arrived on; weights spoken of here have been read and found good; times
are the caller's. An event can be wrong only in being late, double or about something unknown, and `step` says so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from messages.experiments import StartExperiment
from messages.fields import Scalar
from messages.schemas import DeadlinePassed, GraceOver, Payload, Role, UpdatePublished
from orchestrator.experiment.checking import Change


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRequested:
    """An operator asked for an experiment."""

    run: str
    """The id this start message gives its run."""
    request: StartExperiment
    enrolled: Collection[str]
    """Every silo of the federation."""
    offering: Collection[str]
    """Those of them whose owners offer the task."""
    initial: Payload | None = None
    """The weights named by `request.initial`, already in place as those of round 0."""
    roles: tuple[Role, ...] = ("weights",)
    """What the strategy has updates bring."""
    hyperparameters: Mapping[str, Scalar] = field(default_factory=dict)
    """What the strategy has silos train with."""
    least: int = 1
    """How many updates the strategy needs."""
    ran_before: bool = False
    """Whether this very run is known to be over."""

    def __post_init__(self) -> None:
        if not self.run.startswith(f"{self.request.experiment}_"):
            raise ValueError(f"run {self.run!r} is not one of experiment {self.request.experiment!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested:
    """An operator wants it to end now."""

    experiment: str
    run: str | None = None
    """Only this run; None: whichever there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseRequested:
    """An operator wants it to wait after the round in progress."""

    experiment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeRequested:
    """An operator wants it to go on."""

    experiment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateVerified:
    """A silo published an update, and its weights are what the message says they are."""

    silo: str
    update: UpdatePublished
    norm: float | None = None
    """None when there are no weights in it."""
    change: Change | None = None
    """What the experiment's `checks` want to know when an update arrives."""
    etag: str | None = None
    """That of the weights when they were verified."""
    etags: Mapping[Role, str] = field(default_factory=dict)
    """Those of what it brings besides the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRejected:
    """A silo answered with something that cannot be used."""

    silo: str
    run: str
    round: int
    reason: str

    def __post_init__(self) -> None:
        if not self.reason:
            raise ValueError("a rejection says why")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRefused:
    """A silo's owner does not allow the round."""

    silo: str
    run: str
    round: int
    reason: str
    """One of `DeclineReason`, and what it is about, if it says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBroke:
    """A silo tried and gave up."""

    silo: str
    run: str
    round: int
    reason: str
    announcement: int | None = None
    """The announcement it had tried for; None when it did not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiloAppeared:
    """A new instance of a silo's agent started: it may know nothing of what its predecessor was told."""

    silo: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MembersSeen:
    """What is known of the federation's silos now. It may well be what the run knows already."""

    offers: Mapping[str, Collection[str]]
    """The tasks that a silo's owner allows, of those silos of whom it is known."""
    enrolled: Collection[str] | None = None
    """Every silo of the federation; None: nobody looked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateCameLate:
    """A silo published an update for a round that was closed. Nobody looked at its weights."""

    silo: str
    run: str
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatesCompared:
    """A frozen set's changes were compared with each other, as the experiment's `checks` want."""

    run: str
    round: int
    announcement: int
    """After how many announcements the set was frozen that was compared."""
    cosines: Mapping[str, float | None] = field(default_factory=dict)
    """By silo: see `Change.cosine`. Empty where the checks take none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundAggregated:
    """The frozen set was summed; the result is in place."""

    run: str
    round: int
    payload: Payload
    besides: Mapping[str, Payload] = field(default_factory=dict)
    """What was made besides the weights: other roles, and what the strategy keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationFailed:
    """The frozen set cannot be summed, now or ever."""

    run: str
    round: int
    reason: str


Event = (
    StartRequested
    | CancelRequested
    | PauseRequested
    | ResumeRequested
    | UpdateVerified
    | UpdateRejected
    | RoundRefused
    | TrainingBroke
    | SiloAppeared
    | MembersSeen
    | UpdateCameLate
    | DeadlinePassed
    | GraceOver
    | UpdatesCompared
    | RoundAggregated
    | AggregationFailed
)
