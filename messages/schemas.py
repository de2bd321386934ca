"""What our own processes say to each other, as frozen pydantic models, told apart by `kind`.

They ignore unknown fields and carry a version, since silos upgrade on their own schedule. No field holds a location,
code, or the sender's name: locations are derived (`messages.names`), code stays with its owner, and the silo is the
queue a message came from. All numbers are finite, all durations seconds.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from messages.experiments import Checks, Transfer
from messages.fields import (
    Count,
    Machine,
    MetricName,
    Name,
    ParameterName,
    RoundNumber,
    RunId,
    Scalar,
    Sha256,
    ShareGlob,
    Time,
)

# --- payloads and metrics ----------------------------------------------------------------------------------------

Role = Literal["control", "weights"]
"""What a payload is for. `control`: control variates (SCAFFOLD): the model's floating tensors, as float32."""


class Payload(Machine):
    """A claim check for a safetensors blob, whose path the receiver derives. `layout` digests names, dtypes, shapes."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=8, le=1 << 50)]
    form: Literal["weights", "delta"] = "weights"
    layout: Sha256


class _Measured(Machine):
    name: MetricName
    phase: Literal["received", "trained"]
    count: Count


class MeanMetric(_Measured):
    """A mean over `count` items; pooled by weighing with the counts."""

    kind: Literal["mean"] = "mean"
    value: float


class SumMetric(_Measured):
    """A total; pooled by adding."""

    kind: Literal["sum"] = "sum"
    value: float


class HistogramMetric(_Measured):
    """Scores in [0, 1] in equal bins, positives and negatives apart; pooled by adding; its number is the AUROC."""

    kind: Literal["histogram"] = "histogram"
    positive: Annotated[list[Count], Field(min_length=2, max_length=1000)]
    negative: Annotated[list[Count], Field(min_length=2, max_length=1000)]

    @model_validator(mode="after")
    def _matches_itself(self) -> Self:
        if len(self.positive) != len(self.negative):
            raise ValueError("a histogram has as many bins for positives as for negatives")
        if sum(self.positive) + sum(self.negative) != self.count:
            raise ValueError("a histogram's bins add up to its count")
        return self


class ConfusionMetric(_Measured):
    """Rows are truth, columns prediction; pooled by adding; its number is the accuracy."""

    kind: Literal["confusion"] = "confusion"
    matrix: Annotated[list[list[Count]], Field(min_length=2, max_length=200)]

    @model_validator(mode="after")
    def _is_square_and_adds_up(self) -> Self:
        if any(len(row) != len(self.matrix) for row in self.matrix):
            raise ValueError("a confusion matrix is square")
        if sum(map(sum, self.matrix)) != self.count:
            raise ValueError("a confusion matrix adds up to its count")
        return self


MetricReport = Annotated[MeanMetric | SumMetric | HistogramMetric | ConfusionMetric, Field(discriminator="kind")]


# --- orchestrator to silo ----------------------------------------------------------------------------------------


class Purpose(StrEnum):
    """What a round is for."""

    INITIALISE = "initialise"
    TRAIN = "train"
    EVALUATE = "evaluate"


def _as_far_as_known(model: type[BaseModel]) -> BeforeValidator:
    """What operators post is strict; what an agent is sent may have fields that a newer orchestrator added."""

    def known(given: object) -> object:
        return {n: v for n, v in given.items() if n in model.model_fields} if isinstance(given, dict) else given

    return BeforeValidator(known)


class RoundAnnounced(Machine):
    """Take part in this round, if your policy allows it. Announcing again only reminds."""

    kind: Literal["round-announced"] = "round-announced"
    experiment: Name
    run: RunId
    round: RoundNumber
    """0 initialises, 1 to the last train, the one after evaluates."""
    purpose: Purpose
    announcement: Annotated[int, Field(ge=1)]
    """1 at first, counted up when the round is announced again."""
    task: Name
    payloads: dict[Role, Payload] = {}
    """What to start from, by role, in `global/<run>/<round - 1>/`; none when initialising.

    A role of `roles` that is not here (`control`, in the first round) starts from zeros.
    """
    roles: list[Role] = ["weights"]
    """What an update has to bring when training: of `control`, the change of the silo's own, as a delta in float32."""
    hyperparameters: dict[ParameterName, Scalar] = {}
    """Plain values for this round and this silo: schedules and overrides are resolved.

    What the strategy wants of training is among them: `proximal_mu`, with FedProx.
    """
    transfer: Annotated[Transfer, _as_far_as_known(Transfer)] = Transfer()
    strategy: Name = "fedavg"
    checks: Annotated[Checks | None, _as_far_as_known(Checks)] = None
    """What the orchestrator measures of updates, and beyond which bounds it leaves one out; null: nothing."""
    share: list[ShareGlob] = ["*"]
    silos: Annotated[int, Field(ge=1)]
    """How many silos this round is announced to."""
    quorum: Annotated[int, Field(ge=1)]
    """How many updates close it."""
    deadline: Time


