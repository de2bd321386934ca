"""A federation in memory for scenarios: the real orchestrator, model silos, and faults at every call of a process.

What outlives a process (broker, blobs) is the world's. A process can die before or after any of its calls; from then on
none of its calls does anything. Model silos add a known constant to the weights, so that every sum can be checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import random
import re
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel
from safetensors.numpy import load, save

from messages import names
from messages.errors import AlreadyExists, NotFound, Transient
from messages.ports import BlobInfo, Delivery, Document, Outgoing, Reader
from messages.schemas import (
    DeclineReason,
    FailureCategory,
    Head,
    HistogramMetric,
    MeanMetric,
    Offer,
    Payload,
    Purpose,
    RoundAnnounced,
    RoundClosed,
    RoundDeclined,
    SiloHello,
    StartExperiment,
    TrainingFailed,
    UpdatePublished,
    decode,
    encode,
)
from messages.transport.memory_bus import MemoryBroker, MemoryBus, QueueOptions
from messages.transport.memory_store import MemoryStore
from messages.weights import parse_layout
from orchestrator.blobs import Weights
from orchestrator.documents import ExperimentDocument
from orchestrator.experiment.state import Ended, RoundRecord, State
from orchestrator.outbox import Performer
from orchestrator.presence import Attendance
from orchestrator.service import Orchestrator
from orchestrator.store import Documents
from orchestrator.transitions import Experiments
from tests.virtual_clock import VirtualClock, rest

T = TypeVar("T")
TASK = "toy"
CODE = "c" * 64
Doing = Literal["update", "decline", "fail", "spoil", "ignore"]


class Crash(BaseException):
    """The process is dead. Nothing of ours catches it."""


class Inline(ThreadPoolExecutor):
    """Runs what is meant for threads at once, so that a scenario is the same every time."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001  # handed on to whoever waits for the future
            future.set_exception(error)
        return future


class Trouble:
    """What goes wrong at which call of a process. Calls are counted from 1, in the order in which they are made."""

    def __init__(self, *, yields: random.Random | None = None) -> None:
        self.calls = 0
        self.log: list[str] = []
        self.dead = False
        self.at: dict[int, str] = {}
        self.next: dict[str, str] = {}
        self._yields = yields

    def in_calls(self, calls: int, what: str) -> None:
        """`what` happens so many calls from now: `crash-before`, `crash-after`, `refuse` or `lose-answer`."""
        self.at[self.calls + calls] = what

    def at_next(self, pattern: str, what: str) -> None:
        """`what` happens at the next call like `read experiments/…` that the pattern matches."""
        self.next[pattern] = what

    def hook(self, when: Literal["before", "after"], operation: str, where: str) -> None:
        if self.dead:
            raise Crash(f"{operation} {where}")
        if when == "before":
            self.calls += 1
            self.log.append(f"{operation} {where}")
            for pattern in [p for p in self.next if re.search(p, self.log[-1])]:
                self.at[self.calls] = self.next.pop(pattern)
        match (when, self.at.get(self.calls)):
            case ("before", "crash-before") | ("after", "crash-after"):
                self.dead = True
                raise Crash(f"{operation} {where}")
            case ("before", "refuse") | ("after", "lose-answer"):
                del self.at[self.calls]
                raise Transient(f"{operation} {where}: no answer")

    async def pass_by(self) -> None:
        """Lets others run first, a varying number of times."""
        if self._yields is not None:
            for _ in range(self._yields.randrange(4)):
                await asyncio.sleep(0)


