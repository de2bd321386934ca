"""`silobus queues` asks the bus, or counts by peeking: what it looks at stays where it is."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from messages import names
from messages.transport.administration import Counts
from orchestrator.cli.queues import LONGEST, PAGE
from tests.unit.cli.conftest import SILOS, Federation


def test_it_counts_active_scheduled_and_dead_letters(silobus: Federation) -> None:
    for n in range(PAGE + 3):
        silobus.send("work", "{}", f"a{n}")
    silobus.send("work", "{}", "later", scheduled_at=datetime.now(UTC) + timedelta(hours=1))
    silobus.bury("experiments", "{}", "dead")

    rows = {row["queue"]: row for row in json.loads(silobus("queues", "--json").stdout)}

    assert list(rows) == names.queues(list(SILOS))
    assert {k: rows["work"][k] for k in ("active", "scheduled", "dead_lettered")} == {
        "active": PAGE + 3,
        "scheduled": 1,
        "dead_lettered": 0,
    }
    assert rows["work"]["oldest_active"] is not None
    assert rows["experiments"]["dead_lettered"] == 1
    assert rows["to-north"]["active"] == 0


def test_looking_counts_as_no_delivery(silobus: Federation) -> None:
    silobus.send("work", "{}", "a")

    silobus("queues")
    silobus("queues", "peek", "work")

    [delivery] = silobus.broker.peek("work", 10, 0)
    assert delivery.delivery_count == 0
    assert silobus.broker.take("work") is not None


def test_the_table_has_a_row_for_each_queue(silobus: Federation) -> None:
    result = silobus("queues")

    assert result.exit_code == 0
    assert all(queue in result.stdout for queue in names.queues(list(SILOS)))


def test_what_the_bus_says_of_itself_is_shown_and_only_the_oldest_is_looked_at(silobus: Federation) -> None:
    silobus.told = {queue: Counts(0, 0, 0) for queue in names.queues(list(SILOS)) if queue != "to-east"}
    silobus.told["work"] = Counts(active=123_456, scheduled=7, dead_lettered=89)
    silobus.send("work", "{}", "later", scheduled_at=datetime.now(UTC) + timedelta(hours=1))
    silobus.send("work", "{}", "a")
    [_, first] = silobus.broker.peek("work", 10, 0)

    result = silobus("queues", "--json")
    rows = {row["queue"]: row for row in json.loads(result.stdout)}

    assert list(rows) == names.queues(list(SILOS))
    assert rows["work"] == {
        "queue": "work",
        "active": 123_456,
        "scheduled": 7,
        "dead_lettered": 89,
        "oldest_active": first.enqueued_at.isoformat(),
        "counted_by": "administration",
    }
    assert rows["to-east"]["missing"] is True
    assert rows["experiments"]["oldest_active"] is None
    assert {row["counted_by"] for row in rows.values()} == {"administration"}
    table = silobus("queues")
    assert "123456" in table.stdout
    assert "123456+" not in table.stdout, "nothing stopped at a limit"
    assert table.stderr == ""


def test_without_it_peeking_is_said_once_and_only_to_people(silobus: Federation) -> None:
    rows = json.loads(silobus("queues", "--json").stdout)
    assert {row["counted_by"] for row in rows} == {"peeking"}
    assert silobus("queues", "--json").stderr == ""

    said = silobus("queues").stderr

    assert said.count("Counted by peeking") == 1
    assert "Manage" in said


def test_peek_shows_bodies_in_order_from_a_sequence_number(silobus: Federation) -> None:
    for n in range(4):
        silobus.send("work", f'{{"n": {n}}}', f"m{n}", correlation_id="exp_00000000")
    second = silobus.broker.peek("work", 10, 0)[1].sequence_number

    rows = json.loads(silobus("queues", "peek", "work", "-n", 2, "--from", second, "--json").stdout)

    assert [row["body"] for row in rows] == [{"n": 1}, {"n": 2}]
    assert rows[0]["message_id"] == "m1"
    assert rows[0]["correlation_id"] == "exp_00000000"


def test_peek_shows_what_is_not_json_as_it_is(silobus: Federation) -> None:
    silobus.send("work", "not json", "m")

    [row] = json.loads(silobus("queues", "peek", "work", "--json").stdout)
    assert row["body"] == "not json"
    assert "not json" in silobus("queues", "peek", "work").stdout


def strict(text: str) -> Any:
    """Read as others read JSON, who know no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    "body", ["[" * 100_000, "[" * 500 + "]" * 500, '{"loss": NaN}', "[1e999]", r'["\ud800"]', "9" * 20_000]
)
def test_a_body_that_is_no_strict_json_is_text_and_spoils_no_list(silobus: Federation, body: str) -> None:
    silobus.bury("work", body, "junk")
    silobus.send("work", body, "alive")
    [letter] = silobus.broker.peek(names.dead_letters_of("work"), 10, 0)

    for arguments in (
        ("queues", "peek", "work"),
        ("dead-letters", "list", "work"),
        ("dead-letters", "show", "work", letter.sequence_number),
    ):
        result = silobus(*arguments, "--json")

        assert result.exit_code == 0
        said = strict(result.stdout)
        shown = (said[0] if isinstance(said, list) else said)["body"]
        assert isinstance(shown, str)
        assert shown.startswith(body[:LONGEST])
        assert len(shown) < LONGEST + 100


def test_an_unknown_queue_is_said_with_those_there_are(silobus: Federation) -> None:
    result = silobus("queues", "peek", "to-nowhere")

    assert result.exit_code == 1
    assert "to-nowhere" in result.stderr
    assert "to-north" in result.stderr