class ClosedBecause(StrEnum):
    """Why a silo need not answer any more."""

    AGGREGATED = "aggregated"
    CANCELLED = "cancelled"
    FAILED = "failed"


class RoundClosed(Machine):
    """Stop working on this round: its set is frozen, or its run is over."""

    kind: Literal["round-closed"] = "round-closed"
    run: RunId
    round: RoundNumber
    because: ClosedBecause


# --- silo to orchestrator ----------------------------------------------------------------------------------------


class Offer(Machine):
    """A task that the silo's owner allows, and the digest of the code approved for it."""

    task: Name
    code: Sha256


HeartbeatEvery = Annotated[float, Field(gt=0, le=3600)]


class SiloHello(Machine):
    """An agent has started (`instance` is new) or its owner changed the policy."""

    kind: Literal["silo-hello"] = "silo-hello"
    instance: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    agent_version: Annotated[str, Field(max_length=40)]
    policy: Sha256
    offers: Annotated[list[Offer], Field(max_length=1000)]
    heartbeat: HeartbeatEvery = 15.0
    """Seconds between two of its heartbeats, while it works on a round."""
    at: Time


class UpdatePublished(Machine):
    """The silo's one answer to a round: what it uploaded, and how it came about."""

    kind: Literal["update-published"] = "update-published"
    run: RunId
    round: RoundNumber
    purpose: Purpose
    announcement: Annotated[int, Field(ge=1)]
    payloads: dict[Role, Payload] = {}
    """In `updates-<silo>/<run>/<round>/`: one for each of the round's roles; none when evaluating."""
    samples: Count
    steps: Count
    metrics: Annotated[list[MetricReport], Field(max_length=200)] = []
    hyperparameters: dict[ParameterName, Scalar] = {}
    """Those really used: the owner may have fixed some."""
    code: Sha256
    policy: Sha256
    seconds: Annotated[float, Field(ge=0)]
    """From start to end of training."""


class DeclineReason(StrEnum):
    """Why a silo does not take part; a closed list, so that nothing else can leave in a reason."""

    TASK_NOT_OFFERED = "task-not-offered"
    CODE_NOT_APPROVED = "code-not-approved"
    HYPERPARAMETER_FORBIDDEN = "hyperparameter-forbidden"
    QUORUM_TOO_SMALL = "quorum-too-small"
    TOO_FEW_SILOS = "too-few-silos"
    BUDGET_SPENT = "budget-spent"
    ROLE_FORBIDDEN = "role-forbidden"
    TRANSFER_FORBIDDEN = "transfer-forbidden"
    OUTBOUND_FORBIDDEN = "outbound-forbidden"
    TOO_FEW_SAMPLES = "too-few-samples"
    WEIGHTS_MISSING = "weights-missing"
    WEIGHTS_INVALID = "weights-invalid"
    MESSAGE_INVALID = "message-invalid"
    PAUSED_BY_OWNER = "paused-by-owner"
    AGENT_FAULT = "agent-fault"
    NOT_ENROLLED = "not-enrolled"
    """The orchestrator's word for a silo that was taken out of its settings; no agent says it."""


class RoundDeclined(Machine):
    """The silo takes no part in this round; its own log says more."""

    kind: Literal["round-declined"] = "round-declined"
    run: RunId
    round: RoundNumber
    reason: DeclineReason
    about: ParameterName | None = None
    """What of the announcement is not allowed: a hyperparameter by its name, a dtype or a role; no other text."""

    @property
    def words(self) -> str:
        """The reason and what it is about: `hyperparameter-forbidden: proximal_mu`."""
        return self.reason.value if self.about is None else f"{self.reason.value}: {self.about}"


