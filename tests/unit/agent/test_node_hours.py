"""The ledger of node hours: what is charged stays charged, whatever happens to the agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from silo_agent.budget import BudgetBroken
from silo_agent.node_hours import Charge, NodeHours

RUN = "bc_00000000"


def charge(job: str, hours: float = 1.0, task: str = "bc", number: int = 1) -> Charge:
    return Charge(job=job, task=task, run=RUN, round=number, hours=hours, at="2026-01-01T00:00:00+00:00", open=True)


def test_a_reservation_counts_and_is_corrected_at_the_end(tmp_path: Path) -> None:
    hours = NodeHours(tmp_path / "ledger")
    assert hours.reserve(charge("a", 2.0), most=3.0)
    assert hours.spent("bc") == 2.0
    assert not hours.reserve(charge("b", 2.0), most=3.0)
    assert hours.of("b") is None
    hours.settle("a", 0.5)
    assert hours.spent("bc") == 0.5
    assert hours.reserve(charge("b", 2.5), most=3.0)
    assert hours.spent("other") == 0.0


def test_a_job_is_charged_once_and_settled_once(tmp_path: Path) -> None:
    hours = NodeHours(tmp_path / "ledger")
    assert hours.reserve(charge("a", 2.0), most=3.0)
    assert hours.reserve(charge("a", 2.0), most=3.0)
    assert hours.spent("bc") == 2.0
    hours.settle("a", 1.0)
    hours.settle("a", 0.0)
    hours.settle("never charged", 1.0)
    assert hours.spent("bc") == 1.0
    assert hours.reserve(charge("a", 2.0), most=0.0)
    assert hours.spent("bc") == 1.0


def test_what_runs_already_is_charged_whatever_it_costs(tmp_path: Path) -> None:
    hours = NodeHours(tmp_path / "ledger")
    assert hours.reserve(charge("a", 5.0), most=None)
    assert not hours.reserve(charge("b", 0.1), most=3.0)


def test_an_agent_started_again_knows_what_is_open(tmp_path: Path) -> None:
    hours = NodeHours(tmp_path / "ledger")
    for job, number in (("a", 1), ("b", 1), ("c", 2)):
        hours.reserve(charge(job, number=number), most=None)
    hours.settle("a", 0.25)
    hours.close()
    with (tmp_path / "ledger").open("a") as file:
        file.write('{"job":"cut o')
    again = NodeHours(tmp_path / "ledger")
    assert again.spent("bc") == 2.25
    assert [one.job for one in again.open_of(RUN, 1)] == ["b"]
    known = again.of("a")
    assert known is not None
    assert not known.open


@pytest.mark.parametrize("line", ["nonsense", "{}", "[1]", '{"job":"a","task":"bc","run":"r","round":1,"hours":null,'
                                  '"at":"2026-01-01T00:00:00+00:00","open":true}'])  # fmt: skip
def test_a_ledger_that_cannot_be_read_stops_the_spending(tmp_path: Path, line: str) -> None:
    (tmp_path / "ledger").write_text(line + "\n")
    with pytest.raises(BudgetBroken, match="line 1"):
        NodeHours(tmp_path / "ledger")
