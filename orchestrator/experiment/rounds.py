"""From round to round: opening one, freezing its set, what follows, and how a run ends.

Here is what happens between rounds; what happens to answers inside an open one is `collecting`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from messages.schemas import ClosedBecause, Purpose
from orchestrator.experiment import pace
from orchestrator.experiment.announcing import ask, dismiss, has_answered, head_of
from orchestrator.experiment.effects import Effects, PublishHead, RecordRound, RecordRun, RequestAggregation
from orchestrator.experiment.events import RoundAggregated
from orchestrator.experiment.membership import draw, first_asked, quorum_of, shortage
from orchestrator.experiment.metrics import improves, pool
from orchestrator.experiment.pace import Pace
from orchestrator.experiment.state import (
    Aggregating,
    Best,
    ClosedRound,
    Collecting,
    Declined,
    Ended,
    Failed,
    LeftOut,
    Live,
    Model,
    Paused,
    RoundOutcome,
    RoundRecord,
    Run,
    RunOutcome,
    Updated,
    UpdateRecord,
)

MOST_REASON = 4000


def open_round(run: Run, round_number: int, purpose: Purpose, now: datetime) -> tuple[Collecting | Paused, Effects]:
    """Announces a round for the first time; pauses before it while too few silos are left for a quorum."""
    if (missing := shortage(run, purpose)) is not None:
        return Paused(run=run, round=round_number, purpose=purpose, since=now, because=missing), ()
    drawn = draw(run, purpose)
    asked = first_asked(run, round_number, purpose, drawn)
    state = Collecting(
        run=run,
        round=round_number,
        purpose=purpose,
        quorum=quorum_of(run, len(asked), purpose),
        asked=asked,
        draw=drawn,
        opened_at=now,
        announced_at=now,
        deadline=now + timedelta(seconds=run.request.quorum.deadline),
    )
    return state, ask(state, state.asked)


def close_round(state: Collecting, now: datetime) -> tuple[Aggregating | Ended, Effects]:
    """Freezes the set. Nothing is summed after an evaluation: that was the last round.

    A set whose updates have to be compared first is frozen as well, but nobody is told: it may open again.
    """
    if state.purpose is Purpose.EVALUATE:
        return _completed(state, now)
    closed = frozen(state, now)
    request = request_for(closed)
    if state.purpose is Purpose.TRAIN and state.run.request.checks and state.run.request.checks.of_the_set:
        return Aggregating(run=state.run, closed=closed, judging=state, pausing=state.pausing), (request,)
    after = Aggregating(run=timed(state.run, closed), closed=closed, pausing=state.pausing)
    return after, (*dismiss(state, ClosedBecause.AGGREGATED), request, PublishHead(head=head_of(after)))


def close_judged(state: Collecting, frozen_at: datetime, late: Iterable[str]) -> tuple[Aggregating, Effects]:
    """Closes a round whose set was frozen and compared: now silos may know. Its sum was asked for before.

    Updates of those who came `late`, meanwhile, are not in it.
    """
    closed = frozen(state, frozen_at)
    run = timed(state.run, closed)
    counted = {silo: new for silo in late if (new := pace.was_late(run.paces[silo], closed.round)) is not None}
    run = run.model_copy(update={"paces": {**run.paces, **counted}})
    after = Aggregating(run=run, closed=closed, pausing=state.pausing)
    return after, (*dismiss(state, ClosedBecause.AGGREGATED), PublishHead(head=head_of(after)))


def request_for(closed: ClosedRound) -> RequestAggregation:
    """What has a frozen set summed."""
    return RequestAggregation(run=closed.run, round=closed.round, announcement=closed.announcements)


def opened_again(state: Aggregating, judging: Collecting) -> Collecting:
    """The round whose set is being compared, as it is open again: with what happened to its run meanwhile."""
    return judging.model_copy(update={"run": state.run, "pausing": state.pausing})


def round_aggregated(state: Aggregating, event: RoundAggregated, now: datetime) -> tuple[Live, Effects]:
    """The new weights are there: the next round, or a pause before it."""
    if state.judging is not None:
        raise ValueError(f"round {event.round} of {event.run} was summed before its updates were compared")
    closed = state.closed
    model = Model(round=closed.round, payload=event.payload, besides=event.besides)
    run = measured(state.run, closed).model_copy(update={"model": model})
    record = RecordRound(record=_record(closed, RoundOutcome.AGGREGATED, now, model))
    purpose = _purpose_after(run, closed)
    if state.pausing:
        return Paused(run=run, round=closed.round + 1, purpose=purpose, since=now), (record,)
    after, effects = open_round(run, closed.round + 1, purpose, now)
    return after, (record, *effects)


def end_run(state: Live, outcome: RunOutcome, reason: str, now: datetime) -> tuple[Ended, Effects]:
    """Ends a run before its time, in whichever phase it is: cancelled or failed."""
    failed = outcome is RunOutcome.FAILED
    round_outcome = RoundOutcome.FAILED if failed else RoundOutcome.CANCELLED
    because = ClosedBecause.FAILED if failed else ClosedBecause.CANCELLED
    effects: Effects
    match state:
        case Collecting():
            record = _record(frozen(state, now), round_outcome, now, None)
            effects = (*dismiss(state, because), RecordRound(record=record))
        case Aggregating(judging=Collecting() as judging):  # its silos think that it is open
            return end_run(opened_again(state, judging), outcome, reason, now)
        case Aggregating(closed=closed):
            effects = (RecordRound(record=_record(closed, round_outcome, now, None)),)
        case Paused():
            effects = ()
    ended = _ended(state, state.run, outcome, reason, now)
    return ended, (*effects, RecordRun(ended=ended), PublishHead(head=head_of(ended)))


def frozen(state: Collecting, now: datetime) -> ClosedRound:
    """The round as it stands: updates in the order in which they are summed, whoever came first."""
    answers = [(silo, state.answers.get(silo)) for silo in state.asked]
    updates = [_update_record(silo, answer) for silo, answer in answers if isinstance(answer, Updated)]
    left_out = [_update_record(silo, answer.update) for silo, answer in answers if isinstance(answer, LeftOut)]
    measured_by = [a.update if isinstance(a, LeftOut) else a for _, a in answers if isinstance(a, LeftOut | Updated)]
    return ClosedRound(
        run=state.run.id,
        round=state.round,
        purpose=state.purpose,
        announcements=state.announcement,
        opened_at=state.opened_at,
        closed_at=now,
        asked=state.asked,
        draw=state.draw,
        updates=tuple(updates),
        others=without_update(state),
        left_out=tuple(left_out),
        metrics=pool([update.metrics for update in measured_by], state.tallies),
    )


def without_update(state: Collecting) -> dict[str, str]:
    """What each silo asked did instead of sending an update that counts."""
    return {silo: _instead(state, silo) for silo in state.asked if not isinstance(state.answers.get(silo), Updated)}


def no_quorum(state: Collecting) -> str:
    """Why a run fails for want of updates; names what each silo did."""
    others = without_update(state)
    found = len(state.asked) - len(others)
    what = "no silo made the first model" if state.purpose is Purpose.INITIALISE else "no quorum"
    text = f"Round {state.round}: {what}, {found} of {state.quorum} updates. " + "; ".join(
        f"{silo}: {did}" for silo, did in others.items()
    )
    return text if len(text) <= MOST_REASON else text[: MOST_REASON - 1] + "…"


def measured(run: Run, closed: ClosedRound) -> Run:
    """The run with its best model kept up: what was `received` in a round describes the weights of the round before.

    A round in which the metric was not measured says nothing: it is neither an improvement nor the lack of one.
    """
    metric = run.request.metric
    if metric is None or run.model is None or closed.purpose is Purpose.INITIALISE:
        return run
    number = next((m.number for m in closed.metrics if m.name == metric.name and m.phase == "received"), None)
    if number is None:
        return run
    best = run.best.number if run.best else None
    if improves(number, best, mode=metric.mode, min_delta=metric.min_delta):
        best_model = Best(round=run.model.round, payload=run.model.payload, number=number)
        return run.model_copy(update={"best": best_model, "stagnant": 0})
    return run.model_copy(update={"stagnant": run.stagnant + 1})


def timed(run: Run, closed: ClosedRound) -> Run:
    """The run with its silos' paces kept up. Only what trains is timed; who declined or failed has missed nothing."""
    paces = {silo: run.paces.get(silo, Pace()) for silo in (*run.paces, *closed.asked)}
    for update in closed.updates:
        times = (update.seconds, update.waited) if closed.purpose is Purpose.TRAIN else None
        paces[update.silo] = pace.updated(paces[update.silo], closed.round, size=update.bytes, times=times)
    for update in closed.left_out:
        paces[update.silo] = pace.left_out(paces[update.silo], closed.round, size=update.bytes)
    for silo, did in closed.others.items():
        if did.startswith(UNANSWERED) and closed.purpose is not Purpose.INITIALISE:
            paces[silo] = pace.missed(paces[silo])
    return run.model_copy(update={"paces": paces})


