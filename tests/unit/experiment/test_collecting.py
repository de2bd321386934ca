"""What counts in an open round, what no longer does, and when a round closes."""

from __future__ import annotations

import pytest

from messages.errors import Duplicate, Poison, Stale
from messages.schemas import ClosedBecause, Head, Payload, Purpose
from orchestrator.experiment.collecting import pause
from orchestrator.experiment.effects import (
    Announce,
    CloseRound,
    Effects,
    PublishHead,
    RecordRound,
    RecordRun,
    RequestAggregation,
    ScheduleDeadline,
    ScheduleGrace,
)
from orchestrator.experiment.events import CancelRequested, Event, SiloAppeared
from orchestrator.experiment.state import Declined, Failed, RoundOutcome, RunOutcome, Updated
from orchestrator.experiment.step import step
from tests.unit.experiment.given import (
    RUN,
    T0,
    after,
    aggregated,
    aggregating,
    at,
    collecting,
    deadline,
    declined,
    ended,
    evaluating,
    failed,
    grace,
    initialising,
    loss,
    rejected,
    training,
    update,
    weights,
)

CLOSED = PublishHead(head=Head(run=RUN, round=1, announcement=1, phase="closed"))
SUM = RequestAggregation(run=RUN, round=1)


def dismissed(*silos: str, because: ClosedBecause = ClosedBecause.AGGREGATED, round_number: int = 1) -> Effects:
    return tuple(CloseRound(silo=s, run=RUN, round=round_number, because=because) for s in silos)


def asked_again(*silos: str, announcement: int = 2, until: float = 100, round_number: int = 1) -> Effects:
    return (
        PublishHead(head=Head(run=RUN, round=round_number, announcement=announcement, phase="open")),
        *(Announce(silo=s, round=round_number, announcement=announcement) for s in silos),
        ScheduleDeadline(run=RUN, round=round_number, announcement=announcement, at=at(until)),
    )


# --- when a round closes -----------------------------------------------------------------------------------------


def test_an_update_before_the_quorum_changes_nothing_else() -> None:
    state, effects = step(training(), update("north", 1, loss(0.5)), at(3))
    assert effects == ()
    answer = collecting(state).answers["north"]
    assert isinstance(answer, Updated)
    assert (answer.payload, answer.samples, answer.steps, answer.seconds, answer.norm, answer.at) == (
        weights("north1"),
        10,
        5,
        1.5,
        2.0,
        at(3),
    )


def test_the_quorum_begins_the_grace() -> None:
    state, effects = after(training(), update("north"), update("south"), now=at(3))
    assert collecting(state).grace_until == at(13)
    assert effects == (ScheduleGrace(run=RUN, round=1, announcement=1, at=at(13)),)


def test_the_end_of_the_grace_freezes_the_set_and_dismisses_stragglers() -> None:
    state, effects = after(training(), update("south"), update("north"), grace())
    assert [u.silo for u in aggregating(state).closed.updates] == ["north", "south"]
    assert dict(aggregating(state).closed.others) == {"east": "had not answered"}
    assert effects == (*dismissed("east"), SUM, CLOSED)


def test_a_grace_that_never_began_is_not_over() -> None:
    state, _ = step(training(), update("south"), at(3))
    with pytest.raises(Stale):
        step(state, grace(), at(4))


def test_without_grace_the_quorum_closes_the_round_at_once() -> None:
    state, effects = after(training(quorum={"grace": 0}), update("south"), update("north"))
    assert [u.silo for u in aggregating(state).closed.updates] == ["north", "south"]
    assert effects == (*dismissed("east"), SUM, CLOSED)


def test_a_round_closes_when_every_silo_has_updated() -> None:
    state, effects = after(training(), update("south"), update("north"), update("east"))
    assert [u.silo for u in aggregating(state).closed.updates] == ["east", "north", "south"]
    assert effects == (SUM, CLOSED)


