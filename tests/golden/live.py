"""A live federation in mid-run, as files: what a version leaves behind when everything stops, and what goes on from it.

Two silos whose trainers add 1 and 3 to a vector, so a round adds exactly 2. Everything is the real thing but the bus,
which is in memory: a release is tried with the state in blobs and the agents' homes alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import struct
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from messages import names
from messages.codec import encode
from messages.experiments import StartExperiment
from messages.ports import Outgoing
from messages.retry import Waits
from messages.transport.clock import SystemClock
from messages.transport.directory import DirectoryStore
from messages.transport.memory_bus import MemoryBroker, MemoryBus, QueueOptions
from orchestrator.app import build
from orchestrator.documents import ExperimentDocument
from orchestrator.experiment.state import Collecting, Ended, State
from orchestrator.settings import OrchestratorSettings
from silo_agent.app import opened
from silo_agent.code_digest import code_digest
from silo_agent.service import Agent
from silo_agent.settings import SiloSettings

SILOS: Final = {"north": 1.0, "south": 3.0}
ROUNDS: Final = 3
FINAL: Final = (6.0, 6.0)
EXPERIMENT: Final = "golden"
TRAINER: Final = Path(__file__).with_name("trainer.py")
_LEAVE_OUT: Final = ("agent.lock", "runtime", "faults")
"""Of a home: what matters only while an agent runs."""


class Federation:
    """Orchestrator and agents over the folders `store` and `homes/<silo>` in `path`, with queues that are empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = SystemClock()
        self.bus = MemoryBus(MemoryBroker(self.clock, names.queues(list(SILOS)), options=QueueOptions()))
        self.store = DirectoryStore(path / "store")
        self.control = path / "control"
        self.control.mkdir(parents=True, exist_ok=True)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Everything runs, and is killed at the end."""
        settings = OrchestratorSettings.model_validate(
            {
                "bus": {"connection_string_env": "UNUSED"},
                "store": {"directory": self.path / "store"},
                "silos": list(SILOS),
                "scratch": self.path / "scratch",
            }
        )
        orchestrator = build(settings, bus=self.bus, store=self.store, clock=self.clock)
        async with contextlib.AsyncExitStack() as stack:
            tasks = [asyncio.create_task(orchestrator.run(asyncio.Event()))]
            for name in SILOS:
                silo = await stack.enter_async_context(opened(self._settings(name), self.bus, self.store))
                object.__setattr__(silo, "waits", Waits(first=0.01, most=0.05))
                tasks.append(asyncio.create_task(Agent(silo, self.bus, receive_wait=1.0).run(asyncio.Event())))
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _settings(self, silo: str) -> SiloSettings:
        trainer = self.path / "trainer.py"
        task = {
            "command": [sys.executable, "trainer.py"],
            "directory": self.path,
            "code": {"path": trainer, "sha256": code_digest(trainer)},
            "mode": "per-round",
            "environment": {"ADDS": str(SILOS[silo]), "HOLD": str(self.control / f"hold-{silo}")},
            "tries": 3,
            "limits": {"rounds": 100},
            "outbound": {"tensors": ["w"], "dtypes": ["float32"], "max_bytes": 1000, "metrics": {"loss": {}}},
        }
        return SiloSettings.model_validate(
            {
                "silo": silo,
                "home": self.path / "homes" / silo,
                "heartbeat": 0.2,
                "bus": {"connection_string_env": "UNUSED"},
                "store": {"directory": self.path / "store"},
                "tasks": {"add": task},
            }
        )

    async def until_known(self) -> None:
        """Returns when both silos have said what they offer."""
        prefix = names.presence_blob("").removesuffix(".json")

        async def known() -> bool:
            return len(await self.store.list(names.STATE, prefix)) == len(SILOS)

        await _until(known)

    def hold(self, silo: str, round_number: int) -> None:
        """The silo's trainer fails in this round once, and then trains until this is taken back."""
        (self.control / f"hold-{silo}").write_text(str(round_number))

    async def state(self) -> State | None:
        """Where the experiment stands."""
        try:
            read = await self.store.read(names.STATE, names.experiment_blob(EXPERIMENT))
        except Exception:  # noqa: BLE001  # not there yet
            return None
        return ExperimentDocument.model_validate_json(read.data).state

    async def until(self, condition: Callable[[State | None], bool]) -> State:
        """Returns when the state is so."""

        async def so() -> bool:
            return condition(await self.state())

        await _until(so)
        state = await self.state()
        assert state is not None
        return state

    async def weights(self, ended: Ended) -> tuple[float, ...]:
        """The numbers of the last model."""
        assert ended.run.model is not None
        model = ended.run.model
        name = names.weights_blob(ended.run.id, model.round, model.payload.sha256)
        return struct.unpack("<2f", (await self.store.read(names.GLOBAL, name)).data[-8:])

    def home(self, silo: str) -> Path:
        """A silo's own directory."""
        return self.path / "homes" / silo


async def write(target: Path) -> None:
    """Runs a federation until its second round is half done, kills it, and keeps what it left."""
    with tempfile.TemporaryDirectory() as directory:
        federation = Federation(Path(directory))
        for place in (federation.path, target):
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(TRAINER, place)
        federation.hold("south", 2)
        async with federation.running():
            await federation.until_known()
            start: dict[str, Any] = {"experiment": EXPERIMENT, "task": "add", "rounds": ROUNDS}
            quorum = {"minimum": "all", "deadline": 60.0, "reminders": 1000}
            message = StartExperiment.model_validate({**start, "quorum": quorum})
            outgoing = Outgoing(body=encode(message), message_id="start", subject=message.kind)
            await federation.bus.send(names.EXPERIMENTS, outgoing)
            await federation.until(
                lambda state: isinstance(state, Collecting) and state.round == 2 and "north" in state.answers
            )
            rounds = federation.home("south") / "rounds"

            async def in_its_second_try() -> bool:
                return bool(list(rounds.glob("*/00002/tries/1/failed.json")) and list(rounds.glob("*/00002/tries/2")))

            await _until(in_its_second_try)
        shutil.copytree(federation.path / "store", target / "store", symlinks=True)
        for silo in SILOS:
            shutil.copytree(federation.home(silo), target / "homes" / silo, ignore=shutil.ignore_patterns(*_LEAVE_OUT))


async def _until(condition: Callable[[], Awaitable[bool]], within: float = 120.0) -> None:
    async with asyncio.timeout(within):
        while not await condition():  # noqa: ASYNC110  # it is in files, and done by other processes
            await asyncio.sleep(0.02)


def egress(home: Path) -> list[dict[str, Any]]:
    """The lines of a silo's log of what left."""
    return [json.loads(line) for line in (home / "egress.jsonl").read_text().splitlines()]
