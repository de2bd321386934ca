"""Every message Silobus sends, as frozen pydantic models: one union, told apart by `kind`.

Operator messages (people write them) refuse unknown fields. Machine messages ignore them, since silos upgrade on their
own schedule. No field holds a location, code, or the sender's name: locations are derived (`messages.names`), code
stays with its owner, and the silo is the queue a message came from. All numbers are finite, all durations seconds.
"""

from __future__ import annotations

import json
import math
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from messages import names
from messages.errors import Poison

SCHEMA_VERSION: Final = 1
MAX_MESSAGE_BYTES: Final = 200_000
"""Bytes of one message's body; below the 256 KB that the Standard tier of Service Bus takes."""

Name = Annotated[str, Field(pattern=names.NAME_PATTERN, max_length=40)]
RunId = Annotated[str, Field(pattern=names.RUN_PATTERN, max_length=49)]
Sha256 = Annotated[str, Field(pattern=names.DIGEST_PATTERN)]
RoundNumber = Annotated[int, Field(ge=0, le=99_999)]
Seconds = Annotated[float, Field(gt=0, le=30 * 86400)]
ParameterName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$")]
MetricName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$")]
ShareGlob = Annotated[str, Field(pattern=r"^!?[^\s!][^\s]{0,199}$")]
"""A shell-style pattern over tensor names; a leading `!` excludes; of several, the last that matches decides."""
Scalar = bool | int | float | Annotated[str, Field(max_length=200)]
Count = Annotated[int, Field(ge=0, le=10**12)]


def _utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("a time needs its offset from UTC, such as 2026-01-31T12:00:00Z")
    return value


Time = Annotated[datetime, AfterValidator(_utc)]


class Operator(BaseModel):
    """What a person posts: strict."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Machine(BaseModel):
    """What our own processes send: tolerant of fields that a newer version added."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    schema_version: Literal[1] = SCHEMA_VERSION


# --- what an experiment is ---------------------------------------------------------------------------------------


class Schedule(Operator):
    """A hyperparameter that changes with the round: the value of the greatest listed round not above the current."""

    by_round: dict[Annotated[int, Field(ge=1, le=99_999)], Scalar] = Field(min_length=1, max_length=1000)

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
    """How often a round without a quorum is announced again, each time with a new deadline, before the run fails."""

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


# --- payloads and metrics ----------------------------------------------------------------------------------------


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
    payloads: dict[Literal["weights"], Payload] = {}
    """What to start from, by role, in `global/<run>/<round - 1>/`; none when initialising."""
    hyperparameters: dict[ParameterName, Scalar] = {}
    """Plain values for this round and this silo: schedules and overrides are resolved."""
    transfer: Transfer = Transfer()
    strategy: Name = "fedavg"
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


class SiloHello(Machine):
    """An agent has started (`instance` is new) or its owner changed the policy."""

    kind: Literal["silo-hello"] = "silo-hello"
    instance: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    agent_version: Annotated[str, Field(max_length=40)]
    policy: Sha256
    offers: Annotated[list[Offer], Field(max_length=1000)]
    at: Time


class UpdatePublished(Machine):
    """The silo's one answer to a round: what it uploaded, and how it came about."""

    kind: Literal["update-published"] = "update-published"
    run: RunId
    round: RoundNumber
    purpose: Purpose
    announcement: Annotated[int, Field(ge=1)]
    payloads: dict[Literal["weights"], Payload] = {}
    """In `updates-<silo>/<run>/<round>/`; none when evaluating."""
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
    TRANSFER_FORBIDDEN = "transfer-forbidden"
    OUTBOUND_FORBIDDEN = "outbound-forbidden"
    TOO_FEW_SAMPLES = "too-few-samples"
    WEIGHTS_MISSING = "weights-missing"
    WEIGHTS_INVALID = "weights-invalid"
    MESSAGE_INVALID = "message-invalid"
    PAUSED_BY_OWNER = "paused-by-owner"
    AGENT_FAULT = "agent-fault"


class RoundDeclined(Machine):
    """The silo takes no part in this round; its own log says more."""

    kind: Literal["round-declined"] = "round-declined"
    run: RunId
    round: RoundNumber
    reason: DeclineReason