class FaultyStore:
    """One process's view of the store."""

    def __init__(self, store: MemoryStore, trouble: Trouble) -> None:
        self._store, self._trouble = store, trouble

    async def _call(self, operation: str, where: str, call: Callable[[], Awaitable[T]]) -> T:
        await self._trouble.pass_by()
        self._trouble.hook("before", operation, where)
        result = await call()
        self._trouble.hook("after", operation, where)
        return result

    async def read(self, container: str, name: str, *, limit: int = 4 << 20) -> Document:
        return await self._call("read", name, lambda: self._store.read(container, name, limit=limit))

    async def write(self, container: str, name: str, data: bytes, *, if_match: str | None) -> str:
        return await self._call("write", name, lambda: self._store.write(container, name, data, if_match=if_match))

    async def create(self, container: str, name: str, source: Path | bytes) -> None:
        await self._call("create", name, lambda: self._store.create(container, name, source))

    async def open(self, container: str, name: str) -> Reader:
        return await self._call("open", name, lambda: self._store.open(container, name))

    async def fetch(self, container: str, name: str, target: Path) -> None:
        await self._call("fetch", name, lambda: self._store.fetch(container, name, target))

    async def list(self, container: str, prefix: str) -> Sequence[BlobInfo]:
        return await self._call("list", prefix, lambda: self._store.list(container, prefix))

    async def delete(self, container: str, name: str) -> None:
        await self._call("delete", name, lambda: self._store.delete(container, name))

    async def close(self) -> None:
        """Nothing to close."""


