"""Words for writing down what is given: a run, its states, what silos send. All at fixed times."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from messages.experiments import StartExperiment
from messages.schemas import (
    DeadlinePassed,
    DeclineReason,
    GraceOver,
    MeanMetric,
    MetricReport,
    Payload,
    Purpose,
    UpdatePublished,
)
from orchestrator.experiment.effects import Effects
from orchestrator.experiment.events import (
    Event,
    RoundAggregated,
    RoundRefused,
    StartRequested,
    TrainingBroke,
    UpdateRejected,
    UpdatesCompared,
    UpdateVerified,
)
from orchestrator.experiment.state import Aggregating, Collecting, Ended, Paused, State
from orchestrator.experiment.step import step

T0 = datetime(2026, 1, 1, tzinfo=UTC)
RUN = "exp_00000000"
SILOS = ("east", "north", "south")
CODE = "c" * 64


def at(seconds: float) -> datetime:
    """So many seconds after the beginning."""
    return T0 + timedelta(seconds=seconds)


def weights(name: str, form: str = "weights") -> Payload:
    """A payload that can be told from others by its name."""
    return Payload.model_validate(
        {"sha256": (name.encode().hex() + "0" * 64)[:64], "bytes": 100, "form": form, "layout": "a" * 64}
    )


def request(**changes: Any) -> StartExperiment:
    """Three silos, two rounds, a quorum of two, ten seconds of grace, a deadline of a hundred."""
    quorum = {"minimum": 2, "grace": 10, "deadline": 100, "reminders": 1, **changes.pop("quorum", {})}
    return StartExperiment.model_validate(
        {"experiment": "exp", "task": "toy", "rounds": 2, "quorum": quorum, **changes}
    )


def start(run: str = RUN, **changes: Any) -> StartRequested:
    """A start for which all three silos are enrolled and offer the task."""
    facts: dict[str, Any] = {"enrolled": SILOS, "offering": SILOS}
    known = ("enrolled", "offering", "initial", "ran_before", "roles", "least")
    facts |= {k: changes.pop(k) for k in known if k in changes}
    facts["hyperparameters"] = changes.pop("strategys_hyperparameters", {})
    return StartRequested(run=run, request=request(**changes), **facts)


def training(round_number: int = 1, **changes: Any) -> Collecting:
    """An open training round without answers."""
    state, _ = step(None, start(initial=weights("initial"), **changes), T0)
    assert isinstance(state, Collecting)
    return state.model_copy(update={"round": round_number})


def initialising(**changes: Any) -> Collecting:
    """Round 0, with the first silo asked."""
    state, _ = step(None, start(**changes), T0)
    assert isinstance(state, Collecting)
    return state


def evaluating(**changes: Any) -> Collecting:
    """The last round, after two rounds of training."""
    state = training(3, **changes)
    model = state.run.model
    assert model is not None
    run = state.run.model_copy(update={"model": model.model_copy(update={"round": 2, "payload": weights("two")})})
    return state.model_copy(update={"purpose": Purpose.EVALUATE, "run": run})


def update(silo: str, round_number: int = 1, *metrics: MetricReport, **changes: Any) -> UpdateVerified:
    """A silo's update for a round, verified."""
    purpose = changes.get("purpose", Purpose.TRAIN)
    payloads = {} if purpose is Purpose.EVALUATE else {"weights": weights(f"{silo}{round_number}")}
    etags, change = changes.pop("etags", {}), changes.pop("change", None)
    message = UpdatePublished.model_validate(
        {
            "run": RUN,
            "round": round_number,
            "purpose": purpose,
            "announcement": 1,
            "payloads": payloads,
            "samples": 10,
            "steps": 5,
            "metrics": list(metrics),
            "code": CODE,
            "policy": CODE,
            "seconds": 1.5,
            **changes,
        }
    )
    norm = None if purpose is Purpose.EVALUATE else 2.0
    return UpdateVerified(silo=silo, update=message, norm=norm, change=change, etags=etags)


def loss(value: float, count: int = 10) -> MeanMetric:
    """A loss measured on the weights as received."""
    return MeanMetric(name="loss", phase="received", count=count, value=value)


def declined(silo: str, round_number: int = 1, reason: DeclineReason = DeclineReason.BUDGET_SPENT) -> RoundRefused:
    """A silo whose owner says no."""
    return RoundRefused(silo=silo, run=RUN, round=round_number, reason=reason)


def failed(silo: str, round_number: int = 1, announcement: int | None = None) -> TrainingBroke:
    """A silo that gave up."""
    return TrainingBroke(silo=silo, run=RUN, round=round_number, reason="timeout", announcement=announcement)


def rejected(silo: str, round_number: int = 1) -> UpdateRejected:
    """A silo whose answer could not be used."""
    return UpdateRejected(silo=silo, run=RUN, round=round_number, reason="not-finite: Tensor w")


def deadline(round_number: int = 1, announcement: int = 1) -> DeadlinePassed:
    """The deadline of an announcement."""
    return DeadlinePassed(run=RUN, round=round_number, announcement=announcement)


def grace(round_number: int = 1, announcement: int = 1) -> GraceOver:
    """The end of a grace."""
    return GraceOver(run=RUN, round=round_number, announcement=announcement)


def compared(round_number: int = 1, announcement: int = 1, **cosines: float | None) -> UpdatesCompared:
    """What came of comparing a frozen set."""
    return UpdatesCompared(run=RUN, round=round_number, announcement=announcement, cosines=cosines)


def aggregated(round_number: int = 1, besides: Mapping[str, Payload] | None = None) -> RoundAggregated:
    """The sum of a round."""
    return RoundAggregated(run=RUN, round=round_number, payload=weights(f"sum{round_number}"), besides=besides or {})


def after(state: State | None, *events: Event, now: datetime = T0) -> tuple[State | None, Effects]:
    """The state after all events, and the effects of the last."""
    effects: Effects = ()
    for event in events:
        state, effects = step(state, event, now)
    return state, effects


def collecting(state: State | None) -> Collecting:
    """The state, which must be an open round."""
    assert isinstance(state, Collecting), state
    return state


def aggregating(state: State | None) -> Aggregating:
    """The state, which must be a frozen round."""
    assert isinstance(state, Aggregating), state
    return state


def paused(state: State | None) -> Paused:
    """The state, which must be a pause."""
    assert isinstance(state, Paused), state
    return state


def ended(state: State | None) -> Ended:
    """The state, which must be the end."""
    assert isinstance(state, Ended), state
    return state
