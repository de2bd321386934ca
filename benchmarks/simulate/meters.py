"""Meters around what leaves the orchestrator: its calls are counted, by kind, and so is the CPU time between them.

A bus and a store in memory do the work behind the meters; the time they take is not the orchestrator's, and is taken
off. Counts and bytes are exact and the same each time; CPU time is not.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import time
from collections import Counter
from collections.abc import Coroutine, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from messages.ports import BlobInfo, Bus, Clock, Delivery, Document, Outgoing, Reader, Store

T = TypeVar("T")
Side = Literal["orchestrator", "world"]
SIDE: contextvars.ContextVar[Side] = contextvars.ContextVar("side", default="world")
"""Who runs; tasks inherit it from whoever started them."""
_IDLE = 86400.0


@dataclass
class Tally:
    """What one round took, or everything did."""

    counts: Counter[str] = field(default_factory=Counter)
    """What the orchestrator did: `blob.read`, `message.received.from`, `bytes.written.state` …"""
    agents: Counter[str] = field(default_factory=Counter)
    """The same of all agents together."""
    documents: list[int] = field(default_factory=list)
    """Sizes of the experiment's document, in bytes, each time it was written."""
    cpu: float = 0.0
    """Seconds of the orchestrator's own CPU time."""


class Meters:
    """Tallies by round. A round begins when the head says that it is open."""

    def __init__(self) -> None:
        self.rounds: dict[int, Tally] = {}
        self.opened: dict[int, datetime] = {}
        self.now = Tally()
        """Of the round that is open."""

    def head(self, data: bytes, at: datetime) -> None:
        """Notes a head that was published; the next round's first one turns the page."""
        said = json.loads(data)
        if said["round"] not in self.opened:
            self.opened[said["round"]] = at
            self.now = self.rounds[said["round"]] = Tally()
        elif said["phase"] == "ended":
            self.now = Tally()

    def total(self, rounds: Sequence[int]) -> Tally:
        """Several rounds taken together."""
        found = [self.rounds[number] for number in rounds]
        counts: Counter[str] = sum((tally.counts for tally in found), Counter())
        agents: Counter[str] = sum((tally.agents for tally in found), Counter())
        return Tally(counts, agents, [size for t in found for size in t.documents], sum(t.cpu for t in found))

    @property
    def counts(self) -> Counter[str]:
        """Where whoever runs now is to be counted."""
        return self.now.counts if SIDE.get() == "orchestrator" else self.now.agents

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """What happens inside is not the orchestrator's CPU time."""
        begun = time.thread_time()
        try:
            yield
        finally:
            if SIDE.get() == "orchestrator":
                self.now.cpu -= time.thread_time() - begun

    def start(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], **options: Any) -> asyncio.Task[T]:
        """A task factory: the CPU time of the orchestrator's tasks is noted."""
        if SIDE.get() == "orchestrator":
            work = _Timed(work, self)
        return asyncio.Task(work, loop=loop, **options)


class _Timed(Coroutine[Any, Any, T]):
    """A coroutine whose steps are timed."""

    def __init__(self, work: Coroutine[Any, Any, T], meters: Meters) -> None:
        self._work, self._meters = work, meters

    def send(self, value: Any) -> Any:
        begun = time.thread_time()
        try:
            return self._work.send(value)
        finally:
            self._meters.now.cpu += time.thread_time() - begun

    def throw(self, *error: Any) -> Any:
        begun = time.thread_time()
        try:
            return self._work.throw(*error)
        finally:
            self._meters.now.cpu += time.thread_time() - begun

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return (yield from self._work.__await__())


