"""Child processes that stay up: started with a log of their own, started again when they die, stopped in order.

Here lives nothing about what the processes do. No child outlives its parent: each gets SIGTERM when the parent stops
it, and on Linux also when the parent is killed. Of the parent's environment only what is on a list is passed on:
whoever starts it may have secrets there.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE = 10.0
"""Seconds between SIGTERM and SIGKILL."""
LONGEST_PAUSE = 5.0
"""Seconds before a process that keeps dying is started again."""
STEADY = 10.0
"""A process that lived so many seconds is started again at once."""

PASSED_ON = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH"),
        *("PYTHONPATH", "PYTHONHOME", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONUTF8", "PYTHONWARNINGS"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
        *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"),
    }
)
"""Variables that children see if they are set, and those of `PASSED_ON_TOO`; proxies also in lower case."""
PASSED_ON_TOO = ("LC_", "CUDA_")
"""How the names of others that they see begin."""

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class Command:
    """How to start a process. Its output is appended to `log`."""

    name: str
    arguments: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)


class Processes:
    """A set of processes, each kept running until `stop`."""

    def __init__(self, notice: Callable[[str], None] = lambda line: None) -> None:
        self.on_restart: Callable[[], None] = lambda: None
        """Called when ids have changed."""
        self._notice = notice
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}

    async def start(self, command: Command) -> None:
        """Starts it, and from now on again whenever it dies."""
        self._running[command.name] = process = await spawn(command)
        self._keepers[command.name] = asyncio.create_task(self._keep(command, process), name=command.name)

    async def stop(self, names: Sequence[str] | None = None) -> None:
        """Stops them all at once, or those named; returns when they are gone."""
        chosen = list(self._running) if names is None else list(names)
        keepers = [keeper for name in chosen if (keeper := self._keepers.pop(name, None))]
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        await asyncio.gather(*(terminate(process) for name in chosen if (process := self._running.pop(name, None))))

    def ids(self) -> dict[str, int]:
        """Process ids by name."""
        return {name: process.pid for name, process in self._running.items()}

    def dead(self) -> list[str]:
        """Names of those that are not running at this moment."""
        return [name for name, process in self._running.items() if process.returncode is not None]

    async def _keep(self, command: Command, process: asyncio.subprocess.Process) -> None:
        loop = asyncio.get_running_loop()
        pause = 0.1
        while True:
            born = loop.time()
            status = await process.wait()
            pause = 0.1 if loop.time() - born > STEADY else min(pause * 2, LONGEST_PAUSE)
            self._notice(f"{command.name} ended ({_how(status)}), see {command.log}; starting it again")
            await asyncio.sleep(pause)
            # Shielded, so that a stop in this instant cannot leave a process behind that nobody knows.
            starting = asyncio.ensure_future(spawn(command))
            try:
                self._running[command.name] = process = await asyncio.shield(starting)
            except asyncio.CancelledError:
                self._running[command.name] = await starting
                raise
            self.on_restart()


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """What a child sees of its parent's environment."""
    return {
        name: value
        for name, value in environment.items()
        if name in PASSED_ON
        or name.startswith(PASSED_ON_TOO)
        or (name.endswith("_proxy") and name.upper() in PASSED_ON)
    }


async def spawn(command: Command) -> asyncio.subprocess.Process:
    """One process, in a process group of its own, so that Ctrl-C in the terminal reaches only us."""
    command.log.parent.mkdir(parents=True, exist_ok=True)
    with command.log.open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *command.arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**passed_on(os.environ), **command.environment},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def die_with_parent() -> None:
    """For `preexec_fn`: SIGTERM when the parent is gone, however it went."""
    if _libc is not None:
        _libc.prctl(_DIE_WITH_PARENT, signal.SIGTERM)


@contextmanager
def ends_on_signals() -> Iterator[list[signal.Signals]]:
    """SIGINT, SIGTERM, SIGHUP cancel the current task, once, so that what it holds is given back. Gives which came.

    SIGHUP is left alone where it is ignored: under `nohup`, whoever logs out wants this to go on.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    came: list[signal.Signals] = []

    def end(number: signal.Signals) -> None:
        if not came and task is not None:
            task.cancel()
        came.append(number)

    ending = [n for n in _ENDING if n is not signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
    for number in ending:
        loop.add_signal_handler(number, end, number)
    try:
        yield came
    finally:
        for number in ending:
            loop.remove_signal_handler(number)


async def terminate(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, and SIGKILL if that is not enough; returns when the process is gone."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), PATIENCE)
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _how(status: int) -> str:
    return f"exit status {status}" if status >= 0 else signal.Signals(-status).name
