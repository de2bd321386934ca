"""Processes ended whole, and those that a killed agent left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from silo_agent.runners.capture import Capture
from silo_agent.runners.processes import Records, kill_whole, marked, start_time

SLEEPS = "import time; time.sleep(60)"
# A child in the same group, and one that leads a session of its own, as torchrun's workers do.
FAMILY = (
    "import subprocess, sys, time\n"
    f"for apart in (False, True): subprocess.Popen([sys.executable, '-c', {SLEEPS!r}], start_new_session=apart)\n"
    "time.sleep(60)"
)


def started(script: str, marker: str) -> subprocess.Popen[bytes]:
    name, _, value = marker.partition("=")
    return subprocess.Popen([sys.executable, "-c", script], env={name: value}, start_new_session=True)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


def written(path: Path) -> bytes:
    """What is in a file; nothing where it is just being replaced."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


@pytest.fixture
def marker(tmp_path: Path) -> str:
    return f"SILOBUS_SOCKET={tmp_path}/x.sock"


def test_a_process_is_killed_with_all_its_children(marker: str) -> None:
    leader = started(FAMILY, marker)
    until(lambda: len(marked(marker)) == 3)
    kill_whole(leader.pid, marker)
    assert leader.wait(timeout=60) == -signal.SIGKILL
    until(lambda: marked(marker) == [])


def test_what_a_killed_agent_left_behind_is_found_and_killed(tmp_path: Path, marker: str) -> None:
    leader = started(FAMILY, marker)
    Records(tmp_path / "processes").add(leader.pid, marker)
    until(lambda: len(marked(marker)) == 3)
    assert Records(tmp_path / "processes").kill_left_over() > 0
    assert leader.wait(timeout=60) == -signal.SIGKILL
    until(lambda: marked(marker) == [])
    assert Records(tmp_path / "processes").kill_left_over() == 0


def test_a_stranger_with_a_reused_process_id_is_let_be(tmp_path: Path, marker: str) -> None:
    stranger = started(SLEEPS, "NOT=OURS")
    try:
        records = Records(tmp_path / "processes")
        records.add(stranger.pid, marker)
        record = tmp_path / "processes" / str(stranger.pid)
        record.write_text(record.read_text().replace(str(start_time(stranger.pid)), "some other time"))
        assert records.kill_left_over() == 0
        assert stranger.poll() is None
    finally:
        os.killpg(stranger.pid, signal.SIGKILL)
        stranger.wait()


def test_what_is_printed_is_bounded_and_follows_the_round(tmp_path: Path) -> None:
    capture = Capture(tmp_path / "one.txt", limit=1000)
    os.write(capture.write_end, b"first\n")
    until(lambda: (tmp_path / "one.txt").read_bytes() == b"first\n")
    capture.switch(tmp_path / "two.txt")
    for number in range(100):
        line = b"%050d\n" % number
        os.write(capture.write_end, line)
        until(lambda line=line: line in written(tmp_path / "two.txt"))  # type: ignore[misc]
    os.close(capture.write_end)
    assert capture.tail(52)[-51:] == b"%050d\n" % 99
    assert (tmp_path / "one.txt").read_bytes() == b"first\n"
    sizes = [path.stat().st_size for path in tmp_path.glob("two.txt*")]
    assert len(sizes) == 2
    assert all(size <= 1000 for size in sizes)
