"""Every message Silobus sends: the union of them, told apart by `kind`; messages to bytes, and bytes to messages.

Here bad bytes become an error that a person can act on.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, get_args

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from messages.errors import Poison
from messages.experiments import (
    CancelExperiment,
    HoldExperiment,
    PauseExperiment,
    ReleaseExperiment,
    ResumeExperiment,
    StartExperiment,
)
from messages.explain import explain, short
from messages.fields import SCHEMA_VERSION
from messages.schemas import (
    AggregateRound,
    DeadlinePassed,
    GraceOver,
    RoundAnnounced,
    RoundClosed,
    RoundDeclined,
    SiloHeartbeat,
    SiloHello,
    SweepRun,
    TrainingFailed,
    UpdatePublished,
)

MAX_MESSAGE_BYTES: Final = 200_000
"""Bytes of one message's body; below the 256 KB that the Standard tier of Service Bus takes."""

OperatorMessage = (
    StartExperiment | CancelExperiment | PauseExperiment | ResumeExperiment | HoldExperiment | ReleaseExperiment
)
ToSilo = RoundAnnounced | RoundClosed
FromSilo = SiloHello | UpdatePublished | RoundDeclined | TrainingFailed | SiloHeartbeat
Work = AggregateRound | DeadlinePassed | GraceOver | SweepRun
Message = Annotated[OperatorMessage | ToSilo | FromSilo | Work, Field(discriminator="kind")]

_READ_AND_WRITTEN_BY: Final = {
    str(model.model_fields["kind"].default): sides
    for models, sides in (
        (OperatorMessage, ("the orchestrator", "the tool that posted it")),
        (ToSilo, ("this silo's agent", "the orchestrator")),
        (FromSilo, ("the orchestrator", "that silo's agent")),
        (Work, ("this orchestrator", "the orchestrator that sent it")),
    )
    for model in get_args(models)
}

_ADAPTER: Final[TypeAdapter[Any]] = TypeAdapter(Message)


def decode(body: bytes, *expected: type[BaseModel]) -> Any:
    """The message in `body`, which must be one of the `expected` classes.

    Raises Poison: `too-large`, `not-json`, `unknown-kind`, `unexpected-kind`, `unknown-version` or `invalid-message`,
    with a description that names every wrong field and what it should be. Values are not repeated in it.
    """
    if len(body) > MAX_MESSAGE_BYTES:
        raise Poison("too-large", f"The message has {len(body)} bytes; {MAX_MESSAGE_BYTES} is the most.")
    try:
        text = body.decode("utf-8-sig")
        data = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeats)
    except (ValueError, RecursionError) as error:
        raise Poison("not-json", f"The body is not UTF-8 JSON: {short(str(error))}") from None
    kinds = {str(model.model_fields["kind"].default): model for model in expected}
    kind = data.get("kind") if isinstance(data, dict) else None
    allowed = ", ".join(sorted(kinds))
    if not isinstance(kind, str):
        raise Poison("unknown-kind", f"The message needs a field `kind`, one of: {allowed}.")
    if kind not in kinds:
        raise Poison("unexpected-kind", f"This queue takes {allowed}; the message is of kind {short(kind)!r}.")
    _refuse_unknown_version(kind, data.get("schema_version", SCHEMA_VERSION))
    try:
        return kinds[kind].model_validate(data)
    except ValidationError as error:
        raise Poison("invalid-message", f"{kind} is not valid. {explain(data, error)}") from None


def _refuse_unknown_version(kind: str, version: object) -> None:
    """Fields that are new are no new version: machines pass them by. A version is new when old readers would err."""
    if type(version) is not int or version == SCHEMA_VERSION:
        return
    reader, writer = _READ_AND_WRITTEN_BY[kind]
    behind = reader if version > SCHEMA_VERSION else writer
    raise Poison(
        "unknown-version",
        f"{kind} has schema_version {short(str(version))}, and {reader} reads {SCHEMA_VERSION}: upgrade {behind}.",
    )


def encode(message: BaseModel) -> bytes:
    """UTF-8 JSON of a message."""
    return message.model_dump_json().encode()


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of every message, one definition each."""
    schema = _ADAPTER.json_schema(ref_template="#/$defs/{model}")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Silobus messages", **schema}


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        repeated = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"the key {short(repeated)!r} stands twice in one object")
    return made


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
