"""Updates beyond an experiment's bounds: left out at arrival or of a frozen set, and the quorum looked at again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from messages.errors import Duplicate, Poison, Stale
from messages.experiments import Checks
from messages.schemas import ClosedBecause, Head, Purpose
from orchestrator.experiment.announcing import announcement_for
from orchestrator.experiment.checking import Change
from orchestrator.experiment.effects import (
    Announce,
    CloseRound,
    PublishHead,
    RecordRound,
    RecordRun,
    RequestAggregation,
    ScheduleDeadline,
)
from orchestrator.experiment.events import CancelRequested, MembersSeen, PauseRequested, UpdateCameLate
from orchestrator.experiment.rounds import open_round
from orchestrator.experiment.state import STATE, Collecting, LeftOut, RunOutcome, Updated
from orchestrator.experiment.step import expected_in_work, reconcile, step
from tests.unit.experiment.given import (
    RUN,
    SILOS,
    T0,
    after,
    aggregated,
    aggregating,
    at,
    collecting,
    compared,
    deadline,
    declined,
    ended,
    failed,
    grace,
    loss,
    paused,
    request,
    start,
    training,
    update,
)

OPEN = PublishHead(head=Head(run=RUN, round=1, announcement=1, phase="open"))
CLOSED = PublishHead(head=Head(run=RUN, round=1, announcement=1, phase="closed"))
SUM = RequestAggregation(run=RUN, round=1)
FOUR = ("east", "island", "north", "south")
ODD = {"east": 0.9, "island": 0.8, "north": 0.9, "south": -0.99}


def of_four(minimum: int = 3, **checks: Any) -> Collecting:
    """A round of four silos, which needs three updates."""
    state, _ = step(
        None,
        start(
            enrolled=FOUR,
            offering=FOUR,
            initial=update("initial").update.payloads["weights"],
            quorum={"minimum": minimum},
            checks=checks or {"min_cosine": -0.5},
        ),
        T0,
    )
    return collecting(state)


def long(silo: str, norm: float = 9.0, **changes: Any) -> Any:
    """An update whose change has this norm."""
    return update(silo, change=Change(norm=norm), **changes)


# --- at arrival --------------------------------------------------------------------------------------------------


def test_an_update_that_is_too_long_is_left_out_as_it_arrives() -> None:
    state, effects = step(training(checks={"max_norm": 5.0}), long("south"), at(3))
    assert effects == ()
    answer = collecting(state).answers["south"]
    assert isinstance(answer, LeftOut)
    assert answer.reason == "its change has norm 9, and max_norm is 5"
    assert answer.update.change == Change(norm=9.0)
    assert answer.update.waited == 3


def test_one_within_the_bound_counts_and_what_was_measured_stands_beside_it() -> None:
    state, _ = step(training(checks={"max_norm": 9.0}), long("south"), T0)
    answer = collecting(state).answers["south"]
    assert isinstance(answer, Updated)
    assert answer.change == Change(norm=9.0)


def test_a_round_closes_without_who_was_left_out_and_says_so() -> None:
    opened = training(checks={"max_norm": 5.0}, quorum={"grace": 0})
    state, effects = after(opened, long("south"), long("east", 1.0), long("north", 1.0))
    assert effects == (SUM, CLOSED)
    closed = aggregating(state).closed
    assert [u.silo for u in closed.updates] == ["east", "north"]
    assert closed.others == {"south": "left out: its change has norm 9, and max_norm is 5"}
    assert [(u.silo, u.change) for u in closed.left_out] == [("south", Change(norm=9.0))]
    assert aggregating(state).judging is None


def test_who_was_left_out_was_in_time_and_no_late_update_of_its_counts_as_one() -> None:
    opened = training(checks={"max_norm": 5.0}, quorum={"grace": 0})
    state, _ = after(opened, long("south"), long("east", 1.0), long("north", 1.0))
    pace = aggregating(state).run.paces["south"]
    assert (pace.updates, pace.left_out, pace.missed, pace.bytes) == (0, 1, 0, 100)
    with pytest.raises(Duplicate):
        step(state, UpdateCameLate(silo="south", run=RUN, round=1), T0)


def test_who_was_left_out_is_not_asked_again_and_nothing_else_of_its_is_taken() -> None:
    state, effects = after(training(checks={"max_norm": 5.0}), long("south"), deadline(), now=at(100))
    assert Announce(silo="south", round=1, announcement=2) not in effects
    assert Announce(silo="north", round=1, announcement=2) in effects
    with pytest.raises(Duplicate, match="left out before"):
        step(state, long("south"), T0)
    with pytest.raises(Poison, match="the first one was left out"):
        step(state, long("south", 1.0, samples=11), T0)
    with pytest.raises(Stale):
        step(state, failed("south", announcement=2), T0)
    with pytest.raises(Stale):
        step(state, declined("south"), T0)


def test_a_run_fails_at_once_when_too_few_can_still_answer_and_says_who_was_left_out() -> None:
    opened = training(checks={"max_norm": 5.0}, quorum={"minimum": 3})
    state, effects = step(opened, long("south"), T0)
    over = ended(state)
    assert over.outcome is RunOutcome.FAILED
    assert "south: left out: its change has norm 9, and max_norm is 5" in over.reason
    (record,) = [e.record for e in effects if isinstance(e, RecordRound)]
    assert [u.silo for u in record.left_out] == ["south"]


def test_what_who_was_left_out_measured_of_the_weights_it_received_counts() -> None:
    opened = training(checks={"max_norm": 5.0}, quorum={"grace": 0})
    answers = [update(s, 1, loss(1.0), change=Change(norm=1.0)) for s in ("east", "north")]
    state, _ = after(opened, update("south", 1, loss(4.0), change=Change(norm=9.0)), *answers)
    (metric,) = aggregating(state).closed.metrics
    assert (metric.number, metric.silos) == (2.0, 3)


# --- of a frozen set ---------------------------------------------------------------------------------------------


def test_a_set_that_has_to_be_compared_is_frozen_and_nobody_is_told() -> None:
    state, effects = after(of_four(), *(update(s) for s in FOUR[1:]), grace())
    assert effects == (SUM,)
    frozen = aggregating(state)
    assert frozen.judging is not None
    assert frozen.run.paces == {}
    assert reconcile(state) == (OPEN, SUM)
    assert {m.kind for m in expected_in_work(frozen)} == {"aggregate-round"}
    with pytest.raises(Stale):
        step(state, update("east"), T0)


def test_with_enough_left_the_round_closes_as_if_the_odd_one_had_never_come() -> None:
    frozen, _ = after(of_four(), *(update(s) for s in FOUR), now=at(5))
    state, effects = step(frozen, compared(**ODD), at(9))
    assert effects == (CLOSED,)
    closed = aggregating(state).closed
    assert aggregating(state).judging is None
    assert [(u.silo, u.change) for u in closed.updates] == [(s, Change(cosine=ODD[s])) for s in FOUR[:3]]
    assert closed.others == {"south": "left out: its change has cosine -0.990 to the others, and min_cosine is -0.5"}
    assert [(u.silo, u.change) for u in closed.left_out] == [("south", Change(cosine=-0.99))]
    assert closed.closed_at == at(5)
    paces = aggregating(state).run.paces
    assert {silo: (pace.updates, pace.left_out) for silo, pace in paces.items()} == {
        **dict.fromkeys(FOUR[:3], (1, 0)),
        "south": (0, 1),
    }


def test_who_had_not_answered_is_dismissed_once_the_set_was_judged() -> None:
    frozen, _ = after(of_four(), *(update(s) for s in FOUR[:3]), grace())
    _, effects = step(frozen, compared(east=0.9, island=0.9, north=0.9), T0)
    assert effects == (CloseRound(silo="south", run=RUN, round=1, because=ClosedBecause.AGGREGATED), CLOSED)


def test_with_too_few_left_the_round_is_announced_again_to_those_who_may_answer() -> None:
    frozen, _ = after(of_four(), *(update(s) for s in FOUR[1:]), grace(), now=at(20))
    state, effects = step(frozen, compared(island=0.8, north=0.9, south=-0.99), at(30))
    assert effects == (
        PublishHead(head=Head(run=RUN, round=1, announcement=2, phase="open")),
        Announce(silo="east", round=1, announcement=2),
        ScheduleDeadline(run=RUN, round=1, announcement=2, at=at(130)),
    )
    opened = collecting(state)
    assert (opened.reminded, opened.grace_until, opened.run.paces) == (1, None, {})
    assert isinstance(opened.answers["south"], LeftOut)
    closed, effects = step(state, update("east", announcement=2), at(40))
    assert effects == (RequestAggregation(run=RUN, round=1, announcement=2),)
    judged, _ = step(closed, compared(1, 2, east=0.9, island=0.8, north=0.9), at(41))
    assert [u.silo for u in aggregating(judged).closed.updates] == list(FOUR[:3])
    assert [u.silo for u in aggregating(judged).closed.left_out] == ["south"]


def test_a_grace_of_before_closes_nothing_when_the_round_is_open_again() -> None:
    five = (*FOUR, "west")
    opened, _ = step(
        None,
        start(
            enrolled=five,
            offering=five,
            initial=update("initial").update.payloads["weights"],
            quorum={"minimum": 3},
            checks={"min_cosine": -0.5},
        ),
        T0,
    )
    frozen, _ = after(opened, *(update(s) for s in FOUR[1:]), deadline(), now=at(100))
    state, _ = step(frozen, compared(island=0.8, north=0.9, south=-0.99), at(101))
    state, _ = step(state, update("east", announcement=2), at(102))
    assert collecting(state).grace_until == at(112)
    with pytest.raises(Stale):
        step(state, grace(1, 1), at(103))
    closed, _ = step(state, grace(1, 2), at(112))
    assert len(aggregating(closed).closed.updates) == 3


def test_with_too_few_left_and_nobody_to_ask_the_run_fails_and_says_why() -> None:
    frozen, _ = after(of_four(4), *(update(s) for s in FOUR))
    state, effects = step(frozen, compared(**ODD), at(9))
    over = ended(state)
    assert over.outcome is RunOutcome.FAILED
    assert over.reason.startswith("Round 1: no quorum, 3 of 4 updates. south: left out: its change has cosine -0.990")
    assert [type(e) for e in effects] == [RecordRound, RecordRun, PublishHead]
    assert [u.silo for u in effects[0].record.left_out] == ["south"]  # type: ignore[union-attr]


def test_opening_again_takes_a_reminder_so_it_cannot_go_on_for_ever() -> None:
    frozen, _ = after(of_four(), *(update(s) for s in FOUR[1:]), grace())
    state, _ = step(frozen, compared(island=0.8, north=0.9, south=-0.99), T0)
    frozen, _ = step(state, update("east", announcement=2), T0)
    state, _ = step(frozen, compared(1, 2, east=-0.99, island=0.8, north=0.9), T0)
    assert ended(state).outcome is RunOutcome.FAILED


def test_a_second_verdict_and_one_of_an_earlier_set_change_nothing() -> None:
    frozen, _ = after(of_four(), *(update(s) for s in FOUR[1:]), grace())
    verdict = compared(island=0.8, north=0.9, south=-0.99)
    opened, _ = step(frozen, verdict, T0)
    again, _ = step(opened, update("east", announcement=2), T0)
    judged, _ = step(again, compared(1, 2, east=0.9, island=0.8, north=0.9), T0)
    for state in (opened, again, judged):
        with pytest.raises(Duplicate):
            step(state, verdict, T0)


def test_nothing_is_taken_as_the_sum_of_a_set_that_was_not_compared() -> None:
    frozen, _ = after(of_four(), *(update(s) for s in FOUR))
    with pytest.raises(ValueError, match="before its updates were compared"):
        step(frozen, aggregated(), T0)


def test_who_is_cancelled_meanwhile_was_open() -> None:
    frozen, _ = after(of_four(), *(update(s) for s in FOUR[1:]), grace())
    state, effects = step(frozen, CancelRequested(experiment="exp"), T0)
    assert CloseRound(silo="east", run=RUN, round=1, because=ClosedBecause.CANCELLED) in effects
    assert ended(state).outcome is RunOutcome.CANCELLED


def test_a_pause_asked_for_meanwhile_holds_whatever_comes_of_the_set() -> None:
    frozen, _ = after(of_four(), *(update(s) for s in FOUR[1:]), grace(), PauseRequested(experiment="exp"))
    opened, _ = step(frozen, compared(island=0.8, north=0.9, south=-0.99), T0)
    assert collecting(opened).pausing
    state, _ = after(
        opened, update("east", announcement=2), compared(1, 2, east=1.0, island=1.0, north=1.0), aggregated()
    )
    assert paused(state).round == 2


def test_who_leaves_meanwhile_is_not_asked_again() -> None:
    frozen, _ = after(of_four(), *(update(s) for s in FOUR[1:]), grace())
    gone = MembersSeen(offers={"east": ()})
    state, _ = after(frozen, gone, compared(island=0.8, north=0.9, south=-0.99))
    assert "east: declined: task-not-offered" in ended(state).reason


LATE = UpdateCameLate(silo="east", run=RUN, round=1)


def test_an_update_that_comes_meanwhile_is_late_once_the_round_closes_without_it() -> None:
    frozen, _ = after(of_four(), *(update(s) for s in FOUR[1:]), grace())
    waiting, effects = step(frozen, LATE, at(20))
    assert effects == ()
    assert aggregating(waiting).run.paces == {}
    with pytest.raises(Duplicate):
        step(waiting, LATE, at(21))
    judged, _ = step(waiting, compared(island=0.8, north=0.9, south=0.7), at(30))
    pace = aggregating(judged).run.paces["east"]
    assert (pace.late, pace.late_for, pace.missed, pace.updates) == (1, 1, 1, 0)
    with pytest.raises(Duplicate):
        step(judged, LATE, at(31))


def test_an_update_that_comes_meanwhile_is_in_time_when_the_round_is_open_again() -> None:
    frozen, _ = after(of_four(), *(update(s) for s in FOUR[1:]), grace(), now=at(20))
    waiting, _ = step(frozen, LATE, at(25))
    opened, effects = step(waiting, compared(island=0.8, north=0.9, south=-0.99), at(30))
    assert Announce(silo="east", round=1, announcement=2) in effects
    again, _ = step(opened, update("east", announcement=2), at(40))
    judged, _ = step(again, compared(announcement=2, east=0.9, island=0.8, north=0.9), at(50))
    pace = aggregating(judged).run.paces["east"]
    assert (pace.late, pace.missed, pace.updates) == (0, 0, 1)


def test_only_those_who_were_asked_and_are_not_in_the_set_come_late_for_it() -> None:
    frozen, _ = after(of_four(), *(update(s) for s in FOUR[1:]), grace())
    with pytest.raises(Duplicate):
        step(frozen, replace(LATE, silo="south"), T0)
    with pytest.raises(Stale):
        step(frozen, replace(LATE, silo="west"), T0)


def test_a_frozen_set_survives_json() -> None:
    frozen, _ = after(of_four(), *(update(s) for s in FOUR))
    judged, _ = step(frozen, compared(**ODD), T0)
    for state in (frozen, judged):
        assert state is not None
        assert STATE.validate_json(state.model_dump_json()) == state


# --- what is asked of the experiment -----------------------------------------------------------------------------


@pytest.mark.parametrize("checks", [{"max_norm_ratio": 5}, {"min_cosine": 0}])
def test_bounds_that_need_three_are_refused_with_a_quorum_of_two(checks: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="needs a quorum of at least 3 updates, and it is 2"):
        request(silos=list(SILOS), checks=checks)
    with pytest.raises(Poison, match="needs a quorum of at least 3 updates, and it is 2") as refused:
        step(None, start(checks=checks), T0)
    assert refused.value.reason == "quorum-too-small"


@pytest.mark.parametrize("checks", [{"max_norm": 5}, {"measure": True}])
def test_other_checks_go_with_any_quorum(checks: dict[str, Any]) -> None:
    assert request(silos=list(SILOS), checks=checks).checks == Checks(**checks)


@pytest.mark.parametrize(
    "checks",
    [
        *({}, {"measure": False}, {"max_norm": 0}, {"max_norm_ratio": 1}, {"min_cosine": 1}, {"min_cosine": -1.1}),
        *({"max_norm": float("inf")}, {"max_nrom": 1}, {"max_norm": "5"}),
    ],
)
def test_checks_that_mean_nothing_are_refused(checks: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="checks"):
        request(checks=checks)


def test_a_quorum_stays_large_enough_when_members_leave() -> None:
    state = of_four()
    half = state.run.request.model_copy(update={"quorum": state.run.request.quorum.model_copy(update={"minimum": 0.5})})
    run = state.run.model_copy(update={"request": half, "silos": FOUR[:3]})
    opened, _ = open_round(run, 2, Purpose.TRAIN, T0)
    assert collecting(opened).quorum == 3
    waiting, _ = open_round(run.model_copy(update={"silos": FOUR[:2]}), 2, Purpose.TRAIN, T0)
    assert "needs 3 updates" in paused(waiting).because


def test_owners_are_told_of_the_bounds_when_their_silos_train() -> None:
    state = of_four()
    assert announcement_for(state, "east").checks == Checks(min_cosine=-0.5)
    evaluates = state.model_copy(update={"purpose": Purpose.EVALUATE})
    assert announcement_for(evaluates, "east").checks is None
