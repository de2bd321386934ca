"""What operators ask for: start, cancel, pause, resume. All of it idempotent, and all of it refused with a reason.

A cancel may overtake its start. It leaves a tombstone, which refuses one start (the run it names, or the first that
comes) and remembers which, so that this message stays refused however often it is delivered, and any later one begins.
"""

from __future__ import annotations

from datetime import datetime

from messages.errors import Duplicate, Poison, Stale
from messages.schemas import Purpose
from orchestrator.experiment.effects import Effects
from orchestrator.experiment.events import CancelRequested, PauseRequested, ResumeRequested, StartRequested
from orchestrator.experiment.membership import members_at_start, seed_of, shortage
from orchestrator.experiment.rounds import end_run, open_round
from orchestrator.experiment.state import (
    Aggregating,
    Collecting,
    Ended,
    Model,
    Paused,
    Run,
    RunOutcome,
    State,
    Tombstone,
)


def check_start(state: State | None, event: StartRequested) -> None:
    """Raises unless the start begins a run, or uses up a tombstone. Cheap: for a look before weights are copied."""
    match state:
        case Collecting() | Aggregating() | Paused():
            if event.run == state.run.id or event.request == state.run.request:
                raise Duplicate(f"{state.run.id} was started by this already")
            raise Poison(
                "experiment-is-live",
                f"An experiment named {event.request.experiment} is live as {state.run.id}, started differently. "
                "Cancel it first, or choose another name.",
            )
        case Ended() if event.run == state.run.id:
            raise Duplicate(f"{event.run} is over")
        case Ended(refuses=refuses) | Tombstone(refuses=refuses):
            if event.run == refuses:
                raise cancelled_before_start(event)
        case None:
            pass
    if event.ran_before:
        raise Duplicate(f"{event.run} is over")
    members_at_start(event)


def cancelled_before_start(event: StartRequested) -> Poison:
    """The refusal of a start whose cancel came first."""
    return Poison(
        "cancelled-before-start",
        f"A cancel for {event.request.experiment} came before this start. Start it again if it is still wanted.",
    )


def start_requested(state: State | None, event: StartRequested, now: datetime) -> tuple[State, Effects]:
    """Begins a run with round 0, or with round 1 when the first weights are given.

    Returns a `Tombstone` when this is the start that it refuses; the shell then raises `cancelled_before_start`.
    """
    check_start(state, event)
    if isinstance(state, Tombstone) and state.refuses is None:
        return state.model_copy(update={"refuses": event.run}), ()
    run = Run(
        id=event.run,
        request=event.request,
        silos=members_at_start(event),
        seed=seed_of(event.run, event.request),
        roles=event.roles,
        hyperparameters=event.hyperparameters,
        least=event.least,
        started_at=now,
        model=None if event.initial is None else Model(round=0, payload=event.initial),
    )
    if event.initial is None:
        return open_round(run, 0, Purpose.INITIALISE, now)
    return open_round(run, 1, Purpose.TRAIN, now)


def cancel_requested(state: State | None, event: CancelRequested, now: datetime) -> tuple[State, Effects]:
    """Ends what is live; remembers what has not come yet."""
    match state:
        case Collecting() | Aggregating() | Paused():
            if event.run not in {None, state.run.id}:
                raise Stale(f"{event.run} is not live")
            return end_run(state, RunOutcome.CANCELLED, "Cancelled by an operator.", now)
        case Ended():
            if event.run in {None, state.run.id, state.refuses}:
                raise Stale(f"{state.run.id} is over")
            return state.model_copy(update={"refuses": event.run}), ()
        case Tombstone():
            if event.run in {None, state.refuses}:
                raise Duplicate(f"{event.experiment} was cancelled before its start already")
            return state.model_copy(update={"refuses": event.run}), ()
        case None:
            return Tombstone(experiment=event.experiment, since=now, refuses=event.run), ()


def pause_requested(state: State | None, event: PauseRequested) -> tuple[State, Effects]:
    """The round in progress is finished first."""
    match state:
        case Collecting(pausing=False) | Aggregating(pausing=False):
            return state.model_copy(update={"pausing": True}), ()
        case Paused(because=because) if because:
            return state.model_copy(update={"because": ""}), ()
        case Collecting() | Aggregating() | Paused():
            raise Duplicate(f"{state.run.id} is paused, or about to be")
        case Ended() | Tombstone() | None:
            raise _not_live(state, event.experiment)


def resume_requested(state: State | None, event: ResumeRequested, now: datetime) -> tuple[State, Effects]:
    """Goes on with the next round, or takes back a pause that has not come into force."""
    match state:
        case Paused(run=run, round=round_number, purpose=purpose):
            if (missing := shortage(run, purpose)) is not None:
                raise Poison("too-few-silos", f"{missing} The run stays paused; have silos offer the task, or cancel.")
            return open_round(run, round_number, purpose, now)
        case Collecting(pausing=True) | Aggregating(pausing=True):
            return state.model_copy(update={"pausing": False}), ()
        case Collecting() | Aggregating():
            raise Duplicate(f"{state.run.id} is not paused")
        case Ended() | Tombstone() | None:
            raise _not_live(state, event.experiment)


def _not_live(state: Ended | Tombstone | None, experiment: str) -> Stale | Poison:
    if isinstance(state, Ended):
        return Stale(f"{state.run.id} is over")
    return Poison("unknown-experiment", f"No experiment named {experiment} was started. Check the name.")
