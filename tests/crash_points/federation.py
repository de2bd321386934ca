"""A whole federation in one event loop: real orchestrators, real agents, a bus and a store in memory, a virtual clock.

What outlives a process is the federation's: broker, blobs, and each silo's home. A process that dies is started again a
second later, from those alone; one of two orchestrators only after the other has had time to take over. The order of
calls is the same each time.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, final

from messages import names
from messages.codec import encode
from messages.experiments import StartExperiment
from messages.ports import Outgoing
from messages.transport.memory_bus import MemoryBroker, MemoryBus, QueueOptions
from orchestrator.app import build
from orchestrator.settings import OrchestratorSettings
from silo_agent.app import opened
from silo_agent.code_digest import code_digest
from silo_agent.service import Agent
from silo_agent.settings import SiloSettings
from tests.crash_points.calls import FILES_OF, Away
from tests.crash_points.points import Life, Plan
from tests.crash_points.shapes import Shape
from tests.crash_points.trainer import Does, Trainer, weights
from tests.scenario.world import Inline, InOrder, Watched
from tests.virtual_clock import VirtualClock, rest

EXPERIMENT: Final = "exp"
TASK: Final = "toy"
LOCKED: Final = 30.0
"""Seconds that a message stays with whoever received it."""
FROZEN: Final = 45.0
"""Seconds that a process stands still: longer than its locks last."""
LATER: Final = 3600.0
"""Seconds after which what is scheduled is for another time: deadlines of long ago, the sweep of weeks later."""
WITHIN: Final = 3000.0
"""Seconds in which a run must be over, whatever goes wrong."""
HEARTBEAT: Final = 100.0
REFUSED: Final = 99
"""A quorum that no round here has: who wants it declines."""
ORCHESTRATORS: Final = ("ORCH", "ORCH2")


class _Process:
    """One process: its life, and its main task."""

    def __init__(self, life: Life, main: asyncio.Task[None], again: Callable[[], _Process], after: float) -> None:
        self.life, self.main, self.again, self.after = life, main, again, after
        self.has_stand_in = False

    @property
    def gone(self) -> bool:
        return self.life.dead or self.main.done()


@final
class Federation:
    """One run of a shape, with what is planned to go wrong in it. `root`: an empty directory."""

    def __init__(self, shape: Shape, plan: Plan, root: Path) -> None:
        asyncio.get_running_loop().set_default_executor(Inline(1))
        self.shape, self.plan, self.root = shape, plan, root
        self.clock = VirtualClock()
        self.store = Watched(self.clock)
        self.broker = MemoryBroker(
            self.clock, names.queues(list(shape.silos)), options=QueueOptions(lock_duration=LOCKED)
        )
        for queue in self.broker._queues.values():
            queue.waiters = InOrder()
        self.said: dict[str, list[bytes]] = {silo: [] for silo in shape.silos}
        """Everything that each silo sent."""
        self.errors: list[str] = []
        """Errors of ours that processes ended with."""
        self.run = ""
        self._processes: list[_Process] = []
        code = root / "train.py"
        code.write_text("what the owner approved\n")
        self._code = code_digest(code)

    def home(self, silo: str) -> Path:
        """A silo's home."""
        return self.root / silo

    async def to_the_end(self, within: float = WITHIN) -> None:
        """Runs one experiment until it is over and every queue is empty. Raises TimeoutError."""
        for who in ORCHESTRATORS[: self.shape.orchestrators]:
            self._processes.append(self._orchestrator(who))
        for silo in self.shape.silos:
            self._processes.append(self._agent(silo))
        await self._until(lambda: len(self.store.named("presence/")) == len(self.shape.silos), within)
        self.run = await self._post()
        over = "runs/" if self.shape.kept is None else "swept/"
        await self._until(lambda: self.left() == [] and bool(self.store.named(over)), within)
        await self.clock.advance(2 * LOCKED)
        await self._until(lambda: self.left() == [] and not any(p.gone for p in self._processes), within)

    def left(self) -> list[str]:
        """What is in the queues, apart from what is scheduled for long after."""
        later = self.clock.now() + timedelta(seconds=LATER)
        queues = self.broker._queues.values()
        found = [(q.name, m.delivery) for q in queues for m in q.messages if "/" not in q.name]
        return [f"{name}: {d.subject}" for name, d in found if d.scheduled_at is None or d.scheduled_at <= later]

    def dead_letters(self) -> list[str]:
        """What is among the dead letters, and why."""
        queues = self.broker._queues.values()
        found = [(q.name, m.delivery) for q in queues for m in q.messages if "/" in q.name]
        return [f"{name}: {d.subject}: {d.dead_letter_reason}: {d.dead_letter_description}" for name, d in found]

    async def end(self) -> None:
        """Kills everything."""
        for process in self._processes:
            await self._bury(process)

    # --- processes -------------------------------------------------------------------------------------------------

    def _orchestrator(self, who: str) -> _Process:
        life = Life(who, self.plan)
        settings = OrchestratorSettings.model_validate(
            {
                "silos": list(self.shape.silos),
                "scratch": self.root / "scratch",
                "memory_budget": 32,
                "retention": self.shape.retention,
                **_ELSEWHERE,
            }
        )
        bus, store = Away(_Sending(self, None), life), Away(self.store, life)
        orchestrator = build(settings, bus=bus, store=store, clock=self.clock)
        main = asyncio.create_task(orchestrator.run(asyncio.Event()), name=who)
        takes_over = self.shape.orchestrators > 1
        return _Process(life, main, lambda: self._orchestrator(who), 2 * LOCKED if takes_over else 1.0)

    def _agent(self, silo: str) -> _Process:
        life = Life(silo.upper(), self.plan)
        main = asyncio.create_task(self._agents(silo, life), name=silo)
        return _Process(life, main, lambda: self._agent(silo), 1.0)

    async def _agents(self, silo: str, life: Life) -> None:
        FILES_OF.set(life)
        bus, store = Away(_Sending(self, silo), life), Away(self.store, life)
        trainer = Trainer(self.shape.silos[silo], self.clock)
        async with opened(self._settings(silo), bus, store, clock=self.clock, local=trainer) as opened_silo:
            await Agent(opened_silo, bus).run(asyncio.Event())

    def _settings(self, silo: str) -> SiloSettings:
        least = len(self.shape.silos) if self.shape.least is None else self.shape.least
        does = self.shape.silos[silo].does
        few = REFUSED if does is Does.DECLINE else least
        task = {
            "command": ["nothing"],
            "directory": self.root,
            "code": {"path": self.root / "train.py", "sha256": self._code},
            "limits": {"rounds": 100, "quorum": few, "silos": least},
            "tries": 1 if does is Does.FAIL else 2,
            "outbound": {
                "tensors": ["*"],
                "dtypes": ["float32"],
                "max_bytes": 10_000,
                "min_samples": 0,
                "min_cell": 0,
                "metrics": {"loss": {}, "auroc": {}},
            },
        }
        own = {"silo": silo, "home": self.home(silo), "heartbeat": HEARTBEAT, "tasks": {TASK: task}}
        return SiloSettings.model_validate({**own, **_ELSEWHERE})

    async def _until(self, condition: Callable[[], bool], within: float) -> None:
        """Lets time pass until the condition holds, starting again whatever dies."""
        while not condition():
            await self.clock.until(
                lambda: condition() or any(self._wants_help(p) for p in self._processes), within=within
            )
            for index, process in enumerate(self._processes):
                if process.gone:
                    await self._bury(process)
                    await self.clock.advance(process.after)
                    self._processes[index] = process.again()
                    await rest()
                elif self._wants_help(process):
                    await self._stand_in(process)

    def _wants_help(self, process: _Process) -> bool:
        return process.gone or (process.life.frozen and not process.has_stand_in)

    async def _stand_in(self, frozen: _Process) -> None:
        """While one stands still, another may start: an orchestrator, since a home has one agent at a time."""
        frozen.has_stand_in = True
        if frozen.life.who in ORCHESTRATORS and self.shape.orchestrators == 1:
            self._processes.append(self._orchestrator(ORCHESTRATORS[1]))
        self._thawing = asyncio.create_task(self._thaw(frozen.life))
        await rest()

    async def _thaw(self, life: Life) -> None:
        await self.clock.sleep(FROZEN)
        life.frozen = False
        life.thawed.set()

    async def _bury(self, process: _Process) -> None:
        """Ends what is left of it. Nothing that it still does leaves it."""
        crashed, process.life.dead = process.life.dead, True
        process.life.thawed.set()
        if process.main.done() and not crashed and not process.main.cancelled():
            self.errors.append(f"{process.life.who} ended: {process.main.exception()!r}")
        process.main.cancel()
        await rest()
        if process.main.done() and not process.main.cancelled():
            process.main.exception()

    # --- messages --------------------------------------------------------------------------------------------------

    async def _post(self) -> str:
        start: dict[str, Any] = {"experiment": EXPERIMENT, "task": TASK, **self.shape.start()}
        if self.shape.initial:
            data = weights(1.0, 0)
            sha256 = hashlib.sha256(data).hexdigest()
            await self.store.create(names.INITIAL, names.initial_blob(sha256), data)
            start["initial"] = {"sha256": sha256}
        message = StartExperiment.model_validate(start)
        body = encode(message)
        self.accept(names.EXPERIMENTS, Outgoing(body=body, message_id="operator-1", subject="start-experiment"), None)
        return names.run_id(EXPERIMENT, "operator-1", body)

    def accept(self, queue: str, message: Outgoing, silo: str | None) -> None:
        """What the broker does with a message: here it may arrive more than once, at once and long after."""
        if silo is not None:
            self.said[silo].append(message.body)
        self.broker.accept(queue, message)
        if not self.shape.repeats:
            return
        self.broker.accept(queue, message)
        if message.subject == "round-announced":
            to = next(name for name in self.shape.silos if names.to_silo(name) == queue)
            for number, body in enumerate(self.said[to]):
                if (kind := json.loads(body)["kind"]) == "update-published":
                    old = Outgoing(body=body, message_id=f"replayed-{number}", subject=kind)
                    self.broker.accept(names.from_silo(to), old)


class _Sending:
    """A connection to the broker whose messages go through the federation."""

    def __init__(self, federation: Federation, silo: str | None) -> None:
        self._federation, self._silo = federation, silo
        self._bus = MemoryBus(federation.broker)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def send(self, queue: str, message: Outgoing) -> None:
        """Sends."""
        self._federation.accept(queue, message, self._silo)


_ELSEWHERE: Final = {"bus": {"connection_string_env": "UNUSED"}, "store": {"directory": "/nowhere"}}