class MeteredBus(Bus):
    """A bus whose operations are counted; a receiver may wait as long as it likes, since waiting is no operation."""

    def __init__(self, bus: Bus, meters: Meters) -> None:
        self._bus, self._meters = bus, meters

    async def send(self, queue: str, message: Outgoing) -> None:
        counts = self._meters.counts
        counts[f"message.sent.{_kind(queue)}"] += 1
        counts["bytes.sent"] += len(message.body)
        with self._meters.elsewhere():
            await self._bus.send(queue, message)

    async def receive(self, queue: str, *, wait: float) -> Delivery | None:
        found = await self._bus.receive(queue, wait=max(wait, _IDLE))
        if found is not None:
            counts = self._meters.counts
            counts[f"message.received.{_kind(queue)}"] += 1
            counts[f"kind.{found.subject}"] += 1
            counts["bytes.received"] += len(found.body)
        return found

    async def complete(self, delivery: Delivery) -> None:
        self._meters.counts["message.settled"] += 1
        with self._meters.elsewhere():
            await self._bus.complete(delivery)

    async def abandon(self, delivery: Delivery) -> None:
        self._meters.counts["message.settled"] += 1
        await self._bus.abandon(delivery)

    async def dead_letter(self, delivery: Delivery, *, reason: str, description: str) -> None:
        self._meters.counts["message.dead-lettered"] += 1
        await self._bus.dead_letter(delivery, reason=reason, description=description)

    async def renew(self, delivery: Delivery) -> datetime:
        self._meters.counts["message.renewed"] += 1
        with self._meters.elsewhere():
            return await self._bus.renew(delivery)

    async def peek(self, queue: str, *, count: int, from_sequence_number: int = 0) -> Sequence[Delivery]:
        self._meters.counts["message.peeked"] += 1
        return await self._bus.peek(queue, count=count, from_sequence_number=from_sequence_number)

    async def close(self) -> None:
        await self._bus.close()


class MeteredStore(Store):
    """A store whose operations are counted, as Blob Storage would bill them, and bytes by container."""

    def __init__(self, store: Store, meters: Meters, clock: Clock) -> None:
        self._store, self._meters, self._clock = store, meters, clock

    async def read(self, container: str, name: str, *, limit: int = 4 << 20) -> Document:
        self._count("read")
        with self._meters.elsewhere():
            found = await self._store.read(container, name, limit=limit)
        self._bytes("read", container, len(found.data))
        return found

    async def write(self, container: str, name: str, data: bytes, *, if_match: str | None) -> str:
        if name.endswith("/head.json"):
            self._meters.head(data, self._clock.now())
        if name.startswith("experiments/"):
            self._meters.now.documents.append(len(data))
        self._count("write")
        self._bytes("written", container, len(data))
        with self._meters.elsewhere():
            return await self._store.write(container, name, data, if_match=if_match)

    async def create(self, container: str, name: str, source: Path | bytes) -> None:
        self._count("create")
        size = len(source) if isinstance(source, bytes) else source.stat().st_size  # noqa: ASYNC240  # in memory
        self._bytes("written", container, size)
        await self._store.create(container, name, source)

    async def open(self, container: str, name: str) -> Reader:
        self._count("open")
        with self._meters.elsewhere():
            return _MeteredReader(await self._store.open(container, name), container, self)

    async def fetch(self, container: str, name: str, target: Path) -> None:
        self._count("open")
        self._count("range")
        await self._store.fetch(container, name, target)

    async def list(self, container: str, prefix: str) -> Sequence[BlobInfo]:
        self._count("list")
        with self._meters.elsewhere():
            return await self._store.list(container, prefix)

    async def delete(self, container: str, name: str) -> None:
        self._count("delete")
        with self._meters.elsewhere():
            await self._store.delete(container, name)

    async def close(self) -> None:
        await self._store.close()

    def _count(self, kind: str) -> None:
        self._meters.counts[f"blob.{kind}"] += 1

    def _bytes(self, what: str, container: str, size: int) -> None:
        where = "updates" if container.startswith("updates-") else container
        self._meters.counts[f"bytes.{what}.{where}"] += size


class _MeteredReader(Reader):
    def __init__(self, reader: Reader, container: str, store: MeteredStore) -> None:
        self._reader, self._container, self._store = reader, container, store

    @property
    def size(self) -> int:
        return self._reader.size

    @property
    def etag(self) -> str:
        return self._reader.etag

    async def read(self, offset: int, length: int) -> bytes:
        self._store._count("range")
        self._store._bytes("read", self._container, length)
        with self._store._meters.elsewhere():
            return await self._reader.read(offset, length)

    async def close(self) -> None:
        await self._reader.close()


def _kind(queue: str) -> str:
    """`to` and `from` for the silos' queues, of which there are many."""
    return queue.partition("-")[0]
