"""A world for one real agent: a broker in memory, a store in a directory, and this file in the orchestrator's place.

Trainers are real processes of a script that needs only the standard library and does what `CONTROL/behaviour` says.
"""

import asyncio
import contextlib
import hashlib
import json
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from messages import names
from messages.codec import encode
from messages.errors import NotFound
from messages.ports import Bus, Outgoing, Store
from messages.retry import Waits
from messages.schemas import ClosedBecause, Head, Payload, Purpose, RoundAnnounced, RoundClosed
from messages.transport.clock import SystemClock
from messages.transport.directory import DirectoryStore
from messages.transport.memory_bus import MemoryBroker, MemoryBus, QueueOptions
from messages.weights import parse_layout
from silo_agent.app import opened
from silo_agent.code_digest import code_digest
from silo_agent.service import Agent
from silo_agent.settings import SiloSettings
from silo_agent.silo import Silo

RUN = "bc_00000000"
HERE = "north"

TRAINER = r"""
import hashlib, json, os, pathlib, signal, socket, struct, sys, time

CONTROL = pathlib.Path(os.environ["CONTROL"])
memory = None  # what a script wrongly trusts to be what was committed


def safetensors(values, name):
    raw = struct.pack(f"<{len(values)}f", *values)
    text = json.dumps({name: {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, len(raw)]}}).encode()
    return struct.pack("<Q", len(text)) + text + raw


def one_round(source, target):
    global memory
    asked = json.loads((source / "round.json").read_text())
    behaviour = (CONTROL / "behaviour").read_text().split()
    do = behaviour.pop(0)
    if behaviour:
        (CONTROL / "behaviour").write_text(" ".join(behaviour))
    with (CONTROL / "ran").open("a") as file:
        file.write(f"{os.getpid()} {asked['run']} {asked['round']}\n")
    committed = source / "state" / "count"
    count = memory if memory is not None else int(committed.read_text()) if committed.exists() else 0
    memory = count + 1
    (target / "state").mkdir()
    (target / "state" / "count").write_text(str(memory))
    steps = 0
    while do == "hold" and not (CONTROL / "go").exists():
        steps += 1
        (target / "progress.new").write_text(json.dumps({"steps": steps}))
        (target / "progress.new").replace(target / "progress.json")
        time.sleep(0.02)
    if do == "hang":
        time.sleep(60)
    if do == "crash":
        raise RuntimeError(f"cannot train on {source}")
    if do == "memory":
        raise MemoryError
    if do == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "leave":
        sys.exit(0)
    if do == "tell":
        secret = asked["data"]["train"]
        print(secret, file=sys.stderr)
        print(dict(os.environ))
    name = {"tell": "CANARY-tensor"}.get(do, "w")
    update = None
    if asked["purpose"] != "evaluate":
        weights = source / "weights.safetensors"
        values = struct.unpack("<2f", weights.read_bytes()[-8:]) if weights.exists() else (0.0, 0.0)
        values = [value + 1 for value in values] if do != "nan" else [float("nan")] * 2
        data = safetensors(values, name)
        (target / "update.safetensors").write_bytes(data)
        update = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    control = None
    if "control" in asked["roles"]:
        common = source / "control.safetensors"
        values = struct.unpack("<2f", common.read_bytes()[-8:]) if common.exists() else (0.0, 0.0)
        data = safetensors([value + 0.5 for value in values], name)
        (target / "control.safetensors").write_bytes(data)
        control = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    metric = {"name": "loss", "phase": "received", "kind": "mean", "count": 50, "value": 0.123456}
    unnamed = {**metric, "name": "CANARY_metric"}
    samples = 5 if do == "few" else 50
    report = {"schema_version": 1, "samples": samples, "steps": 3, "update": update, "metrics": [metric, unnamed]}
    if control:
        report["control"] = control
    (target / "report.new").write_text("{" if do == "nonsense" else json.dumps(report))
    (target / "report.new").replace(target / "report.json")


if "SILOBUS_INPUT" in os.environ:
    one_round(pathlib.Path(os.environ["SILOBUS_INPUT"]), pathlib.Path(os.environ["SILOBUS_OUTPUT"]))
else:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ["SILOBUS_SOCKET"])
    lines = connection.makefile("rw")

    def say(line):
        lines.write(json.dumps(line) + "\n")
        lines.flush()

    say({"hello": {"rank": 0, "world_size": 1, "pid": os.getpid()}})
    for line in lines:
        told = json.loads(line)
        if "end" in told:
            break
        one_round(pathlib.Path(told["round"]["input"]), pathlib.Path(told["round"]["output"]))
        say({"done": told["round"]["output"]})
"""


def vector(*values: float) -> bytes:
    """The model of these tests: one vector, `w`."""
    raw = struct.pack(f"<{len(values)}f", *values)
    text = json.dumps({"w": {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, len(raw)]}}).encode()
    return struct.pack("<Q", len(text)) + text + raw


