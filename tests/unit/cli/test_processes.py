"""Children stay up until they are stopped, and nothing of them stays behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cli import processes
from orchestrator.cli.processes import Command, Processes, ends_on_signals

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)


def command(tmp_path: Path, code: str, name: str = "child") -> Command:
    return Command(name, [sys.executable, "-c", code], tmp_path / "logs" / f"{name}.log")


async def eventually(holds: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never came true"
        await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not Path(f"/proc/{pid}/stat").exists() or " Z " not in Path(f"/proc/{pid}/stat").read_text()


async def test_output_goes_to_a_log_of_its_own(tmp_path: Path) -> None:
    children = Processes()
    await children.start(command(tmp_path, SLEEPER))
    await eventually(lambda: (tmp_path / "logs/child.log").read_text() == "up\n")
    await children.stop()


async def test_one_that_is_killed_is_started_again_and_that_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    children = Processes(said.append)
    await children.start(command(tmp_path, SLEEPER))
    first = children.ids()["child"]

    os.kill(first, signal.SIGKILL)
    await eventually(lambda: children.ids()["child"] != first)

    assert is_alive(children.ids()["child"])
    assert "SIGKILL" in said[0]
    await children.stop()


async def test_one_that_keeps_dying_is_started_more_and_more_slowly(tmp_path: Path) -> None:
    children = Processes()
    await children.start(command(tmp_path, "print('up')"))
    await eventually(lambda: (tmp_path / "logs/child.log").read_text().count("up") >= 3)
    before = (tmp_path / "logs/child.log").read_text().count("up")

    await asyncio.sleep(0.3)

    assert (tmp_path / "logs/child.log").read_text().count("up") <= before + 1
    await children.stop()


async def test_stopping_leaves_no_process(tmp_path: Path) -> None:
    children = Processes()
    for name in ("one", "two"):
        await children.start(command(tmp_path, SLEEPER, name))
    pids = list(children.ids().values())

    await children.stop()

    assert not any(is_alive(pid) for pid in pids)
    assert children.ids() == {}


async def test_one_that_does_not_listen_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 0.2)
    children = Processes()
    await children.start(command(tmp_path, STUBBORN))
    await eventually(
        lambda: (tmp_path / "logs/child.log").exists() and "up" in (tmp_path / "logs/child.log").read_text()
    )
    pid = children.ids()["child"]

    await children.stop()

    assert not is_alive(pid)


PARENT = """
import asyncio, pathlib, sys
from orchestrator.cli.processes import Command, Processes, ends_on_signals
async def main():
    children = Processes()
    await children.start(Command("child", [sys.executable, "-c", sys.argv[1]], pathlib.Path(sys.argv[2])))
    print(children.ids()["child"], flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_children_of_a_killed_parent_end(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", PARENT, SLEEPER, str(tmp_path / "child.log")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.kill()

    asyncio.run(eventually(lambda: not is_alive(child)))


SECRETS = ("AZURE_CLIENT_SECRET", "SILOBUS_BUS", "SERVICEBUS_CONNECTION", "LC", "CUDAX", "my_proxy", "PYTHONSTARTUP")
NEEDED = ("PATH", "LC_ALL", "CUDA_VISIBLE_DEVICES", "https_proxy", "NO_PROXY", "SSL_CERT_FILE", "OMP_NUM_THREADS")


def environment_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
async def test_children_see_nothing_of_the_environment_but_what_is_on_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "CANARY")
    for name in NEEDED[1:]:
        monkeypatch.setenv(name, "0")
    children = Processes()
    await children.start(
        Command("child", [sys.executable, "-c", SLEEPER], tmp_path / "log", {"OWN": "given", "TZ": "UTC"})
    )
    await eventually(lambda: (tmp_path / "log").read_text() == "up\n")
    seen = environment_of(children.ids()["child"])
    await children.stop()

    assert not [each for each in seen if "CANARY" in each]
    assert {*NEEDED, "OWN"} <= {each.partition("=")[0] for each in seen}
    assert {"OWN=given", "TZ=UTC"} <= set(seen)


async def test_under_nohup_a_hangup_ends_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ends_on_signals() as came:
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.05)
        assert came == []
    finally:
        signal.signal(signal.SIGHUP, before)
