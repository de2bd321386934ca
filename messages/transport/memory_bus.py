"""A broker in memory, faithful to Service Bus where it hurts: locks lapse, messages come twice, answers get lost.

`MemoryBroker` is the state, and outlives any connection; `MemoryBus` is one connection to it. All waiting goes through
a `Clock`, so that tests let hours pass at once. Nothing here is durable, and nothing here knows what messages mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal, final

from messages import names
from messages.errors import LockLost, NotFound, Poison
from messages.ports import Bus, Clock, Delivery, Outgoing
from messages.transport.dead_letters import fitting

Faults = Callable[[Literal["before", "after"], str, str], None]
"""Called with when, operation and queue. Raising `before`: it did not happen; `after`: it did, its answer was lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueOptions:
    """The properties of a queue that matter; durations in seconds."""

    lock_duration: float = 60.0
    max_delivery_count: int = 10
    duplicate_detection: float | None = None
    """For how long message ids are remembered; None: not at all."""
    dead_letter_expired: bool = False
    max_message_bytes: int = 256 * 1024


@dataclass(slots=True, kw_only=True)
class _Message:
    delivery: Delivery
    """What a receiver would be handed; `lock_token` is empty while nobody holds the lock."""
    available_at: datetime
    waits_for_its_time: bool
    expires_at: datetime | None
    lock_token: str = ""
    locked_until: datetime | None = None


@dataclass(slots=True)
class _Queue:
    name: str
    options: QueueOptions
    messages: list[_Message] = field(default_factory=list)
    seen: dict[str, datetime] = field(default_factory=dict)
    waiters: set[asyncio.Future[None]] = field(default_factory=set)

    def wake(self) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)


