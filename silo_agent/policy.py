"""What this silo allows: its owner's rules, and the decision on an announcement.

CORE: pure. No file is read here and no clock; what must be measured (the code's digest, the budget spent) comes in as
`Facts`. Whatever the owner does not name is refused. What may leave after training is the rule of `outbound`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Literal, Self, assert_never

from pydantic import BaseModel, ConfigDict, Field, model_validator

from messages.fields import MetricName, Name, ParameterName, Scalar, Sha256
from messages.schemas import DeclineReason, Purpose, Role, RoundAnnounced
from messages.settings import SettingsPath
from messages.share import lets_through
from silo_agent.compute import AzureML, Compute, Local
from silo_agent.roles import wanted

DType = Literal[
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16",
    "uint8", "bool",
]  # fmt: skip
Pattern = Annotated[str, Field(min_length=1, max_length=200)]


class Rule(BaseModel):
    """A part of the owner's file: a misspelt field is an error, never a rule that does not hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Range(Rule):
    """A number between two others, which may be equal to them."""

    min: int | float
    max: int | float

    def allows(self, value: Scalar) -> bool:
        """Whether it is a number (true and false are none) and inside."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.min <= value <= self.max


class OneOf(Rule):
    """One of the values listed, of the same type."""

    one_of: Annotated[list[Scalar], Field(min_length=1)]

    def allows(self, value: Scalar) -> bool:
        """Whether it is listed; 1, 1.0 and true are three different values."""
        return any(value == listed and type(value) is type(listed) for listed in self.one_of)


class Limits(Rule):
    """Which rounds this silo takes part in."""

    rounds: Annotated[int, Field(ge=0)]
    """Rounds that look at the data (train and evaluate), over all experiments, for ever."""
    quorum: Annotated[int, Field(ge=1)] = 2
    silos: Annotated[int, Field(ge=1)] = 2
    hyperparameters: dict[ParameterName, Range | OneOf] = {}
    fixed: dict[ParameterName, Scalar] = {}


class MetricRule(Rule):
    """What is said of a metric: a value outside the range stays here, digits after the point are rounded away."""

    min: float | None = None
    max: float | None = None
    digits: Annotated[int, Field(ge=0, le=17)] | None = None


class Outbound(Rule):
    """What may leave; nothing may that is not named."""

    roles: list[Role] = ["weights"]
    """Payloads. `control`: how SCAFFOLD's control variate changed; it tells of the gradients here, so it is named or
    stays."""
    tensors: list[Pattern] = []
    """Shell-style patterns over tensor names; `!` excludes; the last that matches decides."""
    dtypes: list[DType] = []
    max_bytes: Annotated[int, Field(ge=0)] = 0
    metrics: dict[MetricName, MetricRule] = {}
    min_samples: Annotated[int, Field(ge=0)] = 20
    """Updates trained on fewer samples, and metrics over fewer items, stay here."""
    min_cell: Annotated[int, Field(ge=0)] = 5
    """Cells of histograms and confusion matrices that count fewer are sent as 0."""


class Code(Rule):
    """The code that the owner has read and approved. Without a path it is in the image that a job runs in, and the
    digest is the image's."""

    path: SettingsPath | None = None
    sha256: Sha256


class Task(Rule):
    """One thing that this silo trains: the owner's script, on the owner's data, under the owner's rules."""

    command: Annotated[list[str], Field(min_length=1)]
    directory: SettingsPath | None = None
    """Where it runs on the agent's machine."""
    code: Code
    mode: Literal["warm", "per-round"] = "warm"
    data: dict[str, SettingsPath] = {}
    environment: dict[str, str] = {}
    timeout: Annotated[float, Field(gt=0)] = 3600.0
    tries: Annotated[int, Field(ge=1, le=100)] = 2
    at_once: Annotated[int, Field(ge=1)] = 1
    """How many rounds of this task train at the same time; the others wait."""
    warm: Annotated[int, Field(ge=1)] = 2
    """How many warm processes of this task there may be, each of one run; never fewer than train at the same time."""
    compute: Compute = Compute()
    limits: Limits
    outbound: Outbound = Outbound()

    @model_validator(mode="after")
    def _environment_is_not_ours(self) -> Self:
        if ours := sorted(name for name in self.environment if name.startswith("SILOBUS_")):
            raise ValueError(f"environment: names that begin with SILOBUS_ are the agent's: {', '.join(ours)}")
        return self

    @model_validator(mode="after")
    def _fits_where_it_trains(self) -> Self:
        match self.compute.where:
            case Local():
                if self.directory is None:
                    raise ValueError("directory: is missing; it says where the command runs")
                if self.code.path is None:
                    raise ValueError("code.path: is missing; only code in an image that AzureML runs has none")
            case AzureML() as azureml:
                _fits_azureml(self, azureml)
            case _ as never:
                assert_never(never)
        return self


