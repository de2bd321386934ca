"""How silos keep up: seconds, what they miss, and updates that come too late, each counted once."""

from __future__ import annotations

import pytest

from messages.errors import Duplicate, Poison, Stale
from orchestrator.experiment.events import Event, PauseRequested, UpdateCameLate
from orchestrator.experiment.pace import Pace, Taken, missed, taken, updated
from orchestrator.experiment.state import Collecting
from orchestrator.experiment.step import step
from tests.unit.experiment.given import (
    RUN,
    SILOS,
    T0,
    after,
    aggregated,
    aggregating,
    at,
    collecting,
    deadline,
    declined,
    grace,
    paused,
    training,
    update,
    weights,
)


def late(silo: str, number: int = 1) -> UpdateCameLate:
    return UpdateCameLate(silo=silo, run=RUN, round=number)


def closed_without_south() -> Collecting:
    """Round 2 is open; south had not answered round 1."""
    state, _ = after(training(rounds=9), update("east"), update("north"), grace(), aggregated())
    return collecting(state)


def test_a_round_that_closes_times_those_who_answered_and_counts_who_did_not() -> None:
    state, _ = step(training(), update("east", seconds=3), at(4))
    state, _ = step(state, update("north", seconds=5), at(7))
    state, _ = step(state, grace(), at(17))
    paces = aggregating(state).run.paces
    assert paces["east"] == Pace(
        updates=1, updated=1, bytes=100, training=Taken(last=3, mean=3), answering=Taken(last=4, mean=4)
    )
    assert paces["north"].answering == Taken(last=7, mean=7)
    assert paces["south"] == Pace(missed=1, missed_since=1)


def test_the_bytes_are_those_of_all_payloads() -> None:
    both = {"weights": weights("x"), "control": weights("y", form="delta")}
    state, _ = step(training(roles=("weights", "control")), update("east", payloads=both), at(4))
    state, _ = step(state, update("north", payloads=both), at(7))
    state, _ = step(state, grace(), at(17))
    assert aggregating(state).run.paces["east"].bytes == 200


def test_an_answer_is_timed_from_the_announcement_it_answers() -> None:
    again, _ = after(training(), deadline(), now=at(100))
    assert collecting(again).announced_at == at(100)
    for number, waited in ((1, 110), (2, 10)):
        state, _ = step(again, update("east", announcement=number), at(110))
        assert collecting(state).answers["east"].waited == waited  # type: ignore[union-attr]


def test_who_declined_has_missed_nothing_and_an_update_ends_a_row_of_misses() -> None:
    state, _ = after(training(), declined("south"), update("east"), update("north"))
    assert aggregating(state).run.paces["south"] == Pace()
    assert updated(missed(missed(Pace())), 3, size=1, times=None).missed_since == 0


def test_newer_rounds_weigh_more_in_a_mean() -> None:
    pace = taken(None, 10.0)
    assert taken(pace, 20.0) == Taken(last=20.0, mean=13.0)
    for _ in range(30):
        pace = taken(pace, 100.0)
    assert pace.mean > 99.9


def test_an_update_for_a_closed_round_is_counted_once_in_every_phase() -> None:
    open_round = closed_without_south()
    summing, _ = after(training(), update("east"), update("north"), grace())
    waiting = paused(after(training(), PauseRequested(experiment="exp"), *_without_south(), aggregated())[0])
    for before in (open_round, aggregating(summing), waiting):
        state, effects = step(before, late("south"), T0)
        assert state is not None
        pace = state.run.paces["south"]  # type: ignore[union-attr]
        assert (pace.late, pace.late_for, effects) == (1, 1, ())
        with pytest.raises(Duplicate):
            step(state, late("south"), T0)


def test_an_update_that_counted_and_comes_again_is_not_late() -> None:
    with pytest.raises(Duplicate):
        step(closed_without_south(), late("east"), T0)


def test_each_round_may_have_its_late_update() -> None:
    state, _ = step(closed_without_south(), late("south"), T0)
    state, _ = after(state, update("east", 2), update("north", 2), grace(2), late("south", 2))
    assert aggregating(state).run.paces["south"].late == 2
    with pytest.raises(Duplicate):
        step(state, late("south", 1), T0)


def test_late_is_only_what_is_of_a_closed_round_of_this_run_and_was_asked_for() -> None:
    state = closed_without_south()
    for event in (late("south", 2), late("kiel", 1)):
        with pytest.raises(Stale):
            step(state, event, T0)
    with pytest.raises(Poison):
        step(None, late("south"), T0)


def _without_south() -> tuple[Event, ...]:
    return update("east"), update("north"), grace()


def test_every_silo_asked_has_a_pace() -> None:
    assert closed_without_south().run.paces.keys() == set(SILOS)