@pytest.mark.parametrize("last", [declined("east"), failed("east"), rejected("east")])
def test_a_round_closes_when_every_silo_has_answered_and_the_quorum_is_there(last: Event) -> None:
    state, effects = after(training(), update("south"), update("north"), last)
    assert [u.silo for u in aggregating(state).closed.updates] == ["north", "south"]
    assert effects == (SUM, CLOSED)


def test_the_deadline_closes_a_round_that_has_its_quorum() -> None:
    state, effects = after(training(quorum={"grace": 500}), update("south"), update("north"), deadline())
    assert [u.silo for u in aggregating(state).closed.updates] == ["north", "south"]
    assert effects == (*dismissed("east"), SUM, CLOSED)


def test_the_order_of_arrival_does_not_show_in_the_frozen_set() -> None:
    one, _ = after(
        training(), update("south", 1, loss(0.3)), update("north", 1, loss(0.1)), update("east", 1, loss(0.7))
    )
    two, _ = after(
        training(), update("east", 1, loss(0.7)), update("south", 1, loss(0.3)), update("north", 1, loss(0.1))
    )
    assert one == two


# --- without a quorum --------------------------------------------------------------------------------------------


def test_a_deadline_without_quorum_announces_again_to_those_who_owe_an_answer() -> None:
    state, effects = after(training(), update("north"), deadline(), now=at(100))
    assert (collecting(state).announcement, collecting(state).deadline) == (2, at(200))
    assert effects == asked_again("east", "south", until=200)


def test_silos_that_failed_are_asked_again_and_those_that_declined_are_not() -> None:
    state, effects = after(training(quorum={"minimum": 1}), failed("north"), declined("east"), deadline())
    assert collecting(state).announcement == 2
    assert effects == asked_again("north", "south")


def test_a_quorum_out_of_reach_announces_again_after_a_pause_without_waiting_for_the_deadline() -> None:
    state, effects = after(training(), failed("north"), rejected("east"), now=at(7))
    assert (collecting(state).announcement, collecting(state).deadline) == (1, at(17))
    assert effects == (ScheduleDeadline(run=RUN, round=1, announcement=1, at=at(17)),)

    state, effects = step(state, deadline(), at(17))
    assert (collecting(state).announcement, collecting(state).deadline) == (2, at(117))
    assert effects == asked_again("east", "north", "south", until=117)


def test_the_pause_grows_and_never_ends_after_the_deadline() -> None:
    state, _ = after(training(quorum={"reminders": 5}), deadline(), now=at(0))
    state, effects = after(state, failed("north", announcement=2), failed("east", announcement=2), now=at(7))
    assert effects == (ScheduleDeadline(run=RUN, round=1, announcement=2, at=at(37)),)
    state, effects = after(state, failed("south", announcement=2), now=at(8))
    assert (collecting(state).deadline, effects) == (at(37), ())

    late, effects = after(training(), failed("north"), failed("east"), now=at(95))
    assert (collecting(late).deadline, effects) == (at(100), ())


def test_the_pause_after_a_thousand_reminders_is_a_day() -> None:
    assert [pause(n).total_seconds() for n in (0, 1, 8, 9, 1000)] == [10, 30, 65610, 86400, 86400]


def test_a_quorum_out_of_reach_that_is_reached_after_all_closes_the_round() -> None:
    state, _ = after(training(), failed("north"), failed("east"), update("south"), now=at(7))
    state, _ = after(state, update("north"), now=at(9))
    assert [u.silo for u in aggregating(state).closed.updates] == ["north", "south"]


def test_a_round_fails_at_once_when_too_many_have_declined() -> None:
    before, _ = after(training(), update("north"), declined("east"))
    state, effects = step(before, declined("south"), at(9))
    over = ended(state)
    assert over.outcome is RunOutcome.FAILED
    assert over.reason == (
        "Round 1: no quorum, 1 of 2 updates. east: declined: budget-spent; south: declined: budget-spent"
    )
    record = effects[0]
    assert isinstance(record, RecordRound)
    assert (record.record.outcome, record.record.over_at) == (RoundOutcome.FAILED, at(9))
    assert effects == (
        record,
        RecordRun(ended=over),
        PublishHead(head=Head(run=RUN, round=1, announcement=1, phase="ended")),
    )


