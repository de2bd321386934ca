"""What goes wrong, and when: a list of actions that follows from the seed and the rates, and from nothing else.

Each kind of action has a random generator of its own, so that leaving one kind out, or asking for another number of
orchestrators, moves no other action in time. Pure.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

T = TypeVar("T")


class Kind(StrEnum):
    """What can be done to a federation."""

    KILL_ORCHESTRATOR = "kill-orchestrator"
    KILL_AGENT = "kill-agent"
    KILL_TRAINER = "kill-trainer"
    KILL_BUS = "kill-bus"
    STOP = "stop"
    FILL_DISK = "fill-disk"
    BREAK_CONNECTIONS = "break-connections"
    EMPTY_QUEUES = "empty-queues"


KILLS = frozenset({Kind.KILL_ORCHESTRATOR, Kind.KILL_AGENT, Kind.KILL_TRAINER, Kind.KILL_BUS})
EVERY: Mapping[Kind, float] = {
    Kind.KILL_ORCHESTRATOR: 10.0,
    Kind.KILL_AGENT: 15.0,
    Kind.KILL_TRAINER: 8.0,
    Kind.KILL_BUS: 30.0,
    Kind.STOP: 14.0,
    Kind.FILL_DISK: 35.0,
    Kind.BREAK_CONNECTIONS: 12.0,
    Kind.EMPTY_QUEUES: 75.0,
}
"""Seconds between two of a kind, on average."""
_LASTS: Mapping[Kind, tuple[float, float]] = {
    Kind.KILL_ORCHESTRATOR: (1.0, 4.0),
    Kind.KILL_AGENT: (0.0, 4.0),
    Kind.KILL_TRAINER: (0.0, 0.0),
    Kind.KILL_BUS: (0.0, 3.0),
    Kind.STOP: (2.0, 9.0),
    Kind.FILL_DISK: (3.0, 10.0),
    Kind.BREAK_CONNECTIONS: (0.0, 0.0),
    Kind.EMPTY_QUEUES: (0.0, 2.0),
}
"""Seconds that it lasts, from and to; of what is killed, until it is started again."""
_EXACT = frozenset({Kind.KILL_ORCHESTRATOR})
"""Come exactly that often: what is measured against another number of orchestrators."""


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that goes wrong."""

    at: float
    """Seconds after the beginning."""
    kind: Kind
    victim: float
    """Which of those there are, as a share of their number: at least 0, below 1."""
    seconds: float
    """How long it lasts."""
    chance: float
    """For whatever else the action decides: at least 0, below 1."""

    def choose(self, among: Sequence[T]) -> T:
        """The victim. Raises IndexError when there is none."""
        return among[int(self.victim * len(among))]


def plan(seed: int, seconds: float, every: Mapping[Kind, float]) -> list[Action]:
    """All actions of so many seconds, in order of time; none of a kind that `every` does not name, or names with 0."""
    actions = []
    for kind, mean in every.items():
        chance = random.Random(f"{seed} {kind}")  # noqa: S311  # repeatable, not secret
        at = 0.0
        while mean > 0:
            gap = chance.uniform(0.4, 1.6)
            at += mean * (1.0 if kind in _EXACT else gap)
            if at >= seconds:
                break
            lasts = chance.uniform(*_LASTS[kind])
            actions.append(Action(at, kind, chance.random(), lasts, chance.random()))
    return sorted(actions, key=lambda action: (action.at, action.kind))
