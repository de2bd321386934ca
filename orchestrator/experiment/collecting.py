"""An open round: what each silo answers, the grace, the deadline, announcing again.

Here lives every rule about what counts in a round and what no longer does. What follows once the set is frozen is
`rounds`'.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from messages.errors import Duplicate, Poison, Stale
from messages.experiments import Transfer
from messages.schemas import DeadlinePassed, GraceOver, Payload, Purpose, Role, UpdatePublished
from orchestrator.experiment.announcing import ask, awaited, deadline_of, has_answered, roles_of
from orchestrator.experiment.checking import beyond
from orchestrator.experiment.effects import Announce, Effects, ScheduleGrace
from orchestrator.experiment.events import (
    MembersSeen,
    RoundRefused,
    SiloAppeared,
    TrainingBroke,
    UpdateRejected,
    UpdateVerified,
)
from orchestrator.experiment.membership import asked_next, in_order, left
from orchestrator.experiment.metrics import number_of, tally
from orchestrator.experiment.rounds import close_round, end_run, no_quorum
from orchestrator.experiment.state import (
    Aggregating,
    Answer,
    Besides,
    Collecting,
    Declined,
    Ended,
    Failed,
    LeftOut,
    RunOutcome,
    Updated,
)

FIRST_PAUSE = 10.0
"""Seconds before a round whose silos failed is announced again; three times as long each time."""
LONGEST_PAUSE = 86400.0
After = tuple[Collecting | Aggregating | Ended, Effects]


def check_update(state: Collecting, silo: str, update: UpdatePublished) -> None:
    """Raises unless this update would count. Cheap: for a look before gigabytes are read."""
    _check_asked(state, silo)
    before = state.answers.get(silo)
    if isinstance(before, Updated | LeftOut):
        first, became = (before, "counted") if isinstance(before, Updated) else (before.update, "left out")
        if _content(first, roles_of(state)) == _content(update, roles_of(state)):
            raise Duplicate(f"this update of {silo} for round {state.round} was {became} before")
        raise Poison(
            "update-conflict",
            f"{silo} sent another update for round {state.round}; the first one was {became}. An agent publishes "
            "once per round: look whether two agents run for this silo.",
        )
    if update.purpose is not state.purpose:
        raise Poison("wrong-purpose", f"Round {state.round} is for {state.purpose}, the update for {update.purpose}.")
    if state.purpose is Purpose.EVALUATE:
        return
    for role in roles_of(state):
        payload = update.payloads.get(role)
        if payload is None:
            raise Poison("payload-missing", f"The update for round {state.round} names no {role}.")
        expected = transfer_of(state).form if role == "weights" else "delta"
        if payload.form != expected:
            raise Poison("wrong-form", f"Round {state.round} takes {expected}, not {payload.form}, of {role}.")


def transfer_of(state: Collecting) -> Transfer:
    """How weights travel in this round: those of the first model as they are."""
    return Transfer() if state.purpose is Purpose.INITIALISE else state.run.request.transfer


def update_verified(state: Collecting, event: UpdateVerified, now: datetime) -> After:
    """Counts an update, whichever announcement of this round caused it."""
    check_update(state, event.silo, event.update)
    update = event.update
    answer = Updated(
        announcement=update.announcement,
        payload=None if state.purpose is Purpose.EVALUATE else update.payloads["weights"],
        besides={
            role: Besides(payload=update.payloads[role], etag=event.etags.get(role))
            for role in roles_of(state)
            if role != "weights"
        },
        samples=update.samples,
        steps=update.steps,
        seconds=update.seconds,
        norm=event.norm,
        change=event.change,
        etag=event.etag,
        waited=max(0.0, (now - _announced_at(state, update.announcement)).total_seconds()),
        metrics=tuple(number_of(report) for report in update.metrics),
        at=now,
    )
    why = beyond(state.run.request.checks, event.change)
    counted = answer if why is None else LeftOut(update=answer, reason=why)
    tallies = tally(state.tallies, update.metrics)
    return _after_answer(_answered(state, event.silo, counted).model_copy(update={"tallies": tallies}), now)


def update_rejected(state: Collecting, event: UpdateRejected, now: datetime) -> After:
    """A useless answer is an answer: the round does not wait for another."""
    return _failed(state, event.silo, event.reason, state.announcement, now)


def training_broke(state: Collecting, event: TrainingBroke, now: datetime) -> After:
    """The silo gave up; asked again, it may try again."""
    return _failed(state, event.silo, event.reason, event.announcement or state.announcement, now)


def round_refused(state: Collecting, event: RoundRefused, now: datetime) -> After:
    """The silo's owner said no, for the whole round."""
    _check_asked(state, event.silo)
    match state.answers.get(event.silo):
        case Updated() | LeftOut():
            raise Stale(f"the update of {event.silo} for round {state.round} is in already")
        case Declined():
            raise Duplicate(f"{event.silo} had declined round {state.round} already")
        case Failed() | None:
            return _after_answer(_answered(state, event.silo, Declined(reason=event.reason)), now)