class Process:
    """One running orchestrator."""

    def __init__(self, world: World, trouble: Trouble) -> None:
        self.trouble = trouble
        bus = MemoryBus(world.broker, faults=trouble.hook)
        store = FaultyStore(world.store, trouble)
        documents = Documents(store)
        self.experiments = Experiments(documents, Performer(bus, documents), world.clock)
        self.orchestrator = Orchestrator(
            bus=bus,
            clock=world.clock,
            silos=world.enrolled,
            documents=documents,
            experiments=self.experiments,
            weights=Weights(store, world.scratch, memory_budget=1 << 20),
            attendance=Attendance(documents, world.clock),
        )
        self.stop = asyncio.Event()
        before = asyncio.all_tasks()
        self.main = asyncio.create_task(self._run(), name="orchestrator")
        self._before = before

    async def _run(self) -> None:
        try:
            await self.orchestrator.run(self.stop)
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
    ) -> None:
        asyncio.get_running_loop().set_default_executor(Inline(1))
        self.clock = VirtualClock()
        self.enrolled = tuple(enrolled or silos)
        self.options = options or QueueOptions(lock_duration=60)
        self.broker = MemoryBroker(self.clock, names.queues(list(self.enrolled)), options=self.options)
        self.bus = MemoryBus(self.broker)
        self.store = Watched()
        in_memory = Path("/dev/shm")
        self._directory = tempfile.TemporaryDirectory(dir=in_memory if in_memory.is_dir() else None)
        self.scratch = Path(self._directory.name)
        self.silos = {name: ModelSilo(self, name, constant) for name, constant in silos.items()}
        self.processes: list[Process] = []
        self._ids = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, trouble: Trouble | None = None) -> Process:
        """Starts an orchestrator and lets it come to rest."""
        process = Process(self, trouble or Trouble())
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
    """The store, with every version of every experiment's state that was ever written."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[ExperimentDocument] = []
        self.heads: list[Head] = []

    @property
    def blobs(self) -> dict[tuple[str, str], Any]:
        return dict(self._blobs)

    def named(self, prefix: str) -> list[str]:
        """Names of the blobs in `state` that begin so."""
        return [name for container, name in self._blobs if container == names.STATE and name.startswith(prefix)]

    async def write(self, container: str, name: str, data: bytes, *, if_match: str | None) -> str:
        etag = await super().write(container, name, data, if_match=if_match)
        if name.startswith("experiments/"):
            self.history.append(ExperimentDocument.model_validate_json(data))
        if name.endswith("/head.json"):
            self.heads.append(Head.model_validate_json(data))
        return etag


class ModelSilo:
    """An agent that trains in no time: it adds its constant to whatever it is sent."""

    def __init__(self, world: World, name: str, constant: float) -> None:
        self.world, self.name, self.constant = world, name, constant
        self.samples = 1
        self.doing: Callable[[RoundAnnounced], Doing] = lambda _: "update"
        self.heard: list[RoundAnnounced | RoundClosed] = []
        self._sent = itertools.count(1)
        self._instances = itertools.count(1)

    async def live(self) -> None:
        """Answers whatever comes, for ever."""
        while True:
            delivery = await self.world.bus.receive(names.to_silo(self.name), wait=60)
            if delivery is not None:
                await self.hear(delivery.body)
                await self.world.bus.complete(delivery)

    async def hear(self, body: bytes) -> None:
        """Does what a message asks for."""
        message: RoundAnnounced | RoundClosed = decode(body, RoundAnnounced, RoundClosed)
        self.heard.append(message)
        if isinstance(message, RoundAnnounced):
            await self.answer(message, self.doing(message))

    async def answer(self, asked: RoundAnnounced, doing: Doing) -> None:
        """Answers a round."""
        match doing:
            case "update":
                await self.send(await self.publish(asked))
            case "decline":
                reason = DeclineReason.BUDGET_SPENT
                await self.send(RoundDeclined(run=asked.run, round=asked.round, reason=reason))
            case "fail":
                await self.send(
                    TrainingFailed(
                        run=asked.run,
                        round=asked.round,
                        category=FailureCategory.SCRIPT_ERROR,
                        tries=1,
                        announcement=asked.announcement,
                    )
                )
            case "spoil":
                await self.send(await self.publish(asked, spoilt=True))
            case "ignore":
                pass

    async def publish(self, asked: RoundAnnounced, *, spoilt: bool = False) -> UpdatePublished:
        """Trains and uploads, once per round: what was published before is found again."""
        store, container = self.world.store, names.updates_of(self.name)
        publication = names.publication_blob(asked.run, asked.round)
        if not spoilt:
            try:
                said = (await store.read(container, publication)).data
                return UpdatePublished.model_validate_json(said)
            except NotFound:
                pass
        payloads = {}
        if asked.purpose is not Purpose.EVALUATE:
            data = save({"w": np.full(4, np.nan, np.float32) if spoilt else await self._train(asked)})
            sha256 = hashlib.sha256(data).hexdigest()
            with contextlib.suppress(AlreadyExists):
                await store.create(container, names.weights_blob(asked.run, asked.round, sha256), data)
            payloads["weights"] = Payload(
                sha256=sha256, bytes=len(data), form=asked.transfer.form, layout=parse_layout(data, len(data)).digest
            )
        update = UpdatePublished.model_validate(
            {
                "run": asked.run,
                "round": asked.round,
                "purpose": asked.purpose,
                "announcement": asked.announcement,
                "payloads": payloads,
                "samples": self.samples,
                "steps": 1,
                "metrics": [
                    MeanMetric(name="loss", phase="received", count=1, value=1.0 / (1 + asked.round)),
                    HistogramMetric(name="auroc", phase="received", count=4, positive=[0, 2], negative=[2, 0]),
                ],
                "code": CODE,
                "policy": CODE,
                "seconds": 1.0,
            }
        )
        if not spoilt:
            await store.create(container, publication, encode(update))
        return update

    async def _train(self, asked: RoundAnnounced) -> np.ndarray[Any, np.dtype[np.float32]]:
        if asked.purpose is Purpose.INITIALISE:
            return np.full(4, self.constant, np.float32)
        given = asked.payloads["weights"]
        name = names.weights_blob(asked.run, asked.round - 1, given.sha256)
        received = load((await self.world.store.read(names.GLOBAL, name)).data)["w"]
        trained: np.ndarray[Any, np.dtype[np.float32]] = received + np.float32(self.constant)
        return np.full(4, self.constant, np.float32) if asked.transfer.form == "delta" else trained

    async def hello(self) -> None:
        """A new instance of the agent starts."""
        instance = hashlib.md5(f"{self.name}{next(self._instances)}".encode(), usedforsecurity=False).hexdigest()
        await self.send(
            SiloHello(
                instance=instance,
                agent_version="1",
                policy=CODE,
                offers=[Offer(task=TASK, code=CODE)],
                at=self.world.clock.now(),
            )
        )

    async def send(self, message: BaseModel) -> None:
        """Sends to the orchestrator."""
        subject = str(type(message).model_fields["kind"].default)
        outgoing = Outgoing(body=encode(message), message_id=f"{self.name}-{next(self._sent)}", subject=subject)
        await self.world.bus.send(names.from_silo(self.name), outgoing)
