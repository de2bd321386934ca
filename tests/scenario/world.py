"""A federation in memory for scenarios: the real orchestrator, model silos, and faults at every call of a process.

What outlives a process (broker, blobs) is the world's. A process can die before or after any of its calls; from then on
none of its calls does anything. Model silos add a known constant to the weights, so that every sum can be checked.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from safetensors.numpy import load

from messages import names
from messages.codec import encode
from messages.errors import Transient
from messages.experiments import StartExperiment
from messages.ports import Delivery, Outgoing
from messages.schemas import Head
from messages.transport.memory_bus import MemoryBroker, MemoryBus, QueueOptions
from messages.transport.memory_store import MemoryStore
from orchestrator.blobs import Weights
from orchestrator.documents import ExperimentDocument, Presence
from orchestrator.experiment.state import Ended, RoundRecord, State
from orchestrator.outbox import Performer
from orchestrator.presence import Attendance
from orchestrator.service import Orchestrator
from orchestrator.settings import RetentionSettings
from orchestrator.store import Documents
from orchestrator.sweeping import Sweeper
from orchestrator.transitions import Experiments
from tests.scenario.faults import Crash, FaultyBus, FaultyStore, Trouble
from tests.scenario.model_silo import TASK, ModelSilo
from tests.virtual_clock import VirtualClock, rest

T = TypeVar("T")


class Inline(ThreadPoolExecutor):
    """Runs what is meant for threads at once, so that a scenario is the same every time."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001  # handed on to whoever waits for the future
            future.set_exception(error)
        return future


class InOrder(set[Any]):
    """A set that is gone through in the order in which its members were added, wherever they are in memory."""

    def __init__(self) -> None:
        super().__init__()
        self._members: dict[Any, None] = {}

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._members))

    def add(self, member: Any) -> None:
        self._members[member] = None

    def discard(self, member: Any) -> None:
        self._members.pop(member, None)


class Process:
    """One running orchestrator."""

    def __init__(self, world: World, trouble: Trouble, until_idle: float | None = None) -> None:
        self.trouble = trouble
        self._until_idle = until_idle
        bus = FaultyBus(world.broker, trouble, witness=world.witness)
        store = FaultyStore(world.store, trouble)
        documents = Documents(store)
        self.experiments = Experiments(documents, Performer(bus, documents, world.retention), world.clock)
        self.orchestrator = Orchestrator(
            bus=bus,
            clock=world.clock,
            silos=world.enrolled,
            documents=documents,
            experiments=self.experiments,
            weights=Weights(store, world.scratch, memory_budget=1 << 20),
            attendance=Attendance(documents, world.clock),
            sweeper=Sweeper(
                bus=bus,
                store=store,
                documents=documents,
                clock=world.clock,
                settings=world.retention,
                silos=world.enrolled,
            ),
            max_delivery_count=world.options.max_delivery_count,
        )
        self.stop = asyncio.Event()
        self.main = asyncio.create_task(self._run(), name="orchestrator")

    async def _run(self) -> None:
        try:
            await self.orchestrator.run(self.stop, until_idle=self._until_idle)
        except BaseExceptionGroup as group:
            if group.split(Crash)[1] is not None:
                raise
        except (Crash, Transient):
            self.trouble.dead = True  # a process that cannot reach its store when it starts ends, and is started again

    @property
    def alive(self) -> bool:
        """Whether it runs and is not dead."""
        return not self.trouble.dead and not self.main.done()

    async def kill(self) -> None:
        """Ends it as by SIGKILL: nothing it does from now on leaves it."""
        self.trouble.dead = True
        self.main.cancel()
        await rest()
        if self.main.done() and not self.main.cancelled():
            self.main.exception()