def _fits_azureml(task: Task, azureml: AzureML) -> None:
    local = [name for name in ("directory", "data", "mode", "warm") if name in task.model_fields_set]
    if local:
        raise ValueError(f"{local[0]}: is for tasks on the agent's machine; with compute.azureml leave it out")
    if task.code.path is None and task.code.sha256 != azureml.environment.digest:
        raise ValueError(
            "code: has no path, so it is in the image; its sha256 is the one in compute.azureml.environment.image"
        )


class Policy(Rule):
    """All tasks of a silo."""

    tasks: dict[Name, Task] = {}

    def digest(self) -> str:
        """SHA-256 over what is allowed. Paths, commands and environment are left out: the digest leaves the silo, and
        whoever has it could try guesses at what little they hold."""
        local = {"command", "directory", "data", "environment", "code"}
        allowed = {
            name: {"code": task.code.sha256, **task.model_dump(mode="json", exclude=local)}
            for name, task in self.tasks.items()
        }
        return hashlib.sha256(json.dumps(allowed, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was measured for one decision."""

    code: str | None
    """The digest of the task's code as it lies there now; None: it cannot be read."""
    spent: int
    """Rounds that the task's budget has been charged with, this one not counted."""
    paused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """This silo takes part, with these hyperparameters."""

    task: Task
    hyperparameters: dict[str, Scalar]
    charged: bool
    """Whether the round counts against the budget: it looks at data."""


@dataclass(frozen=True, slots=True)
class Declined:
    """This silo takes no part. `about`: what of the announcement is not allowed, in the announcement's own word."""

    reason: DeclineReason
    about: str | None = None

    @property
    def words(self) -> str:
        """The reason and what it is about, as `RoundDeclined` says them."""
        return self.reason.value if self.about is None else f"{self.reason.value}: {self.about}"


def decide(policy: Policy, announced: RoundAnnounced, facts: Facts) -> Accepted | Declined:
    """Whether to take part in a round; the first rule that is broken is the reason."""
    task = policy.tasks.get(announced.task)
    if facts.paused:
        return Declined(DeclineReason.PAUSED_BY_OWNER)
    if task is None:
        return Declined(DeclineReason.TASK_NOT_OFFERED)
    if facts.code != task.code.sha256:
        return Declined(DeclineReason.CODE_NOT_APPROVED)
    # Initialising asks one silo, looks at no data and gives the model as it is constructed: who else takes part,
    # and how often, matters to the rounds that do look.
    looks_at_data = announced.purpose is not Purpose.INITIALISE
    alone = _company(task.limits, announced, facts.spent) if looks_at_data else None
    declined = Declined(alone) if alone else _hyperparameters(task.limits, announced.hyperparameters)
    if announced.purpose is not Purpose.EVALUATE:
        declined = declined or _transfer(task.outbound, announced)
    if declined is not None:
        return declined
    effective = {**announced.hyperparameters, **task.limits.fixed}
    return Accepted(task=task, hyperparameters=effective, charged=looks_at_data)


def _company(limits: Limits, announced: RoundAnnounced, spent: int) -> DeclineReason | None:
    if announced.silos < limits.silos:
        return DeclineReason.TOO_FEW_SILOS
    if announced.quorum < limits.quorum:
        return DeclineReason.QUORUM_TOO_SMALL
    if spent >= limits.rounds:
        return DeclineReason.BUDGET_SPENT
    return None


def _hyperparameters(limits: Limits, asked: dict[str, Scalar]) -> Declined | None:
    for name, value in asked.items():
        limit = limits.hyperparameters.get(name)
        if name not in limits.fixed and (limit is None or not limit.allows(value)):
            return Declined(DeclineReason.HYPERPARAMETER_FORBIDDEN, name)
    return None


def _transfer(outbound: Outbound, announced: RoundAnnounced) -> Declined | None:
    """What could never leave is seen here, before anything is trained for nothing.

    Share patterns with wildcards say too little about names; their tensors are judged one by one in the end.
    """
    if forbidden := [role for role in wanted(announced) if role not in outbound.roles]:
        return Declined(DeclineReason.ROLE_FORBIDDEN, forbidden[0])
    dtype = announced.transfer.dtype
    if dtype is not None and dtype not in outbound.dtypes:
        return Declined(DeclineReason.TRANSFER_FORBIDDEN, dtype)
    full_names = (name for name in announced.share if not name.startswith("!") and not any(c in name for c in "*?["))
    if any(lets_through(n, announced.share) and not lets_through(n, outbound.tensors) for n in full_names):
        return Declined(DeclineReason.OUTBOUND_FORBIDDEN)
    return None
