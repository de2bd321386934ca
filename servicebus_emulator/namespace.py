"""The live queues: the pure broker joined to a clock, a timer and the links that wait for messages.

After every step the queue's free messages are matched with waiting consumers, and one timer is set for the moment
at which time itself will next change something. Nothing polls. No AMQP here: a consumer is anything that wants
messages.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from servicebus_emulator import log
from servicebus_emulator.beginning import begin
from servicebus_emulator.broker import Queue
from servicebus_emulator.config import Config, QueueSettings
from servicebus_emulator.faults import Faults
from servicebus_emulator.journal import GroupCommit
from servicebus_emulator.message import Arrival
from servicebus_emulator.record import Message, NotFound
from servicebus_emulator.rights import Rule, is_of
from servicebus_emulator.store import Store

T = TypeVar("T")
MOST_AT_ONCE = 200  # deliveries before other clients get a turn
LONGEST_SLEEP = 60.0  # the wall clock may jump; a deadline is looked at again at least this often


def wall_clock() -> int:
    return time.time_ns() // 1_000_000


class Consumer(Protocol):
    """Wants messages from one side of one queue."""

    deletes: bool  # receive and delete, instead of peek and lock

    def is_hungry(self) -> bool: ...
    def deliver(self, message: Message) -> None: ...


class Guest(Protocol):
    """Hangs on a queue, and is told when that goes away."""

    def evict(self) -> None: ...


class LiveQueue:
    """A queue that acts: every step it takes also delivers what became free."""

    def __init__(
        self,
        queue: Queue,
        journal: GroupCommit,
        clock: Callable[[], int],
        wake_at: Callable[[int | None], None],
        *,
        created_at: int = 0,
        updated_at: int = 0,
    ) -> None:
        self.created_at = created_at
        self.updated_at = updated_at
        self.accessed_at: int | None = None
        """When a client last wanted something of it; forgotten when the process ends."""
        self.queue = queue
        self.journal = journal
        self.clock = clock
        self._wake_at = wake_at
        self._hungry: dict[bool, deque[Consumer]] = {False: deque(), True: deque()}
        self._resumption: asyncio.Handle | None = None
        self._guests: dict[Guest, None] = {}
        self._is_gone = False

    @property
    def name(self) -> str:
        return self.queue.name

    def send(self, arrivals: Sequence[Arrival]) -> list[int]:
        return self.act(lambda queue, now: queue.send(arrivals, now))

    def act(self, step: Callable[[Queue, int], T]) -> T:
        """One step of the queue and all that follows from it. Raises NotFound when the queue has been deleted."""
        if self._is_gone:
            raise NotFound(f"the queue {self.name} has been deleted")
        now = self.accessed_at = self.clock()
        try:
            return step(self.queue, now)
        finally:
            self.deliver()
            self._wake_at(self.queue.next_deadline())

    def feed(self, consumer: Consumer, *, dead: bool) -> None:
        """The consumer has become hungry; it stays in line for as long as it says so."""
        self.accessed_at = self.clock()
        if consumer not in self._hungry[dead]:
            self._hungry[dead].append(consumer)
        self.deliver()
        self._wake_at(self.queue.next_deadline())

    def forget(self, consumer: Consumer, *, dead: bool) -> None:
        """The consumer is gone for good."""
        if consumer in self._hungry[dead]:
            self._hungry[dead].remove(consumer)

    def join(self, guest: Guest) -> None:
        """The guest is told when the queue goes away."""
        self._guests[guest] = None

    def leave(self, guest: Guest) -> None:
        """The guest has gone first."""
        self._guests.pop(guest, None)

    def close(self) -> None:
        """The queue is gone: so are those who hang on it, and nothing is done with it any more."""
        self._is_gone = True
        for guest in list(self._guests):
            guest.evict()

    def deliver(self) -> None:
        """Give what is free to who is hungry, in turn."""
        budget = MOST_AT_ONCE
        for dead, line in self._hungry.items():
            while line and self.queue.has_available(dead=dead):
                if not budget:
                    self._deliver_soon()
                    return
                budget -= 1
                consumer = line.popleft()
                if not consumer.is_hungry():
                    continue
                now = self.clock()
                if consumer.deletes:
                    message = self.queue.take_next(now, dead=dead)
                else:
                    message = self.queue.lock_next(now, dead=dead)
                line.append(consumer)
                if message is None:
                    break
                try:
                    consumer.deliver(message)
                except Exception as error:  # noqa: BLE001 - one message's trouble is not another's
                    log.error("delivery.bug", exc_info=error, queue=self.name, sequence=message.sequence)
                    self.queue.set_aside(message, str(error))

    def _deliver_soon(self) -> None:
        def resume() -> None:
            self._resumption = None
            self.deliver()
            self._wake_at(self.queue.next_deadline())

        if self._resumption is None:
            self._resumption = asyncio.get_running_loop().call_soon(resume)


class Namespace:
    def __init__(
        self,
        store: Store,
        journal: GroupCommit,
        config: Config | None,
        clock: Callable[[], int] = wall_clock,
        faults: Faults | None = None,
        *,
        unrestricted: bool = False,
    ) -> None:
        """Without a configuration all is as it was. Raises ConfigError when what is stored speaks against it."""
        self.journal = journal
        self.faults = faults or Faults()
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due: int | None = None
        self._queues: dict[str, LiveQueue] = {}
        access = begin(store, config, clock(), unrestricted=unrestricted)
        self.rules = access.rules
        """Rules for the whole namespace."""
        self._is_restricted = access.restricted
        self._last_key = 0
        for stored in store.queues():
            queue = Queue(stored.key, stored.name, stored.settings, journal, self.faults)
            queue.restore(stored.last_sequence, store.messages(stored.key), store.seen(stored.key))
            self._open(queue, stored.created_at, stored.updated_at)
            log.info("queue.opened", queue=stored.name, **queue.counts())
        self._tick()

    def _open(self, queue: Queue, created_at: int, updated_at: int) -> LiveQueue:
        live = LiveQueue(queue, self.journal, self._clock, self.wake_at, created_at=created_at, updated_at=updated_at)
        self._queues[queue.name.lower()] = live
        self._last_key = max(self._last_key, queue.key)
        return live

    def find(self, name: str) -> LiveQueue | None:
        """The queue of that name in lower case."""
        return self._queues.get(name)

    def queues(self) -> list[LiveQueue]:
        """All, in the order of their names."""
        return [self._queues[name] for name in sorted(self._queues)]

    def now(self) -> int:
        """Milliseconds since the epoch."""
        return self._clock()

    def rules_of(self, path: str) -> Iterator[tuple[str, Rule]]:
        """The rules that may vouch for a path: those of its queue, then those of the namespace; all, for the root."""
        for name, live in self._queues.items():
            if not path or is_of(path, name):
                yield from ((name, rule) for rule in live.queue.settings.rules)
        yield from (("", rule) for rule in self.rules)

    def has_rules(self) -> bool:
        """Whether anything is restricted at all, which a configuration says, once and for later starts (`beginning`).

        A rule that a client makes where everybody may do everything is kept, and keeps nobody out: else it would
        lock out all who have no key, from the next start on.
        """
        return self._is_restricted

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    # ------------------------------------------------------------- queues that come and go, durable after commit

    def create(self, name: str, settings: QueueSettings) -> LiveQueue:
        """A new queue; there must be none of that name."""
        now = self._clock()
        queue = Queue(self._last_key + 1, name, settings, self.journal, self.faults)
        self.journal.put_queue(queue.key, name, settings, now, now)
        log.info("queue.created", queue=name)
        return self._open(queue, now, now)

    def update(self, live: LiveQueue, settings: QueueSettings) -> None:
        """New settings, for all that comes after."""
        live.queue.settings = settings
        live.updated_at = self._clock()
        self.journal.put_queue(live.queue.key, live.name, settings, live.created_at, live.updated_at)
        log.info("queue.updated", queue=live.name)

    def delete(self, live: LiveQueue) -> None:
        """The queue, all that is in it, and every link to it."""
        del self._queues[live.name.lower()]
        self.journal.drop_queue(live.queue.key)
        live.close()
        log.info("queue.deleted", queue=live.name)

    # ----------------------------------------------------------------------------------------------- time

    def wake_at(self, due: int | None) -> None:
        """See to it that the timer rings by then; ringing for nothing does no harm."""
        if due is None or (self._timer_due is not None and self._timer_due <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        delay = max(0.0, (due - self._clock()) / 1000)
        self._timer = self._loop.call_later(min(delay, LONGEST_SLEEP), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._timer_due = None
        for live in self._queues.values():
            due = live.queue.next_deadline()
            try:
                if due is not None and due <= self._clock():
                    live.queue.tick(self._clock())
                    live.deliver()
            except Exception as error:  # noqa: BLE001 - time goes on, for this queue and for all others
                log.error("tick.bug", exc_info=error, queue=live.name)
            self.wake_at(live.queue.next_deadline())
