"""Carries out the plan: each action at its time, whatever state the federation is in, and a log of what was done.

An action finds its victim among those that run at that moment; when there is none, it is noted as missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, assert_never

from benchmarks.chaos.plan import Action, Kind
from benchmarks.chaos.stage import Stage

_RETRY = 0.5
_NOT_YET = 20
"""Tries to put the emulator's faults back."""


class Director:
    """Counts what it did by the words of the report: kills, stops, disk_full, connections_broken, queues_emptied."""

    def __init__(self, stage: Stage, log: Path, faults: Sequence[str], before_emptying: Callable[[], Any]) -> None:
        self.counts: Counter[str] = Counter()
        self._stage, self._faults = stage, list(faults)
        self._before_emptying = before_emptying
        self._log = log.open("a", encoding="utf-8")
        self._began = time.monotonic()
        self._full: set[str] = set()
        self._one_at_a_time: dict[str, asyncio.Lock] = {}
        """Per process: being killed, being away and being started again are one thing."""

    async def carry_out(self, actions: Sequence[Action]) -> None:
        """Returns when the last action is over, and everything that it took away is back."""
        self._began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for action in actions:
                await asyncio.sleep(max(0.0, self._began + action.at - time.monotonic()))
                group.create_task(self._act(action))

    def note(self, what: str, **more: object) -> None:
        """Writes a line to the log of actions."""
        self._log.write(json.dumps({"at": round(time.monotonic() - self._began, 2), "what": what, **more}) + "\n")
        self._log.flush()

    async def _act(self, action: Action) -> None:
        doing: Coroutine[Any, Any, bool]
        match action.kind:
            case Kind.KILL_ORCHESTRATOR:
                doing = self._kill(action, self._stage.orchestrators)
            case Kind.KILL_AGENT:
                doing = self._kill(action, self._stage.agents)
            case Kind.KILL_BUS:
                doing = self._kill(action, ["bus"])
            case Kind.KILL_TRAINER:
                doing = self._kill_trainer(action)
            case Kind.STOP:
                doing = self._stop(action)
            case Kind.FILL_DISK:
                doing = self._fill(action)
            case Kind.BREAK_CONNECTIONS:
                doing = self._break_connections(action)
            case Kind.EMPTY_QUEUES:
                doing = self._empty_queues(action)
            case _:
                assert_never(action.kind)
        if not await doing:
            self.note("missed", action=action.kind)

    def _turn(self, name: str) -> asyncio.Lock:
        return self._one_at_a_time.setdefault(name, asyncio.Lock())

    async def _kill(self, action: Action, among: Sequence[str]) -> bool:
        free = [name for name in self._stage.living(among) if not self._turn(name).locked()]
        if not free:
            return False
        await self._without(action.choose(free), action.seconds)
        return True

    async def _without(self, name: str, seconds: float) -> None:
        async with self._turn(name):
            await self._kill_now(name)
            self.note("kill", victim=name, again_after=round(seconds, 2))
            await asyncio.sleep(seconds)
            await self._stage.raise_up(name)

    async def _kill_now(self, name: str) -> None:
        if await self._stage.kill(name):
            self.counts["kills"] += 1

    async def _kill_trainer(self, action: Action) -> bool:
        there = await self._stage.trainers()
        if not there:
            return False
        pid = action.choose(there)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.counts["kills"] += 1
            self.note("kill", victim=f"trainer {pid}")
        return True

    async def _stop(self, action: Action) -> bool:
        """A trainer with one chance in five, else any process."""
        trainers = await self._stage.trainers() if action.chance < 0.2 else []
        if trainers:
            pid: int | None = action.choose(trainers)
            name = f"trainer {pid}"
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid or 0, signal.SIGSTOP)
        else:
            stage = self._stage
            there = stage.living(["bus", *stage.orchestrators, *stage.agents])
            name = action.choose(there) if there else "nobody"
            pid = stage.signal(name, signal.SIGSTOP)
        if pid is None:
            return False
        self.counts["stops"] += 1
        self.note("stop", victim=name, seconds=round(action.seconds, 2))
        await asyncio.sleep(action.seconds)
        with contextlib.suppress(ProcessLookupError):  # it may have been killed meanwhile
            os.kill(pid, signal.SIGCONT)
        self.note("continue", victim=name)
        return True

    async def _fill(self, action: Action) -> bool:
        free = sorted(self._stage.disks.keys() - self._full)
        if not free:
            return False
        name = action.choose(free)
        disk = self._stage.disks[name]
        self._full.add(name)
        self.counts["disk_full"] += 1
        self.note("disk full", disk=name, seconds=round(action.seconds, 2))
        until = time.monotonic() + action.seconds
        try:
            while time.monotonic() < until:
                await asyncio.to_thread(disk.fill)
                await asyncio.sleep(0.1)
        finally:
            disk.make_room()
            self._full.discard(name)
            self.note("room again", disk=name)
        return True

    async def _break_connections(self, action: Action) -> bool:
        """The next so many operations, whosesoever, find their connection gone."""
        number = 1 + int(action.chance * 8)
        seed = int(action.victim * 1_000_000)
        broken = await self._stage.ask_for_faults([*self._faults, f"drop-connection={number}x"], seed)
        if broken:
            self.counts["connections_broken"] += number
            self.note("connections broken", number=number)
        return broken

    async def _empty_queues(self, action: Action) -> bool:
        """Then `silobus reconcile`; or, in every second case, the start of orchestrators that died with the queues."""
        if self._turn("bus").locked() or "bus" in self._full:
            return False
        everybody = action.chance < 0.5
        async with contextlib.AsyncExitStack() as turns:
            for name in ("bus", *(self._stage.orchestrators if everybody else ())):
                await turns.enter_async_context(self._turn(name))
            await self._before_emptying()
            if everybody:
                for name in self._stage.orchestrators:
                    await self._kill_now(name)
            await self._kill_now("bus")
            await self._stage.empty_queues()
            self.counts["queues_emptied"] += 1
            self.note("queues emptied", orchestrators="killed" if everybody else "alive", seconds=action.seconds)
            await asyncio.sleep(action.seconds)
            await self._stage.raise_up("bus")
            if everybody:
                await asyncio.gather(*(self._stage.raise_up(name) for name in self._stage.orchestrators))
        if not everybody:
            for _ in range(_NOT_YET):  # an operator tries again until it says that it is done
                if await self._stage.reconcile() == 0:
                    break
                await asyncio.sleep(_RETRY)
            self.note("reconciled")
        return True

    def close(self) -> None:
        """Closes the log."""
        self._log.close()
