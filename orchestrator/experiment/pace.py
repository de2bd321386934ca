"""How silos keep up with a run: how long they take, what they miss, what comes too late. Pure arithmetic.

A silo's `Pace` has the same size after a thousand rounds as after one: means are exponentially weighted. Only rounds
that train are timed; what is measured or made in other rounds takes another time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from messages.fields import Name, RoundNumber

WEIGHT: Final = 0.3
"""What the newest round has in a mean: after ten rounds, an old one counts less than a thirtieth."""

Total = Annotated[int, Field(ge=0)]


class Taken(BaseModel):
    """Seconds: those of the last round, and the mean of all, in which newer rounds weigh more."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    last: float
    mean: float


class Pace(BaseModel):
    """One silo in one run."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    updates: Total = 0
    """Rounds in which its update counted."""
    updated: RoundNumber | None = None
    """The last of them."""
    missed: Total = 0
    """Rounds that closed while it owed them an answer."""
    missed_since: Total = 0
    """How many of these since its last update."""
    late: Total = 0
    """Updates for rounds that were closed: discarded."""
    late_for: RoundNumber | None = None
    """The last round it was too late for; the same update again is not counted again."""
    left_out: Total = 0
    """Updates that were beyond the experiment's bounds."""
    left_out_for: RoundNumber | None = None
    """The last of these rounds."""
    bytes: Total = 0
    """What its updates that counted or were left out took, added up."""
    training: Taken | None = None
    """From start to end of training, as the silo says."""
    answering: Taken | None = None
    """From the announcement to the answer, as the orchestrator saw it."""


Paces = Mapping[Name, Pace]


def updated(pace: Pace, round_number: int, *, size: int, times: tuple[float, float] | None) -> Pace:
    """After a round in which its update of so many bytes counted; `times` are seconds of training and of answering."""
    changed: dict[str, object] = {
        "updates": pace.updates + 1,
        "updated": round_number,
        "missed_since": 0,
        "bytes": pace.bytes + size,
    }
    if times is not None:
        changed |= {"training": taken(pace.training, times[0]), "answering": taken(pace.answering, times[1])}
    return pace.model_copy(update=changed)


def left_out(pace: Pace, round_number: int, *, size: int) -> Pace:
    """After a round from which its update of so many bytes was left out: it answered in time, and did not count."""
    changed = {
        "left_out": pace.left_out + 1,
        "left_out_for": round_number,
        "missed_since": 0,
        "bytes": pace.bytes + size,
    }
    return pace.model_copy(update=changed)


def missed(pace: Pace) -> Pace:
    """After a round that closed without its answer."""
    return pace.model_copy(update={"missed": pace.missed + 1, "missed_since": pace.missed_since + 1})


def was_late(pace: Pace, round_number: int) -> Pace | None:
    """After an update that came too late for a round; None when that update is known: it was in time, or late before.

    An agent's updates come in the order of their rounds, so the last round is all that needs to be remembered.
    """
    known = max(-1 if n is None else n for n in (pace.updated, pace.left_out_for, pace.late_for))
    if round_number <= known:
        return None
    return pace.model_copy(update={"late": pace.late + 1, "late_for": round_number})


def taken(before: Taken | None, seconds: float) -> Taken:
    """With one more round."""
    mean = seconds if before is None else before.mean + WEIGHT * (seconds - before.mean)
    return Taken(last=seconds, mean=mean)