def test_a_run_fails_after_its_reminders_and_says_what_each_silo_did() -> None:
    state, effects = after(training(), failed("north"), deadline(), declined("east"), failed("south"))
    over = ended(state)
    assert over.reason == (
        "Round 1: no quorum, 0 of 2 updates. east: declined: budget-spent; "
        "north: had not answered; before that it failed: timeout; south: failed: timeout"
    )
    assert effects[0] == CloseRound(silo="north", run=RUN, round=1, because=ClosedBecause.FAILED)
    assert [effect.kind for effect in effects[1:]] == ["record-round", "record-run", "publish-head"]


def test_an_update_counts_whichever_announcement_caused_it() -> None:
    again, _ = after(training(), deadline())
    late = update("north", 1, announcement=1)
    state, _ = after(again, late, update("south", 1, announcement=2), grace(announcement=2))
    assert [u.silo for u in aggregating(state).closed.updates] == ["north", "south"]


def test_the_deadline_of_an_earlier_announcement_is_stale() -> None:
    again, _ = after(training(), deadline(announcement=1))
    with pytest.raises(Stale):
        step(again, deadline(announcement=1), at(200))


# --- what does not count -----------------------------------------------------------------------------------------


def test_the_same_update_again_is_a_duplicate() -> None:
    state, _ = step(training(), update("north"), T0)
    for again in (update("north"), update("north", 1, announcement=2)):
        with pytest.raises(Duplicate):
            step(state, again, T0)


@pytest.mark.parametrize("changes", [{"payloads": {"weights": weights("other")}}, {"samples": 11}, {"steps": 6}])
def test_another_update_of_the_same_silo_is_a_conflict_and_the_first_one_counts(changes: dict[str, object]) -> None:
    state, _ = step(training(), update("north"), T0)
    with pytest.raises(Poison) as caught:
        step(state, update("north", 1, **changes), T0)
    assert caught.value.reason == "update-conflict"


def test_an_update_of_a_silo_that_was_not_asked_is_refused() -> None:
    with pytest.raises(Poison) as caught:
        step(training(silos=["north", "south"]), update("east"), T0)
    assert caught.value.reason == "not-asked"


def test_an_update_of_an_unknown_run_is_refused() -> None:
    for state in (None, training()):
        with pytest.raises(Poison) as caught:
            step(state, update("north", 1, run="exp_11111111"), T0)
        assert caught.value.reason == "unknown-run"


def test_an_update_for_a_round_never_announced_is_refused() -> None:
    frozen, _ = after(training(), update("south"), update("north"), update("east"))
    for state in (training(), frozen):
        with pytest.raises(Poison) as caught:
            step(state, update("north", 2), T0)
        assert caught.value.reason == "unknown-round"


def test_late_update_is_ignored_once_the_round_has_closed() -> None:
    frozen, _ = after(training(), update("south"), update("north"), grace())
    later, _ = step(frozen, aggregated(), T0)
    over, _ = step(later, CancelRequested(experiment="exp"), T0)
    for state in (frozen, later, over):
        with pytest.raises(Stale):
            step(state, update("east"), T0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"purpose": Purpose.EVALUATE}, "wrong-purpose"),
        ({"payloads": {}}, "payload-missing"),
        ({"payloads": {"weights": weights("north1", form="delta")}}, "wrong-form"),
    ],
)
def test_an_update_that_is_not_what_was_asked_for_is_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(Poison) as caught:
        step(training(), update("north", 1, **changes), T0)
    assert caught.value.reason == reason


def test_deltas_are_taken_where_deltas_were_asked_for() -> None:
    payload: Payload = weights("north1", form="delta")
    state, _ = step(training(transfer={"form": "delta"}), update("north", 1, payloads={"weights": payload}), T0)
    assert collecting(state).answers["north"].answer == "updated"


BOTH = {"weights": weights("north1"), "control": weights("change", form="delta")}


