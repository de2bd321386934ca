"""`silobus dead-letters`: shown with reasons, sent again under a new id, or thrown away; never lost on the way."""

from __future__ import annotations

import json

import pytest

from messages.errors import Forbidden, Transient
from tests.unit.cli.conftest import Federation

DEAD = "experiments/$DeadLetterQueue"


@pytest.fixture
def buried(silobus: Federation) -> Federation:
    for n in range(3):
        silobus.bury("experiments", f'{{"n": {n}}}', f"m{n}", reason=f"reason-{n}", description=f"Because of {n}.")
    return silobus


def sequences(federation: Federation) -> list[int]:
    return [letter.sequence_number for letter in federation.broker.peek(DEAD, 100, 0)]


def test_list_says_why(buried: Federation) -> None:
    rows = json.loads(buried("dead-letters", "list", "experiments", "--json").stdout)

    assert [(r["queue"], r["reason"], r["description"]) for r in rows] == [
        ("experiments", f"reason-{n}", f"Because of {n}.") for n in range(3)
    ]
    assert [r["body"] for r in rows] == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_list_without_a_queue_looks_into_all(buried: Federation) -> None:
    buried.bury("to-north", "{}", "x", reason="other")

    rows = json.loads(buried("dead-letters", "list", "--json").stdout)

    assert {r["queue"] for r in rows} == {"experiments", "to-north"}
    assert "reason-1" in buried("dead-letters", "list").stdout


def test_show_has_the_whole_message(buried: Federation) -> None:
    result = buried("dead-letters", "show", "experiments", sequences(buried)[1])

    assert '{"n": 1}' in result.stdout
    assert "Because of 1." in result.stdout


def test_show_can_give_the_body_alone(buried: Federation) -> None:
    result = buried("dead-letters", "show", "experiments", sequences(buried)[1], "--body")

    assert result.stdout == '{"n": 1}\n'


def test_a_right_that_is_missing_elsewhere_is_a_right_that_is_missing(buried: Federation) -> None:
    def refuses(when: str, operation: str, queue: str) -> None:
        if operation == "send":
            raise Forbidden(f"cannot send to {queue!r}")

    buried.faults = refuses

    assert buried("dead-letters", "replay", "experiments", "--all").stderr.startswith("Not allowed: cannot send")


def test_replay_sends_it_under_a_new_id_and_removes_it(buried: Federation) -> None:
    result = buried("dead-letters", "replay", "experiments", sequences(buried)[1])

    assert result.exit_code == 0
    assert buried.bodies("experiments") == ['{"n": 1}']
    assert buried.ids("experiments") != ["m1"]
    assert buried.bodies(DEAD) == ['{"n": 0}', '{"n": 2}']


def test_those_passed_on_the_way_are_free_again(buried: Federation) -> None:
    buried("dead-letters", "replay", "experiments", sequences(buried)[2])

    assert buried.broker.take(DEAD) is not None
    assert buried.broker.take(DEAD) is not None
    assert buried.broker.take(DEAD) is None


def test_killed_between_sending_and_removing_it_is_sent_again_under_the_same_id(buried: Federation) -> None:
    def dies(when: str, operation: str, queue: str) -> None:
        if (when, operation) == ("before", "complete"):
            raise Transient("the connection is gone")

    buried.faults = dies
    first = buried("dead-letters", "replay", "experiments", sequences(buried)[0])
    buried.faults = None
    second = buried("dead-letters", "replay", "experiments", sequences(buried)[0])

    assert (first.exit_code, second.exit_code) == (1, 0)
    one, two = buried.ids("experiments")
    assert one == two
    assert buried.bodies(DEAD) == ['{"n": 1}', '{"n": 2}']


def test_where_the_operator_may_not_send_the_dead_letter_stays_and_is_free_again(silobus: Federation) -> None:
    silobus.bury("from-north", "{}", "m")

    def refuses(when: str, operation: str, queue: str) -> None:
        if operation == "send":
            raise Forbidden(f"cannot send to {queue!r}")

    silobus.faults = refuses
    result = silobus("dead-letters", "replay", "from-north", "--all")

    assert result.exit_code == 1
    assert result.stderr.startswith("from-north takes messages of its silo alone")
    assert silobus.broker.take("from-north/$DeadLetterQueue") is not None


def test_dead_again_it_is_replayed_under_another_id(buried: Federation) -> None:
    buried("dead-letters", "replay", "experiments", sequences(buried)[0])
    [first] = buried.ids("experiments")
    delivery = buried.broker.take("experiments")
    assert delivery is not None
    buried.broker.dead_letter(delivery, "bad", "Still not good.")

    buried("dead-letters", "replay", "experiments", sequences(buried)[-1])

    [second] = buried.ids("experiments")
    assert first != second


def test_a_send_that_fails_leaves_the_dead_letter(buried: Federation) -> None:
    def dies(when: str, operation: str, queue: str) -> None:
        if (when, operation) == ("before", "send"):
            raise Transient("throttled")

    buried.faults = dies
    result = buried("dead-letters", "replay", "experiments", "--all")

    assert result.exit_code == 1
    assert buried.bodies("experiments") == []
    assert len(buried.bodies(DEAD)) == 3
    assert buried.broker.take(DEAD) is not None


def test_all_means_all(buried: Federation) -> None:
    assert buried("dead-letters", "replay", "experiments", "--all").exit_code == 0

    assert buried.bodies("experiments") == ['{"n": 0}', '{"n": 1}', '{"n": 2}']
    assert buried.bodies(DEAD) == []


def test_discard_removes_and_sends_nothing(buried: Federation) -> None:
    result = buried("dead-letters", "discard", "experiments", *sequences(buried)[:2])

    assert result.exit_code == 0
    assert buried.bodies("experiments") == []
    assert buried.bodies(DEAD) == ['{"n": 2}']


@pytest.mark.parametrize("verb", ["show", "replay", "discard"])
def test_one_that_is_not_there_is_said_and_nothing_happens(buried: Federation, verb: str) -> None:
    result = buried("dead-letters", verb, "experiments", 99_999)

    assert result.exit_code == 1
    assert "experiments has no dead letter 99999" in result.stderr
    assert len(buried.bodies(DEAD)) == 3


@pytest.mark.parametrize("verb", ["replay", "discard"])
def test_which_ones_must_be_said(buried: Federation, verb: str) -> None:
    result = buried("dead-letters", verb, "experiments")

    assert result.exit_code == 1
    assert "--all" in result.stderr
    assert len(buried.bodies(DEAD)) == 3
