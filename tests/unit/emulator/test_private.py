"""The data directory holds keys: its owner alone may read it, whatever the umask and whatever was there before."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from servicebus_emulator import private
from servicebus_emulator.private import make_private
from servicebus_emulator.store import Store


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def modes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in (directory, *directory.iterdir())}


@pytest.mark.usefixtures("umask")
def test_what_a_store_makes_is_for_its_owner_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with closing(Store(data)):
        assert modes(data) == {"data": 0o700, "queues.sqlite": 0o600, "queues.sqlite-wal": 0o600}


def test_what_was_wider_is_tightened(tmp_path: Path) -> None:
    data = tmp_path / "data"
    Store(data).close()
    with closing(sqlite3.connect(data / "queues.sqlite")) as other:  # leaves both files behind, as a crash does
        other.execute("SELECT * FROM queues").fetchall()
        (data / "other").touch(0o644)
        data.chmod(0o755)
        for name in ("queues.sqlite", "queues.sqlite-wal", "queues.sqlite-shm"):
            (data / name).chmod(0o644)
        make_private(data, ("queues.sqlite", "queues.sqlite-wal", "queues.sqlite-shm"))
        assert modes(data) == {
            "data": 0o700,
            **dict.fromkeys(("queues.sqlite", "queues.sqlite-wal", "queues.sqlite-shm"), 0o600),
            "other": 0o644,  # not ours, and nobody gets at it
        }


def test_a_directory_for_everybody_stays_that(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.chmod(0o1777)
    make_private(tmp_path, ("file",))
    assert tmp_path.stat().st_mode & 0o7777 == 0o1777
    assert modes(tmp_path)["file"] == 0o600
    [record] = caplog.records
    assert (record.levelname, record.message) == ("WARNING", "data.readable_by_others")


def test_what_is_somebody_elses_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o750)
    monkeypatch.setattr(private.os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    make_private(tmp_path, ("file",))
    assert tmp_path.stat().st_mode & 0o777 == 0o750
    [record] = caplog.records
    assert (record.levelname, record.message) == ("WARNING", "data.readable_by_others")


@pytest.mark.usefixtures("umask")
def test_nothing_is_wider_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "_tighten", lambda path: None)
    make_private(tmp_path / "data", ("file",))
    assert modes(tmp_path / "data") == {"data": 0o700, "file": 0o600}
