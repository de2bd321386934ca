"""A standing in words and numbers: what `status`, `watch` and `demo` say about it. Nothing is read here.

Who is heard of, and what an open round waits for, is `awaiting`'s; how silos keep up is `keeping_up`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, assert_never

from messages import names
from messages.schemas import Purpose
from orchestrator.cli import checked, kept
from orchestrator.cli.awaiting import in_open_round, life, overdue, summing_for, waiting_for
from orchestrator.cli.keeping_up import numbers, stragglers
from orchestrator.cli.standing import Standing
from orchestrator.cli.terminal import Complaint
from orchestrator.experiment.state import (
    Aggregating,
    ClosedRound,
    Collecting,
    Ended,
    Model,
    Paused,
    Run,
    Tombstone,
    Updated,
    UpdateRecord,
)


def unknown(experiment: str) -> Complaint:
    """No such experiment."""
    return Complaint(
        f"There is no experiment {experiment}. `silobus status` lists those there are; a start that was refused is in "
        "`silobus dead-letters list experiments`, one that nobody has taken yet in `silobus queues peek experiments`."
    )


def status_of(standing: Standing) -> str:
    """One of running, paused, completed, failed, cancelled."""
    match standing.state:
        case Collecting() | Aggregating():
            return "running"
        case Paused():
            return "paused"
        case Ended() as ended:
            return ended.outcome.value
        case Tombstone():
            return "cancelled"
        case _:
            assert_never(standing.state)


def round_of(standing: Standing) -> int | None:
    """The round that is open, comes next, or was the last; the one that only evaluates counts as the last training."""
    match standing.state:
        case Collecting() | Paused() | Ended() as state:
            return min(state.round, state.run.request.rounds)
        case Aggregating() as state:
            return state.closed.round
        case Tombstone():
            return None
        case _:
            assert_never(standing.state)


def phase_of(standing: Standing) -> str:
    """The phase, in words; that it was announced again, and that a pause was asked for."""
    state = standing.state
    words: str = state.phase
    if isinstance(state, Collecting | Paused):
        words += f", to {state.purpose.value}"
    if isinstance(state, Collecting) and state.reminded:
        words += f", announced again ({state.reminded} of {state.run.request.quorum.reminders})"
    if isinstance(state, Collecting | Aggregating) and state.pausing:
        words += "; pauses when this round is over"
    return words


def reason_of(standing: Standing) -> str | None:
    """Why it ended so."""
    match standing.state:
        case Ended() as ended:
            return ended.reason
        case Tombstone():
            return "cancelled before it was started; the next start under this name is refused"
        case _:
            return None


def silo_state(standing: Standing, silo: str) -> str:
    """What a silo does, or last did, in the current round."""
    match standing.state:
        case Collecting() as state:
            return in_open_round(standing, state, silo)
        case Aggregating() as state:
            if any(update.silo == silo for update in state.closed.updates):
                return "updated"
            return state.closed.others.get(silo, "not asked")
        case Paused() | Ended():
            if not standing.records:
                return "not asked"
            record = standing.records[max(standing.records)]
            if any(update.silo == silo for update in record.updates):
                return "evaluated" if record.purpose is Purpose.EVALUATE else "updated"
            return record.others.get(silo, "not asked")
        case Tombstone():
            return "not asked"
        case _:
            assert_never(standing.state)


def last_answer(standing: Standing, silo: str) -> dict[str, Any] | None:
    """The newest round in which the silo's update counted; not the final evaluation, which has no updates."""
    for round_, answer in _answers(standing, silo):
        if round_.purpose is not Purpose.EVALUATE:
            numbers = {"at": answer.at, "samples": answer.samples, "seconds": answer.seconds}
            return {"round": round_.round, **numbers}
    return None


def _answers(standing: Standing, silo: str) -> Iterator[tuple[Collecting | ClosedRound, Updated | UpdateRecord]]:
    """The silo's updates and evaluations that counted, and their rounds; the newest first."""
    state = standing.state
    if isinstance(state, Collecting) and isinstance(answer := state.answers.get(silo), Updated):
        yield state, answer
    closed: list[ClosedRound] = [standing.records[number] for number in sorted(standing.records, reverse=True)]
    for record in (state.closed, *closed) if isinstance(state, Aggregating) else closed:
        yield from ((record, update) for update in record.updates if update.silo == silo)