def silo_appeared(state: Collecting, event: SiloAppeared) -> After:
    """Tells a new agent of the open round, if its silo still owes an answer."""
    if event.silo not in state.asked or has_answered(state, event.silo):
        raise Stale(f"{event.silo} owes round {state.round} no answer")
    return state, (Announce(silo=event.silo, round=state.round, announcement=state.announcement),)


def members_left(state: Collecting, event: MembersSeen, now: datetime) -> After:
    """Who takes part no longer has answered the open round, if an answer was owed. Who joins waits for the next."""
    gone = left(state, event)
    if not gone:
        return state, ()
    return _after_answer(state.model_copy(update={"answers": {**state.answers, **dict(gone)}}), now)


def deadline_passed(state: Collecting, event: DeadlinePassed, now: datetime) -> After:
    """The time of one announcement is up."""
    if event.announcement != state.announcement:
        raise Stale(f"announcement {event.announcement} of round {state.round} is over")
    if len(_updates(state)) >= state.quorum or state.purpose is Purpose.EVALUATE:
        return close_round(state, now)
    if state.purpose is Purpose.INITIALISE and (after := _ask_next(state, now)):
        return after
    return announce_again(state, now)


def grace_over(state: Collecting, event: GraceOver, now: datetime) -> After:
    """Stragglers have had their time. An announcement has one grace at most."""
    if state.grace_until is None or event.announcement != state.announcement:
        raise Stale(f"no grace of round {state.round} is running")
    return close_round(state, now)


def _failed(state: Collecting, silo: str, reason: str, announcement: int, now: datetime) -> After:
    _check_asked(state, silo)
    match state.answers.get(silo):
        case Updated() | LeftOut() | Declined():
            raise Stale(f"{silo} has answered round {state.round} already")
        case Failed() if has_answered(state, silo):
            raise Duplicate(f"{silo} had failed in round {state.round} already")
        case Failed() | None:
            if announcement < state.announcement:
                raise Stale(f"{silo} failed for announcement {announcement} and has been asked again since")
            answer = Failed(announcement=state.announcement, reason=reason[:300])
            return _after_answer(_answered(state, silo, answer), now)


def _after_answer(state: Collecting, now: datetime) -> After:
    """What an answer brings about: the end of the round, its grace, another announcement, or nothing yet."""
    waiting = awaited(state)
    missing = state.quorum - len(_updates(state))
    if missing <= 0:
        return close_round(state, now) if _need_not_wait(state, waiting) else _begin_grace(state, now)
    match state.purpose:
        case Purpose.EVALUATE:
            return (state, ()) if waiting else close_round(state, now)
        case Purpose.INITIALISE:
            return _ask_next(state, now) or ((state, ()) if waiting else _fail(state, now))
        case Purpose.TRAIN:
            return (state, ()) if missing <= len(waiting) else _announce_soon(state, now)