class FailureCategory(StrEnum):
    """How training failed; a closed list. Output, tracebacks and messages stay in the silo."""

    SCRIPT_ERROR = "script-error"
    NOTHING_SHARED = "nothing-shared"
    """Of the model's tensors none is in both the experiment's `share` and the script's."""
    NO_PROXIMAL_TERM = "no-proximal-term"
    """The experiment has `proximal_mu`, and the script no such term."""
    NOT_CORRECTED = "not-corrected"
    """The experiment's strategy wants control variates, and the script does not correct its steps by them."""
    TIMEOUT = "timeout"
    NO_REPORT = "no-report"
    REPORT_INVALID = "report-invalid"
    UPDATE_INVALID = "update-invalid"
    UPDATE_NOT_FINITE = "update-not-finite"
    OUT_OF_MEMORY = "out-of-memory"
    KILLED = "killed"
    COMPUTE_UNAVAILABLE = "compute-unavailable"
    QUOTA_EXCEEDED = "quota-exceeded"
    IMAGE_FAILED = "image-failed"
    PREEMPTED = "preempted"
    DATA_MISSING = "data-missing"


class TrainingFailed(Machine):
    """Training was tried and did not give an update; the silo has given up on this round."""

    kind: Literal["training-failed"] = "training-failed"
    run: RunId
    round: RoundNumber
    category: FailureCategory
    tries: Annotated[int, Field(ge=1)]
    announcement: Annotated[int, Field(ge=1)] | None = None
    """The latest announcement it had tried for: once announced again, a repeated report of the last try is stale."""


class SiloHeartbeat(Machine):
    """A sign of life of the work on one round: sent as long as it goes on, and whether it goes on at all."""

    kind: Literal["silo-heartbeat"] = "silo-heartbeat"
    run: RunId
    round: RoundNumber
    doing: Literal["waiting", "fetching", "training", "uploading"]
    steps: Count = 0
    progress_age: Annotated[float, Field(ge=0)]
    """Seconds since the trainer last made progress, measured by the agent's clock."""
    stalled: bool = False
    """The agent is alive, but its trainer has made no progress for longer than its owner thinks right."""
    every: HeartbeatEvery = 15.0
    """Seconds until the next one; after three times as long without one, the agent counts as gone."""
    at: Time


class Head(Machine):
    """`global/<run>/head.json`, not a message: where a run stands. Agents look before training and uploading."""

    run: RunId
    round: RoundNumber
    announcement: Annotated[int, Field(ge=0)]
    phase: Literal["open", "closed", "ended"]

    def wants(self, round_number: int) -> bool:
        """Whether an update for `round_number` can still count."""
        return self.phase == "open" and self.round == round_number


# --- orchestrator to itself --------------------------------------------------------------------------------------


class AggregateRound(Machine):
    """Sum the frozen set of this round."""

    kind: Literal["aggregate-round"] = "aggregate-round"
    run: RunId
    round: RoundNumber
    announcement: Annotated[int, Field(ge=1)] = 1
    """After how many announcements it was frozen: a set of which too few were left is frozen again later."""


class DeadlinePassed(Machine):
    """The deadline of an announcement, as a scheduled message; one of an earlier announcement is stale."""

    kind: Literal["deadline-passed"] = "deadline-passed"
    run: RunId
    round: RoundNumber
    announcement: Annotated[int, Field(ge=1)]
    at: Time | None = None
    """When it is due: a deadline that was brought forward is another message."""


class GraceOver(Machine):
    """The grace for stragglers, as a scheduled message."""

    kind: Literal["grace-over"] = "grace-over"
    run: RunId
    round: RoundNumber
    announcement: Annotated[int, Field(ge=1)]


class SweepRun(Machine):
    """Delete what retention lets go of this run; scheduled for when there is something to delete."""

    kind: Literal["sweep-run"] = "sweep-run"
    run: RunId
    last: bool = False
    """Whether the run's last sweep hangs on this message: when it comes before its time, it is sent again for then."""
