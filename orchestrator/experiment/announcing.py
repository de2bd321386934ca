"""What is said about a round: announcements, closings, the head. Derived from the state alone, never stored."""

from __future__ import annotations

from collections.abc import Iterable

from messages.experiments import Hyperparameters, Schedule, Transfer
from messages.fields import Scalar
from messages.schemas import ClosedBecause, Head, Payload, Purpose, Role, RoundAnnounced
from orchestrator.experiment.effects import (
    Announce,
    CloseRound,
    Effects,
    PublishHead,
    ScheduleDeadline,
)
from orchestrator.experiment.state import (
    Aggregating,
    Collecting,
    Declined,
    Ended,
    Failed,
    LeftOut,
    Live,
    Paused,
    Updated,
)


def announcement_for(state: Collecting, silo: str) -> RoundAnnounced:
    """What `silo` is told about the open round: everything it needs, resolved for this silo and this round."""
    request = state.run.request
    initialising = state.purpose is Purpose.INITIALISE
    roles = roles_of(state)
    payloads: dict[str, Payload] = {}
    if state.run.model is not None:
        made = {"weights": state.run.model.payload, **state.run.model.besides}
        payloads = {role: made[role] for role in roles if role in made}
    return RoundAnnounced.model_validate(
        {
            "experiment": request.experiment,
            "run": state.run.id,
            "round": state.round,
            "purpose": state.purpose,
            "announcement": state.announcement,
            "task": request.task,
            "payloads": payloads,
            "roles": roles,
            "hyperparameters": hyperparameters_for(state, silo),
            "transfer": Transfer() if initialising else request.transfer,
            "strategy": request.strategy.name,
            "checks": request.checks if state.purpose is Purpose.TRAIN else None,
            "share": request.share,
            "silos": 1 if initialising else len(state.asked),
            "quorum": state.quorum,
            "deadline": state.deadline,
        }
    )


def roles_of(state: Collecting) -> tuple[Role, ...]:
    """What an update for this round has to bring. When initialising and evaluating, what is exchanged is the model."""
    return state.run.roles if state.purpose is Purpose.TRAIN else ("weights",)


def hyperparameters_for(state: Collecting, silo: str) -> dict[str, Scalar]:
    """Plain values: overrides replace what is common, and a schedule gives the value in force in this round."""
    request = state.run.request
    merged: Hyperparameters = {
        **request.hyperparameters,
        **request.overrides.get(silo, {}),
        **state.run.hyperparameters,
    }
    return {
        name: value.at(state.round) if isinstance(value, Schedule) else value for name, value in sorted(merged.items())
    }


def awaited(state: Collecting) -> tuple[str, ...]:
    """The silos asked by the current announcement that have not answered it."""
    return tuple(silo for silo in state.asked if not has_answered(state, silo))


def has_answered(state: Collecting, silo: str) -> bool:
    """Whether nothing more is expected of the silo: a failure counts only for the announcement it came of."""
    match state.answers.get(silo):
        case None:
            return False
        case Updated() | LeftOut() | Declined():
            return True
        case Failed(announcement=announcement):
            # Silos are initialised one after another: one that failed is not asked again.
            return state.purpose is Purpose.INITIALISE or announcement >= state.announcement


def ask(state: Collecting, silos: Iterable[str]) -> Effects:
    """Announces the round to `silos`, with its deadline. The head goes first: agents look there next."""
    return (
        PublishHead(head=head_of(state)),
        *(Announce(silo=s, round=state.round, announcement=state.announcement) for s in silos),
        deadline_of(state),
    )


def deadline_of(state: Collecting) -> ScheduleDeadline:
    """The deadline of the current announcement."""
    return ScheduleDeadline(run=state.run.id, round=state.round, announcement=state.announcement, at=state.deadline)


def dismiss(state: Collecting, because: ClosedBecause) -> Effects:
    """Tells those who may still be working on the round that they need not."""
    return tuple(CloseRound(silo=silo, run=state.run.id, round=state.round, because=because) for silo in awaited(state))


def head_of(state: Live | Ended) -> Head:
    """Where the run stands, for the agents."""
    match state:
        case Collecting():
            return Head(run=state.run.id, round=state.round, announcement=state.announcement, phase="open")
        case Aggregating(judging=Collecting() as opened):  # nobody is told yet: it may go on
            return head_of(opened)
        case Aggregating(closed=closed):
            return Head(run=state.run.id, round=closed.round, announcement=closed.announcements, phase="closed")
        case Paused():
            return Head(run=state.run.id, round=max(0, state.round - 1), announcement=0, phase="closed")
        case Ended():
            return Head(run=state.run.id, round=state.round, announcement=state.announcement, phase="ended")
