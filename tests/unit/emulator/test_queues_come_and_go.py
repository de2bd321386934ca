"""Queues made, changed and deleted while the emulator runs: on disk before anybody hears of it, and gone for good."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from servicebus_emulator.broker import NotFound
from servicebus_emulator.config import Config, QueueSettings
from servicebus_emulator.journal import GroupCommit
from servicebus_emulator.message import Arrival
from servicebus_emulator.namespace import LiveQueue, Namespace
from servicebus_emulator.performatives import Attach, Detach, Disposition, Transfer
from servicebus_emulator.rights import Right, Rule
from servicebus_emulator.store import Batch, Store
from tests.unit.emulator.wire_peer import bench, message

RULE = Rule("r", ("key",), frozenset({Right.SEND}))


def arrival(text: str) -> Arrival:
    return Arrival(text.encode(), text, None, None)


@asynccontextmanager
async def namespace(
    directory: Path, config: Config | None = None, *, store: Callable[[Path], Store] = Store, now: int = 1000
) -> AsyncIterator[Namespace]:
    opened = store(directory)

    def fail(error: BaseException) -> None:
        raise AssertionError from error

    made = Namespace(opened, GroupCommit(opened, fail), config, lambda: now)
    try:
        yield made
    finally:
        made.close()
        await made.journal.close()
        opened.close()


def live(of: Namespace, name: str) -> LiveQueue:
    found = of.find(name)
    assert found is not None
    return found


def rows(directory: Path) -> dict[str, int]:
    with closing(sqlite3.connect(directory / "queues.sqlite")) as db:
        tables = ("queues", "messages", "payloads", "seen")
        return {table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}  # noqa: S608


async def test_a_queue_that_was_made_is_there_after_a_restart(tmp_path: Path) -> None:
    settings = QueueSettings(lock_duration=5000, rules=(RULE,), user_metadata="mine", delete_on_idle=300_000)
    async with namespace(tmp_path) as made:
        made.create("Made", settings)
        made.create("other", QueueSettings()).send([arrival("a")])
    async with namespace(tmp_path, now=2000) as again:
        assert live(again, "made").name == "Made"
        assert live(again, "made").queue.settings == settings
        assert (live(again, "made").created_at, live(again, "made").updated_at) == (1000, 1000)
        assert [m.payload for m in live(again, "other").queue.peek(0, 10)] == [b"a"]
        assert again.create("third", QueueSettings()).queue.key > live(again, "other").queue.key


async def test_new_settings_are_there_after_a_restart_and_the_queue_keeps_its_age(tmp_path: Path) -> None:
    async with namespace(tmp_path) as made:
        made.create("q", QueueSettings()).send([arrival("a")])
    async with namespace(tmp_path, now=2000) as made:
        made.update(live(made, "q"), QueueSettings(max_delivery_count=3))
        live(made, "q").send([arrival("b")])
    async with namespace(tmp_path, now=3000) as again:
        found = live(again, "q")
        assert found.queue.settings.max_delivery_count == 3
        assert (found.created_at, found.updated_at) == (1000, 2000)
        assert [m.sequence for m in found.queue.peek(0, 10)] == [1, 2]


async def test_new_settings_are_for_what_comes_after(tmp_path: Path) -> None:
    async with namespace(tmp_path) as made:
        queue = made.create("q", QueueSettings(lock_duration=1000))
        queue.send([arrival("a"), arrival("b")])
        first = queue.act(lambda queue, now: queue.lock_next(now))
        made.update(queue, QueueSettings(lock_duration=9000))
        second = queue.act(lambda queue, now: queue.lock_next(now))
        assert first is not None
        assert second is not None
        assert (first.locked_until, second.locked_until) == (2000, 10_000)


async def test_a_deleted_queue_leaves_nothing_on_disk(tmp_path: Path) -> None:
    async with namespace(tmp_path) as made:
        gone = made.create("gone", QueueSettings(requires_duplicate_detection=True))
        gone.send([arrival("a"), arrival("b")])
        kept = made.create("kept", QueueSettings(requires_duplicate_detection=True))
        kept.send([arrival("c")])
        await made.journal.drained()
        made.delete(gone)
        assert made.find("gone") is None
    assert rows(tmp_path) == {"queues": 1, "messages": 1, "payloads": 1, "seen": 1}
    async with namespace(tmp_path) as again:
        assert [queue.name for queue in again.queues()] == ["kept"]


async def test_what_is_made_deleted_and_made_again_before_one_write_is_the_last(tmp_path: Path) -> None:
    async with namespace(tmp_path) as made:
        old = made.create("q", QueueSettings(requires_duplicate_detection=True))
        old.send([arrival("old")])
        made.delete(old)
        made.create("q", QueueSettings(requires_duplicate_detection=True)).send([arrival("new")])
        await made.journal.drained()
        made.delete(live(made, "q"))
        made.create("q", QueueSettings(max_delivery_count=2)).send([arrival("newest")])
    assert rows(tmp_path) == {"queues": 1, "messages": 1, "payloads": 1, "seen": 0}
    async with namespace(tmp_path) as again:
        assert live(again, "q").queue.settings.max_delivery_count == 2
        assert [m.payload for m in live(again, "q").queue.peek(0, 10)] == [b"newest"]


class GatedStore(Store):
    """Writes when it is let."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.gate = threading.Event()

    def write(self, batch: Batch) -> None:
        assert self.gate.wait(5)
        super().write(batch)


