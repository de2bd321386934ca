"""A share of all crash points; `make crash-points` tries every one, and every pair in a small run."""

from __future__ import annotations

import re

import pytest

from tests.crash_points.points import Kind, Point, parse
from tests.crash_points.shapes import SHAPES
from tests.crash_points.survey import (
    Finding,
    Part,
    examined,
    firsts,
    points_of,
    share_of_pairs,
    singles,
    tried,
    undisturbed,
)


def assert_equal(findings: list[Finding]) -> None:
    different = [finding for finding in findings if finding.differences]
    assert not different, "\n".join(f"{f.again}\n  at {f.at}: {f.differences}" for f in different)


@pytest.mark.parametrize("shape", SHAPES)
def test_undisturbed_a_run_is_the_same_each_time(shape: str) -> None:
    one, other = undisturbed(shape), tried(shape)
    assert one.outcome == other.outcome
    assert one.plan.made == other.plan.made


@pytest.mark.parametrize("shape", SHAPES)
def test_undisturbed_a_run_comes_to_what_arithmetic_says(shape: str) -> None:
    assert_equal([examined(shape, ())])


def test_the_weights_are_exactly_what_they_must_be() -> None:
    """Two silos add 2 and 6, with 30 and 10 samples; `n` is how many rounds each had committed, averaged likewise."""
    rounds = undisturbed("run").outcome.rounds
    assert [r["numbers"] and (r["numbers"]["w"], r["numbers"]["n"]) for r in rounds] == [
        ([2.0] * 3, [0.0]),
        ([5.0] * 3, [0.75]),
        ([8.0] * 3, [1.75]),
        None,
    ]


def test_every_call_that_leaves_a_process_is_a_point() -> None:
    plan = undisturbed("run").plan
    assert plan.made.keys() == {"ORCH", "NORTH", "SOUTH"}
    away = {call.what.split()[0] for calls in plan.made.values() for call in calls if call.away}
    files = {call.what.split()[0] for calls in plan.made.values() for call in calls if not call.away}
    assert away >= {"send", "receive", "complete", "read", "write", "create", "open", "fetch", "list"}
    assert files >= {"open", "fill", "write", "fsync", "rename", "replace", "mkdir", "rmdir", "chmod", "unlink"}
    points = points_of(plan)
    assert {point.kind for point in points.run} == set(Kind) - {Kind.AFTER}
    assert points.count > 2500


def test_a_death_after_an_answer_is_one_before_the_next_call() -> None:
    """The reason for which `crash-after` is not run a second time."""
    call = undisturbed("small").plan.made["ORCH"][16]
    assert call.answered
    assert call.followed_by
    after = tried("small", [Point("ORCH", 17, Kind.AFTER)])
    before = tried("small", [Point("ORCH", call.followed_by, Kind.BEFORE)])
    assert after.plan.made == before.plan.made


def at(shape: str, who: str, what: str, kind: Kind, *, each: int = 1) -> list[Finding]:
    """What comes of each (or each so many-th) of a process's calls that the pattern matches."""
    calls = undisturbed(shape).plan.made[who]
    numbers = [number for number, call in enumerate(calls, 1) if re.search(what, call.what)]
    assert numbers
    return [examined(shape, [Point(who, number, kind)]) for number in numbers[::each]]


def test_effects_that_only_the_store_knows_of_are_carried_out() -> None:
    assert_equal(at("small", "ORCH", "write state/experiments/", Kind.UNANSWERED))


def test_an_orchestrator_that_stood_still_writes_over_nothing() -> None:
    assert_equal(at("small", "ORCH", " state/experiments/exp", Kind.FREEZE, each=2))


def test_an_agent_that_dies_once_it_has_published_publishes_nothing_else() -> None:
    assert_equal(at("small", "NORTH", "create .*/update.json|send", Kind.UNANSWERED))


def test_updates_that_come_twice_while_another_silo_is_waited_for_count_once() -> None:
    assert_equal(at("two", "NORTH", "read .*/00001/update.json", Kind.FREEZE))


def test_a_sweep_that_died_deletes_the_rest_and_nothing_more() -> None:
    """After some of its deletions; where it says what goes; where it says how far it is."""
    assert_equal(at("swept", "ORCH", "^delete ", Kind.UNANSWERED, each=3))
    assert_equal(at("swept", "ORCH", "^write state/retention/", Kind.UNANSWERED, each=4))


def test_what_the_strategy_keeps_is_summed_once_and_found_again() -> None:
    assert undisturbed("momentum").outcome.rounds[1]["besides"] == {"momentum": {"w": [3.0] * 3, "n": [1.0]}}
    assert_equal(at("momentum", "ORCH", "create global/", Kind.UNANSWERED))


def test_what_was_charged_is_given_back_though_the_agent_that_was_charged_is_dead() -> None:
    """The failed round is closed when it is back."""
    assert undisturbed("fails").outcome.silos["north"].charged == [
        undisturbed("fails").outcome.silos["south"].charged[1]
    ]
    assert_equal(at("fails", "NORTH", "send from-north", Kind.UNANSWERED))


def test_a_deadline_that_was_brought_forward_is_not_the_one_before() -> None:
    """Else the round would wait for a day, longer than a run may take here."""
    assert_equal(at("fails", "ORCH", "send work", Kind.BEFORE))


def test_a_grace_and_a_judgement_are_not_lost() -> None:
    assert [record["others"] for record in undisturbed("grace").outcome.rounds] == [
        {"east": "declined: quorum-too-small", "south": "had not answered"},
        {"east": "declined: quorum-too-small"},
    ]
    assert_equal(at("grace", "ORCH", "send work", Kind.BEFORE))
    assert undisturbed("checks").outcome.paces["east"]["left_out"] == 1
    assert_equal(at("checks", "ORCH", "write state/experiments/", Kind.UNANSWERED, each=2))


@pytest.mark.parametrize(
    ("shape", "count"), [("run", 4), ("two", 4), ("swept", 3), ("fails", 2), ("grace", 2), ("checks", 2)]
)
def test_whichever_call_goes_wrong_the_run_comes_to_the_same(shape: str, count: int) -> None:
    assert_equal([examined(shape, points) for points in singles(shape, count)])


def test_whatever_goes_wrong_first_and_whoever_dies_then_the_run_comes_to_the_same() -> None:
    assert_equal(share_of_pairs("small", 4, seed=1))


def test_a_second_process_dies_while_the_first_is_still_down() -> None:
    """Pairs are counted from the first thing that goes wrong, and not from the restart after it."""
    calls = undisturbed("small").plan.made["NORTH"]
    number = next(number for number, call in enumerate(calls, 1) if call.what == "complete to-north")
    both = tried("small", parse(f"NORTH:{number}:crash-before+ANY:1:crash-before"))
    assert [at.partition(":")[0] for at in both.plan.at] == ["NORTH", "ORCH"]


def test_parts_are_all_pairs_and_no_pair_twice() -> None:
    points = firsts("small")
    parts = [Part.parse(f"{number}/3").of(points) for number in (1, 2, 3)]
    assert sorted(map(str, (point for part in parts for point in part))) == sorted(map(str, points))
    assert len({str(point) for point in points}) == len(points)
    for wrong in ("0/3", "4/3", "3"):
        with pytest.raises(ValueError, match=r"\d"):
            Part.parse(wrong)


def test_a_point_that_is_never_come_to_is_told() -> None:
    finding = examined("small", parse("ORCH:9999:crash-before"))
    assert finding.differences == ["never came to ORCH:9999:crash-before"]
