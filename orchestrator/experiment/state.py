"""What is so: one frozen class per phase of an experiment, each with only the fields that phase has.

Here live the facts of a run and the records of its rounds, as they stand in `state/`. Never here: what happens next
(`step`), what is to be done (`effects`), or how it is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from messages.experiments import StartExperiment
from messages.fields import Count, Name, ParameterName, RoundNumber, RunId, Scalar, Time
from messages.schemas import Payload, Purpose, Role
from orchestrator.experiment.checking import Change
from orchestrator.experiment.metrics import MetricNumber, PooledMetric, Tally
from orchestrator.experiment.pace import Paces

Reason = Annotated[str, Field(max_length=4000)]


class Frozen(BaseModel):
    """A fact. Unknown fields are ignored, so that an older orchestrator can read what a newer one wrote."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


# --- the run -----------------------------------------------------------------------------------------------------


class Model(Frozen):
    """Global weights: those that `round` made, at `global/<run>/<round>/<sha256>.safetensors`."""

    round: RoundNumber
    payload: Payload
    besides: Mapping[Name, Payload] = {}
    """What else it made, in the same folder: other roles (`control`) and what the strategy keeps (`momentum` …)."""


class Best(Model):
    """The weights for which the experiment's metric was best so far."""

    number: float
    """What the metric was."""


class Run(Frozen):
    """What is known of a run in each of its phases."""

    id: RunId
    request: StartExperiment
    silos: tuple[Name, ...]
    """Who takes part in the rounds that are opened from now on, in the order in which updates are summed."""
    seed: int | None = None
    """By which samples are drawn; None when each round asks everybody."""
    roles: tuple[Role, ...] = ("weights",)
    """What the strategy has updates bring, in rounds that train."""
    hyperparameters: Mapping[ParameterName, Scalar] = {}
    """What the strategy has silos train with, besides the request's."""
    least: int = 1
    """How many updates the strategy needs, in rounds that train."""
    started_at: Time
    model: Model | None = None
    """The latest global weights; none before round 0 is over."""
    best: Best | None = None
    """None without a metric, or before it was first measured."""
    stagnant: int = 0
    """Training rounds in a row in which the metric did not improve."""
    paces: Paces = {}
    """How silos that were ever asked keep up."""


# --- what silos answered in a round ------------------------------------------------------------------------------


class Besides(Frozen):
    """What an update brought in another role than the weights, verified."""

    payload: Payload
    etag: str | None = None


class Updated(Frozen):
    """The silo's update, verified. There is never a second one in a round."""

    answer: Literal["updated"] = "updated"
    announcement: int
    payload: Payload | None
    """None in an evaluate round."""
    besides: Mapping[Role, Besides] = {}
    samples: Count
    steps: Count
    seconds: float
    norm: float | None
    change: Change | None = None
    """None unless the experiment's `checks` ask for it."""
    etag: str | None = None
    """That of the weights when they were verified: what is summed must be what was verified."""
    waited: float = 0.0
    """Seconds from the announcement it answers."""
    metrics: tuple[MetricNumber, ...] = ()
    at: Time


class Declined(Frozen):
    """The silo's owner does not allow it, or it takes part no longer; it is not asked again in this round."""

    answer: Literal["declined"] = "declined"
    reason: Reason
    """One of `DeclineReason`, and what it is about, if it says so."""


class Failed(Frozen):
    """Training failed, or the update was refused; the silo is asked again when the round is announced again."""

    answer: Literal["failed"] = "failed"
    announcement: int
    reason: Reason


class LeftOut(Frozen):
    """The silo's update is beyond the experiment's bounds. It stays out, and no other of the silo's is taken."""

    answer: Literal["left-out"] = "left-out"
    update: Updated
    reason: Reason


Answer = Annotated[Updated | LeftOut | Declined | Failed, Field(discriminator="answer")]


# --- whom a round asks -------------------------------------------------------------------------------------------


class Draw(Frozen):
    """What a round's sample is drawn from, which is all that is needed to draw it again (`membership`)."""

    seed: int
    size: int
    """How many silos."""
    among: tuple[Name, ...]
    """The run's members when the round was opened."""


# --- what became of a round --------------------------------------------------------------------------------------


class UpdateRecord(Frozen):
    """One silo's update in a round whose set is frozen."""

    silo: Name
    announcement: int
    payload: Payload | None
    besides: Mapping[Role, Besides] = {}
    samples: Count
    steps: Count
    seconds: float
    norm: float | None
    change: Change | None = None
    etag: str | None = None
    waited: float = 0.0
    metrics: tuple[MetricNumber, ...]
    at: Time

    @property
    def bytes(self) -> int:
        """What it sent, all payloads together."""
        payloads = [self.payload, *(one.payload for one in self.besides.values())]
        return sum(payload.bytes for payload in payloads if payload is not None)