@pytest.mark.parametrize(
    ("payloads", "reason"),
    [
        ({"weights": BOTH["weights"]}, "payload-missing"),
        ({"control": BOTH["control"]}, "payload-missing"),
        ({**BOTH, "control": weights("change")}, "wrong-form"),
    ],
)
def test_an_update_brings_every_role_of_the_round(payloads: dict[str, Payload], reason: str) -> None:
    state = training(roles=("weights", "control"))
    with pytest.raises(Poison) as caught:
        step(state, update("north", 1, payloads=payloads), T0)
    assert caught.value.reason == reason


def test_the_same_weights_with_another_control_are_a_conflict() -> None:
    state, _ = step(training(roles=("weights", "control")), update("north", 1, payloads=BOTH), T0)
    with pytest.raises(Duplicate):
        step(state, update("north", 1, payloads=BOTH), T0)
    with pytest.raises(Poison) as caught:
        step(state, update("north", 1, payloads={**BOTH, "control": weights("other", form="delta")}), T0)
    assert caught.value.reason == "update-conflict"


# --- declining and failing ---------------------------------------------------------------------------------------


def test_a_refused_update_counts_as_a_failure_with_its_reason() -> None:
    state, effects = step(training(), rejected("north"), T0)
    assert collecting(state).answers["north"] == Failed(announcement=1, reason="not-finite: Tensor w")
    assert effects == ()


def test_nothing_takes_back_an_update() -> None:
    state, _ = step(training(), update("north"), T0)
    for event in (declined("north"), failed("north"), rejected("north")):
        with pytest.raises(Stale):
            step(state, event, T0)


def test_an_update_makes_up_for_a_failure() -> None:
    state, _ = after(training(), failed("north"), update("north"))
    assert collecting(state).answers["north"].answer == "updated"


def test_declining_and_failing_twice_are_duplicates() -> None:
    for event in (declined("north"), failed("north")):
        state, _ = step(training(), event, T0)
        with pytest.raises(Duplicate):
            step(state, event, T0)


def test_a_silo_that_failed_may_still_decline_but_not_the_other_way_round() -> None:
    state, _ = after(training(), failed("north"), declined("north"))
    assert isinstance(collecting(state).answers["north"], Declined)
    with pytest.raises(Stale):
        step(state, failed("north"), T0)


def test_a_repeated_report_of_the_last_try_is_no_failure_of_the_new_one() -> None:
    again, _ = after(training(), failed("north", announcement=1), deadline())
    with pytest.raises(Stale):
        step(again, failed("north", announcement=1), T0)
    state, _ = step(again, failed("north", announcement=2), T0)
    assert collecting(state).answers["north"] == Failed(announcement=2, reason="timeout")


# --- a new agent -------------------------------------------------------------------------------------------------


def test_a_new_agent_is_told_of_the_open_round_if_its_silo_owes_an_answer() -> None:
    before, _ = step(training(), update("north"), T0)
    state, effects = step(before, SiloAppeared(silo="south"), T0)
    assert state == before
    assert effects == (Announce(silo="south", round=1, announcement=1),)
    for silo in ("north", "elsewhere"):
        with pytest.raises(Stale):
            step(before, SiloAppeared(silo=silo), T0)


def test_a_new_agent_is_told_nothing_when_no_round_is_open() -> None:
    frozen, _ = after(training(), update("south"), update("north"), grace())
    for state in (None, frozen):
        with pytest.raises(Stale):
            step(state, SiloAppeared(silo="east"), T0)


# --- the first model ---------------------------------------------------------------------------------------------


def first(silo: str) -> Event:
    return update(silo, 0, purpose=Purpose.INITIALISE)


def test_the_first_model_closes_round_zero_at_once() -> None:
    state, effects = step(initialising(), first("east"), T0)
    assert [u.silo for u in aggregating(state).closed.updates] == ["east"]
    assert effects == (
        RequestAggregation(run=RUN, round=0),
        PublishHead(head=Head(run=RUN, round=0, announcement=1, phase="closed")),
    )


