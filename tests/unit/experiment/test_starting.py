"""What operators may ask for, and what becomes of it."""

from __future__ import annotations

import pytest

from messages.errors import Duplicate, Poison, Stale
from messages.schemas import ClosedBecause, Head, Purpose
from orchestrator.experiment.effects import Announce, CloseRound, PublishHead, RecordRound, RecordRun, ScheduleDeadline
from orchestrator.experiment.events import CancelRequested, PauseRequested, ResumeRequested, StartRequested
from orchestrator.experiment.rounds import frozen
from orchestrator.experiment.state import Ended, RoundOutcome, RoundRecord, RunOutcome, Tombstone
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
    ended,
    initialising,
    paused,
    request,
    start,
    training,
    update,
    weights,
)

CANCEL = CancelRequested(experiment="exp")
PAUSE = PauseRequested(experiment="exp")
RESUME = ResumeRequested(experiment="exp")
OTHER = "exp_11111111"


def test_a_start_asks_one_silo_for_the_first_model() -> None:
    state, effects = step(None, start(), T0)
    run = collecting(state).run
    assert (run.id, run.silos, run.seed, run.model) == (RUN, SILOS, None, None)
    assert collecting(state).asked == ("east",)
    assert effects == (
        PublishHead(head=Head(run=RUN, round=0, announcement=1, phase="open")),
        Announce(silo="east", round=0, announcement=1),
        ScheduleDeadline(run=RUN, round=0, announcement=1, at=at(100)),
    )


def test_a_start_with_weights_begins_with_round_one() -> None:
    state, effects = step(None, start(initial=weights("initial")), T0)
    model = collecting(state).run.model
    assert model is not None
    assert (model.round, model.payload) == (0, weights("initial"))
    assert effects == (
        PublishHead(head=Head(run=RUN, round=1, announcement=1, phase="open")),
        *(Announce(silo=silo, round=1, announcement=1) for silo in SILOS),
        ScheduleDeadline(run=RUN, round=1, announcement=1, at=at(100)),
    )


def test_silos_are_those_that_offer_the_task() -> None:
    state, _ = step(None, start(offering=("south", "north")), T0)
    assert collecting(state).run.silos == ("north", "south")


def test_silos_are_those_listed_in_that_order_even_if_some_do_not_offer_the_task() -> None:
    state, _ = step(None, start(silos=["south", "east"], offering=("east",)), T0)
    assert collecting(state).run.silos == ("south", "east")


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (start(offering=()), "task-not-offered"),
        (start(silos=["south"], quorum={"minimum": 1}, offering=("north",)), "task-not-offered"),
        (start(silos=["north", "west"]), "unknown-silos"),
        (start(overrides={"west": {"lr": 1}}), "unknown-silos"),
        (start(offering=("north",)), "quorum-too-large"),
        (start(share=["*", "!*"]), "nothing-shared"),
    ],
)
def test_a_start_that_cannot_run_is_refused(event: StartRequested, reason: str) -> None:
    with pytest.raises(Poison) as caught:
        step(None, event, T0)
    assert caught.value.reason == reason


def test_the_same_start_again_is_a_duplicate_in_every_phase() -> None:
    frozen_state, _ = after(training(), update("east"), update("north"), update("south"))
    over, _ = after(training(), CANCEL)
    for state in (training(), frozen_state, over):
        with pytest.raises(Duplicate):
            step(state, start(), T0)


def test_the_same_body_under_another_message_id_is_a_duplicate_while_the_run_is_live() -> None:
    with pytest.raises(Duplicate):
        step(initialising(), start(run=OTHER), T0)


def test_another_body_under_a_live_name_is_refused() -> None:
    with pytest.raises(Poison) as caught:
        step(initialising(), start(run=OTHER, rounds=7), T0)
    assert caught.value.reason == "experiment-is-live"


def test_a_name_may_be_used_again_once_its_run_is_over() -> None:
    over, _ = after(training(), CANCEL)
    state, _ = step(over, start(run=OTHER), T0)
    assert collecting(state).run.id == OTHER


def test_a_start_that_already_ran_is_a_duplicate_even_when_its_name_was_used_again_since() -> None:
    over, _ = after(training(), CANCEL)
    with pytest.raises(Duplicate):
        step(over, start(run=OTHER, ran_before=True), T0)


def test_a_start_must_fit_its_run() -> None:
    with pytest.raises(ValueError, match="not one of experiment"):
        start(run="another_00000000")


# --- cancel ------------------------------------------------------------------------------------------------------


def test_cancel_ends_an_open_round_and_dismisses_who_is_still_working() -> None:
    before, _ = after(training(), update("north"))
    state, effects = step(before, CANCEL, at(7))
    over = ended(state)
    assert (over.outcome, over.reason, over.round) == (RunOutcome.CANCELLED, "Cancelled by an operator.", 1)
    closed = frozen(collecting(before), at(7))
    record = RoundRecord(**closed.__dict__, outcome=RoundOutcome.CANCELLED, over_at=at(7), model=None)
    assert effects == (
        CloseRound(silo="east", run=RUN, round=1, because=ClosedBecause.CANCELLED),
        CloseRound(silo="south", run=RUN, round=1, because=ClosedBecause.CANCELLED),
        RecordRound(record=record),
        RecordRun(ended=over),
        PublishHead(head=Head(run=RUN, round=1, announcement=1, phase="ended")),
    )
    assert [u.silo for u in record.updates] == ["north"]


