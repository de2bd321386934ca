"""The suite's verdict on outcomes made up here; part of `make test`, as the suite is not."""

from pathlib import Path

import pytest

from tests.sdk_suite.verdict import Known, read_known, surprises

KNOWN = Path(__file__).with_name("known.toml")


@pytest.mark.parametrize(
    ("outcomes", "surprise"),
    [
        ({"a": ("passed", ""), "b": ("failed", "boom")}, None),
        ({"a": ("passed", ""), "b": ("skipped", "hard to test")}, None),
        ({"a": ("failed", "boom"), "b": ("failed", "boom")}, "a failed: boom"),
        ({"a": ("skipped", "why"), "b": ("failed", "boom")}, "a skipped: why"),
        ({"a": ("passed", ""), "b": ("passed", "")}, "b passed, and is listed: needs sessions"),
        ({"a": ("passed", "")}, "b is listed, and did not run"),
    ],
)
def test_whatever_is_not_as_it_is_known_is_a_surprise(
    outcomes: dict[str, tuple[str, str]], surprise: str | None
) -> None:
    assert surprises(outcomes, {"b": Known("needs sessions")}) == ([surprise] if surprise else [])


def test_a_part_of_the_suite_may_leave_tests_out() -> None:
    assert surprises({"a": ("passed", "")}, {"b": Known("needs sessions")}, whole=False) == []


@pytest.mark.parametrize("outcome", ["passed", "failed"])
def test_a_test_may_pass_sometimes(outcome: str) -> None:
    assert surprises({"a": (outcome, "")}, {"a": Known("a slow machine", sometimes=True)}) == []


@pytest.mark.parametrize("whole", [True, False])
def test_no_test_at_all_is_a_surprise(whole: bool) -> None:
    assert surprises({}, {}, whole=whole) == ["no test ran"]


def test_each_known_test_has_one_reason() -> None:
    assert all(known.why.endswith(".") for known in read_known(KNOWN).values())
