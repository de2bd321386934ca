"""The machine: `step(state, event, now) -> (state, effects)`, and `reconcile(state) -> effects`.

This file only says who answers for an event; the rules are in `starting`, `collecting`, `judging` and `rounds`. An
event that changes nothing raises: `Duplicate` and `Stale` when it is over, `Poison` when it can never mean anything.
"""

from __future__ import annotations

from datetime import datetime
from typing import assert_never

from messages.errors import Duplicate, Poison, Stale
from messages.schemas import AggregateRound, DeadlinePassed, GraceOver
from orchestrator.experiment import collecting, judging, rounds, starting
from orchestrator.experiment.announcing import ask, awaited, head_of
from orchestrator.experiment.effects import Effects, PublishHead, ScheduleGrace
from orchestrator.experiment.events import (
    AggregationFailed,
    CancelRequested,
    Event,
    MembersSeen,
    PauseRequested,
    ResumeRequested,
    RoundAggregated,
    RoundRefused,
    SiloAppeared,
    StartRequested,
    TrainingBroke,
    UpdateCameLate,
    UpdateRejected,
    UpdatesCompared,
    UpdateVerified,
)
from orchestrator.experiment.membership import left, members_after
from orchestrator.experiment.pace import was_late
from orchestrator.experiment.state import (
    Aggregating,
    Collecting,
    Ended,
    Live,
    Paused,
    RunOutcome,
    State,
    Tombstone,
)

Sent = UpdateVerified | UpdateRejected | RoundRefused | TrainingBroke | DeadlinePassed | GraceOver
Summed = RoundAggregated | AggregationFailed


def step(state: State | None, event: Event, now: datetime) -> tuple[State, Effects]:  # noqa: PLR0912  # one per event
    """What follows from `event`. Raises Stale, Duplicate or Poison; then nothing has changed."""
    match event:
        case StartRequested():
            return starting.start_requested(state, event, now)
        case CancelRequested():
            return starting.cancel_requested(state, event, now)
        case PauseRequested():
            return starting.pause_requested(state, event)
        case ResumeRequested():
            return starting.resume_requested(state, event, now)
        case SiloAppeared():
            if not isinstance(state, Collecting):
                raise Stale("no round is open")
            return collecting.silo_appeared(state, event)
        case MembersSeen():
            return _members_seen(state, event, now)
        case UpdateCameLate():
            return _late(_run_of(state, event.run), event), ()
        case UpdateVerified():
            return _in_open_round(open_round_of(state, event.update.run, event.update.round), event, now)
        case UpdateRejected() | RoundRefused() | TrainingBroke() | DeadlinePassed() | GraceOver():
            return _in_open_round(open_round_of(state, event.run, event.round), event, now)
        case UpdatesCompared():
            return judging.updates_compared(aggregation_of(state, event.run, event.round), event, now)
        case RoundAggregated() | AggregationFailed():
            return _summed(aggregation_of(state, event.run, event.round), event, now)
        case _:
            assert_never(event)


def open_round_of(state: State | None, run: str, round_number: int) -> Collecting:
    """The open round that a message speaks of. Raises Stale when it is over, Poison when it never was."""
    live = _run_of(state, run)
    match live:
        case Collecting():
            if round_number == live.round:
                return live
            current = live.round
        case Aggregating():
            current = live.closed.round + 1
        case Paused():
            current = live.round
        case Ended():
            raise Stale(f"{run} is over")
        case _:
            assert_never(live)
    if round_number < current:
        raise Stale(f"round {round_number} of {run} is closed")
    raise Poison("unknown-round", f"Round {round_number} of {run} has not been announced.")


def aggregation_of(state: State | None, run: str, round_number: int) -> Aggregating:
    """The frozen round that is to be summed. Raises Duplicate when it was, Poison when it never can be."""
    live = _run_of(state, run)
    if isinstance(live, Aggregating) and live.closed.round == round_number:
        return live
    if isinstance(live, Ended):
        raise Stale(f"{run} is over")
    raise Duplicate(f"round {round_number} of {run} was aggregated already")