class FailureCategory(StrEnum):
    """How training failed; a closed list. Output, tracebacks and messages stay in the silo."""

    SCRIPT_ERROR = "script-error"
    TIMEOUT = "timeout"
    NO_REPORT = "no-report"
    REPORT_INVALID = "report-invalid"
    UPDATE_INVALID = "update-invalid"
    UPDATE_NOT_FINITE = "update-not-finite"
    OUT_OF_MEMORY = "out-of-memory"
    KILLED = "killed"
    COMPUTE_UNAVAILABLE = "compute-unavailable"
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
    """A sign of life of the work on one round. Sent while, and only while, the trainer itself makes progress."""

    kind: Literal["silo-heartbeat"] = "silo-heartbeat"
    run: RunId
    round: RoundNumber
    doing: Literal["waiting", "fetching", "training", "uploading"]
    steps: Count = 0
    progress_age: Annotated[float, Field(ge=0)]
    """Seconds since the trainer last made progress, measured by the agent's clock."""
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


class DeadlinePassed(Machine):
    """The deadline of an announcement, as a scheduled message; one of an earlier announcement is stale."""

    kind: Literal["deadline-passed"] = "deadline-passed"
    run: RunId
    round: RoundNumber
    announcement: Annotated[int, Field(ge=1)]


class GraceOver(Machine):
    """The grace for stragglers, as a scheduled message."""

    kind: Literal["grace-over"] = "grace-over"
    run: RunId
    round: RoundNumber
    announcement: Annotated[int, Field(ge=1)]


OperatorMessage = StartExperiment | CancelExperiment | PauseExperiment | ResumeExperiment
ToSilo = RoundAnnounced | RoundClosed
FromSilo = SiloHello | UpdatePublished | RoundDeclined | TrainingFailed | SiloHeartbeat
Work = AggregateRound | DeadlinePassed | GraceOver
Message = Annotated[OperatorMessage | ToSilo | FromSilo | Work, Field(discriminator="kind")]

_ADAPTER: Final[TypeAdapter[Any]] = TypeAdapter(Message)


def decode(body: bytes, *expected: type[BaseModel]) -> Any:
    """The message in `body`, which must be one of the `expected` classes.

    Raises Poison: `too-large`, `not-json`, `unknown-kind`, `unexpected-kind` or `invalid-message`, with a description
    that names every wrong field and what it should be. Values are not repeated in it.
    """
    if len(body) > MAX_MESSAGE_BYTES:
        raise Poison("too-large", f"The message has {len(body)} bytes; {MAX_MESSAGE_BYTES} is the most.")
    try:
        data = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Poison("not-json", f"The body is not UTF-8 JSON: {_short(str(error))}") from None
    kinds = {str(model.model_fields["kind"].default): model for model in expected}
    kind = data.get("kind") if isinstance(data, dict) else None
    allowed = ", ".join(sorted(kinds))
    if not isinstance(kind, str):
        raise Poison("unknown-kind", f"The message needs a field `kind`, one of: {allowed}.")
    if kind not in kinds:
        raise Poison("unexpected-kind", f"This queue takes {allowed}; the message is of kind {_short(kind)!r}.")
    try:
        return kinds[kind].model_validate(data)
    except ValidationError as error:
        raise Poison("invalid-message", _explain(kind, error)) from None


def encode(message: BaseModel) -> bytes:
    """UTF-8 JSON of a message."""
    return message.model_dump_json().encode()


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of every message, one definition each."""
    schema = _ADAPTER.json_schema(ref_template="#/$defs/{model}")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Silobus messages", **schema}


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _short(text: str, most: int = 120) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _explain(kind: str, error: ValidationError) -> str:
    problems = [
        f"{_short('.'.join(map(str, e['loc'])) or 'message')}: {_short(_in_our_words(e))}"
        for e in error.errors(include_input=False, include_url=False)[:10]
    ]
    return f"{kind} is not valid. " + "; ".join(problems)


def _in_our_words(problem: ErrorDetails) -> str:
    if problem["type"] == "union_tag_invalid":  # pydantic would repeat the value
        return f"`kind` should be one of {problem['ctx']['expected_tags']}"
    return problem["msg"]
