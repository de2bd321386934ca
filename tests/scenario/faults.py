"""What can go wrong at a call that leaves a process: it dies, it gets no answer, it is refused, others come first.

Wrappers around bus and store that count every call. Nothing here knows what the calls are for.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from messages.errors import Transient
from messages.ports import BlobInfo, Delivery, Document, Outgoing, Reader
from messages.transport.memory_bus import MemoryBroker, MemoryBus
from messages.transport.memory_store import MemoryStore

T = TypeVar("T")


class Crash(BaseException):
    """The process is dead. Nothing of ours catches it."""


class Trouble:
    """What goes wrong at which call of a process. Calls are counted from 1, in the order in which they are made."""

    def __init__(self, *, yields: random.Random | None = None) -> None:
        self.calls = 0
        self.log: list[str] = []
        self.dead = False
        self.at: dict[int, str] = {}
        self.next: dict[str, str] = {}
        self._yields = yields
        self._held_at: str | None = None
        self._released = asyncio.Event()
        self.holding = False
        """Whether a call is being held."""

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

    def hold_at(self, pattern: str) -> None:
        """The next call like this waits until `release()`."""
        self._held_at, self._released = pattern, asyncio.Event()

    def release(self) -> None:
        """What is held goes on."""
        self._released.set()

    async def be_held(self, operation: str, where: str) -> None:
        """Waits here if this is the call to be held."""
        if self._held_at is not None and re.search(self._held_at, f"{operation} {where}"):
            self._held_at, self.holding = None, True
            await self._released.wait()
            self.holding = False

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
        await self._trouble.be_held(operation, where)
        self._trouble.hook("before", operation, where)
        result = await call()
        await self._trouble.pass_by()
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


class FaultyBus:
    """One process's view of the bus."""

    def __init__(
        self, broker: MemoryBroker, trouble: Trouble, *, witness: Callable[[str, Outgoing], None] | None = None
    ) -> None:
        self._bus, self._trouble, self._witness = MemoryBus(broker), trouble, witness

    async def _call(self, operation: str, queue: str, call: Callable[[], Awaitable[T]]) -> T:
        await self._trouble.pass_by()
        self._trouble.hook("before", operation, queue)
        result = await call()
        self._trouble.hook("after", operation, queue)
        return result

    async def send(self, queue: str, message: Outgoing) -> None:
        async def call() -> None:
            if self._witness is not None:
                self._witness(queue, message)
            await self._bus.send(queue, message)

        await self._call("send", queue, call)

    async def receive(self, queue: str, *, wait: float) -> Delivery | None:
        return await self._call("receive", queue, lambda: self._bus.receive(queue, wait=wait))

    async def complete(self, delivery: Delivery) -> None:
        await self._call("complete", delivery.queue, lambda: self._bus.complete(delivery))

    async def abandon(self, delivery: Delivery) -> None:
        await self._call("abandon", delivery.queue, lambda: self._bus.abandon(delivery))

    async def dead_letter(self, delivery: Delivery, *, reason: str, description: str) -> None:
        call = partial(self._bus.dead_letter, delivery, reason=reason, description=description)
        await self._call("dead-letter", delivery.queue, call)

    async def renew(self, delivery: Delivery) -> datetime:
        return await self._call("renew", delivery.queue, lambda: self._bus.renew(delivery))

    async def peek(self, queue: str, *, count: int, from_sequence_number: int = 0) -> Sequence[Delivery]:
        call = partial(self._bus.peek, queue, count=count, from_sequence_number=from_sequence_number)
        return await self._call("peek", queue, call)

    async def close(self) -> None:
        """Nothing to close."""
