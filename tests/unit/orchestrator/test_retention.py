"""What may be deleted of a run: the rule alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from messages.experiments import StartExperiment
from messages.schemas import Payload, Purpose
from orchestrator.documents import Retained
from orchestrator.experiment.state import (
    Aggregating,
    Best,
    ClosedRound,
    Collecting,
    Ended,
    Live,
    Model,
    Paused,
    Run,
    RunOutcome,
)
from orchestrator.retention import MOST_ROUNDS, has_expired, is_complete, is_due, tombstone
from orchestrator.settings import RetentionSettings

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
RUN = "exp_00000000"
WEIGHTS = Payload(sha256="a" * 64, bytes=64, layout="b" * 64)
KEEP = RetentionSettings(updates=3, models=5, days=7)


def run(model: int | None, best: int | None = None, silos: tuple[str, ...] = ("north",)) -> Run:
    return Run(
        id=RUN,
        request=StartExperiment(experiment="exp", task="toy", rounds=100),
        silos=silos,
        started_at=NOW,
        model=None if model is None else Model(round=model, payload=WEIGHTS),
        best=None if best is None else Best(round=best, payload=WEIGHTS, number=1.0),
    )


def collecting(number: int, best: int | None = None) -> Collecting:
    return Collecting(
        run=run(number - 1 if number else None, best),
        round=number,
        purpose=Purpose.TRAIN,
        quorum=1,
        asked=("north",),
        opened_at=NOW,
        deadline=NOW,
    )


def aggregating(number: int) -> Aggregating:
    closed = ClosedRound(
        run=RUN,
        round=number,
        purpose=Purpose.TRAIN,
        announcements=1,
        opened_at=NOW,
        closed_at=NOW,
        updates=(),
        others={},
        metrics=(),
    )
    return Aggregating(run=run(number - 1), closed=closed)


def ended(number: int, model: int | None, best: int | None = None, *, days: float = 0.0) -> Ended:
    return Ended(
        run=run(model, best),
        round=number,
        outcome=RunOutcome.COMPLETED,
        reason="All rounds are done.",
        ended_at=NOW - timedelta(days=days),
    )


def after(state: Live | Ended, known: Retained | None = None, settings: RetentionSettings = KEEP) -> Retained:
    return tombstone(state, known or Retained(run=RUN), settings, NOW)


def doomed(said: Retained, rounds: int = 60) -> tuple[list[int], list[int]]:
    """Rounds whose updates, and rounds whose weights, are to go."""
    numbers = range(rounds)
    return [n for n in numbers if said.dooms_updates(n)], [n for n in numbers if said.dooms_weights(n)]


def test_the_last_rounds_are_kept() -> None:
    said = after(collecting(10))  # nine are over, and the first: 0 to 9
    assert doomed(said) == ([0, 1, 2, 3, 4, 5, 6], [1, 2, 3, 4])  # weights of 5 to 9, and those it began with
    assert said.because == "updates of the last 3 rounds are kept, weights of 5"


def test_a_young_run_loses_nothing() -> None:
    for number in range(4):
        assert after(collecting(number)) == Retained(run=RUN)


@pytest.mark.parametrize("state", [collecting(10), aggregating(10)], ids=["collecting", "aggregating"])
def test_what_a_round_in_progress_needs_is_never_named(state: Live) -> None:
    said = after(state, settings=RetentionSettings(updates=0, models=1, days=0))
    updates, weights = doomed(said)
    assert updates == list(range(10))  # not those of round 10
    assert weights == list(range(1, 9))  # not those it starts from


def test_a_paused_run_keeps_what_its_next_round_needs() -> None:
    state = Paused(run=run(9), round=10, purpose=Purpose.TRAIN, since=NOW)
    assert doomed(after(state, settings=RetentionSettings(updates=0, models=1, days=0)))[1] == list(range(1, 9))


def test_the_best_weights_are_spared_until_others_are_better() -> None:
    first = after(collecting(10, best=2))
    assert first.spared == (0, 2)
    assert not first.dooms_weights(2)
    second = after(collecting(20, best=15), first)
    assert second.dooms_weights(2)
    assert second.outdated == (2,)
    assert second.spared == (0,)


def test_of_a_run_long_over_the_last_and_the_best_weights_stay() -> None:
    said = after(ended(11, 10, best=4, days=7))
    assert doomed(said, 12) == (list(range(12)), [0, 1, 2, 3, 5, 6, 7, 8, 9, 11])
    assert said.because == "7 days after the end only the last and the best weights are kept"
    assert is_complete(ended(11, 10, best=4, days=7), said, KEEP, NOW)


def test_until_then_the_rounds_of_an_ended_run_are_kept_like_those_of_a_live_one() -> None:
    state = ended(11, 10, days=6.99)
    said = after(state)
    assert doomed(said, 12) == ([0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5])
    assert not is_complete(state, said, KEEP, NOW)


def test_a_run_without_a_model_leaves_nothing() -> None:
    said = after(ended(0, None, days=8))
    assert doomed(said, 1) == ([0], [0])


def test_without_limits_nothing_is_ever_deleted() -> None:
    everything = RetentionSettings(updates=None, models=None, days=None)
    assert after(ended(50, 49, days=3000), settings=everything) == Retained(run=RUN)
    assert not has_expired(ended(50, 49, days=3000), everything, NOW)
    assert not any(is_due(number, everything) for number in range(100))


def test_a_hold_names_nothing_more() -> None:
    held = after(collecting(10)).model_copy(update={"held_at": NOW})
    assert after(ended(50, 49, days=3000), held) == held


def test_a_tombstone_never_shrinks() -> None:
    """Settings may be changed to keep more, and a sweeper may have been asleep since round 6."""
    said = after(collecting(10))
    assert after(collecting(10), said, RetentionSettings(updates=50, models=50, days=7)) == said
    earlier = after(collecting(6), said)
    assert (earlier.updates_before, earlier.models_before) == (said.updates_before, said.models_before)


def test_a_sweep_names_a_hundred_rounds_more_at_most() -> None:
    """So a hold that comes soon after settings were tightened still finds something."""
    said = after(collecting(1000))
    assert (said.updates_before, said.models_before) == (MOST_ROUNDS, MOST_ROUNDS)
    again = after(collecting(1000), said)
    assert (again.updates_before, again.models_before) == (2 * MOST_ROUNDS, 2 * MOST_ROUNDS)


def test_a_sweep_is_due_once_there_is_something_to_delete() -> None:
    settings: Any = [KEEP, RetentionSettings(updates=None, models=2, days=None)]
    for kept in settings:
        for number in range(10):
            later = collecting(number + 1)
            assert is_due(number, kept) == (tombstone(later, Retained(run=RUN), kept, NOW) != Retained(run=RUN))


def test_by_default_the_last_ten_rounds_can_be_replayed() -> None:
    said = after(collecting(31), settings=RetentionSettings())
    for number in range(21, 31):
        assert not said.dooms_updates(number)
        assert not said.dooms_weights(number - 1)
    assert said.dooms_updates(20)
    assert said.dooms_weights(10)
