"""Private state: versions that come to be whole, once per round, and are what a try starts from."""

import errno
import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from messages.errors import says_full
from silo_agent.private_state import PrivateState

RUN = "a_00000000"


@pytest.fixture
def state(tmp_path: Path) -> PrivateState:
    return PrivateState(tmp_path / "state")


def written(path: Path, text: str) -> Path:
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "moments").write_text(text)
    return path


def content(state: PrivateState, version: int | None, target: Path) -> str | None:
    state.copy(RUN, version, target)
    file = target / "deep" / "moments"
    return file.read_text() if file.exists() else None


def test_the_first_round_starts_from_nothing(state: PrivateState, tmp_path: Path) -> None:
    assert state.version(RUN, before=1) is None
    assert content(state, None, tmp_path / "in") is None
    assert (tmp_path / "in").is_dir()


def test_a_round_starts_from_what_the_last_one_before_it_committed(state: PrivateState, tmp_path: Path) -> None:
    state.commit(RUN, 1, written(tmp_path / "one", "1"))
    state.commit(RUN, 3, written(tmp_path / "three", "3"))
    assert [state.version(RUN, before=n) for n in (1, 2, 3, 4)] == [None, 1, 1, 3]
    assert content(state, 3, tmp_path / "in") == "3"
    assert state.version("b_00000000", before=9) is None


def test_a_round_commits_once(state: PrivateState, tmp_path: Path) -> None:
    state.commit(RUN, 1, written(tmp_path / "one", "first"))
    state.commit(RUN, 1, written(tmp_path / "two", "second"))
    assert content(state, 1, tmp_path / "in") == "first"


def test_a_round_that_wrote_none_keeps_the_old(state: PrivateState, tmp_path: Path) -> None:
    state.commit(RUN, 1, written(tmp_path / "one", "1"))
    state.commit(RUN, 2, tmp_path / "nothing")
    assert state.version(RUN, before=3) == 1


def test_what_a_try_does_to_its_copy_changes_no_version(state: PrivateState, tmp_path: Path) -> None:
    state.commit(RUN, 1, written(tmp_path / "one", "1"))
    state.copy(RUN, 1, tmp_path / "in")
    (tmp_path / "in" / "deep" / "moments").write_text("spoilt")
    assert content(state, 1, tmp_path / "again") == "1"


def test_a_link_in_place_of_the_directory_is_not_state(state: PrivateState, tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(written(tmp_path / "elsewhere", "x"))
    state.commit(RUN, 1, tmp_path / "out")
    assert state.version(RUN, before=2) is None


def test_two_versions_are_kept(state: PrivateState, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        state.commit(RUN, number, written(tmp_path / str(number), str(number)))
    assert sorted(path.name for path in (tmp_path / "state" / RUN).iterdir()) == ["00002", "00003"]


def test_a_commit_that_a_death_cut_short_is_brought_to_its_end(
    state: PrivateState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version has its name, and nothing after that was done: not made durable, the old one still there."""
    for number in (1, 2):
        state.commit(RUN, number, written(tmp_path / str(number), str(number)))
    rename = Path.rename

    def dies(source: Path, target: Path) -> None:
        rename(source, target)
        raise KeyboardInterrupt

    three = written(tmp_path / "3", "3")
    with monkeypatch.context() as dying:
        dying.setattr(Path, "rename", dies)
        with pytest.raises(KeyboardInterrupt):
            state.commit(RUN, 3, three)
    durable: list[Path] = []
    monkeypatch.setattr("silo_agent.private_state.make_durable", durable.append)
    state.commit(RUN, 3, three)
    assert durable == [tmp_path / "state" / RUN, tmp_path / "state"]
    assert sorted(path.name for path in (tmp_path / "state" / RUN).iterdir()) == ["00002", "00003"]


@pytest.mark.parametrize(("number", "full"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)])
def test_a_disk_that_is_full_when_a_version_is_copied_says_so(
    state: PrivateState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, full: bool
) -> None:
    """Python tells the errors of many files in one of its own, without their numbers."""
    state.commit(RUN, 1, written(tmp_path / "one", "1"))

    def without_room(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(shutil, "copyfile", without_room)
    with pytest.raises(shutil.Error) as told:
        state.copy(RUN, 1, tmp_path / "in")
    assert says_full(told.value) is full
