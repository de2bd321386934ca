"""What goes wrong at which call of a process, written `ORCH:17:crash-before`; and the counting of calls.

Calls are counted from 1, in the order in which a process makes them; a restarted process counts on. Nothing here knows
what the calls are for.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from messages.errors import Transient

ANY: Final = "ANY"
"""Whichever process makes the call; counted from the moment at which the first point of the run came true."""


class Crash(BaseException):
    """The process is dead. Nothing of ours catches it."""


class Kind(StrEnum):
    """What can go wrong."""

    BEFORE = "crash-before"
    """The process dies when it is about to make the call."""
    UNANSWERED = "crash-unanswered"
    """The call is made; the process dies before it sees the answer, and nothing of it runs any more."""
    AFTER = "crash-after"
    """The process sees the answer and runs on, until it is about to make another call."""
    TORN = "crash-torn"
    """Half of what is written gets into the file, then the process dies."""
    REFUSE = "refuse"
    """The call is not made, and the process is told to come again."""
    LOSE = "lose-answer"
    """The call is made; the process is told that nobody answered."""
    FREEZE = "freeze"
    """The process stands still before the call for longer than its locks last, while others go on; then it goes on."""


CRASHES: Final = frozenset({Kind.BEFORE, Kind.UNANSWERED, Kind.AFTER, Kind.TORN})


@dataclass(frozen=True, slots=True)
class Point:
    """One thing that goes wrong."""

    who: str
    call: int
    kind: Kind

    def __str__(self) -> str:
        return f"{self.who}:{self.call}:{self.kind}"


def parse(text: str) -> tuple[Point, ...]:
    """No point, one, or several with `+` in between. Raises ValueError."""
    points = []
    for each in filter(None, text.split("+")):
        who, call, kind = each.split(":")
        points.append(Point(who, int(call), Kind(kind)))
    return tuple(points)


@dataclass(slots=True)
class Call:
    """One call as it was made."""

    who: str
    what: str
    away: bool
    """Whether somebody else answers it; a file is the process's own."""
    answered: bool = False
    followed_by: int | None = None
    """Which call of the same process was the first after the answer; None: none was."""


@dataclass(slots=True)
class Plan:
    """What is to go wrong in one run, and every call that was made in it."""

    points: tuple[Point, ...] = ()
    made: dict[str, list[Call]] = field(default_factory=dict)
    fired: list[Point] = field(default_factory=list)
    at: list[str] = field(default_factory=list)
    """The calls at which something went wrong."""
    since_first: int | None = None
    """Calls of all processes since the first thing went wrong; None: nothing has yet."""

    def next(self, who: str, what: str, *, away: bool) -> tuple[Call, Point | None]:
        """Counts a call; what is to go wrong at it."""
        call = Call(who, what, away)
        calls = self.made.setdefault(who, [])
        calls.append(call)
        if self.since_first is not None:
            self.since_first += 1
        for point in self.points:
            number = self.since_first if point.who == ANY else len(calls) if point.who == who else None
            if number == point.call and point not in self.fired:
                self.fired.append(point)
                self.at.append(f"{who}: {what}")
                self.since_first = self.since_first or 0
                return call, point
        return call, None

    def counts(self) -> Counter[str]:
        """How many calls each process made."""
        return Counter({who: len(calls) for who, calls in self.made.items()})


class Life:
    """One process from its start to its death: it counts its calls, and has happen to them what is planned."""

    def __init__(self, who: str, plan: Plan) -> None:
        self.who = who
        self._plan = plan
        self.dead = False
        self.frozen = False
        self.thawed = asyncio.Event()
        self._doomed = False
        self._answered: list[Call] = []

    def enter(self, what: str, *, away: bool) -> tuple[Call, Point | None]:
        """A call is about to be made. Raises Crash, Transient; otherwise to be followed by `leave`."""
        self.check()
        call, point = self._plan.next(self.who, what, away=away)
        number = len(self._plan.made[self.who])
        for before in self._answered:
            before.followed_by = number
        self._answered.clear()
        if self._doomed:
            self.die(what)
        match point and point.kind:
            case Kind.BEFORE:
                self.die(what)
            case Kind.REFUSE:
                raise Transient(f"{what}: refused")
            case Kind.FREEZE:
                self.frozen = True
        return call, point

    def leave(self, call: Call, point: Point | None) -> None:
        """The call was made. Raises Crash, Transient."""
        self.check()
        call.answered = True
        self._answered.append(call)
        match point and point.kind:
            case Kind.UNANSWERED | Kind.TORN:
                self.die(call.what)
            case Kind.AFTER:
                self._doomed = True
            case Kind.LOSE:
                raise Transient(f"{call.what}: no answer")

    def check(self) -> None:
        """Raises Crash when the process is dead."""
        if self.dead:
            raise Crash

    def die(self, what: str) -> None:
        """Raises Crash."""
        self.dead = True
        raise Crash(what)
