"""Group commit: changes of the broker on their way to disk, and what waits for them to be there.

Collects changes on the event loop and hands them, one batch at a time, to the thread that owns the store: at once
when it is idle, together when it is busy. ``after_commit`` is the one rule of durability here: nothing that a
client may rely on leaves this process before the changes it rests upon are on disk. If a write fails, what is in
memory is no longer true, so the process stops.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from servicebus_emulator.config import QueueSettings
from servicebus_emulator.record import Message
from servicebus_emulator.store import Batch, Store, message_row


class GroupCommit:
    """The broker's ``Journal``, made durable."""

    def __init__(self, store: Store, on_failure: Callable[[BaseException], None]) -> None:
        self._store = store
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._last_id = store.last_id()
        self._failed = False
        self._drains: set[asyncio.Future[None]] = set()
        self._thread_ended = asyncio.Event()
        self.backlog = 0  # bytes of messages that wait to be written
        self._in_flight = False
        self._flush_is_due = False
        self._waiting: list[Callable[[], None]] = []  # for the changes collected now
        self._committing: list[Callable[[], None]] = []  # for the batch being written
        self._acting: list[Callable[[], None]] | None = None  # what is being done right now
        self._saved: dict[int, tuple[int, Message]] = {}
        self._new: dict[int, Message] = {}
        self._deleted: set[int] = set()
        self._sequences: dict[int, int] = {}
        self._seen: list[tuple[int, str, int]] = []
        self._forgotten: list[tuple[int, int]] = []
        self._queues: dict[int, tuple[int, str, str, int, int]] = {}
        self._dropped: list[tuple[int]] = []
        self._batches: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="store", daemon=True)
        self._thread.start()

    # -------------------------------------------------------------------------------- hearing the broker

    def new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def save(self, queue: int, message: Message, *, is_new: bool = False) -> None:
        self._saved[message.id] = (queue, message)
        if is_new:
            self._new[message.id] = message
            self.backlog += len(message.payload)
        self._flush_soon()

    def delete(self, queue: int, message: Message) -> None:
        self._saved.pop(message.id, None)
        if self._new.pop(message.id, None) is None:
            self._deleted.add(message.id)
        self._flush_soon()

    def sequence(self, queue: int, last: int) -> None:
        self._sequences[queue] = last
        self._flush_soon()

    def remember(self, queue: int, message_id: str, at: int) -> None:
        self._seen.append((queue, message_id, at))
        self._flush_soon()

    def forget(self, queue: int, before: int) -> None:
        self._forgotten.append((queue, before))
        self._flush_soon()

    # -------------------------------------------------------------------------- queues that come and go

    def put_queue(self, key: int, name: str, settings: QueueSettings, created_at: int, updated_at: int) -> None:
        """A new queue, or new settings for one."""
        self._queues[key] = (key, name, settings.to_json(), created_at, updated_at)
        self._flush_soon()

    def drop_queue(self, key: int) -> None:
        """The queue is gone with all that is in it, and nothing more is told of it."""
        self._queues.pop(key, None)
        for identity in [identity for identity, (owner, _) in self._saved.items() if owner == key]:
            del self._saved[identity]
            self._new.pop(identity, None)
        self._seen = [entry for entry in self._seen if entry[0] != key]
        self._dropped.append((key,))
        self._flush_soon()

    # ------------------------------------------------------------------------------------------ waiting

    def after_commit(self, act: Callable[[], None]) -> None:
        """Act once all changes so far are on disk: at once if they are. In the order of the calls."""
        if self._flush_is_due or self._in_flight:
            self._waiting.append(act)
        elif self._acting is not None:
            self._acting.append(act)
        else:
            act()

    async def drained(self) -> None:
        """All changes so far are on disk, and what waited for them has acted; or never will."""
        if self._failed:
            return
        done: asyncio.Future[None] = self._loop.create_future()
        self._drains.add(done)
        self.after_commit(lambda: _resolve(done))
        try:
            await done
        finally:
            self._drains.discard(done)

    async def close(self) -> None:
        """Write what there is and stop the thread."""
        await self.drained()
        self._batches.put(None)
        await self._thread_ended.wait()

    # ------------------------------------------------------------------------------------------ writing

    def _flush_soon(self) -> None:
        if not self._flush_is_due:
            self._flush_is_due = True
            if not self._in_flight:
                self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._in_flight or self._failed or not self._flush_is_due:
            return
        try:
            batch = self._batch()
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing may be acknowledged
            self._broken(error)
            return
        self._flush_is_due = False
        self._in_flight = True
        self.backlog = 0
        self._committing, self._waiting = self._waiting, []
        self._batches.put(batch)
        self._saved, self._new, self._deleted, self._sequences = {}, {}, set(), {}
        self._seen, self._forgotten = [], []
        self._queues, self._dropped = {}, []

    def _batch(self) -> Batch:
        return Batch(
            messages=[message_row(queue, message) for queue, message in self._saved.values()],
            payloads=[(identity, message.payload) for identity, message in self._new.items()],
            deleted=[(identity,) for identity in self._deleted],
            sequences=[(last, queue) for queue, last in self._sequences.items()],
            seen=self._seen,
            forgotten=self._forgotten,
            queues=list(self._queues.values()),
            dropped=self._dropped,
        )

    def _committed(self) -> None:
        acts, self._committing = self._committing, []
        self._in_flight = False
        if self._flush_is_due:
            self._flush()  # before acting, so that the disk works while we do
        else:
            acts += self._waiting
            self._waiting = []
        self._acting = acts
        for act in acts:  # acts may append to it
            try:
                act()
            except Exception as error:  # noqa: BLE001 - one client's trouble is not another's
                self._loop.call_exception_handler({"message": "after a commit", "exception": error})
        self._acting = None

    def _broken(self, error: BaseException) -> None:
        self._failed = True
        for done in self._drains:
            _resolve(done)
        self._on_failure(error)

    def _write(self) -> None:
        while (batch := self._batches.get()) is not None:
            try:
                self._store.write(batch)
            except BaseException as error:  # noqa: BLE001 - whatever it is, nothing may be acknowledged
                self._tell(self._broken, error)
                break
            self._tell(self._committed)
        self._tell(self._thread_ended.set)

    def _tell(self, act: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop did not wait for a disk that takes too long
            self._loop.call_soon_threadsafe(act, *arguments)


def _resolve(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
