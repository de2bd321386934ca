"""The life of one round in a silo: what has happened so far, and therefore what is to be done next.

CORE: pure. A phase names the one thing to do next and holds only what is known by then; `step` takes the phase and what
came of it, and gives the next phase. No I/O, no clock, no task. The doing is `work`; what a phase needs after a restart
is found again on disk and in the store, so no phase is ever saved.

    Announced → Deciding → Waiting → Fetching → Training ⇄ Checking → Checked → Publishing → Published
                   ↓                    ↓           ↓          ↓         ↓           ↓
                Declined             Declined     Failed    Declined   Closed    (finishes)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, assert_never

from messages.schemas import FailureCategory
from silo_agent.policy import Accepted, Declined

HOPELESS: Final = frozenset(
    {
        FailureCategory.DATA_MISSING,
        FailureCategory.NOTHING_SHARED,
        FailureCategory.NO_PROXIMAL_TERM,
        FailureCategory.NOT_CORRECTED,
    }
)
"""Failures that another try would only repeat."""


# --- phases: what is to be done next ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Announced:
    """Look where the run stands, and whether this silo has published already."""


@dataclass(frozen=True, slots=True)
class Deciding:
    """Ask the policy, and charge the budget."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Wait until the task may train one more round."""

    accepted: Accepted


@dataclass(frozen=True, slots=True)
class Fetching:
    """Get the weights that the round starts from, and verify them."""

    accepted: Accepted
    tries: Tries


@dataclass(frozen=True, slots=True)
class Training:
    """Run the script."""

    accepted: Accepted
    tries: Tries


@dataclass(frozen=True, slots=True)
class Checking:
    """Check what the script wrote, and apply the outbound rules."""

    accepted: Accepted
    tries: Tries


@dataclass(frozen=True, slots=True)
class Checked:
    """Look again whether the round still wants this update, and whether there is one already."""

    accepted: Accepted
    number: int


@dataclass(frozen=True, slots=True)
class Publishing:
    """Log, upload, publish. From here on the round is finished even if it closes: a half-published update is none."""

    accepted: Accepted
    number: int


@dataclass(frozen=True, slots=True)
class Resending:
    """The publication is in the store: commit the private state that belongs to it, and send it (again)."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Training was tried often enough."""

    category: FailureCategory
    tries: int


@dataclass(frozen=True, slots=True)
class Closed:
    """Nobody waits for this round any more."""


@dataclass(frozen=True, slots=True)
class Published:
    """The update is where it belongs, and said so."""


@dataclass(frozen=True, slots=True)
class Tries:
    """The tries of one announcement. One that an agent's end interrupted has not failed, and does not count."""

    number: int
    """The try at hand; its directory's name."""
    failed: tuple[FailureCategory, ...] = ()


Ended = Published | Declined | Failed | Closed
Phase = Announced | Deciding | Waiting | Fetching | Training | Checking | Checked | Publishing | Resending | Ended


# --- events: what came of it ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LookedUp:
    """Where the run stands."""

    wanted: bool
    published: bool


@dataclass(frozen=True, slots=True)
class TurnCame:
    """The task may train now. What earlier tries of this announcement left was read from disk."""

    tries: Tries


@dataclass(frozen=True, slots=True)
class WeightsFetched:
    """The input is complete."""

    finished: bool = False
    """Whether the try at hand had finished on just this input before the agent was restarted: it need not run again."""


@dataclass(frozen=True, slots=True)
class TryFinished:
    """The script has written a report."""


@dataclass(frozen=True, slots=True)
class TryFailed:
    """The script failed, or what it wrote is not what was asked for."""

    category: FailureCategory


@dataclass(frozen=True, slots=True)
class ResultAllowed:
    """The result is sound and may leave."""


@dataclass(frozen=True, slots=True)
class PublicationMade:
    """The publication is in the store: ours, or one that was there before."""


@dataclass(frozen=True, slots=True)
class PublicationSent:
    """The orchestrator's queue has it."""


@dataclass(frozen=True, slots=True)
class RoundIsClosed:
    """The orchestrator said so, while the work was going on."""


Event = (
    LookedUp
    | Accepted
    | Declined
    | TurnCame
    | WeightsFetched
    | TryFinished
    | TryFailed
    | ResultAllowed
    | PublicationMade
    | PublicationSent
    | RoundIsClosed
)


def step(phase: Phase, event: Event) -> Phase:
    """The phase after `event`. Raises ValueError when such a thing cannot happen in this phase (our bug)."""
    match event:
        case RoundIsClosed():
            uninterruptible = isinstance(phase, Publishing | Resending | Ended)
            return phase if uninterruptible else Closed()
        case Declined():
            return event
        case LookedUp():
            return _looked_up(phase, event)
        case TryFailed(category):
            return _try_failed(phase, category)
        case Accepted() | TurnCame() | WeightsFetched() | TryFinished():
            return _towards_a_result(phase, event)
        case ResultAllowed() | PublicationMade() | PublicationSent():
            return _towards_the_end(phase, event)
        case _:
            assert_never(event)


def _looked_up(phase: Phase, event: LookedUp) -> Phase:
    match phase:
        case Announced() | Checked() if event.published:
            return Resending()
        case Announced() | Checked() if not event.wanted:
            return Closed()
        case Announced():
            return Deciding()
        case Checked(accepted, number):
            return Publishing(accepted, number)
        case _:
            raise _impossible(phase, event)


def _try_failed(phase: Phase, category: FailureCategory) -> Phase:
    match phase:
        case Training(accepted, tries) | Checking(accepted, tries):
            failed = (*tries.failed, category)
            if len(failed) >= accepted.task.tries or category in HOPELESS:
                return Failed(category, len(failed))
            return Training(accepted, Tries(tries.number + 1, failed))
        case _:
            raise _impossible(phase, TryFailed(category))


def _towards_a_result(phase: Phase, event: Accepted | TurnCame | WeightsFetched | TryFinished) -> Phase:
    match phase, event:
        case Deciding(), Accepted():
            return Waiting(event)
        case Waiting(accepted), TurnCame(tries):
            # The last failure may have been told, or the agent killed before it could: then it is told again.
            if len(tries.failed) >= accepted.task.tries or HOPELESS.intersection(tries.failed):
                return Failed(tries.failed[-1], len(tries.failed))
            return Fetching(accepted, tries)
        case Fetching(accepted, tries), WeightsFetched(finished):
            return Checking(accepted, tries) if finished else Training(accepted, tries)
        case Training(accepted, tries), TryFinished():
            return Checking(accepted, tries)
        case _:
            raise _impossible(phase, event)


def _towards_the_end(phase: Phase, event: ResultAllowed | PublicationMade | PublicationSent) -> Phase:
    match phase, event:
        case Checking(accepted, tries), ResultAllowed():
            return Checked(accepted, tries.number)
        case Publishing(), PublicationMade():
            return Resending()
        case Resending(), PublicationSent():
            return Published()
        case _:
            raise _impossible(phase, event)


def _impossible(phase: Phase, event: Event) -> ValueError:
    return ValueError(f"{type(event).__name__} cannot happen in {type(phase).__name__}")