@final
class MemoryBroker:
    """The queues and what is in them. Queues must be named first: to an unknown one there is no sending."""

    def __init__(self, clock: Clock, queues: Iterable[str] = (), *, options: QueueOptions | None = None) -> None:
        self.clock = clock
        self._options = options or QueueOptions()
        self._queues: dict[str, _Queue] = {}
        self._sequence: Iterator[int] = itertools.count(1)
        for queue in queues:
            self.add_queue(queue)

    def add_queue(self, queue: str, options: QueueOptions | None = None) -> None:
        """Creates a queue, with options of its own if given. An existing queue keeps its messages."""
        options = options or self._options
        forever = replace(options, max_delivery_count=2**31, duplicate_detection=None)
        for name, its in ((queue, options), (names.dead_letters_of(queue), forever)):
            self._queues.setdefault(name.lower(), _Queue(name, its)).options = its

    def accept(self, queue: str, message: Outgoing) -> None:
        """Puts a message into a queue, unless its id was seen within the time of duplicate detection."""
        target = self._queue(queue)
        if len(message.body) > target.options.max_message_bytes:
            raise Poison("too-large", f"The message has {len(message.body)} bytes, more than the queue takes.")
        now = self.clock.now()
        if target.options.duplicate_detection is not None:
            horizon = now - timedelta(seconds=target.options.duplicate_detection)
            target.seen = {i: at for i, at in target.seen.items() if at > horizon}
            if message.message_id in target.seen:
                return
            target.seen[message.message_id] = now
        available = max(now, message.scheduled_at or now)
        delivery = Delivery(
            queue=target.name,
            body=message.body,
            message_id=message.message_id,
            subject=message.subject,
            correlation_id=message.correlation_id,
            sequence_number=next(self._sequence),
            delivery_count=0,
            enqueued_at=available,
            locked_until=None,
            lock_token="",
            scheduled_at=message.scheduled_at,
        )
        expires = None if message.time_to_live is None else available + message.time_to_live
        waits = available > now
        target.messages.append(
            _Message(delivery=delivery, available_at=available, waits_for_its_time=waits, expires_at=expires)
        )
        target.wake()

    def take(self, queue: str) -> Delivery | None:
        """Locks and returns the first message that is free, if there is one."""
        source = self._queue(queue)
        now = self.clock.now()
        self._let_time_pass(source, now)
        for message in source.messages:
            if message.available_at <= now and message.locked_until is None:
                message.lock_token = str(uuid.uuid4())
                message.locked_until = now + timedelta(seconds=source.options.lock_duration)
                source.wake()  # those who wait must now wait for this lock
                return replace(message.delivery, lock_token=message.lock_token, locked_until=message.locked_until)
        return None

    def renew(self, delivery: Delivery) -> datetime:
        """Extends a lock from now on."""
        queue, message = self._locked(delivery)
        message.locked_until = self.clock.now() + timedelta(seconds=queue.options.lock_duration)
        return message.locked_until

    def complete(self, delivery: Delivery) -> None:
        """Removes a locked message."""
        queue, message = self._locked(delivery)
        queue.messages.remove(message)

    def abandon(self, delivery: Delivery) -> None:
        """Frees a locked message at once; counts as a delivery."""
        self._unlock(*self._locked(delivery))

    def dead_letter(self, delivery: Delivery, reason: str, description: str) -> None:
        """Moves a locked message to the queue's dead letters."""
        self._bury(*self._locked(delivery), reason, fitting(description))

    def peek(self, queue: str, count: int, from_sequence_number: int) -> list[Delivery]:
        """Messages in order of their sequence numbers, whatever their state; locks nothing."""
        source = self._queue(queue)
        self._let_time_pass(source, self.clock.now())
        found = [m.delivery for m in source.messages if m.delivery.sequence_number >= from_sequence_number]
        return sorted(found, key=lambda d: d.sequence_number)[:count]

    async def changed(self, queue: str, until: datetime) -> None:
        """Returns when a message may have become free in `queue`, at the latest at `until`."""
        source = self._queue(queue)
        now = self.clock.now()
        watched = self._with_parent(source)
        times = (
            t
            for q in watched
            for m in q.messages
            for t in (m.locked_until, m.available_at, m.expires_at)
            if t and t > now
        )
        wait = (min([until, *times]) - now).total_seconds()
        change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = asyncio.ensure_future(self.clock.sleep(wait))
        for each in watched:
            each.waiters.add(change)
        try:
            await asyncio.wait((change, timer), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in watched:
                each.waiters.discard(change)
            timer.cancel()

    def _queue(self, name: str) -> _Queue:
        try:
            return self._queues[name.lower()]
        except KeyError:
            raise NotFound(f"there is no queue {name!r}") from None

    def _locked(self, delivery: Delivery) -> tuple[_Queue, _Message]:
        queue = self._queue(delivery.queue)
        self._let_time_pass(queue, self.clock.now())
        for message in queue.messages:
            if message.lock_token and message.lock_token == delivery.lock_token:
                return queue, message
        raise LockLost(f"the lock on message {delivery.message_id!r} in {queue.name!r} has lapsed")

    def _with_parent(self, queue: _Queue) -> tuple[_Queue, ...]:
        parent, _, dead = queue.name.partition("/")
        return (self._queue(parent), queue) if dead else (queue,)

    def _let_time_pass(self, queue: _Queue, now: datetime) -> None:
        for stirring in self._with_parent(queue):
            self._pass_time_in(stirring, now)

    def _pass_time_in(self, queue: _Queue, now: datetime) -> None:
        for message in list(queue.messages):
            if message.locked_until is not None and message.locked_until <= now:
                self._unlock(queue, message)
        for message in list(queue.messages):
            if message.expires_at is not None and message.expires_at <= now and message.locked_until is None:
                if queue.options.dead_letter_expired:
                    self._bury(queue, message, "TTLExpiredException", "The message expired and was dead lettered.")
                else:
                    queue.messages.remove(message)
        due = [m for m in queue.messages if m.waits_for_its_time and m.available_at <= now]
        for message in sorted(due, key=lambda m: m.available_at):
            # A scheduled message joins the end of the queue when its time comes, under a new sequence number.
            queue.messages.remove(message)
            message.waits_for_its_time = False
            message.delivery = replace(message.delivery, sequence_number=next(self._sequence))
            queue.messages.append(message)

    def _unlock(self, queue: _Queue, message: _Message) -> None:
        message.lock_token, message.locked_until = "", None
        count = message.delivery.delivery_count + 1
        message.delivery = replace(message.delivery, delivery_count=count)
        if count >= queue.options.max_delivery_count:
            text = f"Message could not be consumed after {count} delivery attempts."
            self._bury(queue, message, "MaxDeliveryCountExceeded", text)
        queue.wake()

    def _bury(self, queue: _Queue, message: _Message, reason: str, description: str) -> None:
        dead = "/" in queue.name
        grave = queue if dead else self._queue(names.dead_letters_of(queue.name))
        queue.messages.remove(message)
        message.lock_token, message.locked_until, message.expires_at = "", None, None
        message.delivery = replace(
            message.delivery, queue=grave.name, dead_letter_reason=reason, dead_letter_description=description
        )
        grave.messages.append(message)
        grave.wake()


@final
class MemoryBus(Bus):
    """A connection to a `MemoryBroker`. What it has locked stays locked when it is closed, until the locks lapse."""

    def __init__(self, broker: MemoryBroker, *, faults: Faults | None = None) -> None:
        self._broker = broker
        self.faults = faults

    async def send(self, queue: str, message: Outgoing) -> None:
        with self._faulty("send", queue):
            self._broker.accept(queue, message)

    async def receive(self, queue: str, *, wait: float) -> Delivery | None:
        clock = self._broker.clock
        deadline = clock.now() + timedelta(seconds=wait)
        with self._faulty("receive", queue):
            while True:
                if (delivery := self._broker.take(queue)) is not None:
                    return delivery
                if clock.now() >= deadline:
                    return None
                await self._broker.changed(queue, deadline)

    async def complete(self, delivery: Delivery) -> None:
        with self._faulty("complete", delivery.queue):
            self._broker.complete(delivery)

    async def abandon(self, delivery: Delivery) -> None:
        with self._faulty("abandon", delivery.queue):
            self._broker.abandon(delivery)

    async def dead_letter(self, delivery: Delivery, *, reason: str, description: str) -> None:
        with self._faulty("dead_letter", delivery.queue):
            self._broker.dead_letter(delivery, reason, description)

    async def renew(self, delivery: Delivery) -> datetime:
        with self._faulty("renew", delivery.queue):
            return self._broker.renew(delivery)

    async def peek(self, queue: str, *, count: int, from_sequence_number: int = 0) -> Sequence[Delivery]:
        with self._faulty("peek", queue):
            return self._broker.peek(queue, count, from_sequence_number)

    async def close(self) -> None:
        """Nothing to close."""

    @contextlib.contextmanager
    def _faulty(self, operation: str, queue: str) -> Iterator[None]:
        if self.faults is not None:
            self.faults("before", operation, queue)
        yield
        if self.faults is not None:
            self.faults("after", operation, queue)
