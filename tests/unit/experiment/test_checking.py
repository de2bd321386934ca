"""Bounds on changes: which of them are beyond, and what is said of it."""

from __future__ import annotations

import pytest

from messages.experiments import Checks
from orchestrator.experiment.checking import Change, beyond, odd_ones


def norms(**by_silo: float | None) -> dict[str, Change]:
    return {silo: Change(norm=norm) for silo, norm in by_silo.items()}


def cosines(**by_silo: float | None) -> dict[str, Change]:
    return {silo: Change(cosine=cosine) for silo, cosine in by_silo.items()}


@pytest.mark.parametrize(("norm", "is_beyond"), [(2.0, False), (2.0001, True), (None, False)])
def test_a_bound_is_the_greatest_norm_that_counts(norm: float | None, is_beyond: bool) -> None:
    assert (beyond(Checks(max_norm=2.0), Change(norm=norm)) is not None) == is_beyond


def test_without_a_bound_or_a_measurement_nothing_is_beyond() -> None:
    assert beyond(None, Change(norm=1e300)) is None
    assert beyond(Checks(measure=True), Change(norm=1e300)) is None
    assert beyond(Checks(max_norm=1.0), None) is None


def test_a_norm_is_compared_with_the_median_of_its_round() -> None:
    checks = Checks(max_norm_ratio=5)
    assert odd_ones(checks, norms(a=1.0, b=5.0, c=1.0)) == {}
    assert odd_ones(checks, norms(a=1.0, b=5.1, c=1.0)) == {
        "b": "its change has norm 5.1, 5.1 times the round's median of 1, and max_norm_ratio is 5"
    }


def test_all_are_judged_by_the_same_set_whoever_goes() -> None:
    """Without the two, the median were 1 and `c` beyond as well."""
    changes = norms(a=1.0, b=1.0, c=5.5, d=100.0, e=100.0)
    assert odd_ones(Checks(max_norm_ratio=5), changes).keys() == {"d", "e"}


def test_where_most_changed_nothing_who_did_is_not_odd() -> None:
    assert odd_ones(Checks(max_norm_ratio=5), norms(a=0.0, b=0.0, c=3.0)) == {}


def test_a_direction_is_compared_with_that_of_the_others() -> None:
    assert odd_ones(Checks(min_cosine=-0.5), cosines(a=0.9, b=-0.5, c=-0.51)) == {
        "c": "its change has cosine -0.510 to the others, and min_cosine is -0.5"
    }


def test_a_change_without_a_direction_is_not_odd() -> None:
    assert odd_ones(Checks(min_cosine=0.5), cosines(a=0.9, b=None, c=0.9)) == {}


def test_of_two_nobody_can_say_which_is_odd() -> None:
    assert odd_ones(Checks(max_norm_ratio=5), norms(a=1.0, b=1e9)) == {}
    assert odd_ones(Checks(min_cosine=0), cosines(a=-1.0, b=-1.0)) == {}


@pytest.mark.parametrize(
    ("checks", "at_arrival", "with_others", "of_the_set", "least"),
    [
        (Checks(measure=True), True, True, True, 1),
        (Checks(max_norm=1), True, False, False, 1),
        (Checks(max_norm_ratio=2), True, False, True, 3),
        (Checks(min_cosine=0), False, True, True, 3),
    ],
)
def test_a_bound_asks_for_what_it_needs_and_no_more(
    checks: Checks, at_arrival: bool, with_others: bool, of_the_set: bool, least: int
) -> None:
    assert (checks.at_arrival, checks.with_others) == (at_arrival, with_others)
    assert (checks.of_the_set, checks.least) == (of_the_set, least)
