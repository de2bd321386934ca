"""Nothing is acted upon before it is on disk; what waits together is written together."""

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from servicebus_emulator.broker import Queue
from servicebus_emulator.codec import EncodeError
from servicebus_emulator.config import QueueSettings
from servicebus_emulator.journal import GroupCommit
from servicebus_emulator.message import Arrival
from servicebus_emulator.store import Batch, Store, StoreError


class SlowStore(Store):
    """Writes when it is let, or fails."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.gate = threading.Semaphore(0)
        self.batches: list[Batch] = []
        self.failure: Exception | None = None

    def write(self, batch: Batch) -> None:
        assert self.gate.acquire(timeout=30)
        if self.failure is not None:
            raise self.failure
        super().write(batch)
        self.batches.append(batch)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SlowStore]:
    store = SlowStore(tmp_path)
    store.put_queue("q", QueueSettings())
    yield store
    store.close()


def fail(error: BaseException) -> None:
    raise AssertionError from error


def arrival(text: str) -> Arrival:
    return Arrival(text.encode(), text, None, None)


async def settled() -> None:
    """Let the loop do all it can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_waits_acts_after_the_write_and_in_order(store: SlowStore) -> None:
    journal = GroupCommit(store, fail)
    queue = Queue(1, "q", QueueSettings(), journal)
    done: asyncio.Queue[str] = asyncio.Queue()
    for text in ("a", "b", "c"):
        queue.send([arrival(text)], 0)
        journal.after_commit(partial(done.put_nowait, text))
        await settled()  # "a" is being written, the others wait for their turn
    assert done.empty()
    store.gate.release()
    assert await asyncio.wait_for(done.get(), 30) == "a"
    await settled()
    assert done.empty()
    store.gate.release()
    assert [await asyncio.wait_for(done.get(), 30) for _ in range(2)] == ["b", "c"]
    assert [len(batch.messages) for batch in store.batches] == [1, 2]
    await journal.close()


async def test_with_nothing_to_write_it_acts_at_once(store: SlowStore) -> None:
    journal = GroupCommit(store, fail)
    done: list[str] = []
    journal.after_commit(lambda: done.append("now"))
    assert done == ["now"]
    await journal.close()


async def test_a_failed_write_is_told_and_nothing_waiting_acts(store: SlowStore) -> None:
    told: asyncio.Queue[BaseException] = asyncio.Queue()
    journal = GroupCommit(store, told.put_nowait)
    queue = Queue(1, "q", QueueSettings(), journal)
    done: list[str] = []
    store.failure = OSError("disk full")
    queue.send([arrival("a")], 0)
    journal.after_commit(lambda: done.append("a"))
    store.gate.release()
    assert str(await asyncio.wait_for(told.get(), 30)) == "disk full"
    queue.send([arrival("b")], 0)
    journal.after_commit(lambda: done.append("b"))
    await settled()
    await journal.close()
    assert done == []
    assert told.empty()


async def test_a_batch_that_cannot_be_made_is_told_and_nothing_waits_for_ever(store: SlowStore) -> None:
    told: asyncio.Queue[BaseException] = asyncio.Queue()
    journal = GroupCommit(store, told.put_nowait)
    queue = Queue(1, "q", QueueSettings(), journal)
    done: list[str] = []
    queue.send([arrival("a")], 0)
    queue.peek(1, 1)[0].added["what"] = object()
    journal.after_commit(lambda: done.append("a"))
    assert isinstance(await asyncio.wait_for(told.get(), 30), EncodeError)
    await asyncio.wait_for(journal.drained(), 30)
    await asyncio.wait_for(journal.close(), 30)
    assert (done, store.batches) == ([], [])


async def test_whoever_waits_for_the_disk_hears_of_its_failure(store: SlowStore) -> None:
    told: asyncio.Queue[BaseException] = asyncio.Queue()
    journal = GroupCommit(store, told.put_nowait)
    store.failure = OSError("disk full")
    Queue(1, "q", QueueSettings(), journal).send([arrival("a")], 0)
    waiting = asyncio.create_task(journal.drained())
    await settled()
    assert not waiting.done()
    store.gate.release()
    await asyncio.wait_for(waiting, 30)
    await asyncio.wait_for(journal.close(), 30)


async def test_one_act_that_fails_does_not_stop_the_next(store: SlowStore) -> None:
    journal = GroupCommit(store, fail)
    queue = Queue(1, "q", QueueSettings(), journal)
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    queue.send([arrival("a")], 0)
    bug, done = ValueError("bug"), asyncio.Event()

    def break_down() -> None:
        raise bug

    journal.after_commit(break_down)
    journal.after_commit(done.set)
    store.gate.release()
    await asyncio.wait_for(done.wait(), 30)
    assert reported == [bug]
    await journal.close()


async def test_what_came_and_went_between_two_writes_is_never_written(store: SlowStore) -> None:
    journal = GroupCommit(store, fail)
    queue = Queue(1, "q", QueueSettings(), journal)
    queue.send([arrival("a"), arrival("b")], 0)
    assert queue.take_next(0) is not None
    store.gate.release()
    await journal.close()
    (batch,) = store.batches
    assert [payload for _, payload in batch.payloads] == [b"b"]
    assert batch.deleted == []
    assert batch.sequences == [(2, 1)]


def test_a_batch_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path)
    good = Batch(payloads=[(1, b"x")], sequences=[(1, 1)])
    store.write(good)
    with pytest.raises(sqlite3.IntegrityError):
        store.write(Batch(payloads=[(2, b"y"), (1, b"again")]))
    store.write(Batch(payloads=[(2, b"y")]))  # it was rolled back, and the store goes on
    store.close()


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "queues.sqlite").write_bytes(b"not a database, but long enough to be looked at" * 40)
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(tmp_path)


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / "queues.sqlite") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StoreError, match="another version"):
        Store(tmp_path)


@pytest.mark.parametrize("ended", [False, True])
def test_a_full_disk_is_told_as_such_and_what_is_written_after_it_is_written(tmp_path: Path, ended: bool) -> None:
    """SQLite ends the transaction of a commit that finds no room; sometimes it does not."""
    store = Store(tmp_path)

    def without_room() -> None:
        with store.at_once():
            store.put_queue("q", QueueSettings())
            if ended:
                store._db.execute("ROLLBACK")
            raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(StoreError, match="database or disk is full"):
        without_room()
    assert store.queues() == []
    with store.at_once():
        store.put_queue("q", QueueSettings())
    assert [queue.name for queue in store.queues()] == ["q"]
    store.close()
