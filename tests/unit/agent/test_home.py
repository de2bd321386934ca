"""The silo's directory: one agent at a time, and old rounds make room."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from messages.schemas import FailureCategory
from silo_agent.home import Home, HomeInUse, HomeUnusable, RoundDirectory

RUN, OTHER = "a_00000000", "b_00000000"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def made(directory: RoundDirectory, *, ended: bool, how: str = "published") -> None:
    directory.attempt(1).start()
    if ended:
        directory.mark_ended({"how": how})


def test_a_second_agent_is_turned_away_until_the_first_has_left(home: Home) -> None:
    home.take()
    second = Home(home.path)
    with pytest.raises(HomeInUse):
        second.take()
    home.leave()
    second.take()


def test_a_process_that_a_killed_agent_was_just_starting_may_have_its_lock_for_a_moment(home: Home) -> None:
    home.take()
    assert home._lock is not None
    with subprocess.Popen(["sleep", "0.5"], pass_fds=[home._lock]):
        home.leave()
        started = time.monotonic()
        Home(home.path).take()
        assert time.monotonic() - started > 0.2, "the process did not have the lock, so this showed nothing"


def test_a_home_is_gone_when_it_was_deleted_even_if_another_takes_its_place(home: Home) -> None:
    assert not home.is_gone
    home.take()
    assert not home.is_gone
    shutil.rmtree(home.path)
    assert home.is_gone
    Home(home.path).take()
    assert home.is_gone


def test_a_home_that_was_moved_away_and_back_is_there_again(home: Home) -> None:
    home.take()
    away = home.path.rename(home.path.with_name("away"))
    assert home.is_gone
    away.rename(home.path)
    assert not home.is_gone


def test_nobody_else_may_look_into_it(home: Home) -> None:
    home.take()
    assert home.path.stat().st_mode & 0o077 == 0


def test_a_directory_for_everybody_is_not_taken_from_them(home: Home) -> None:
    home.path.mkdir()
    home.path.chmod(0o1777)
    with pytest.raises(HomeUnusable, match="is a directory for everybody; name one of the agent's own"):
        home.take()
    assert home.path.stat().st_mode & 0o7777 == 0o1777


def test_the_last_rounds_to_have_ended_are_kept(home: Home) -> None:
    home.take()
    for number in range(1, 6):
        made(home.round(RUN, number), ended=True)
        home.forget_ended(3)
    assert [number for _, number, _ in home.rounds()] == [3, 4, 5]


def test_rounds_that_went_well_leave_those_that_did_not_to_be_looked_at(home: Home) -> None:
    home.take()
    for number, how in enumerate(["failed", "declined", "failed", "declined", *["published", "closed"] * 4], start=1):
        made(home.round(RUN, number), ended=True, how=how)
        home.forget_ended(3)
    kept = [(number, at.ended["how"]) for _, number, at in home.rounds() if at.ended]
    assert [number for number, how in kept if how in ("failed", "declined")] == [2, 3, 4]
    assert [number for number, how in kept if how == "published"] == [7, 9, 11]
    assert [number for number, how in kept if how == "closed"] == [8, 10, 12]


def test_a_round_that_is_going_on_is_kept_however_old(home: Home) -> None:
    home.take()
    made(home.round(OTHER, 1), ended=False)
    for number in range(1, 5):
        made(home.round(RUN, number), ended=True)
    home.forget_ended(1)
    assert [(run, number) for run, number, _ in home.rounds()] == [(RUN, 4), (OTHER, 1)]


def test_a_round_left_unfinished_goes_when_its_run_has_come_further(home: Home) -> None:
    home.take()
    made(home.round(RUN, 1), ended=False)
    made(home.round(RUN, 2), ended=False)
    home.forget_ended(0)
    assert [number for _, number, _ in home.rounds()] == [2]


def test_a_failure_counts_for_its_own_announcement_only(home: Home) -> None:
    attempt = home.round(RUN, 1).attempt(1)
    attempt.start()
    assert not attempt.has_failed
    attempt.mark_failed(FailureCategory.TIMEOUT, announcement=1)
    assert attempt.failure(1) is FailureCategory.TIMEOUT
    assert attempt.failure(2) is None
    assert attempt.has_failed


def test_a_new_start_of_a_try_finds_nothing_of_the_old(home: Home) -> None:
    attempt = home.round(RUN, 1).attempt(1)
    attempt.start()
    (attempt.output / "report.json").write_text("{}")
    assert attempt.has_report
    attempt.start()
    assert not attempt.has_report


def test_what_a_power_cut_may_have_torn_does_not_count(home: Home) -> None:
    attempt = home.round(RUN, 1).attempt(1)
    attempt.start()
    assert not attempt.is_whole
    (attempt.output / "report.json").write_text("{}")
    assert attempt.is_whole
    attempt.started.write_text("what another start of the machine was called")
    assert not attempt.is_whole
    attempt.started.write_text("")
    assert not attempt.is_whole
    attempt.started.unlink()
    assert not attempt.is_whole


def test_a_run_whose_last_round_was_forgotten_leaves_no_directory(home: Home) -> None:
    home.take()
    made(home.round(RUN, 1), ended=True)
    made(home.round(OTHER, 1), ended=True)
    home.forget_ended(1)
    assert [path.name for path in (home.path / "rounds").iterdir()] == [OTHER]


def test_rounds_that_end_at_the_same_time_forget_each_others_directories(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.take()
    for number in range(1, 4):
        made(home.round(RUN, number), ended=True)
    found = home.rounds()
    monkeypatch.setattr(Home, "rounds", lambda _: found)
    shutil.rmtree(home.round(RUN, 1).path)
    home.forget_ended(1)
    assert sorted(path.name for path in (home.path / "rounds" / RUN).iterdir()) == ["00003"]


def test_a_round_that_ends_twice_finds_its_directory_while_others_end(home: Home) -> None:
    """Two announcements of one round may be at work, and a third round's end deletes what the first left."""

    def end(number: int) -> None:
        for _ in range(150):
            home.end("run", number % 2, {"how": "published"}, keep=0)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(end, range(4)))
    assert home.rounds() == []


def test_a_round_that_is_worked_on_again_makes_no_room_for_others(home: Home) -> None:
    home.take()
    for run in ("a_00000000", "b_00000000", "c_00000000"):
        made(home.round(run, 1), ended=True, how="failed")
    home.round("a_00000000", 1).reopen()
    home.forget_ended(1)
    assert [run for run, _, _ in home.rounds()] == ["a_00000000", "c_00000000"]


def test_rounds_are_listed_while_that_of_another_run_is_cleared_away(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.take()
    made(home.round(RUN, 1), ended=True)
    made(home.round(OTHER, 1), ended=True)
    original = Path.iterdir

    def cleared_away(path: Path) -> Iterator[Path]:
        if path.name == RUN:
            shutil.rmtree(path)
        return original(path)

    monkeypatch.setattr(Path, "iterdir", cleared_away)
    assert [(run, number) for run, number, _ in home.rounds()] == [(OTHER, 1)]


def test_a_rounds_directory_is_made_while_that_of_its_run_is_cleared_away(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.take()
    original, calls = Path.mkdir, []

    def cleared_away_once(path: Path, *arguments: object, **named: object) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise FileNotFoundError(path)
        original(path, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", cleared_away_once)
    made(home.round(RUN, 1), ended=False)
    assert home.round(RUN, 1).attempt(1).output.is_dir()
