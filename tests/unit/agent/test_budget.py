"""The ledger of rounds: once per round, for ever, whatever happens to the process."""

import errno
import os
from pathlib import Path

import pytest

from silo_agent.budget import Budget, BudgetBroken


def test_a_round_is_charged_once_however_often_it_is_asked_for(tmp_path: Path) -> None:
    budget = Budget(tmp_path / "budget.jsonl")
    for _ in range(3):
        budget.charge("t", ("a_00000000", 1))
    budget.charge("t", ("a_00000000", 2))
    budget.charge("t", ("b_00000000", 1))
    assert budget.spent("t") == 3
    assert budget.spent("t", besides=("b_00000000", 1)) == 2
    assert budget.spent("other") == 0
    assert len((tmp_path / "budget.jsonl").read_bytes().splitlines()) == 3


def test_it_outlives_the_process(tmp_path: Path) -> None:
    first = Budget(tmp_path / "budget.jsonl")
    first.charge("t", ("a_00000000", 1))
    first.charge("t", ("a_00000000", 2))
    first.give_back("t", ("a_00000000", 1))
    assert Budget(tmp_path / "budget.jsonl").spent("t") == 1


def test_what_was_not_charged_cannot_be_given_back(tmp_path: Path) -> None:
    budget = Budget(tmp_path / "budget.jsonl")
    budget.charge("t", ("a_00000000", 1))
    budget.give_back("t", ("a_00000000", 2))
    budget.give_back("t", ("a_00000000", 2))
    assert budget.spent("t") == 1


def test_a_line_cut_off_by_a_power_cut_is_no_charge_and_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "budget.jsonl"
    Budget(path).charge("t", ("a_00000000", 1))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-7])
    again = Budget(path)
    assert again.spent("t") == 1
    again.charge("t", ("a_00000000", 2))
    assert Budget(path).spent("t") == 2


@pytest.mark.parametrize("line", ["nonsense", "[]", "{}"])
def test_a_ledger_that_cannot_be_read_allows_nothing_more(tmp_path: Path, line: str) -> None:
    path = tmp_path / "budget.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(BudgetBroken, match="line 1"):
        Budget(path)


def test_a_line_for_which_the_disk_had_no_room_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(tmp_path / "budget.jsonl")
    write = os.write

    def half(file: int, data: bytes) -> int:
        if len(data) < 30:
            raise OSError(errno.ENOSPC, "no space left")
        return write(file, data[:40])

    with monkeypatch.context() as full:
        full.setattr(os, "write", half)
        with pytest.raises(OSError, match="no space"):
            budget.charge("t", ("a_00000000", 1))
    budget.charge("t", ("a_00000000", 2))
    assert Budget(tmp_path / "budget.jsonl").spent("t") == 1