def reconcile(state: State | None) -> Effects:
    """What the live phase needs, from the state alone: the queues may be lost, and everything ever sent with them."""
    match state:
        case Collecting():
            effects = ask(state, awaited(state))
            if state.grace_until is None:
                return effects
            run, number, announcement = state.run.id, state.round, state.announcement
            return (
                *effects,
                ScheduleGrace(run=run, round=number, announcement=announcement, at=state.grace_until),
            )
        case Aggregating():
            return (PublishHead(head=head_of(state)), rounds.request_for(state.closed))
        case Paused():
            return (PublishHead(head=head_of(state)),)
        case Ended() | Tombstone() | None:
            return ()
        case _:
            assert_never(state)


def expected_in_work(state: State) -> frozenset[AggregateRound | DeadlinePassed | GraceOver]:
    """The messages in `work` without which the phase would stand still. Where they are, the queues were not lost."""
    match state:
        case Collecting(run=run, round=number, announcement=announcement):
            deadline = DeadlinePassed(run=run.id, round=number, announcement=announcement, at=state.deadline)
            grace = GraceOver(run=run.id, round=number, announcement=announcement)
            return frozenset((deadline,) if state.grace_until is None else (deadline, grace))
        case Aggregating():
            closed = state.closed
            wanted = AggregateRound(run=closed.run, round=closed.round, announcement=closed.announcements)
            return frozenset((wanted,))
        case Paused() | Ended() | Tombstone():
            return frozenset()
        case _:
            assert_never(state)


def _members_seen(state: State | None, event: MembersSeen, now: datetime) -> tuple[State, Effects]:
    """Who takes part in the rounds to come. The open one keeps those it asked, of whom one that left has answered."""
    if not isinstance(state, Collecting | Aggregating | Paused):
        raise Stale("there is no live run")
    silos = members_after(state.run, event)
    if silos == state.run.silos:
        raise Stale(f"those who take part in {state.run.id} are still the same")
    run = state.run.model_copy(update={"silos": silos})
    match state:
        case Collecting():
            return collecting.members_left(state.model_copy(update={"run": run}), event, now)
        case Paused(because=because) if because:
            return rounds.open_round(run, state.round, state.purpose, now)
        case Aggregating(judging=Collecting() as opened):  # should it go on, who left has answered
            gone = left(opened.model_copy(update={"run": run}), event)
            opened = opened.model_copy(update={"answers": {**opened.answers, **dict(gone)}})
            return state.model_copy(update={"run": run, "judging": opened}), ()
        case Aggregating() | Paused():
            return state.model_copy(update={"run": run}), ()
        case _:
            assert_never(state)


def _late(live: Live | Ended, event: UpdateCameLate) -> State:
    """Counts an update for a closed round, once."""
    match live:
        case Collecting() | Paused():
            current = live.round
        case Aggregating(judging=Collecting(round=current)):
            if event.round == current:
                return judging.update_came_late(live, event)
        case Aggregating():
            current = live.closed.round + 1
        case Ended():
            raise Stale(f"{event.run} is over")
        case _:
            assert_never(live)
    pace = live.run.paces.get(event.silo)
    if event.round >= current or pace is None:
        raise Stale(f"{event.silo} was not asked for a round {event.round} that is closed")
    after = was_late(pace, event.round)
    if after is None:
        raise Duplicate(f"the update of {event.silo} for round {event.round} was counted, as one or as late")
    paces = {**live.run.paces, event.silo: after}
    return live.model_copy(update={"run": live.run.model_copy(update={"paces": paces})})


def _in_open_round(state: Collecting, event: Sent, now: datetime) -> tuple[State, Effects]:
    match event:
        case UpdateVerified():
            return collecting.update_verified(state, event, now)
        case UpdateRejected():
            return collecting.update_rejected(state, event, now)
        case RoundRefused():
            return collecting.round_refused(state, event, now)
        case TrainingBroke():
            return collecting.training_broke(state, event, now)
        case DeadlinePassed():
            return collecting.deadline_passed(state, event, now)
        case GraceOver():
            return collecting.grace_over(state, event, now)
        case _:
            assert_never(event)


def _summed(state: Aggregating, event: Summed, now: datetime) -> tuple[State, Effects]:
    match event:
        case RoundAggregated():
            return rounds.round_aggregated(state, event, now)
        case AggregationFailed():
            reason = f"Round {event.round} could not be aggregated: {event.reason}"
            return rounds.end_run(state, RunOutcome.FAILED, reason, now)
        case _:
            assert_never(event)


def _run_of(state: State | None, run: str) -> Live | Ended:
    if state is None or isinstance(state, Tombstone) or state.run.id != run:
        raise Poison("unknown-run", f"There is no run {run}.")
    return state