def test_cancel_ends_an_aggregation() -> None:
    before, _ = after(training(), update("north"), update("south"), update("east"))
    state, effects = step(before, CANCEL, at(7))
    closed = aggregating(before).closed
    record = RoundRecord(**closed.__dict__, outcome=RoundOutcome.CANCELLED, over_at=at(7), model=None)
    assert effects == (
        RecordRound(record=record),
        RecordRun(ended=ended(state)),
        PublishHead(head=Head(run=RUN, round=1, announcement=1, phase="ended")),
    )


def test_cancel_ends_a_pause() -> None:
    before, _ = after(training(), PAUSE, update("north"), update("south"), update("east"), aggregated())
    state, effects = step(before, CANCEL, at(7))
    assert effects == (
        RecordRun(ended=ended(state)),
        PublishHead(head=Head(run=RUN, round=1, announcement=0, phase="ended")),
    )


def test_cancel_of_another_run_than_the_live_one_is_stale() -> None:
    with pytest.raises(Stale):
        step(training(), CancelRequested(experiment="exp", run=OTHER), T0)


def test_cancel_of_the_named_run_ends_it() -> None:
    state, _ = step(training(), CancelRequested(experiment="exp", run=RUN), T0)
    assert ended(state).outcome is RunOutcome.CANCELLED


def test_cancel_again_is_stale() -> None:
    over, _ = after(training(), CANCEL)
    with pytest.raises(Stale):
        step(over, CANCEL, T0)


def test_a_cancel_that_overtook_its_start_refuses_that_start_however_often_it_is_delivered() -> None:
    tombstone, effects = step(None, CANCEL, T0)
    assert (tombstone, effects) == (Tombstone(experiment="exp", since=T0), ())
    used, effects = step(tombstone, start(), at(1))
    assert (used, effects) == (Tombstone(experiment="exp", since=T0, refuses=RUN), ())
    for _ in range(2):
        with pytest.raises(Poison) as caught:
            step(used, start(), at(2))
        assert caught.value.reason == "cancelled-before-start"


def test_a_tombstone_refuses_one_start_only() -> None:
    used, _ = after(None, CANCEL, start())
    state, _ = step(used, start(run=OTHER), T0)
    assert collecting(state).run.id == OTHER


def test_a_tombstone_for_a_run_refuses_that_run_only() -> None:
    tombstone, _ = step(None, CancelRequested(experiment="exp", run=OTHER), T0)
    with pytest.raises(Poison):
        step(tombstone, start(run=OTHER), T0)
    state, _ = step(tombstone, start(), T0)
    assert collecting(state).run.id == RUN


def test_a_cancel_that_overtook_its_start_is_remembered_beside_the_run_before() -> None:
    over, _ = after(training(), CANCEL)
    remembered, effects = step(over, CancelRequested(experiment="exp", run=OTHER), T0)
    assert isinstance(remembered, Ended)
    assert effects == ()
    with pytest.raises(Poison) as caught:
        step(remembered, start(run=OTHER), T0)
    assert caught.value.reason == "cancelled-before-start"


def test_cancelling_a_tombstone_again_is_a_duplicate() -> None:
    tombstone, _ = step(None, CANCEL, T0)
    with pytest.raises(Duplicate):
        step(tombstone, CANCEL, T0)


# --- pause and resume --------------------------------------------------------------------------------------------


def test_pause_lets_the_round_in_progress_finish_and_resume_goes_on() -> None:
    pausing, effects = step(training(), PAUSE, T0)
    assert (collecting(pausing).pausing, effects) == (True, ())
    state, _ = after(pausing, update("north"), update("south"), update("east"))
    state, effects = step(state, aggregated(), at(5))
    assert (paused(state).round, paused(state).purpose) == (2, Purpose.TRAIN)
    assert [type(effect) for effect in effects] == [RecordRound]
    state, effects = step(state, RESUME, at(50))
    assert collecting(state).round == 2
    assert effects == (
        PublishHead(head=Head(run=RUN, round=2, announcement=1, phase="open")),
        *(Announce(silo=silo, round=2, announcement=1) for silo in SILOS),
        ScheduleDeadline(run=RUN, round=2, announcement=1, at=at(150)),
    )


def test_pause_while_aggregating_takes_force_after_it() -> None:
    state, _ = after(training(), update("north"), update("south"), update("east"), PAUSE, aggregated())
    assert paused(state).round == 2


def test_pausing_twice_is_a_duplicate() -> None:
    pausing, _ = step(training(), PAUSE, T0)
    waiting, _ = after(pausing, update("north"), update("south"), update("east"), aggregated())
    for state in (pausing, waiting):
        with pytest.raises(Duplicate):
            step(state, PAUSE, T0)


def test_resume_takes_back_a_pause_that_has_not_come_into_force() -> None:
    state, effects = after(training(), PAUSE, RESUME)
    assert (collecting(state).pausing, effects) == (False, ())


def test_resuming_what_is_not_paused_is_a_duplicate() -> None:
    with pytest.raises(Duplicate):
        step(training(), RESUME, T0)


@pytest.mark.parametrize("event", [PAUSE, RESUME])
def test_pause_and_resume_of_the_unknown_are_refused_and_of_the_ended_are_stale(
    event: PauseRequested | ResumeRequested,
) -> None:
    with pytest.raises(Poison) as caught:
        step(None, event, T0)
    assert caught.value.reason == "unknown-experiment"
    over, _ = after(training(), CANCEL)
    with pytest.raises(Stale):
        step(over, event, T0)


def test_request_in_the_run_is_the_request() -> None:
    assert initialising().run.request == request()