@pytest.mark.parametrize("event", [declined("east", 0), failed("east", 0), rejected("east", 0)])
def test_the_next_silo_is_asked_when_one_does_not_make_the_first_model(event: Event) -> None:
    state, effects = step(initialising(), event, at(4))
    assert collecting(state).asked == ("east", "north")
    assert effects == asked_again("north", until=104, round_number=0)


def test_the_next_silo_is_asked_when_one_is_silent_and_both_may_answer() -> None:
    state, effects = step(initialising(), deadline(0), at(100))
    assert effects == asked_again("north", until=200, round_number=0)
    _, effects = step(state, first("east"), T0)
    assert effects == (
        *dismissed("north", round_number=0),
        RequestAggregation(run=RUN, round=0, announcement=2),
        PublishHead(head=Head(run=RUN, round=0, announcement=2, phase="closed")),
    )


def test_a_silo_not_asked_for_the_first_model_is_refused() -> None:
    with pytest.raises(Poison) as caught:
        step(initialising(), first("north"), T0)
    assert caught.value.reason == "not-asked"


def test_the_run_fails_when_nobody_makes_the_first_model() -> None:
    state, _ = after(initialising(), declined("east", 0), failed("north", 0), rejected("south", 0))
    assert ended(state).reason == (
        "Round 0: no silo made the first model, 0 of 1 updates. east: declined: budget-spent; "
        "north: failed: timeout; south: failed: not-finite: Tensor w"
    )


def test_silos_silent_about_the_first_model_are_reminded_and_then_the_run_fails() -> None:
    state, _ = after(initialising(), declined("east", 0), deadline(0, 2), failed("south", 0))
    assert collecting(state).announcement == 3
    state, effects = step(state, deadline(0, 3), at(300))
    assert effects == asked_again("north", announcement=4, until=400, round_number=0)
    state, _ = step(state, deadline(0, 4), at(400))
    assert ended(state).outcome is RunOutcome.FAILED


# --- the evaluation ----------------------------------------------------------------------------------------------


def measured(silo: str, value: float = 0.5) -> Event:
    return update(silo, 3, loss(value), purpose=Purpose.EVALUATE)


def test_an_evaluation_ends_the_run_when_every_silo_has_answered() -> None:
    before, _ = after(evaluating(), measured("east", 0.2), declined("north", 3))
    state, effects = step(before, measured("south", 0.4), at(9))
    over = ended(state)
    assert (over.outcome, over.reason, over.round) == (RunOutcome.COMPLETED, "All 2 rounds are done.", 3)
    record = effects[0]
    assert isinstance(record, RecordRound)
    assert (record.record.outcome, record.record.model) == (RoundOutcome.EVALUATED, None)
    (metric,) = record.record.metrics
    assert (metric.name, metric.silos) == ("loss", 2)
    assert metric.number == pytest.approx(0.3)
    assert effects == (
        record,
        RecordRun(ended=over),
        PublishHead(head=Head(run=RUN, round=3, announcement=1, phase="ended")),
    )


def test_an_evaluation_without_quorum_does_not_fail_the_run() -> None:
    state, effects = after(evaluating(), measured("east"), deadline(3))
    assert ended(state).outcome is RunOutcome.COMPLETED
    assert effects[:2] == dismissed("north", "south", round_number=3)


def test_an_evaluation_has_a_grace_too() -> None:
    state, effects = after(evaluating(), measured("east"), measured("north"))
    assert effects == (ScheduleGrace(run=RUN, round=3, announcement=1, at=at(10)),)
    state, _ = step(state, grace(3), at(10))
    assert ended(state).outcome is RunOutcome.COMPLETED


def test_an_evaluation_waits_for_its_deadline_while_silos_owe_an_answer() -> None:
    state, effects = after(evaluating(), failed("east", 3), failed("north", 3))
    assert (collecting(state).announcement, effects) == (1, ())


def test_a_repeated_measurement_is_a_duplicate() -> None:
    state, _ = step(evaluating(), measured("east"), T0)
    with pytest.raises(Duplicate):
        step(state, measured("east"), T0)
