"""Who takes part: silos that join and leave, samples drawn by a seed, quorums of those that are left."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as some

from messages.errors import Duplicate, Poison, Stale
from messages.experiments import StartExperiment
from messages.schemas import DeclineReason, Head, Purpose
from orchestrator.experiment.announcing import announcement_for
from orchestrator.experiment.effects import Announce, Effects, PublishHead, ScheduleDeadline
from orchestrator.experiment.events import MembersSeen, PauseRequested, ResumeRequested, SiloAppeared, StartRequested
from orchestrator.experiment.membership import drawing_order, shortage
from orchestrator.experiment.state import Collecting, Declined, Paused, State, Updated
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
    ended,
    evaluating,
    failed,
    initialising,
    paused,
    request,
    start,
    training,
    update,
    weights,
)

MANY = tuple(f"s{number}" for number in range(10))
RESUME, PAUSE = ResumeRequested(experiment="exp"), PauseRequested(experiment="exp")


def offering(*silos: str) -> MembersSeen:
    return MembersSeen(offers={silo: ["other", "toy"] for silo in silos})


def withdrawn(*silos: str) -> MembersSeen:
    return MembersSeen(offers={silo: ["other"] for silo in silos})


def enrolled(*silos: str) -> MembersSeen:
    return MembersSeen(offers={}, enrolled=silos)


def opened(number: int, *silos: str, now: float = 0) -> Effects:
    """What opening a round brings about."""
    return (
        PublishHead(head=Head(run=RUN, round=number, announcement=1, phase="open")),
        *(Announce(silo=s, round=number, announcement=1) for s in silos),
        ScheduleDeadline(run=RUN, round=number, announcement=1, at=at(now + 100)),
    )


def sampled(**sample: object) -> Collecting:
    """Round 1 of a run that asks four of ten silos, in an order that seed 7 gives, with a quorum of three of them."""
    return training(
        enrolled=MANY, offering=MANY, sample={"share": 0.4, "seed": 7, **sample}, quorum={"minimum": 3, "reminders": 5}
    )


# --- joining -----------------------------------------------------------------------------------------------------


def test_a_silo_that_begins_to_offer_the_task_takes_part_from_the_next_round_in_the_order_of_the_names() -> None:
    before = training()
    state, effects = step(before, offering("kiel"), T0)
    assert collecting(state).run.silos == ("east", "kiel", "north", "south")
    assert (collecting(state).asked, collecting(state).quorum, effects) == (SILOS, 2, ())

    state, effects = after(state, *(update(silo) for silo in SILOS), aggregated())
    assert effects[1:] == opened(2, "east", "kiel", "north", "south")


def test_nothing_a_new_member_says_counts_in_the_round_it_was_not_asked_for() -> None:
    state, _ = step(training(), offering("kiel"), T0)
    with pytest.raises(Poison, match="not-asked"):
        step(state, update("kiel"), T0)
    with pytest.raises(Stale):
        step(state, SiloAppeared(silo="kiel"), T0)


def test_the_quorum_of_a_round_is_of_those_who_take_part_in_it() -> None:
    joined, _ = after(training(quorum={"minimum": "all"}), offering("kiel"), *(update(silo) for silo in SILOS))
    state, _ = step(joined, aggregated(), T0)
    assert collecting(state).quorum == 4
    share, _ = after(training(quorum={"minimum": 0.5}), withdrawn("east"), update("north"), update("south"))
    state, _ = after(aggregating(share), aggregated())
    assert (collecting(state).asked, collecting(state).quorum) == (("north", "south"), 1)


def test_a_silo_joins_while_the_sum_is_made_and_while_the_run_is_paused() -> None:
    summing, _ = after(training(), *(update(silo) for silo in SILOS))
    state, effects = step(summing, offering("kiel"), T0)
    assert aggregating(state).closed == aggregating(summing).closed
    assert (aggregating(state).run.silos[1], effects) == ("kiel", ())

    waiting, _ = after(training(), PAUSE, *(update(silo) for silo in SILOS), aggregated())
    state, effects = step(waiting, offering("kiel"), T0)
    assert (paused(state).run.silos[1], effects) == ("kiel", ())
    _, effects = step(state, RESUME, T0)
    assert effects == opened(2, "east", "kiel", "north", "south")


def test_the_same_news_again_changes_nothing() -> None:
    state, _ = step(training(), offering("kiel"), T0)
    for news in (offering("kiel"), withdrawn("stranger"), offering("east", "kiel")):
        with pytest.raises(Stale):
            step(state, news, T0)
    over, _ = after(training(), withdrawn(*SILOS))
    for nothing in (None, ended(over)):
        with pytest.raises(Stale):
            step(nothing, offering("kiel"), T0)


def test_the_first_model_may_be_asked_of_a_silo_that_came_meanwhile() -> None:
    state, effects = after(initialising(), offering("kiel"), declined("east", 0))
    assert collecting(state).asked == ("east", "kiel")
    assert Announce(silo="kiel", round=0, announcement=2) in effects


# --- leaving -----------------------------------------------------------------------------------------------------


def test_a_silo_that_no_longer_offers_the_task_has_answered_the_open_round_and_is_not_asked_again() -> None:
    state, effects = step(training(), withdrawn("east"), T0)
    assert collecting(state).answers == {"east": Declined(reason=DeclineReason.TASK_NOT_OFFERED)}
    assert (collecting(state).run.silos, collecting(state).asked, effects) == (("north", "south"), SILOS, ())
    state, effects = after(state, update("north"), update("south"), aggregated())
    assert effects[1:] == opened(2, "north", "south")


def test_the_last_silo_to_answer_closes_the_round_by_leaving() -> None:
    state, _ = after(training(), update("north"), update("south"), withdrawn("east"))
    assert dict(aggregating(state).closed.others) == {"east": "declined: task-not-offered"}


def test_an_update_counts_though_its_silo_left_and_is_summed_in_its_place() -> None:
    state, _ = after(training(), update("east"), withdrawn("east"), update("south"), update("north"))
    assert [u.silo for u in aggregating(state).closed.updates] == ["east", "north", "south"]
    assert aggregating(state).run.silos == ("north", "south")


def test_a_silo_that_failed_and_left_is_not_asked_again() -> None:
    state, _ = after(training(), failed("east"), withdrawn("east"))
    assert isinstance(collecting(state).answers["east"], Declined)
    _, effects = step(state, deadline(), at(100))
    assert [e.silo for e in effects if isinstance(e, Announce)] == ["north", "south"]


def test_a_silo_that_left_and_came_back_takes_part_from_the_next_round() -> None:
    state, _ = after(training(), withdrawn("east"), offering("east"))
    assert collecting(state).run.silos == SILOS
    with pytest.raises(Stale):
        step(state, SiloAppeared(silo="east"), T0)
    state, effects = after(state, update("north"), update("south"), aggregated())
    assert effects[1:] == opened(2, *SILOS)


def test_too_many_that_leave_an_open_round_fail_it_as_refusals_do() -> None:
    state, _ = after(training(), withdrawn("east"), withdrawn("north"))
    assert "east: declined: task-not-offered; north: declined: task-not-offered" in ended(state).reason


def test_the_silo_that_was_asked_for_the_first_model_leaves_and_the_next_is_asked() -> None:
    state, effects = step(initialising(), withdrawn("east"), T0)
    assert Announce(silo="north", round=0, announcement=2) in effects
    assert collecting(state).answers["east"] == Declined(reason=DeclineReason.TASK_NOT_OFFERED)


def test_an_explicit_list_stays_as_it_is() -> None:
    before = training(silos=["south", "east"])
    for news in (offering("north"), withdrawn("east")):
        with pytest.raises(Stale):
            step(before, news, T0)


# --- enrolment ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listed", [None, ["south", "north", "east"]])
def test_a_silo_that_is_enrolled_no_longer_has_answered_and_leaves_explicit_lists_too(listed: list[str] | None) -> None:
    order = tuple(listed or SILOS)
    state, effects = step(training(silos=listed), enrolled("south", "east"), T0)
    assert collecting(state).answers == {"north": Declined(reason=DeclineReason.NOT_ENROLLED)}
    assert collecting(state).run.silos == tuple(silo for silo in order if silo != "north")
    assert (collecting(state).asked, effects) == (order, ())
    state, _ = after(state, update("east"), update("south"))
    assert [u.silo for u in aggregating(state).closed.updates] == [silo for silo in order if silo != "north"]


def test_a_silo_of_an_explicit_list_comes_back_when_it_is_enrolled_again() -> None:
    state, _ = after(training(silos=["south", "north", "east"]), enrolled("south", "east"), enrolled(*SILOS))
    assert collecting(state).run.silos == ("south", "north", "east")


def test_a_silo_that_is_not_enrolled_cannot_join_by_a_hello() -> None:
    with pytest.raises(Stale):
        step(training(), MembersSeen(offers={"kiel": ["toy"]}, enrolled=SILOS), T0)


# --- too few -----------------------------------------------------------------------------------------------------


def too_few() -> State:
    """One silo left after round 1, of two that a quorum needs; it left when the round had been answered."""
    state, _ = after(training(), *(update(s) for s in SILOS), withdrawn("east"), withdrawn("north"), aggregated())
    assert state is not None
    return state


def test_a_run_pauses_while_too_few_silos_are_left_for_a_quorum_and_goes_on_when_one_joins() -> None:
    state = paused(too_few())
    assert state.because == ("A round needs 2 updates, and of 1 silo (south) that still take part it would ask 1.")
    with pytest.raises(Poison) as caught:
        step(state, RESUME, T0)
    assert caught.value.reason == "too-few-silos"

    gone, effects = step(state, withdrawn("south"), at(4))
    assert ("0 silos (none)" in paused(gone).because, effects) == (True, ())

    resumed, effects = step(state, offering("kiel"), at(5))
    assert collecting(resumed).asked == ("kiel", "south")
    assert effects == opened(2, "kiel", "south", now=5)


MEDIAN = {"name": "median"}
FOUR = ("east", "kiel", "north", "south")


@pytest.mark.parametrize(
    "changes",
    [
        {"quorum": {"minimum": 2}},
        {"quorum": {"minimum": "all"}, "offering": ("east", "north")},
        {"quorum": {"minimum": 0.5}},
        {"quorum": {"minimum": 2}, "silos": list(SILOS)},
        {"quorum": {"minimum": "all"}, "silos": ["east", "north"]},
        {"quorum": {"minimum": "all"}, "sample": {"share": 0.5}},
    ],
)
def test_a_quorum_too_small_for_the_strategy_is_refused(changes: dict[str, object]) -> None:
    """Whoever takes part, and however the quorum is said: when the run begins the number is known."""
    with pytest.raises(Poison) as caught:
        step(None, start(strategy=MEDIAN, least=3, **changes), T0)
    assert caught.value.reason == "quorum-too-small-for-strategy"
    assert "Strategy median with these options needs 3 updates, and a quorum of 2 " in caught.value.description
    assert "Set quorum.minimum to 3 or more" in caught.value.description


@pytest.mark.parametrize("changes", [{"quorum": {"minimum": 3}}, {"quorum": {"minimum": "all"}}])
def test_a_quorum_large_enough_for_the_strategy_is_not(changes: dict[str, object]) -> None:
    state, _ = step(None, start(strategy=MEDIAN, least=3, initial=weights("initial"), **changes), T0)
    assert (collecting(state).quorum, collecting(state).run.least) == (3, 3)


@pytest.mark.parametrize("listed", [None, list(FOUR)])
@pytest.mark.parametrize("minimum", ["all", 0.75])
def test_members_that_leave_do_not_leave_the_strategy_too_few_updates(
    listed: list[str] | None, minimum: object
) -> None:
    """Of four a quorum of three, of two, one: the median of those is their mean."""
    quorum = {"minimum": minimum}
    given: dict[str, object] = {"enrolled": FOUR, "offering": FOUR, "silos": listed, "quorum": quorum, "rounds": 3}
    first, three, two = training(least=3, strategy=MEDIAN, **given), ("east", "kiel", "north"), ("kiel", "north")
    second, _ = after(first, *(update(silo) for silo in FOUR), enrolled(*three), aggregated())
    assert (collecting(second).asked, collecting(second).quorum) == (three, 3)
    third, _ = after(second, *(update(silo, 2) for silo in three), enrolled(*two), aggregated(2))
    assert paused(third).because == (
        "A round needs 3 updates, and of 2 silos (kiel, north) that still take part it would ask 2."
    )
    assert collecting(after(third, enrolled(*three))[0]).quorum == 3 if listed else True


def test_an_evaluation_and_the_first_model_need_no_more_for_the_strategy() -> None:
    state, _ = step(None, start(least=3, quorum={"minimum": 3}), T0)
    assert collecting(state).quorum == 1
    run = training(least=3, quorum={"minimum": 3}).run.model_copy(update={"silos": ("east",)})
    assert shortage(run, Purpose.EVALUATE) is None
    assert shortage(run, Purpose.TRAIN) is not None


def test_an_operators_pause_is_not_ended_by_a_silo_that_joins() -> None:
    held, _ = step(too_few(), PAUSE, T0)
    state, effects = step(held, offering("kiel"), T0)
    assert isinstance(state, Paused)
    assert effects == ()
    with pytest.raises(Duplicate):
        step(held, PAUSE, T0)
    assert isinstance(step(state, RESUME, T0)[0], Collecting)


# --- sampling ----------------------------------------------------------------------------------------------------


def test_a_round_asks_the_first_of_its_members_by_a_digest_that_anybody_can_compute() -> None:
    state = sampled()
    order = sorted(MANY, key=lambda silo: hashlib.sha256(f"7:1:{silo}".encode()).hexdigest())
    assert state.asked == tuple(sorted(order[:4])) != MANY[:4]
    assert state.draw is not None
    assert (state.draw.seed, state.draw.size, state.draw.among, state.run.seed) == (7, 4, MANY, 7)
    said = announcement_for(state, state.asked[0])
    assert (said.silos, said.quorum) == (4, 3)


def test_every_round_draws_anew_and_says_in_its_record_who_was_asked_of_whom() -> None:
    state = sampled()
    closed, _ = after(state, *(update(silo) for silo in state.asked))
    record = aggregating(closed).closed
    assert (record.asked, record.draw) == (state.asked, state.draw)
    following, _ = step(closed, aggregated(), T0)
    assert collecting(following).asked == tuple(sorted(drawing_order(7, 2, MANY)[:4])) != state.asked


def test_without_a_seed_the_run_has_its_own() -> None:
    seeds = {
        collecting(step(None, start(run=run, sample={"share": 0.5}, quorum={"minimum": 1}), T0)[0]).run.seed
        for run in ("exp_00000000", "exp_00000001")
    }
    assert len(seeds) == 2
    assert None not in seeds
    assert int(hashlib.sha256(b"exp_00000000").hexdigest()[:8], 16) in seeds


def test_the_evaluation_asks_everybody_and_the_first_model_one() -> None:
    one, _ = step(None, start(sample={"share": 0.5}, quorum={"minimum": 1}), T0)
    assert (collecting(one).asked, collecting(one).draw) == (("east",), None)
    state, _ = after(training(2, sample={"share": 0.3}, quorum={"minimum": 1}), deadline(2))
    asked = collecting(state).asked[:1]
    last, _ = after(state, update(asked[0], 2), *(update(s, 2) for s in collecting(state).asked[1:]), aggregated(2))
    assert (collecting(last).purpose, collecting(last).asked, collecting(last).draw) == (Purpose.EVALUATE, SILOS, None)


def test_silos_that_give_no_update_are_replaced_by_the_next_in_the_order() -> None:
    state = sampled()
    order = drawing_order(7, 1, MANY)
    silent, declines, fails, updates = state.asked
    again, effects = after(state, declined(declines), failed(fails), update(updates), deadline(), now=at(100))
    new = set(order[4:7])
    assert set(collecting(again).asked) == {*state.asked, *new}
    assert list(collecting(again).asked) == sorted(collecting(again).asked)
    assert {e.silo for e in effects if isinstance(e, Announce)} == {silent, fails, *new}
    assert collecting(again).quorum == 3
    assert announcement_for(collecting(again), silent).silos == 7

    closed, _ = after(again, *(update(silo) for silo in sorted(new)), update(silent), update(fails))
    assert len(aggregating(closed).closed.updates) == 6


def test_whoever_left_replaces_nobody_and_when_all_are_asked_there_is_nobody_more() -> None:
    order = drawing_order(7, 1, MANY)
    left, _ = after(sampled(), withdrawn(order[4]), deadline(), now=at(100))
    assert order[4] not in collecting(left).asked
    assert set(collecting(left).asked) == {*order[:4], *order[5:9]}
    everybody, _ = after(left, deadline(1, 2), now=at(200))
    assert set(collecting(everybody).asked) == set(MANY) - {order[4]}


def test_a_sample_that_refused_is_not_the_end_while_there_are_others() -> None:
    state = sampled()
    state, effects = after(state, *(declined(silo) for silo in state.asked), now=at(3))
    assert (collecting(state).deadline, len(effects)) == (at(13), 0), "a pause, and then others are asked"
    state, effects = step(state, deadline(), at(13))
    assert {e.silo for e in effects if isinstance(e, Announce)} == set(drawing_order(7, 1, MANY)[4:8])


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (start(sample={"share": 0.4}, quorum={"minimum": 3}), "quorum-too-large"),
        (start(sample={"share": 0.4, "minimum": 4}), "sample-too-large"),
    ],
)
def test_a_sample_that_makes_no_sense_is_refused(event: StartRequested, reason: str) -> None:
    with pytest.raises(Poison) as caught:
        step(None, event, T0)
    assert caught.value.reason == reason


@pytest.mark.parametrize("sample", [{"share": 0.4, "minimum": 4}, {"share": 0.3}])
def test_with_an_explicit_list_it_is_refused_before_it_is_sent(sample: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="sample"):
        request(silos=list(SILOS), sample=sample)


@given(some.integers(1, 300), some.floats(0.01, 1), some.integers(1, 20))
def test_a_sample_has_its_share_rounded_up_and_its_minimum(silos: int, share: float, minimum: int) -> None:
    asked = StartExperiment.model_validate(
        {"experiment": "e", "task": "t", "rounds": 1, "sample": {"share": share, "minimum": minimum}}
    ).asked(silos)
    assert min(silos, minimum) <= asked <= silos
    assert min(silos, share * silos) <= asked + 1e-6
    assert asked <= max(minimum, share * silos + 1)


def test_over_many_rounds_every_silo_is_asked_about_as_often() -> None:
    often = dict.fromkeys(MANY, 0)
    for number in range(1000):
        for silo in drawing_order(7, number, MANY)[:3]:
            often[silo] += 1
    assert all(240 < times < 360 for times in often.values()), often


# --- the state does not grow ---------------------------------------------------------------------------------------


def test_a_state_after_many_rounds_is_as_large_as_after_few() -> None:
    state: State = training(rounds=5000)

    def go_on(first: int, last: int) -> int:
        nonlocal state
        for number in range(first, last):
            moved, _ = after(state, *(update(silo, number) for silo in SILOS), aggregated(number), now=at(number))
            assert moved is not None
            state = moved
        return len(state.model_dump_json())

    short = go_on(1, 10)
    assert go_on(10, 400) < short + 60, "some numbers have more digits"


def test_an_evaluation_is_counted_but_not_timed() -> None:
    state, _ = after(evaluating(), *(update(s, 3, purpose=Purpose.EVALUATE) for s in SILOS), now=at(9))
    pace = ended(state).run.paces["east"]
    assert (pace.updates, pace.updated, pace.training, pace.bytes) == (1, 3, None, 0)
    assert isinstance(collecting(after(training(), update("east"))[0]).answers["east"], Updated)
    assert weights("x").bytes == 100