def _need_not_wait(state: Collecting, waiting: tuple[str, ...]) -> bool:
    return not waiting or state.purpose is Purpose.INITIALISE or state.run.request.quorum.grace == 0


def _begin_grace(state: Collecting, now: datetime) -> After:
    if state.grace_until is not None:
        return state, ()
    until = now + timedelta(seconds=state.run.request.quorum.grace)
    schedule = ScheduleGrace(run=state.run.id, round=state.round, announcement=state.announcement, at=until)
    return state.model_copy(update={"grace_until": until}), (schedule,)


def _ask_next(state: Collecting, now: datetime) -> After | None:
    """Asks one more silo for the first model; None when all have been asked."""
    silo = next((s for s in state.run.silos if s not in state.asked), None)
    if silo is None:
        return None
    asked = in_order(state.run.request, (*state.asked, silo))
    after = _announced_anew(state, now).model_copy(update={"asked": asked})
    return after, ask(after, (silo,))


def announce_again(state: Collecting, now: datetime) -> After:
    """A new try with those that owe an answer; where they are a sample, with others besides."""
    after = _announced_anew(state, now).model_copy(update={"reminded": state.reminded + 1})
    if _is_lost(state, after):
        return _fail(state, now)
    return after, ask(after, awaited(after))


def _announce_soon(state: Collecting, now: datetime) -> After:
    """No quorum can come of this announcement: its deadline is brought forward, to a pause from now.

    The pause lets a short trouble in a silo pass; it grows from one announcement to the next.
    """
    if _is_lost(state, _announced_anew(state, now)):
        return _fail(state, now)
    soon = now + pause(state.reminded)
    if soon >= state.deadline:
        return state, ()
    after = state.model_copy(update={"deadline": soon})
    return after, (deadline_of(after),)


def pause(reminded: int) -> timedelta:
    """How long to wait once all that can be had of an announcement are failures, after so many reminders."""
    return timedelta(seconds=min(LONGEST_PAUSE, FIRST_PAUSE * 3.0 ** min(reminded, 100)))


def _is_lost(state: Collecting, again: Collecting) -> bool:
    """Whether announcing again is of no use: not allowed any more, or too many have declined for good."""
    most = len(_updates(state)) + len(awaited(again))
    return most < state.quorum or state.reminded >= state.run.request.quorum.reminders


def _announced_anew(state: Collecting, now: datetime) -> Collecting:
    deadline = now + timedelta(seconds=state.run.request.quorum.deadline)
    asked = in_order(state.run.request, (*state.asked, *asked_next(state)))
    return state.model_copy(
        update={"announcement": state.announcement + 1, "announced_at": now, "deadline": deadline, "asked": asked}
    )


def _fail(state: Collecting, now: datetime) -> After:
    return end_run(state, RunOutcome.FAILED, no_quorum(state), now)


def _announced_at(state: Collecting, announcement: int) -> datetime:
    """When the current announcement was made; of those before it, only the first is remembered."""
    if state.announced_at is None or announcement < state.announcement:
        return state.opened_at
    return state.announced_at


def _answered(state: Collecting, silo: str, answer: Answer) -> Collecting:
    return state.model_copy(update={"answers": {**state.answers, silo: answer}})


def _updates(state: Collecting) -> list[Updated]:
    return [answer for answer in state.answers.values() if isinstance(answer, Updated)]


def _content(update: Updated | UpdatePublished, roles: Iterable[Role]) -> tuple[object, ...]:
    if isinstance(update, Updated):
        payloads: dict[Role, Payload | None] = {
            "weights": update.payload,
            **{role: one.payload for role, one in update.besides.items()},
        }
    else:
        payloads = {**update.payloads}
    sent = [payload.sha256 if (payload := payloads.get(role)) else None for role in roles]
    return (*sent, update.samples, update.steps)


def _check_asked(state: Collecting, silo: str) -> None:
    if silo not in state.asked:
        raise Poison(
            "not-asked",
            f"{silo} was not asked to take part in round {state.round} of {state.run.id}; it is announced to: "
            + ", ".join(state.asked[:20]),
        )