class ClosedRound(Frozen):
    """A round whose set is frozen. `updates` are in the order in which they are summed."""

    version: Literal[1] = 1
    run: RunId
    round: RoundNumber
    purpose: Purpose
    announcements: int
    """How often it was announced."""
    opened_at: Time
    closed_at: Time
    asked: tuple[Name, ...] = ()
    draw: Draw | None = None
    """What these were drawn from; None when everybody was asked."""
    updates: tuple[UpdateRecord, ...]
    others: Mapping[Name, Reason]
    """What the silos without an update did: `declined: …`, `failed: …`, `left out: …`, `had not answered`."""
    left_out: tuple[UpdateRecord, ...] = ()
    """Updates beyond the experiment's bounds, which are not in the sum; `others` says why."""
    metrics: tuple[PooledMetric, ...]
    """Those of phase `received` describe the weights of the round before; so who was left out has a say in them."""


class RoundOutcome(StrEnum):
    """How a round ended."""

    AGGREGATED = "aggregated"
    EVALUATED = "evaluated"
    FAILED = "failed"
    CANCELLED = "cancelled"


class RoundRecord(ClosedRound):
    """`state/rounds/<run>/<nnnnn>.json`: written once, when the round is over."""

    outcome: RoundOutcome
    over_at: Time
    model: Payload | None
    """The weights it made."""
    besides: Mapping[Name, Payload] = {}
    """What else it made: see `Model`."""


# --- the phases --------------------------------------------------------------------------------------------------


class Collecting(Frozen):
    """A round is open: silos were asked, and the run waits for answers, the grace or the deadline."""

    phase: Literal["collecting"] = "collecting"
    version: Literal[1] = 1
    run: Run
    round: RoundNumber
    purpose: Purpose
    quorum: int
    """Updates that close this round."""
    asked: tuple[Name, ...]
    """In the order in which updates are summed; when initialising one after another, until one answers."""
    draw: Draw | None = None
    """What these were drawn from; None when everybody is asked."""
    announcement: int = 1
    reminded: int = 0
    """How often it was announced again for want of a quorum."""
    opened_at: Time
    announced_at: Time | None = None
    """The current announcement; None: when it was opened."""
    deadline: Time
    """Of the current announcement."""
    grace_until: Time | None = None
    """Set once the quorum is there."""
    answers: Mapping[Name, Answer] = {}
    tallies: tuple[Tally, ...] = ()
    """Score histograms and confusion matrices of the updates so far, added up."""
    pausing: bool = False
    """Pause when this round is over."""


class Aggregating(Frozen):
    """The set is frozen, and its sum is being made."""

    phase: Literal["aggregating"] = "aggregating"
    version: Literal[1] = 1
    run: Run
    closed: ClosedRound
    judging: Collecting | None = None
    """The round as it was, while its set is compared before it is summed: it is open again if too few are left."""
    late: tuple[Name, ...] = ()
    """Silos whose update came while the set was compared: too late, unless the round is open again."""
    pausing: bool = False


class Paused(Frozen):
    """Between two rounds, until resumed, or until there are silos enough for a quorum."""

    phase: Literal["paused"] = "paused"
    version: Literal[1] = 1
    run: Run
    round: RoundNumber
    """The round that comes next."""
    purpose: Purpose
    since: Time
    because: Reason = ""
    """For people: what is missing for the next round, which opens when it is there. Empty: an operator's pause."""


class RunOutcome(StrEnum):
    """How a run ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Ended(Frozen):
    """The run is over. `state/runs/<run>.json` holds the same."""

    phase: Literal["ended"] = "ended"
    version: Literal[1] = 1
    run: Run
    round: RoundNumber
    """The last round that was open."""
    announcement: int = 0
    outcome: RunOutcome
    reason: Reason
    """For people: why it ended so."""
    ended_at: Time
    refuses: RunId | None = None
    """A run of this name that was cancelled before its start came."""


class Tombstone(Frozen):
    """A cancel that came before its start. It refuses one start: the named run's, else the first to come."""

    phase: Literal["tombstone"] = "tombstone"
    version: Literal[1] = 1
    experiment: Name
    since: Time
    refuses: RunId | None = None
    """The one start refused; None while the cancel named no run and no start has come."""


Live = Collecting | Aggregating | Paused
State = Annotated[Collecting | Aggregating | Paused | Ended | Tombstone, Field(discriminator="phase")]

STATE: TypeAdapter[Collecting | Aggregating | Paused | Ended | Tombstone] = TypeAdapter(State)
"""Reads a state from JSON: `STATE.validate_json(data)`."""