@pytest.mark.parametrize("step", ["create", "update", "delete"])
async def test_nobody_hears_of_it_before_it_is_on_disk(tmp_path: Path, step: str) -> None:
    stores: list[GatedStore] = []

    def gated(directory: Path) -> Store:
        stores.append(GatedStore(directory))
        return stores[0]

    async with namespace(tmp_path, Config({"q": QueueSettings()}), store=gated) as made:
        if step == "create":
            made.create("new", QueueSettings())
        elif step == "update":
            made.update(live(made, "q"), QueueSettings())
        else:
            made.delete(live(made, "q"))
        told = asyncio.Event()
        made.journal.after_commit(told.set)
        for _ in range(5):
            await asyncio.sleep(0.01)
        assert not told.is_set()
        stores[0].gate.set()
        await asyncio.wait_for(told.wait(), 30)


async def test_links_to_a_deleted_queue_are_detached_and_told_why(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        peer = await made.peer()
        await peer.attach_receiver(0)
        await peer.attach_sender(1)
        await peer.attach_receiver(2, "q/$deadletterqueue")
        made.namespace.create("other", QueueSettings())
        await peer.attach_sender(3, "other")
        peer.heard.clear()
        made.namespace.delete(live(made.namespace, "q"))
        await peer.listen()
        told = {detach.handle: detach.error.value[0] for detach in peer.take(Detach) if detach.error is not None}
        assert told == dict.fromkeys((0, 1, 2), "amqp:not-found")
        await peer.say(Detach(handle=0, closed=True), Detach(handle=1, closed=True), Detach(handle=2, closed=True))
        await peer.send("goes on", handle=3)
        assert len(peer.take(Disposition)) == 1
        await peer.attach_sender(0)
        assert [attach.target for attach in peer.take(Attach)] == [None]
        assert [detach.handle for detach in peer.take(Detach)] == [0]


async def test_a_link_that_left_before_is_not_told(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        peer = await made.peer()
        await peer.attach_receiver(0)
        await peer.attach_sender(1)
        await peer.say(Detach(handle=0, closed=True), Detach(handle=1, closed=True))
        made.namespace.create("other", QueueSettings())
        await peer.attach_sender(0, "other")
        await peer.attach_receiver(1, "other")
        peer.heard.clear()
        made.namespace.delete(live(made.namespace, "q"))
        await peer.listen()
        assert peer.take(Detach) == []


async def test_what_was_on_its_way_to_a_client_is_not_sent_any_more(tmp_path: Path) -> None:
    async with bench(tmp_path) as made:
        reported: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        peer = await made.peer()
        await peer.attach_receiver(0)
        await peer.credit(1)
        queue = live(made.namespace, "q")
        queue.send([Arrival(message("a"), "a", None, None)])  # locked for the peer, not yet on disk
        made.namespace.delete(queue)
        await peer.listen()
        assert peer.take(Transfer) == []
        assert reported == []
        with pytest.raises(NotFound, match="deleted"):
            queue.send([arrival("b")])
    assert rows(tmp_path)["messages"] == 0
