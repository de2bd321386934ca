"""What a queue does: order, locks, delivery counts, dead letters, expiry, schedules, duplicates.

Pure: no I/O, no clock (``now`` is handed in, in milliseconds since the epoch), no AMQP. Every change is told to a
``Journal`` in the order it happens; what makes it durable, and who hears of it, is decided elsewhere.
A lock is a token and a time. It belongs to no connection, so nothing here knows of connections.
"""

import heapq
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

from servicebus_emulator.config import QueueSettings
from servicebus_emulator.faults import Faults
from servicebus_emulator.message import Arrival
from servicebus_emulator.record import Disabled, Journal, LockLost, Message, NotFound, QueueFull, Refused, State


class Queue:
    """One queue and its dead letter queue: two sides of the same messages, told apart by ``dead``."""

    def __init__(
        self, key: int, name: str, settings: QueueSettings, journal: Journal, faults: Faults | None = None
    ) -> None:
        self.key = key
        self.name = name
        self.settings = settings
        self.size = 0
        """Bytes of all messages as they were sent, dead letters included."""
        self._journal = journal
        self._faults = faults or Faults()
        self._last_sequence = 0
        self._messages: dict[int, Message] = {}
        self._locks: dict[UUID, Message] = {}
        self._order: dict[bool, list[int]] = {False: [], True: []}  # every sequence number, ascending
        self._available: dict[bool, list[int]] = {False: [], True: []}  # heaps; stale entries are skipped
        self._deadlines: list[tuple[int, int]] = []  # a heap of (when, sequence); stale entries are skipped
        self._seen: OrderedDict[str, int] = OrderedDict()  # message id to when it was first sent

    # ------------------------------------------------------------------------------------------ restoring

    def restore(self, last_sequence: int, messages: Iterable[Message], seen: Iterable[tuple[str, int]]) -> None:
        """Take back what the journal was told before a restart."""
        self._last_sequence = last_sequence
        for message in messages:
            self._hold(message)
            self.size += len(message.payload)
            self._last_sequence = max(self._last_sequence, message.sequence)
            if message.lock is not None:
                self._locks[message.lock] = message
        self._seen.update(seen)

    # -------------------------------------------------------------------------------------------- sending

    def send(self, arrivals: Sequence[Arrival], now: int) -> list[int]:
        """Take in all of them; the sequence number of each, 0 for a duplicate, which is dropped silently."""
        self.check_takes()
        if self.size >= self.settings.max_size:
            raise QueueFull(
                f"The maximum entity size has been reached or exceeded for Queue: '{self.name}'. "
                f"Size of entity in bytes: {self.size}, Max entity size in bytes: {self.settings.max_size}."
            )
        return [0 if self._is_duplicate(arrival, now) else self._enqueue(arrival, now) for arrival in arrivals]

    def check_takes(self) -> None:
        """Raises Disabled while senders are kept out."""
        if self.settings.status in ("Disabled", "SendDisabled"):
            raise Disabled(f"Messaging entity '{self.name}' is currently disabled for sending.")

    def _enqueue(self, arrival: Arrival, now: int) -> int:
        default = self.settings.default_ttl
        ttl = default if arrival.ttl is None else arrival.ttl if default is None else min(arrival.ttl, default)
        later = arrival.scheduled_for is not None and arrival.scheduled_for > now
        message = Message(
            id=self._journal.new_id(),
            sequence=self._next_sequence(),
            message_id=arrival.message_id,
            payload=arrival.payload,
            enqueued_at=now,
            state=State.SCHEDULED if later else State.ACTIVE,
            scheduled_for=arrival.scheduled_for if later else None,
            ttl=ttl,
        )
        self._hold(message)
        self.size += len(message.payload)
        self._journal.save(self.key, message, is_new=True)
        return message.sequence

    def _is_duplicate(self, arrival: Arrival, now: int) -> bool:
        if not self.settings.requires_duplicate_detection:
            return False
        horizon = now - self.settings.duplicate_window
        expired = False
        while self._seen and next(iter(self._seen.values())) <= horizon:
            self._seen.popitem(last=False)
            expired = True
        if expired:
            self._journal.forget(self.key, horizon)
        if arrival.message_id in self._seen:
            return True
        self._seen[arrival.message_id] = now
        self._journal.remember(self.key, arrival.message_id, now)
        return False

    def cancel_scheduled(self, sequences: Sequence[int]) -> None:
        """All or none."""
        messages = []
        for sequence in sequences:
            message = self._messages.get(sequence)
            if message is None or message.state is not State.SCHEDULED:
                raise NotFound(f"no scheduled message has sequence number {sequence}")
            messages.append(message)
        for message in messages:
            self._remove(message)

    # ------------------------------------------------------------------------------------------ receiving

    def check_gives(self) -> None:
        """Raises Disabled while receivers are kept out."""
        if not self._gives():
            raise Disabled(f"Messaging entity '{self.name}' is currently disabled for receiving.")

    def _gives(self) -> bool:
        return self.settings.status in ("Active", "SendDisabled")

    def lock_next(self, now: int, *, dead: bool = False) -> Message | None:
        """Lock the first message that is free, for one holder."""
        message = self._first_available(now, dead)
        if message is None:
            return None
        heapq.heappop(self._available[dead])
        self._lock(message, now)
        return message

    def take_next(self, now: int, *, dead: bool = False) -> Message | None:
        """Receive and delete in one."""
        message = self._first_available(now, dead)
        if message is not None:
            self._remove(message)
        return message

    def _first_available(self, now: int, dead: bool) -> Message | None:
        heap = self._available[dead]
        while heap and self._gives():
            message = self._messages.get(heap[0])
            if message is not None and message.dead is dead and _is_free(message):
                if message.expires_at is None or message.expires_at > now:
                    return message
                self._expire(message, now)
            heapq.heappop(heap)
        return None

    def receive_deferred(self, sequences: Sequence[int], now: int, *, dead: bool, lock: bool) -> list[Message]:
        """All or none."""
        self.check_gives()
        self.tick(now)
        found = []
        for sequence in sequences:
            message = self._messages.get(sequence)
            if message is None or message.dead is not dead or message.state is not State.DEFERRED:
                raise NotFound(f"no deferred message has sequence number {sequence}")
            if message.lock is not None:
                raise NotFound(f"the deferred message {sequence} is locked")
            found.append(message)
        for message in found:
            if lock:
                self._lock(message, now)
            else:
                self._remove(message)
        return found

    def peek(self, first: int, count: int, *, dead: bool = False) -> list[Message]:
        """Every message from a sequence number on: free, locked, deferred or scheduled alike."""
        order = self._order[dead]
        start = bisect_left(order, first)
        return [self._messages[sequence] for sequence in order[start : start + max(count, 0)]]

    def set_aside(self, message: Message, why: str) -> None:
        """It cannot be given to anybody: to the dead letters; and one of those is kept where only peeking finds it."""
        if message.sequence not in self._messages:  # it was taken already, and is put back as a new one
            message = replace(message, id=self._journal.new_id(), added=dict(message.added))
            self._hold(message)
            self.size += len(message.payload)
            self._journal.save(self.key, message, is_new=True)
        if not message.dead:
            self._bury(message, "DeliveryFailed", f"The message could not be delivered: {why}")
            return
        self._unlock(message)
        message.state = State.DEFERRED
        self._changed(message)

    # ------------------------------------------------------------------------------------------- settling

    def complete(self, token: UUID, now: int) -> None:
        self._remove(self._locked(token, now))

    def abandon(self, token: UUID, now: int, added: Mapping[str, Any] | None = None) -> None:
        message = self._locked(token, now)
        message.added |= added or {}
        self._fail(message, now)

    def release(self, token: UUID, now: int) -> None:
        """Give it back as if it had never been delivered."""
        self._free(self._locked(token, now), now)

    def defer(self, token: UUID, now: int, added: Mapping[str, Any] | None = None) -> None:
        message = self._locked(token, now)
        message.added |= added or {}
        message.state = State.DEFERRED
        self._free(message, now)

    def dead_letter(
        self,
        token: UUID,
        now: int,
        reason: str | None,
        description: str | None,
        added: Mapping[str, Any] | None = None,
    ) -> None:
        message = self._locked(token, now)
        if message.dead:
            raise Refused("a dead letter cannot be dead-lettered again")
        message.added |= added or {}
        self._bury(message, reason, description)

    def renew(self, token: UUID, now: int) -> int:
        """Until when the lock now holds."""
        message = self._locked(token, now)
        message.locked_until = now + self.settings.lock_duration
        self._changed(message)
        return message.locked_until

    def check_lock(self, token: UUID, now: int, *, dead: bool | None = None) -> None:
        message = self._locked(token, now)
        if dead is not None and message.dead is not dead:
            raise LockLost("the lock is on the other side of the queue")

    def _locked(self, token: UUID, now: int) -> Message:
        message = self._locks.get(token)
        if message is None or message.lock_end is None or message.lock_end <= now:
            raise LockLost("the lock has expired, or the message was settled before")
        return message

    # ----------------------------------------------------------------------------------------------- time

    def tick(self, now: int) -> None:
        """Do everything that is due: locks that lapse, messages that expire, schedules that come up."""
        while self._deadlines and self._deadlines[0][0] <= now:
            when, sequence = heapq.heappop(self._deadlines)
            message = self._messages.get(sequence)
            if message is None or message.deadline != when:
                continue
            if message.lock is not None:
                self._fail(message, now)
            elif message.state is State.SCHEDULED:
                self._activate(message, now)
            else:
                self._expire(message, now)

    def next_deadline(self) -> int | None:
        """When ``tick`` next has something to do."""
        while self._deadlines:
            when, sequence = self._deadlines[0]
            message = self._messages.get(sequence)
            if message is not None and message.deadline == when:
                return when
            heapq.heappop(self._deadlines)
        return None

    def has_available(self, *, dead: bool) -> bool:
        """May be wrong about a message that has just expired; never wrong about one that has not."""
        heap = self._available[dead]
        while heap and self._gives():
            message = self._messages.get(heap[0])
            if message is not None and message.dead is dead and _is_free(message):
                return True
            heapq.heappop(heap)
        return False

    def counts(self) -> dict[str, int]:
        """What an operator asks first."""
        dead = len(self._order[True])
        scheduled = sum(1 for m in self._messages.values() if m.state is State.SCHEDULED)
        return {"active": len(self._messages) - dead - scheduled, "dead": dead, "scheduled": scheduled}

    # ------------------------------------------------------------------------------------ the small steps

    def _next_sequence(self) -> int:
        self._last_sequence += 1
        self._journal.sequence(self.key, self._last_sequence)
        return self._last_sequence

    def _lock(self, message: Message, now: int) -> None:
        message.lock = uuid4()
        message.locked_until = now + self.settings.lock_duration
        most = self._faults.lock_max_age
        message.lock_limit = None if most is None else now + most
        self._locks[message.lock] = message
        self._changed(message)

    def _unlock(self, message: Message) -> None:
        if message.lock is not None:
            del self._locks[message.lock]
            message.lock = None
            message.locked_until = None
            message.lock_limit = None

    def _fail(self, message: Message, now: int) -> None:
        """A delivery that came to nothing counts; too many, and it is a dead letter."""
        message.delivery_count += 1
        if not message.dead and message.delivery_count >= self.settings.max_delivery_count:
            self._bury(
                message,
                "MaxDeliveryCountExceeded",
                f"Message could not be consumed after {message.delivery_count} delivery attempts.",
            )
        else:
            self._free(message, now)

    def _free(self, message: Message, now: int) -> None:
        self._unlock(message)
        if message.expires_at is not None and message.expires_at <= now:
            self._expire(message, now)
            return
        if message.state is State.ACTIVE:
            heapq.heappush(self._available[message.dead], message.sequence)
        self._changed(message)

    def _expire(self, message: Message, now: int) -> None:
        if self.settings.dead_letter_on_expiration:
            self._bury(message, "TTLExpiredException", "The message expired and was dead lettered.")
        else:
            self._remove(message)

    def _bury(self, message: Message, reason: str | None, description: str | None) -> None:
        """To the dead letter side, under the same sequence number."""
        self._unlock(message)
        self._drop_from_order(message)
        message.dead = True
        message.state = State.ACTIVE
        told = {"DeadLetterReason": reason, "DeadLetterErrorDescription": description}
        message.added |= {name: text for name, text in told.items() if text is not None}
        insort(self._order[True], message.sequence)
        heapq.heappush(self._available[True], message.sequence)
        self._changed(message)

    def _activate(self, message: Message, now: int) -> None:
        """A scheduled message comes up as if it were sent at this moment, with a new sequence number."""
        self._drop_from_order(message)
        del self._messages[message.sequence]
        message.sequence = self._next_sequence()
        message.state = State.ACTIVE
        message.scheduled_for = None
        message.enqueued_at = now
        self._hold(message)
        self._journal.save(self.key, message)

    def _hold(self, message: Message) -> None:
        self._messages[message.sequence] = message
        insort(self._order[message.dead], message.sequence)
        if _is_free(message):
            heapq.heappush(self._available[message.dead], message.sequence)
        self._await(message)

    def _changed(self, message: Message) -> None:
        self._await(message)
        self._journal.save(self.key, message)

    def _await(self, message: Message) -> None:
        deadline = message.deadline
        if deadline is None:
            return
        heapq.heappush(self._deadlines, (deadline, message.sequence))
        if len(self._deadlines) > 2 * len(self._messages) + 1000:
            live = ((m.deadline, m.sequence) for m in self._messages.values())
            self._deadlines = [(when, sequence) for when, sequence in live if when is not None]
            heapq.heapify(self._deadlines)

    def _remove(self, message: Message) -> None:
        self._unlock(message)
        self._drop_from_order(message)
        del self._messages[message.sequence]
        self.size -= len(message.payload)
        self._journal.delete(self.key, message)

    def _drop_from_order(self, message: Message) -> None:
        order = self._order[message.dead]
        del order[bisect_left(order, message.sequence)]


def _is_free(message: Message) -> bool:
    return message.lock is None and message.state is State.ACTIVE