UNANSWERED = "had not answered"
_UPDATE_FIELDS = tuple(name for name in UpdateRecord.model_fields if name != "silo")


def _update_record(silo: str, update: Updated) -> UpdateRecord:
    return UpdateRecord(silo=silo, **{field: getattr(update, field) for field in _UPDATE_FIELDS})


def _purpose_after(run: Run, closed: ClosedRound) -> Purpose:
    metric = run.request.metric
    stopping = metric is not None and metric.patience is not None and run.stagnant >= metric.patience
    return Purpose.EVALUATE if closed.round >= run.request.rounds or stopping else Purpose.TRAIN


def _completed(state: Collecting, now: datetime) -> tuple[Ended, Effects]:
    closed = frozen(state, now)
    run = timed(measured(state.run, closed), closed)
    trained = run.model.round if run.model else 0
    planned = run.request.rounds
    metric = run.request.metric
    reason = f"All {planned} rounds are done."
    if trained < planned and metric is not None:
        reason = (
            f"Stopped after round {trained} of {planned}: {metric.name} did not improve in {metric.patience} rounds."
        )
    ended = _ended(state, run, RunOutcome.COMPLETED, reason, now)
    return ended, (
        *dismiss(state, ClosedBecause.AGGREGATED),
        RecordRound(record=_record(closed, RoundOutcome.EVALUATED, now, None)),
        RecordRun(ended=ended),
        PublishHead(head=head_of(ended)),
    )


def _ended(state: Live, run: Run, outcome: RunOutcome, reason: str, now: datetime) -> Ended:
    head = head_of(state)
    return Ended(
        run=run,
        round=head.round,
        announcement=head.announcement,
        outcome=outcome,
        reason=reason[:MOST_REASON],
        ended_at=now,
    )


def _record(closed: ClosedRound, outcome: RoundOutcome, now: datetime, model: Model | None) -> RoundRecord:
    fields = {name: getattr(closed, name) for name in ClosedRound.model_fields}
    payload, besides = (model.payload, model.besides) if model else (None, {})
    return RoundRecord(**fields, outcome=outcome, over_at=now, model=payload, besides=besides)


def _instead(state: Collecting, silo: str) -> str:
    match state.answers.get(silo):
        case Declined(reason=reason):
            return f"declined: {reason}"
        case LeftOut(reason=reason):
            return f"left out: {reason}"
        case Failed(reason=reason) if has_answered(state, silo):
            return f"failed: {reason}"
        case Failed(reason=reason):
            return f"{UNANSWERED}; before that it failed: {reason}"
        case _:
            return UNANSWERED