def payload(data: bytes) -> Payload:
    """What an announcement says about weights."""
    layout = parse_layout(data, len(data)).digest
    return Payload(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), layout=layout)


class Running:
    """An agent that runs."""

    def __init__(self, silo: Silo, bus: Bus) -> None:
        self.silo = silo
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(Agent(silo, bus, receive_wait=1.0).run(self._stop))

    async def stop(self) -> None:
        """Stops it as an operator does."""
        self._stop.set()
        await asyncio.gather(self._task, return_exceptions=True)

    async def kill(self) -> None:
        """Ends it in the middle of whatever it does; nothing is settled."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class World:
    """Everything outside the agent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = SystemClock()
        self.broker = MemoryBroker(self.clock, names.queues([HERE]), options=QueueOptions(lock_duration=30))
        self.bus = MemoryBus(self.broker)
        self.store = DirectoryStore(path / "store")
        self.home = path / "home"
        self.code = path / "code" / "train.py"
        self.control = path / "control"
        for directory in (self.code.parent, self.control):
            directory.mkdir()
        self.code.write_text(TRAINER)
        self.data = path / "rows.csv"
        self.data.write_text("1,2\n")
        self.does("train")
        self.heartbeats: list[dict[str, Any]] = []
        self.sent: list[bytes] = []
        self._head: str | None = None

    def settings(self, *, heartbeat: float = 60.0, stalled_after: float | None = None, **changes: Any) -> SiloSettings:
        """The owner's file. Unless a test asks for them, no signs of life come between what it looks at."""
        limits = {"rounds": 100, "quorum": 2, "silos": 2, "hyperparameters": {"lr": {"min": 0, "max": 1}}}
        outbound = {"tensors": ["w"], "dtypes": ["float32"], "max_bytes": 1000, "metrics": {"loss": {"digits": 2}}}
        task = {
            "command": [sys.executable, "train.py"],
            "directory": self.code.parent,
            "code": {"path": self.code, "sha256": code_digest(self.code)},
            "data": {"train": self.data},
            "environment": {"CONTROL": str(self.control)},
            "timeout": 30,
            "limits": limits,
            "outbound": {**outbound, "min_samples": 20},
            **changes,
        }
        return SiloSettings.model_validate(
            {
                "silo": HERE,
                "home": self.home,
                "heartbeat": heartbeat,
                "stalled_after": stalled_after,
                "bus": {"connection_string_env": "UNUSED"},
                "store": {"directory": self.path / "store"},
                "tasks": {"bc": task},
            }
        )

    def does(self, behaviour: str) -> None:
        """What the trainer does; several words: one per try, the last for all that follow."""
        (self.control / "behaviour").write_text(behaviour)

    def ran(self) -> list[tuple[int, int]]:
        """Process id and round of every try so far."""
        file = self.control / "ran"
        rows = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        return [(int(pid), int(number)) for pid, _, number in rows]

    @contextlib.asynccontextmanager
    async def agent(
        self, settings: SiloSettings | None = None, *, store: Store | None = None, bus: Bus | None = None
    ) -> AsyncIterator[Running]:
        """An agent that runs; leaving stops it as an operator would."""
        bus = bus or MemoryBus(self.broker)
        async with opened(settings or self.settings(), bus, store or self.store) as silo:
            with contextlib.suppress(AttributeError):
                object.__setattr__(silo, "waits", Waits(first=0.01, most=0.05))
            running = Running(silo, bus)
            try:
                yield running
            finally:
                await running.stop()

    async def announce(
        self, number: int = 1, purpose: Purpose = Purpose.TRAIN, *, lasts: timedelta | None = None, **changes: Any
    ) -> None:
        """Opens a round, or announces it again; nobody finds the message once it has lasted for so long."""
        weights = vector(float(number), 0.0)
        payloads = {}
        if purpose is not Purpose.INITIALISE:
            payloads = {"weights": payload(weights)}
            with contextlib.suppress(Exception):
                blob = names.weights_blob(RUN, number - 1, payloads["weights"].sha256)
                await self.store.create(names.GLOBAL, blob, weights)
        message = RoundAnnounced.model_validate(
            {
                "experiment": "bc",
                "run": RUN,
                "round": number,
                "purpose": purpose,
                "announcement": 1,
                "task": "bc",
                "payloads": payloads,
                "silos": 3,
                "quorum": 2,
                "deadline": self.clock.now() + timedelta(hours=1),
                **changes,
            }
        )
        await self.head(message.round, "open", message.run)
        await self.tell(encode(message), lasts=lasts)

    async def close(self, number: int, because: ClosedBecause = ClosedBecause.AGGREGATED) -> None:
        """Closes a round."""
        await self.head(number, "closed")
        await self.tell(encode(RoundClosed(run=RUN, round=number, because=because)))

    async def head(self, number: int, phase: str, run: str = RUN) -> None:
        """Says where the run stands."""
        head = Head.model_validate({"run": run, "round": number, "announcement": 1, "phase": phase})
        blob = names.head_blob(run)
        try:
            etag: str | None = (await self.store.read(names.GLOBAL, blob)).etag
        except NotFound:
            etag = None
        await self.store.write(names.GLOBAL, blob, encode(head), if_match=etag)

    async def tell(self, body: bytes, *, lasts: timedelta | None = None) -> None:
        """Puts a message into the agent's queue."""
        self._told = getattr(self, "_told", 0) + 1
        message = Outgoing(body=body, message_id=f"m{self._told}", subject="test", time_to_live=lasts)
        await self.bus.send(names.to_silo(HERE), message)

    async def hear(self, wait: float = 120.0) -> dict[str, Any]:
        """The next thing the silo says, signs of life and greetings apart."""
        while True:
            delivery = await self.bus.receive(names.from_silo(HERE), wait=wait)
            assert delivery is not None, "the silo says nothing"
            await self.bus.complete(delivery)
            self.sent.append(delivery.body)
            said: dict[str, Any] = json.loads(delivery.body)
            if said["kind"] == "silo-heartbeat":
                self.heartbeats.append(said)
            elif said["kind"] != "silo-hello":
                return said

    async def greeting(self) -> dict[str, Any]:
        """The next thing the silo says, which is a hello."""
        delivery = await self.bus.receive(names.from_silo(HERE), wait=120)
        assert delivery is not None, "the silo says nothing"
        await self.bus.complete(delivery)
        said: dict[str, Any] = json.loads(delivery.body)
        assert said["kind"] == "silo-hello", said
        return said

    async def hears_nothing(self, wait: float) -> None:
        """Asserts that nothing but signs of life comes for so long."""
        end = self.clock.now() + timedelta(seconds=wait)
        while (left := (end - self.clock.now()).total_seconds()) > 0:
            delivery = await self.bus.receive(names.from_silo(HERE), wait=left)
            if delivery is not None:
                await self.bus.complete(delivery)
                self.sent.append(delivery.body)
                said = json.loads(delivery.body)
                assert said["kind"] in ("silo-heartbeat", "silo-hello"), said
                if said["kind"] == "silo-heartbeat":
                    self.heartbeats.append(said)

    async def queue(self, name: str) -> int:
        """How many messages are in a queue."""
        return len(await self.bus.peek(name, count=100))

    async def settled(self) -> None:
        """Returns when the agent is done with every message."""
        await until(lambda: self.queue(names.to_silo(HERE)), 0)

    def lives(self, pid: int) -> bool:
        """Whether there is such a process."""
        return Path(f"/proc/{pid}").exists()

    def committed(self) -> dict[str, str]:
        """The private state of the run, by round."""
        return {path.parent.name: path.read_text() for path in (self.home / "state").glob(f"{RUN}/*/count")}

    async def publication(self, number: int = 1) -> bytes:
        """The bytes of update.json."""
        return (await self.store.read(names.updates_of(HERE), names.publication_blob(RUN, number))).data


