"""A frozen set whose updates were compared with each other: which are left out, and whether those that stay are enough.

With enough the round closes, and is summed as if the others had never come. With too few it is open again, as a round
is whose deadline passed without a quorum; that takes one of its reminders, so it cannot go on for ever. Who is left out
stays out of the round.
"""

from __future__ import annotations

from datetime import datetime

from messages.errors import Duplicate, Stale
from orchestrator.experiment.checking import Change, odd_ones
from orchestrator.experiment.collecting import After, announce_again
from orchestrator.experiment.events import UpdateCameLate, UpdatesCompared
from orchestrator.experiment.rounds import close_judged, opened_again
from orchestrator.experiment.state import Aggregating, Answer, LeftOut, Updated


def updates_compared(state: Aggregating, event: UpdatesCompared, now: datetime) -> After:
    """Judges the set, once: what a second worker found of the same set, or of one before it, changes nothing."""
    checks = state.run.request.checks
    if state.judging is None or checks is None or event.announcement != state.closed.announcements:
        raise Duplicate(f"the updates of round {event.round} of {event.run} were compared already")
    opened = opened_again(state, state.judging)
    found = {silo: _compared(a, event, silo) for silo, a in opened.answers.items() if isinstance(a, Updated)}
    odd = odd_ones(checks, {silo: update.change or Change() for silo, update in found.items()})
    left_out = {silo: LeftOut(update=found[silo], reason=why) for silo, why in odd.items()}
    answers: dict[str, Answer] = {**opened.answers, **found, **left_out}
    judged = opened.model_copy(update={"answers": answers})
    if len(found) - len(left_out) >= judged.quorum:
        return close_judged(judged, state.closed.closed_at, state.late)
    return announce_again(judged.model_copy(update={"grace_until": None}), now)


def update_came_late(state: Aggregating, event: UpdateCameLate) -> Aggregating:
    """Remembers who sent an update while the set was compared: whether that was too late is not known yet.

    If the round is open again, the silo is asked again, and sends the same update again.
    """
    opened = state.judging
    if opened is None or event.silo not in opened.asked:
        raise Stale(f"{event.silo} was not asked for round {event.round}")
    if event.silo in state.late or isinstance(opened.answers.get(event.silo), Updated | LeftOut):
        raise Duplicate(f"the update of {event.silo} for round {event.round} is known already")
    return state.model_copy(update={"late": (*state.late, event.silo)})


def _compared(update: Updated, event: UpdatesCompared, silo: str) -> Updated:
    if silo not in event.cosines:
        return update
    change = (update.change or Change()).model_copy(update={"cosine": event.cosines[silo]})
    return update.model_copy(update={"change": change})
