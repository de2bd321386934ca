"""What an open round waits for, and who is still heard of. Nothing is read here.

An agent that works on a round gives a sign of life every so often, and says how often (15 s unless its owner says
otherwise). After three times as long without one it counts as gone, so by default after 45 s; one that was asked and
never gave a sign, after as long since it was asked. An agent whose trainer makes no progress says so itself: it is
there, and stalled.

All that is known of silos was written down by an orchestrator. So where none works every silo seems gone: what they say
stays in their queues, where `listening` looks for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, assert_never

from messages.schemas import Purpose
from orchestrator import presence as attendance
from orchestrator.cli.standing import Standing, Unread
from orchestrator.experiment.announcing import awaited, has_answered
from orchestrator.experiment.state import (
    Aggregating,
    Collecting,
    Declined,
    Ended,
    Failed,
    LeftOut,
    Paused,
    Tombstone,
    Updated,
)

EVERY: Final = 15.0
"""Seconds between two heartbeats of an agent that never said how often it sends them."""

SIGNS: Final = 3
"""Heartbeats that may be missing."""

LATE: Final = 15.0
"""Seconds after its deadline in which a round may still be closed."""

SUMMING: Final = 120.0
"""Seconds after which somebody may ask whether anybody sums at all: who does leaves no sign in the store."""

NAMED: Final = 12
"""Silos that are named where a round waits for more; those that are gone first."""

REASONS: Final = 3
"""Reasons that are named where silos did not give an update."""


@dataclass(frozen=True, slots=True)
class Life:
    """What was heard of a silo that owes the open round an answer."""

    doing: str | None
    """In this round, when last heard of; None: nothing was heard since it was asked."""
    heard_at: datetime
    """When that was; else when it was asked, or a new agent of its said hello."""
    silent: float
    """Seconds since."""
    quiet: bool
    """Whether that is too long."""
    signed_at: datetime | None
    """When anything at all last came from the silo, of whatever round; None: never."""
    gone: bool
    """Whether nothing at all was heard of the agent for too long: not of this round, and of nothing else."""
    looked: bool
    """Whether its queue was looked into; where not, what it says may be there."""
    unread: float | None
    """Seconds since its oldest sign of life that no orchestrator has read; None: nothing is known to wait."""
    answered: float | None
    """Seconds since its answer, which waits to be taken."""
    stalled: float | None
    """Seconds without progress, if it said that these are too many."""
    seconds: float
    """Since it was asked."""

    @property
    def words(self) -> str:
        """What it does, as far as is known."""
        if self.answered is not None:
            return f"has answered {self.answered:.0f} s ago, which nobody has taken yet"
        if self.quiet:
            was = f", was {self.doing}" if self.doing else ""
            what = f"{self.lost}: no sign of life" if self.gone else "there, but no sign of life of this round"
            return f"{what} for {self.silent:.0f} s{was}"
        if self.stalled is not None:
            return f"{self.doing} without progress for {self.stalled:.0f} s"
        return self.doing or "asked"

    @property
    def lost(self) -> str:
        """What it is if nothing is heard of it."""
        return "gone" if self.looked else "gone, or no orchestrator works"


def life_of(standing: Standing, state: Collecting, silo: str) -> Life:
    """What was heard of a silo that owes the open round an answer."""
    presence = standing.presence.get(silo)
    asked_at = state.announced_at or state.opened_at
    heard_at, every, beat = asked_at, EVERY, None
    if presence is not None:
        if presence.hello is not None and presence.hello_at is not None:
            heard_at, every = max(heard_at, presence.hello_at), presence.hello.heartbeat
        sign = presence.heartbeats.get(state.run.id)
        sign_at = presence.heartbeats_at.get(state.run.id, presence.seen_at)
        replaced = presence.hello_at is not None and presence.hello_at > sign_at  # it was another agent's
        if sign is not None and not replaced:
            every = sign.every
            # A sign that is older than the announcement is of work that may be over. The first one has no such signs,
            # however the clocks of bus and orchestrator differ.
            if sign.round == state.round and (state.announcement == 1 or sign_at >= asked_at):
                beat, heard_at = sign, max(heard_at, sign_at)
    longest = SIGNS * max(every, attendance.EVERY)
    silent = max(0.0, (standing.read_at - heard_at).total_seconds())
    seen_at = max(heard_at, presence.seen_at) if presence else heard_at
    waiting = standing.unread.get(silo, Unread())
    answered_at = waiting.answers.get((state.run.id, state.round))

    def ago(time: datetime | None) -> float | None:
        return None if time is None else max(0.0, (standing.read_at - time).total_seconds())

    return Life(
        doing=beat.doing if beat else None,
        heard_at=heard_at,
        silent=silent,
        signed_at=presence.seen_at if presence else None,
        quiet=answered_at is None and silent > longest,
        gone=answered_at is None and (standing.read_at - seen_at).total_seconds() > longest,
        looked=silo in standing.unread,
        unread=ago(waiting.since),
        answered=ago(answered_at),
        stalled=beat.progress_age if beat is not None and beat.stalled else None,
        seconds=max(0.0, (standing.read_at - asked_at).total_seconds()),
    )


def life(standing: Standing, silo: str) -> dict[str, Any]:
    """The same for scripts: null where nothing is waited for. `gone` is null, too, where that cannot be told."""
    state = standing.state
    if not isinstance(state, Collecting) or silo not in awaited(state):
        return dict.fromkeys(("gone", "silent_for", "unread_for", "doing", "stalled"))
    found = life_of(standing, state, silo)
    return {
        "gone": found.gone if found.looked or not found.gone else None,
        "silent_for": round(found.silent, 3),
        "unread_for": found.unread,
        "doing": found.doing,
        "stalled": found.stalled is not None,
    }


def quiet_silos(standing: Standing) -> list[str]:
    """Silos that are waited for and of which the store has told nothing for too long: have they said anything since?"""
    state = standing.state
    if not isinstance(state, Collecting):
        return []
    return [silo for silo in awaited(state) if life_of(standing, state, silo).quiet]


def in_open_round(standing: Standing, state: Collecting, silo: str) -> str:
    """What a silo does, or has done, in the open round."""
    match state.answers.get(silo):
        case Updated():
            return "updated"
        case LeftOut(reason=reason):
            return f"left out: {reason}"
        case Declined(reason=reason):
            return f"declined: {reason}"
        case Failed(reason=reason) if silo not in awaited(state):
            return f"failed: {reason}"
        case Failed(reason=reason):
            return f"{life_of(standing, state, silo).words}; before that it failed: {reason}"
        case _ if silo in awaited(state):
            return life_of(standing, state, silo).words
        case _:
            return "not asked"


def waiting_for(standing: Standing) -> str | None:
    """What has to happen next, in words; None when it is over."""
    match standing.state:
        case Collecting() as state:
            return f"{_who(standing, state)}; {_what_then(state)}{_late(standing)}"
        case Aggregating(judging=Collecting()) as state:
            return f"the comparison of {len(state.closed.updates)} updates, and their sum{_for_long(standing, state)}"
        case Aggregating() as state:
            return f"the sum of {len(state.closed.updates)} updates{_for_long(standing, state)}"
        case Paused(because=because):
            return f"silos that offer the task. {because}" if because else "resume-experiment"
        case Ended() | Tombstone():
            return None
        case _:
            assert_never(standing.state)


def overdue(standing: Standing) -> float | None:
    """Seconds since the open round should have closed or been announced again, once they are more than a delay.

    Then no orchestrator works, or the message that was to wake it is lost.
    """
    if not isinstance(standing.state, Collecting):
        return None
    until = standing.state.grace_until or standing.state.deadline
    late = (standing.read_at - until).total_seconds()
    return late if late > LATE else None


def summing_for(standing: Standing) -> float | None:
    """Seconds since the set was frozen that is being compared and summed."""
    state = standing.state
    return (standing.read_at - state.closed.closed_at).total_seconds() if isinstance(state, Aggregating) else None


def _for_long(standing: Standing, state: Aggregating) -> str:
    seconds = (standing.read_at - state.closed.closed_at).total_seconds()
    return f", for {seconds:.0f} s; it is a long one, or no orchestrator works" if seconds > SUMMING else ""


def _late(standing: Standing) -> str:
    late = overdue(standing)
    return f"; OVERDUE by {late:.0f} s" if late else ""


def _who(standing: Standing, state: Collecting) -> str:
    what = {Purpose.INITIALISE: "initial weights", Purpose.EVALUATE: "metrics"}.get(state.purpose, "updates")
    count = f"has {_updates(state)}, needs {state.quorum}{_in_vain(state)}"
    open_silos = awaited(state)
    if not open_silos:
        return f"the {'next try' if _out_of_reach(state) else 'deadline'} ({count})"
    lives = {silo: life_of(standing, state, silo) for silo in open_silos}
    gone = [silo for silo in open_silos if lives[silo].gone]
    shown = [*gone, *(silo for silo in open_silos if silo not in gone)][:NAMED]
    words = [f"{silo} ({_briefly(lives[silo])})" for silo in open_silos if silo in shown]
    if more := len(open_silos) - len(shown):
        words.append(f"{more} more")
    return f"{what} from {len(open_silos)} of {len(state.asked)}: {', '.join(words)} ({count}){_unread(lives)}"


def _updates(state: Collecting) -> int:
    return sum(isinstance(answer, Updated) for answer in state.answers.values())


def _out_of_reach(state: Collecting) -> bool:
    """Whether no quorum can come of this announcement any more: there is another after it, or the run would be over."""
    return state.purpose is Purpose.TRAIN and _updates(state) + len(awaited(state)) < state.quorum


def _in_vain(state: Collecting) -> str:
    """What was answered instead of an update, and by how many; the most frequent first."""
    found: Counter[str] = Counter()
    for silo, answer in state.answers.items():
        match answer:
            case Failed(reason=reason):
                found[f"failed{'' if has_answered(state, silo) else ' before'}: {reason}"] += 1
            case Declined(reason=reason):
                found[f"declined: {reason}"] += 1
            case LeftOut():
                found["left out"] += 1
            case Updated():
                pass
            case _:
                assert_never(answer)
    words = [f"{number} {what}" for what, number in found.most_common(REASONS)]
    if more := found.total() - sum(number for _, number in found.most_common(REASONS)):
        words.append(f"{more} more without an update")
    return f"; {', '.join(words)}" if words else ""


def _unread(lives: Mapping[str, Life]) -> str:
    """What speaks for it that no orchestrator works."""
    longest = max((found.unread for found in lives.values() if found.unread is not None), default=0.0)
    if longest > LATE:
        return f"; no orchestrator has read what silos say for {longest:.0f} s: does one work?"
    if len(lives) > 1 and all(found.gone for found in lives.values()):
        return "; nobody is heard of: does an orchestrator work?"
    return ""


def _briefly(found: Life) -> str:
    if not found.gone:
        return f"{found.words}, {found.seconds:.0f} s"
    was = f", was {found.doing}" if found.doing else ", nothing since it was asked"
    return f"{found.lost} since {found.heard_at:%H:%M:%S}, {found.silent:.0f} s ago{was}"


def _what_then(state: Collecting) -> str:
    quorum = state.run.request.quorum
    if state.grace_until is not None:
        return f"closes at the end of the grace, {state.grace_until:%Y-%m-%d %H:%M:%S} UTC"
    left = quorum.reminders - state.reminded
    if _out_of_reach(state):
        which = "too few for a quorum, so the next try" if awaited(state) else "it"
        return f"{which} is at {state.deadline:%Y-%m-%d %H:%M:%S} UTC ({left} left)"
    deadline = f"at the deadline, {state.deadline:%Y-%m-%d %H:%M:%S} UTC"
    match state.purpose:
        case Purpose.INITIALISE:
            return f"{deadline}, another silo is asked, or the same again"
        case Purpose.EVALUATE:
            return f"closes {deadline}"
        case Purpose.TRAIN if left <= 0:
            return f"{deadline}, it closes with a quorum, and fails without"
        case Purpose.TRAIN:
            return f"{deadline}, it closes with a quorum, and is announced again without ({left} times at most)"