class Dying:
    """Wraps a bus or a store: at the chosen call, the process dies. Nothing after it happens, unless told to go."""

    def __init__(self, inner: Any, method: str, matches: Callable[..., bool], *, after: bool = False) -> None:
        self._inner, self._method, self._matches, self._after = inner, method, matches, after
        self.died = asyncio.Event()
        self.go = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._inner, name)
        if name != self._method:
            return inner

        async def call(*args: Any, **kwargs: Any) -> Any:
            dies = self._matches(*args)
            if dies and not self._after:
                await self._die()
            result = await inner(*args, **kwargs)
            if dies:
                await self._die()
            return result

        return call

    async def _die(self) -> None:
        self.died.set()
        await self.go.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.died.is_set(), "the point of the crash was never reached"


def free_locks(world: World) -> None:
    """As time does."""
    queue = world.broker._queue(names.to_silo(HERE))
    for message in list(queue.messages):
        if message.locked_until is not None:
            world.broker._unlock(queue, message)


async def beats(world: World, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Returns when a sign of life is as wanted; nothing else comes until then."""
    async with asyncio.timeout(60):
        while not (world.heartbeats and wanted(world.heartbeats[-1])):
            await world.hears_nothing(0.05)


async def until(value: Callable[[], Awaitable[Any]], wanted: Any, within: float = 60.0) -> None:
    """Returns when `value()` is as wanted."""
    async with asyncio.timeout(within):
        while await value() != wanted:  # noqa: ASYNC110  # it is in files and other processes
            await asyncio.sleep(0.01)
