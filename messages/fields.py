"""The kinds of values that messages are made of, and the two bases of all messages: of people and of machines.

Every limit that a name, a number or a pattern has to keep is said here, once.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from messages import names

SCHEMA_VERSION: Final = 1

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
    """What a person posts: strict. "5", 5.0 and true are no whole numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class Machine(BaseModel):
    """What our own processes send: tolerant of fields that a newer version added."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    schema_version: Literal[1] = SCHEMA_VERSION