# --- in numbers --------------------------------------------------------------------------------------------------


def measured(standing: Standing, round_number: int) -> dict[str, float | None]:
    """The pooled metrics of the weights that this round made; they come in with the round after it."""
    after = standing.records.get(round_number + 1)
    if after is None:
        return {}
    return {metric.name: metric.number for metric in after.metrics if metric.phase == "received"}


def history(standing: Standing) -> list[dict[str, Any]]:
    """One row per round that made weights, in order."""
    return [
        {
            "round": number,
            "outcome": record.outcome.value,
            "updates": len(record.updates),
            "others": dict(record.others),
            "silos": {u.silo: {"samples": u.samples, "norm": u.norm, "bytes": u.bytes} for u in record.updates},
            "metrics": measured(standing, number),
            "changes": checked.changes(record),
            "seconds": round((record.over_at - record.opened_at).total_seconds(), 3),
        }
        for number, record in standing.records.items()
        if record.purpose is not Purpose.EVALUATE
    ]


def latest_metrics(standing: Standing) -> dict[str, float | None]:
    """Those of the newest weights that were measured."""
    for number in sorted(standing.records, reverse=True):
        if metrics := measured(standing, number - 1):
            return metrics
    return {}


def models(run: Run | None) -> dict[str, Any]:
    """Where the latest and the best weights are."""
    if run is None:
        return {}
    found = {"last": run.model, "best": run.best}
    return {name: _model(run.id, model) for name, model in found.items() if model is not None}


def _model(run: str, model: Model) -> dict[str, Any]:
    sha256 = model.payload.sha256
    blob = f"{names.GLOBAL}/{names.weights_blob(run, model.round, sha256)}"
    return {"round": model.round, "sha256": sha256, "bytes": model.payload.bytes, "blob": blob}


def in_brief(standing: Standing) -> dict[str, Any]:
    """What the experiment's own document tells, for scripts."""
    run = standing.run
    return {
        "experiment": standing.experiment,
        "run": run.id if run else None,
        "status": status_of(standing),
        "task": run.request.task if run else None,
        "round": round_of(standing),
        "rounds": run.request.rounds if run else None,
        "phase": standing.state.phase,
        "reason": reason_of(standing),
        "started_at": run.started_at if run else None,
        "ended_at": standing.state.ended_at if isinstance(standing.state, Ended) else None,
        "models": models(run),
    }


def as_json(standing: Standing) -> dict[str, Any]:
    """Everything, for scripts."""
    run = standing.run
    return {
        **in_brief(standing),
        "purpose": standing.state.purpose.value if isinstance(standing.state, Collecting | Paused) else None,
        "announcement": standing.state.announcement if isinstance(standing.state, Collecting) else None,
        "waiting_for": waiting_for(standing),
        "overdue": overdue(standing),
        "summing_for": summing_for(standing),
        "quorum": _quorum(standing),
        "seed": run.seed if run else None,
        "request": run.request.model_dump(mode="json") if run else None,
        "asked": list(standing.state.asked) if isinstance(standing.state, Collecting) else None,
        "silos": {silo: _silo(standing, silo) for silo in standing.silos},
        "metrics": latest_metrics(standing),
        "retention": kept.as_json(standing.retained),
        "history": history(standing),
        "unreadable": list(standing.unreadable),
    }


def _quorum(standing: Standing) -> int | None:
    """Of the open round, or of one that trains next."""
    if standing.run is None or isinstance(standing.state, Collecting):
        return standing.state.quorum if isinstance(standing.state, Collecting) else None
    request = standing.run.request
    return request.quorum.needed(request.asked(len(standing.run.silos)))


def _silo(standing: Standing, silo: str) -> dict[str, Any]:
    run = standing.run
    return {
        "state": silo_state(standing, silo),
        "takes_part": run is not None and silo in run.silos,
        **life(standing, silo),
        "last_sign_of_life": last_seen(standing, silo),
        "last_answer": last_answer(standing, silo),
        "straggler": stragglers(run.paces).get(silo) if run else None,
        **numbers(run.paces.get(silo) if run else None),
    }


def last_seen(standing: Standing, silo: str) -> datetime | None:
    """When anything came from it: a hello, a heartbeat, an answer."""
    presence, answer = standing.presence.get(silo), next(_answers(standing, silo), None)
    return max([*([presence.seen_at] if presence else []), *([answer[1].at] if answer else [])], default=None)
