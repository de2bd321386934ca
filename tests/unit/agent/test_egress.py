"""The log of what left: its chain holds, and every way to change it afterwards is seen."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from silo_agent.egress import FIRST, EgressBroken, EgressLog, head_of, read, verify

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "egress.jsonl"
    egress = EgressLog(path)
    for number in range(3):
        egress.append(NOW, {"what": "message", "message": {"number": number}})
    egress.close()
    return path


def test_every_line_follows_the_one_before(log: Path) -> None:
    lines = read(log)
    assert [line["n"] for line in lines] == [1, 2, 3]
    assert [line["prev"] for line in lines] == [FIRST, lines[0]["hash"], lines[1]["hash"]]
    assert verify(log) is None


def test_it_goes_on_where_it_ended(log: Path) -> None:
    EgressLog(log).append(NOW, {"what": "message"})
    assert [line["n"] for line in read(log)] == [1, 2, 3, 4]
    assert verify(log) is None


def changed(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b'"number":1', b'"number":7'), lines[2]]


def changed_at_the_end(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[2].replace(b'"number":2', b'"number":7')]


def resealed(lines: list[bytes]) -> list[bytes]:
    """A line changed together with its own hash, by somebody who knows the format."""
    from silo_agent.egress import _encode, _sealed

    return [lines[0], _encode(_sealed({**json.loads(lines[1]), "message": {"number": 7}})), lines[2]]


@pytest.mark.parametrize(
    "tamper",
    [
        changed,
        changed_at_the_end,
        resealed,
        lambda lines: lines[1:],
        lambda lines: [lines[0], lines[2]],
        lambda lines: lines[:2],
        lambda lines: [],
        lambda lines: [lines[1], lines[0], lines[2]],
        lambda lines: [*lines, lines[2]],
        lambda lines: [*lines, b"not json"],
        lambda lines: [*lines, b"[]"],
    ],
)
def test_tampering_is_seen_and_stops_the_agent(log: Path, tamper: Callable[[list[bytes]], list[bytes]]) -> None:
    lines = log.read_bytes().splitlines()
    log.write_bytes(b"".join(line + b"\n" for line in tamper(lines)))
    assert verify(log) is not None
    with pytest.raises(EgressBroken):
        EgressLog(log)


@pytest.mark.parametrize("taken", [lambda log: log, head_of])
def test_a_log_or_a_head_that_was_taken_away_is_missed(log: Path, taken: Callable[[Path], Path]) -> None:
    taken(log).unlink()
    assert verify(log) is not None
    with pytest.raises(EgressBroken):
        EgressLog(log)
    assert not taken(log).exists(), "what was taken is not quietly made anew"


def test_the_head_is_there_before_the_first_line(tmp_path: Path) -> None:
    egress = EgressLog(tmp_path / "egress.jsonl")
    egress.append(NOW, {"what": "message"}, durable=False)
    head_of(tmp_path / "egress.jsonl").unlink()
    assert verify(tmp_path / "egress.jsonl") is not None


def test_a_last_line_cut_off_by_a_power_cut_is_no_tampering(log: Path) -> None:
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"n":4,"at":"20')
    assert verify(log) is None
    EgressLog(log).append(NOW, {"what": "message"})
    assert log.read_bytes().startswith(whole)
    assert verify(log) is None


def test_lines_that_need_not_be_durable_may_be_lost_with_the_power(log: Path) -> None:
    whole = log.read_bytes()
    EgressLog(log).append(NOW, {"what": "message"}, durable=False)
    assert verify(log) is None
    log.write_bytes(whole)
    assert verify(log) is None
    assert json.loads(head_of(log).read_bytes())["n"] == 3


def test_it_knows_which_try_made_a_publication_also_after_a_restart(log: Path) -> None:
    entry = {"what": "update", "asked": {"run": "a_00000000", "round": 2}, "sha256": "d" * 64, "try": 3}
    EgressLog(log).append(NOW, entry)
    egress = EgressLog(log)
    assert egress.tries_published("a_00000000", 2) == {"d" * 64: 3}
    assert egress.tries_published("a_00000000", 1) == {}
