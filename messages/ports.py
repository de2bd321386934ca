"""What the code needs of the outside, as protocols: a bus, a store, a clock. Adapters are in `messages.transport`.

No SDK is imported here. Every method raises only errors of `messages.errors` (ValueError for a programmer's mistake).
Implementations never block the event loop: files and hashing go to threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from; a virtual one in tests."""

    def now(self) -> datetime:
        """The current time, timezone-aware, UTC."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Returns when `seconds` have passed on this clock."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A message to be sent. `body` is UTF-8 JSON; `subject` is its `kind`; `correlation_id` its run."""

    body: bytes
    message_id: str
    subject: str
    correlation_id: str | None = None
    scheduled_at: datetime | None = None
    time_to_live: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A message received under a lock (or peeked, or a dead letter; then with the reason)."""

    queue: str
    body: bytes
    message_id: str
    subject: str | None
    correlation_id: str | None
    sequence_number: int
    delivery_count: int
    """How often it was delivered before this time: 0 at first."""
    enqueued_at: datetime
    locked_until: datetime | None
    lock_token: str
    scheduled_at: datetime | None = None
    dead_letter_reason: str | None = None
    dead_letter_description: str | None = None


class Bus(Protocol):
    """A handful of broker verbs. Queue names may end in `/$DeadLetterQueue` for receive and peek."""

    async def send(self, queue: str, message: Outgoing) -> None:
        """Returns once the broker has the message. Raises Transient, NotFound, Forbidden, Poison (too large)."""
        ...

    async def receive(self, queue: str, *, wait: float) -> Delivery | None:
        """The next message under a lock, or None after `wait` seconds. Raises Transient, NotFound, Forbidden."""
        ...

    async def complete(self, delivery: Delivery) -> None:
        """Done with it. Raises LockLost, Transient."""
        ...

    async def abandon(self, delivery: Delivery) -> None:
        """Give it back at once (delivery count grows). Raises LockLost, Transient."""
        ...

    async def dead_letter(self, delivery: Delivery, *, reason: str, description: str) -> None:
        """Set it aside for a person. Raises LockLost, Transient."""
        ...

    async def renew(self, delivery: Delivery) -> datetime:
        """Extends the lock; returns until when. Raises LockLost, Transient."""
        ...

    async def peek(self, queue: str, *, count: int, from_sequence_number: int = 0) -> Sequence[Delivery]:
        """Up to `count` messages without locking them, active and scheduled, in order of sequence number."""
        ...

    async def close(self) -> None:
        """Closes every link. Messages still locked come back when their lock lapses."""
        ...


@dataclass(frozen=True, slots=True)
class Document:
    """A small blob with the ETag it had when read."""

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """One row of a listing."""

    name: str
    size: int
    etag: str
    modified: datetime


class Reader(Protocol):
    """A blob opened for range reads, pinned to the ETag it had when opened."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    @property
    def etag(self) -> str:
        """Changes with the blob's content; the same for as long as nobody has written it."""
        ...

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`. Raises Conflict when the blob has changed, ValueError out of range."""
        ...

    async def read_into(self, offset: int, target: memoryview) -> None:
        """The same, into memory that the caller uses again and again: as many bytes as there is room for in `target`.

        When it is cancelled, bytes may still arrive in `target` later.
        """
        target[:] = await self.read(offset, len(target))

    async def close(self) -> None:
        """Gives back what it holds."""
        ...


class Store(Protocol):
    """Blobs in containers. State documents change by compare-and-swap; weight blobs are created and never change."""

    async def read(self, container: str, name: str, *, limit: int = 4 << 20) -> Document:
        """A whole small blob. Raises NotFound, Forbidden, Transient, Poison('too-large') over `limit` bytes."""
        ...

    async def write(self, container: str, name: str, data: bytes, *, if_match: str | None) -> str:
        """Replaces the document whose ETag is `if_match`, or creates it when that is None; returns the new ETag.

        Raises Conflict when the condition does not hold.
        """
        ...

    async def create(self, container: str, name: str, source: Path | bytes) -> None:
        """Creates a blob from a file or from bytes; durable on return. Raises AlreadyExists; then nothing has changed.

        A file given as source must not change afterwards: a local store may link it instead of copying it.
        """
        ...

    async def open(self, container: str, name: str) -> Reader:
        """Opens a blob for range reads. Raises NotFound, Forbidden, Transient."""
        ...

    async def fetch(self, container: str, name: str, target: Path) -> None:
        """Puts the blob's bytes at `target`, which must not exist yet (parallel ranges, or a read-only link)."""
        ...

    async def list(self, container: str, prefix: str) -> Sequence[BlobInfo]:
        """Blobs whose name begins with `prefix`, by name. An unknown container is empty."""
        ...

    async def delete(self, container: str, name: str) -> None:
        """Deletes a blob; nothing happens when it is not there."""
        ...

    async def close(self) -> None:
        """Closes connections."""
        ...