class World:
    """The broker, the blobs and the model silos; `start()` starts an orchestrator."""

    def __init__(
        self,
        silos: dict[str, float],
        *,
        options: QueueOptions | None = None,
        enrolled: Sequence[str] | None = None,
        retention: RetentionSettings | None = None,
    ) -> None:
        asyncio.get_running_loop().set_default_executor(Inline(1))
        self.clock = VirtualClock()
        self.enrolled = tuple(enrolled or silos)
        self.options = options or QueueOptions(lock_duration=60)
        self.retention = retention or RetentionSettings(updates=None, models=None, days=None)  # everything is kept
        self.broker = self._made()
        self.bus = MemoryBus(self.broker)
        self.store = Watched(self.clock)
        in_memory = Path("/dev/shm")
        self._directory = tempfile.TemporaryDirectory(dir=in_memory if in_memory.is_dir() else None)
        self.scratch = Path(self._directory.name)
        self.silos = {
            name: ModelSilo(name, constant, bus=self.bus, store=self.store, clock=self.clock)
            for name, constant in silos.items()
        }
        self.processes: list[Process] = []
        self.witness: Callable[[str, Outgoing], None] = lambda queue, message: None
        """Called whenever an orchestrator sends something, at the moment it is sent."""
        self._ids = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, trouble: Trouble | None = None, *, until_idle: float | None = None) -> Process:
        """Starts an orchestrator and lets it come to rest."""
        process = Process(self, trouble or Trouble(), until_idle)
        self.processes.append(process)
        await rest()
        return process

    async def begin(self, **start: Any) -> str:
        """Has every silo say hello, posts a start, and returns the run's id."""
        for silo in self.silos.values():
            await silo.hello()
        await self.supervised(lambda: len(self.store.named("presence/")) == len(self.silos))
        return await self.post(
            StartExperiment.model_validate({"experiment": "exp", "task": TASK, "rounds": 2, **start})
        )

    async def post(self, message: BaseModel, *, message_id: str | None = None) -> str:
        """Posts an operator's message; returns the id of the run it would start."""
        message_id = message_id or f"operator-{next(self._ids)}"
        body = encode(message)
        subject = str(type(message).model_fields["kind"].default)
        await self.bus.send(names.EXPERIMENTS, Outgoing(body=body, message_id=message_id, subject=subject))
        return names.run_id(getattr(message, "experiment", "exp"), message_id, body)

    def lose_queues(self) -> None:
        """Empty queues, as if the namespace had been made anew. For orchestrators started from now on."""
        self.broker = self._made()
        self.bus = MemoryBus(self.broker)
        for silo in self.silos.values():
            silo.bus = self.bus

    def _made(self) -> MemoryBroker:
        """A broker that wakes those who wait in the order in which they came: a scenario is the same each time."""
        broker = MemoryBroker(self.clock, names.queues(list(self.enrolled)), options=self.options)
        for queue in broker._queues.values():
            queue.waiters = InOrder()
        return broker

    def live_silos(self, *silos: str) -> None:
        """Lets these silos (all, if none are named) answer by themselves from now on."""
        for name in silos or self.silos:
            self._tasks.append(asyncio.create_task(self.silos[name].live(), name=f"silo {name}"))

    def state(self, experiment: str = "exp") -> State | None:
        """The experiment's state as stored."""
        blob = self.store.blobs.get((names.STATE, names.experiment_blob(experiment)))
        return None if blob is None else ExperimentDocument.model_validate_json(blob.data).state

    def phase(self) -> str:
        """The phase of the experiment, or `none`."""
        state = self.state()
        return "none" if state is None else state.phase

    async def supervised(self, condition: Callable[[], bool], *, within: float = 86400.0) -> None:
        """Lets time pass until the condition holds, starting an orchestrator whenever the last one has died."""
        while not condition():
            await self.clock.until(lambda: condition() or not self.processes[-1].alive, within=within)
            if not self.processes[-1].alive:
                await self.processes[-1].kill()
                await self.start()

    async def ended(self, within: float = 86400.0) -> Ended:
        """Lets time pass until the run is over and nothing is left to be done for it."""
        await self.supervised(lambda: self.phase() == "ended", within=within)
        await rest()
        state = self.state()
        assert isinstance(state, Ended)
        return state

    def record(self, run: str, number: int) -> RoundRecord | None:
        """A round's record."""
        blob = self.store.blobs.get((names.STATE, names.round_blob(run, number)))
        return None if blob is None else RoundRecord.model_validate_json(blob.data)

    def head(self, run: str) -> Head:
        """What the agents are told."""
        return Head.model_validate_json(self.store.blobs[names.GLOBAL, names.head_blob(run)].data)

    def weights(self, run: str, number: int) -> list[float]:
        """The numbers in the one global weights blob of a round."""
        prefix = f"{run}/{number:05d}/"
        (found,) = [b.data for (c, n), b in self.store.blobs.items() if c == names.GLOBAL and n.startswith(prefix)]
        return [float(x) for x in load(found)["w"]]

    async def dead_letters(self, queue: str) -> list[str]:
        """The reasons of a queue's dead letters."""
        found = await self.bus.peek(names.dead_letters_of(queue), count=100)
        return [delivery.dead_letter_reason or "" for delivery in found]

    async def waiting(self, queue: str) -> list[Delivery]:
        """What is in a queue, locked or scheduled or neither."""
        return list(await self.bus.peek(queue, count=1000))

    async def close(self) -> None:
        """Kills everything."""
        for process in self.processes:
            await process.kill()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await rest()
        self._directory.cleanup()


class Watched(MemoryStore):
    """The store, with every version of every state, head and presence that was ever written, and when."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock
        self.history: list[tuple[datetime, ExperimentDocument]] = []
        self.heads: list[Head] = []
        self.presences: list[Presence] = []
        self.written: Counter[str] = Counter()
        """How often each document in `state` was written."""

    @property
    def blobs(self) -> dict[tuple[str, str], Any]:
        return dict(self._blobs)

    def named(self, prefix: str) -> list[str]:
        """Names of the blobs in `state` that begin so."""
        return [name for container, name in self._blobs if container == names.STATE and name.startswith(prefix)]

    async def write(self, container: str, name: str, data: bytes, *, if_match: str | None) -> str:
        etag = await super().write(container, name, data, if_match=if_match)
        if name.startswith("experiments/"):
            self.history.append((self._clock.now(), ExperimentDocument.model_validate_json(data)))
        if name.endswith("/head.json"):
            self.heads.append(Head.model_validate_json(data))
        if name.startswith("presence/"):
            self.presences.append(Presence.model_validate_json(data))
        if container == names.STATE:
            self.written[name] += 1
        return etag

    def replace(self, container: str, name: str, data: bytes) -> None:
        """Overwrites a blob, which nobody may."""
        self._put(container, name, data)
