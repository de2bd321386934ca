"""Runs a task's command as a process of this machine: once per round, or kept warm over the rounds of a run.

Here lives when a process is started, kept, and ended. A process is kept only after the round it ran was committed, and
only as long as the committed state is the one it ended with: nothing uncommitted is ever remembered.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from messages.log import EventLog
from messages.schemas import FailureCategory
from silo_agent.runners.capture import Capture
from silo_agent.runners.environment import environment, lay_out
from silo_agent.runners.port import Failed, Finished, Job, Runner
from silo_agent.runners.processes import Records, out_of_memory_kills
from silo_agent.runners.trainer import Trainer
from silo_agent.runners.verdict import verdict

_log = EventLog(__name__)


@dataclass(slots=True)
class _Warm:
    """A process between two rounds."""

    trainer: Trainer
    name: str
    version: int | None = None
    committed: bool = False
    idle: asyncio.TimerHandle | None = None


@final
class LocalRunner(Runner):
    """Processes on this machine. `own` is the agent's environment; `idle` how long a warm process waits for a round."""

    def __init__(self, runtime: Path, *, own: Mapping[str, str] | None = None, idle: float = 900.0) -> None:
        self._runtime = runtime
        self._own = os.environ if own is None else own
        self._idle = idle
        self._warm: dict[str, _Warm] = {}
        """By run; the one that has been idle for longest comes first."""
        self._busy: Counter[str] = Counter()
        """By task: warm processes in a round, or being started for one."""
        self._ending: set[asyncio.Task[None]] = set()

    async def prepare(self) -> None:
        """Kills what a killed agent left behind, and lays out what scripts need. Call it once, first."""
        self._records = await asyncio.to_thread(Records, self._runtime / "processes")
        if killed := await asyncio.to_thread(self._records.kill_left_over):
            _log.warning("trainer.leftovers-killed", processes=killed)
        await asyncio.to_thread(shutil.rmtree, self._runtime / "s", ignore_errors=True)  # sockets of the dead
        await asyncio.to_thread(lay_out, self._runtime)

    async def run(self, job: Job) -> Finished | Failed:
        """Runs one try, in a process of its own or in the run's warm one."""
        if not await asyncio.to_thread(lambda: all(path.exists() for path in job.task.data.values())):
            return Failed(FailureCategory.DATA_MISSING)
        kills_before = await asyncio.to_thread(out_of_memory_kills)
        try:
            async with asyncio.timeout(job.task.timeout):
                status, capture = await (self._run_warm(job) if job.task.mode == "warm" else self._run_once(job))
        except TimeoutError:
            return Finished() if _has_report(job) else Failed(FailureCategory.TIMEOUT)
        except OSError as error:
            # The command is not there, or may not be run. The text would tell paths: it stays in the round's own file.
            await asyncio.to_thread(_say, job.log, f"silobus-agent: the command cannot be started: {error}\n")
            return Failed(FailureCategory.COMPUTE_UNAVAILABLE)
        if _has_report(job):
            return Finished()
        printed = await asyncio.to_thread(capture.tail)
        killed = await asyncio.to_thread(out_of_memory_kills) > kills_before
        return Failed(verdict(status, printed, kernel_killed=killed))

    async def _run_once(self, job: Job) -> tuple[int, Capture]:
        contract = {"SILOBUS_INPUT": str(job.input), "SILOBUS_OUTPUT": str(job.output)}
        trainer = await self._start(job, contract)
        try:
            status = await trainer.exited()
        finally:
            await asyncio.shield(trainer.kill())
        return status, trainer.capture

    async def _run_warm(self, job: Job) -> tuple[int, Capture]:
        self._busy[job.name] += 1
        try:
            return await self._run_in(await self._warm_process(job), job)
        finally:
            self._busy[job.name] -= 1

    async def _run_in(self, warm: _Warm, job: Job) -> tuple[int, Capture]:
        keep, status = False, 0
        try:
            done = await warm.trainer.round(job.input, job.output)
            status = warm.trainer.status or 0
            keep = done and warm.trainer.status is None and _has_report(job)
        finally:
            if not keep:
                await asyncio.shield(warm.trainer.kill())
        if keep:
            self._keep(job.run, warm)
        return status, warm.trainer.capture

    async def _warm_process(self, job: Job) -> _Warm:
        """The run's process, if what it remembers is what was committed; otherwise a new one."""
        warm = self._take(job.run)
        if warm is not None:
            if warm.committed and warm.version == job.version and warm.trainer.status is None:
                warm.trainer.capture.switch(job.log)
                return warm
            await warm.trainer.kill()
        await self._make_room(job)
        return _Warm(await self._start(job, {}), job.name)

    async def _make_room(self, job: Job) -> None:
        """Ends idle processes of the task, the longest idle first, until with this round's there are not too many."""
        most = max(job.task.warm, job.task.at_once)
        while idle := [run for run, other in self._warm.items() if other.name == job.name]:
            if len(idle) + self._busy[job.name] <= most:
                return
            await self.end(idle[0])

    async def _start(self, job: Job, contract: Mapping[str, str]) -> Trainer:
        assert job.task.directory is not None  # noqa: S101  # the policy asks for it
        return await Trainer.start(
            job.task.command,
            directory=job.task.directory,
            environment=environment(job.task, self._own, runtime=self._runtime, contract=contract),
            sockets=self._runtime / "s",
            capture=Capture(job.log),
            records=self._records,
        )

    def _keep(self, run: str, warm: _Warm) -> None:
        warm.committed = False
        warm.idle = asyncio.get_running_loop().call_later(self._idle, self._end_soon, run)
        self._warm[run] = warm

    def _take(self, run: str) -> _Warm | None:
        warm = self._warm.pop(run, None)
        if warm is not None and warm.idle is not None:
            warm.idle.cancel()
        return warm

    def _end_soon(self, run: str) -> None:
        task = asyncio.create_task(self.end(run))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def committed(self, run: str, version: int | None) -> None:
        """From here on the run's process may go on to the next round."""
        if (warm := self._warm.get(run)) is not None:
            warm.committed, warm.version = True, version

    async def abandon(self, run: str, round_number: int) -> None:
        """Nothing of a round outlives the cancelling of its `run`."""

    async def end(self, run: str) -> None:
        """Lets the run's process finish, if there is one."""
        if (warm := self._take(run)) is not None:
            await warm.trainer.end()

    async def close(self) -> None:
        """Kills every process; those in a round end when their `run` is cancelled."""
        for run in list(self._warm):
            if (warm := self._take(run)) is not None:
                await warm.trainer.kill()
        for task in list(self._ending):
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _has_report(job: Job) -> bool:
    return (job.output / "report.json").is_file()


def _say(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)
