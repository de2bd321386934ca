"""What is to be done: instructions to the shell, in the imperative. They are stored beside the state they came with.

Each may be carried out more than once, by any orchestrator, and changes nothing the second time. None holds more than
it must: what an announcement says follows from the state (`announcing.announcement_for`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from messages.fields import Name, RoundNumber, RunId, Time
from messages.schemas import ClosedBecause, Head
from orchestrator.experiment.state import Ended, Frozen, RoundRecord


class Announce(Frozen):
    """Send the open round's announcement to this silo."""

    kind: Literal["announce"] = "announce"
    silo: Name
    round: RoundNumber
    announcement: int


class CloseRound(Frozen):
    """Tell this silo to stop working on the round."""

    kind: Literal["close-round"] = "close-round"
    silo: Name
    run: RunId
    round: RoundNumber
    because: ClosedBecause


class ScheduleDeadline(Frozen):
    """Send deadline-passed so that it arrives at `at`."""

    kind: Literal["schedule-deadline"] = "schedule-deadline"
    run: RunId
    round: RoundNumber
    announcement: int
    at: Time


class ScheduleGrace(Frozen):
    """Send grace-over so that it arrives at `at`."""

    kind: Literal["schedule-grace"] = "schedule-grace"
    run: RunId
    round: RoundNumber
    announcement: int
    at: Time


class RequestAggregation(Frozen):
    """Have the frozen set of this round summed."""

    kind: Literal["request-aggregation"] = "request-aggregation"
    run: RunId
    round: RoundNumber
    announcement: int = 1


class PublishHead(Frozen):
    """Say in `head.json` where the run stands, unless it says something newer already.

    What comes after it in a list waits for it: an agent that is told of a round looks here next.
    """

    kind: Literal["publish-head"] = "publish-head"
    head: Head


class RecordRound(Frozen):
    """Write down what became of a round, once."""

    kind: Literal["record-round"] = "record-round"
    record: RoundRecord


class RecordRun(Frozen):
    """Write down what became of the run, once."""

    kind: Literal["record-run"] = "record-run"
    ended: Ended


Effect = Annotated[
    Announce
    | CloseRound
    | ScheduleDeadline
    | ScheduleGrace
    | RequestAggregation
    | PublishHead
    | RecordRound
    | RecordRun,
    Field(discriminator="kind"),
]
Effects = tuple[Effect, ...]
