"""What every bus promises, tried on each: a broker in memory, and the Azure SDK talking to a real emulator process."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import pytest
from pydantic import SecretStr

from messages.errors import LockLost, NotFound, Poison, Transient
from messages.names import dead_letters_of
from messages.ports import Bus, Delivery, Outgoing
from messages.transport.clock import SystemClock
from messages.transport.memory_bus import MemoryBroker, MemoryBus, QueueOptions
from messages.transport.servicebus import ServiceBus, client_options
from tests.emulator_process import EmulatorProcess

LOCK = 2.0
"""Seconds a lock lasts in queues of the kind `short`: what a test does with a message in hand must fit into them."""
POOL = {"plain": 40, "short": 10, "two-deliveries": 2, "detecting": 2, "burying": 2}
"""How many queues of each kind there are; every test takes fresh ones."""


class Place(Protocol):
    """A broker with empty queues, and connections to it."""

    def connect(self) -> Bus: ...

    def queue(self, kind: str = "plain") -> str: ...


class InMemory:
    def __init__(self) -> None:
        self.broker = MemoryBroker(SystemClock())
        self._numbers = itertools.count()

    def connect(self) -> Bus:
        return MemoryBus(self.broker)

    def queue(self, kind: str = "plain") -> str:
        options = {
            "plain": QueueOptions(lock_duration=30),
            "short": QueueOptions(lock_duration=LOCK),
            "two-deliveries": QueueOptions(lock_duration=30, max_delivery_count=2),
            "detecting": QueueOptions(lock_duration=30, duplicate_detection=600),
            "burying": QueueOptions(lock_duration=30, dead_letter_expired=True),
        }
        name = f"{kind}-{next(self._numbers)}"
        self.broker.add_queue(name, options[kind])
        return name


class OnEmulator:
    def __init__(self, process: EmulatorProcess, numbers: dict[str, Iterator[int]]) -> None:
        self._process, self._numbers = process, numbers

    def connect(self) -> Bus:
        return ServiceBus.from_connection_string(SecretStr(self._process.connection_string), **client_options())

    def queue(self, kind: str = "plain") -> str:
        number = next(self._numbers[kind])
        assert number < POOL[kind], f"the pool of {kind} queues is too small"
        return f"{kind}-{number}"


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnEmulator]:
    settings: dict[str, dict[str, Any]] = {
        "plain": {"LockDuration": "PT30S"},
        "short": {"LockDuration": f"PT{LOCK:g}S"},
        "two-deliveries": {"LockDuration": "PT30S", "MaxDeliveryCount": 2},
        "detecting": {"LockDuration": "PT30S", "RequiresDuplicateDetection": True},
        "burying": {"LockDuration": "PT30S", "DeadLetteringOnMessageExpiration": True},
    }
    queues = {f"{kind}-{n}": settings[kind] for kind, count in POOL.items() for n in range(count)}
    with EmulatorProcess(tmp_path_factory.mktemp("bus"), queues) as process:
        yield OnEmulator(process, {kind: itertools.count() for kind in POOL})


@pytest.fixture(params=["memory", "servicebus"])
def place(request: pytest.FixtureRequest) -> Place:
    return InMemory() if request.param == "memory" else request.getfixturevalue("emulator")


@pytest.fixture
async def bus(place: Place) -> AsyncIterator[Bus]:
    connection = place.connect()
    yield connection
    await connection.close()


@pytest.fixture
async def other_bus(place: Place) -> AsyncIterator[Bus]:
    """A second process, so to speak."""
    connection = place.connect()
    yield connection
    await connection.close()


def outgoing(body: bytes = b"{}", **fields: Any) -> Outgoing:
    return Outgoing(**{"body": body, "message_id": uuid.uuid4().hex, "subject": "round-closed"} | fields)


async def received(bus: Bus, queue: str) -> Delivery:
    """What must come, and before a lock of half a minute lapses."""
    delivery = await bus.receive(queue, wait=20)
    assert delivery is not None
    return delivery


async def bodies(bus: Bus, queue: str, count: int) -> list[bytes]:
    """So many messages, in order, completed; there are no more in the queue."""
    found = []
    for _ in range(count):
        delivery = await received(bus, queue)
        found.append(delivery.body)
        await bus.complete(delivery)
    assert await bus.receive(queue, wait=0.15) is None
    return found


# --- sending and receiving -------------------------------------------------------------------------------------------


async def test_a_message_arrives_as_it_was_sent(place: Place, bus: Bus) -> None:
    queue, before = place.queue(), datetime.now(UTC)
    sent = outgoing('{"kind":"ä"}'.encode(), message_id="m 1", subject="silo-hello", correlation_id="mnist_0123abcd")
    await bus.send(queue, sent)
    delivery = await received(bus, queue)
    assert (delivery.queue, delivery.body, delivery.message_id) == (queue, sent.body, "m 1")
    assert (delivery.subject, delivery.correlation_id) == ("silo-hello", "mnist_0123abcd")
    assert (delivery.delivery_count, delivery.scheduled_at) == (0, None)
    assert (delivery.dead_letter_reason, delivery.dead_letter_description) == (None, None)
    assert delivery.sequence_number > 0
    after, moment = datetime.now(UTC), timedelta(milliseconds=2)
    assert before - moment <= delivery.enqueued_at <= after + moment
    assert delivery.locked_until is not None
    assert before - moment <= delivery.locked_until - timedelta(seconds=30) <= after + moment


async def test_messages_come_in_the_order_they_were_sent(place: Place, bus: Bus) -> None:
    queue = place.queue()
    for n in range(5):
        await bus.send(queue, outgoing(b"%d" % n))
    assert await bodies(bus, queue, 5) == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_completed_message_is_gone(place: Place, bus: Bus, other_bus: Bus) -> None:
    queue = place.queue("short")
    await bus.send(queue, outgoing())
    await bus.complete(await received(bus, queue))
    assert await other_bus.receive(queue, wait=LOCK + 0.3) is None


async def test_receiving_from_an_empty_queue_waits_as_long_as_told(place: Place, bus: Bus) -> None:
    queue = place.queue()
    await bus.receive(queue, wait=0)
    begun = time.monotonic()
    assert await bus.receive(queue, wait=0.6) is None
    assert 0.5 < time.monotonic() - begun < 20


async def test_a_waiting_receiver_gets_a_message_at_once(place: Place, bus: Bus, other_bus: Bus) -> None:
    queue = place.queue()
    await other_bus.receive(queue, wait=0)
    await other_bus.send(place.queue(), outgoing())
    waiting = asyncio.create_task(bus.receive(queue, wait=20))
    await asyncio.sleep(0.3)
    await other_bus.send(queue, outgoing())
    begun = time.monotonic()
    assert await waiting is not None
    assert time.monotonic() - begun < 10, "it came when the waiting was over"


async def test_messages_that_came_while_nobody_received_are_there_later(place: Place, bus: Bus, other_bus: Bus) -> None:
    queue = place.queue()
    assert await bus.receive(queue, wait=0.1) is None
    await other_bus.send(queue, outgoing(b"1"))
    await asyncio.sleep(0.1)
    assert (await received(other_bus, queue)).body == b"1"  # not stuck with the one who gave up waiting


async def test_a_cancelled_receive_takes_no_message_from_others(place: Place, bus: Bus, other_bus: Bus) -> None:
    queue = place.queue()
    receiving = asyncio.create_task(bus.receive(queue, wait=30))
    await asyncio.sleep(0.3)
    receiving.cancel()
    await asyncio.wait((receiving,))
    await asyncio.sleep(0.1)
    await other_bus.send(queue, outgoing())
    assert (await received(other_bus, queue)).delivery_count == 0


async def test_a_receive_that_begins_while_another_is_settled_lets_it_through(place: Place, bus: Bus) -> None:
    queue = place.queue()
    await bus.send(queue, outgoing())
    delivery = await received(bus, queue)
    _, nothing = await asyncio.gather(bus.complete(delivery), bus.receive(queue, wait=0.2))
    assert nothing is None


async def test_a_cancelled_receive_loses_nothing(place: Place, bus: Bus) -> None:
    queue = place.queue()
    await bus.receive(queue, wait=0)
    sent, got = [], []
    for n in range(20):
        receiving = asyncio.create_task(bus.receive(queue, wait=5))
        await asyncio.sleep(0.001 * (n % 5))
        body = b"%d" % n
        sending = asyncio.create_task(bus.send(queue, outgoing(body)))
        await asyncio.sleep(0.0005 * (n % 7))
        receiving.cancel()
        await asyncio.wait((receiving,))
        if not receiving.cancelled() and (delivery := receiving.result()) is not None:
            got.append(delivery.body)
            await bus.complete(delivery)
        await sending
        sent.append(body)
    got += await bodies(bus, queue, len(sent) - len(got))
    assert sorted(got) == sorted(sent)


async def test_many_tasks_may_send_and_settle_at_once(place: Place, bus: Bus) -> None:
    queue = place.queue()
    await asyncio.gather(*(bus.send(queue, outgoing(b"%d" % n)) for n in range(30)))
    found: list[Delivery] = []

    async def receive() -> None:
        while len(found) < 30:
            if (delivery := await bus.receive(queue, wait=0.2)) is not None:
                found.append(delivery)
                await bus.renew(delivery)
                await bus.complete(delivery)

    async with asyncio.timeout(60):
        await asyncio.gather(*(receive() for _ in range(4)))
    assert sorted(int(d.body) for d in found) == list(range(30))
    assert {d.delivery_count for d in found} == {0}
    assert await bus.peek(queue, count=1) == []


async def test_settling_does_not_wait_for_a_receive_under_way(place: Place, bus: Bus) -> None:
    queue = place.queue()
    for n in range(2):
        await bus.send(queue, outgoing(b"%d" % n))
    first, second = await received(bus, queue), await received(bus, queue)
    receiving = asyncio.create_task(bus.receive(queue, wait=20))
    await asyncio.sleep(0.3)
    slowest = 0.0
    for delivery, settle in ((first, bus.complete), (second, bus.renew), (second, bus.abandon)):
        begun = time.monotonic()
        await settle(delivery)
        slowest = max(slowest, time.monotonic() - begun)
        await asyncio.sleep(0.05)
    again = await receiving
    assert again is not None
    assert (again.body, again.delivery_count) == (b"1", 1)
    assert slowest < 10, "it waited for the receive"


# --- locks -----------------------------------------------------------------------------------------------------------


async def test_a_locked_message_is_not_delivered_to_anyone_else(place: Place, bus: Bus, other_bus: Bus) -> None:
    queue = place.queue()
    await bus.send(queue, outgoing())
    await received(bus, queue)
    assert await other_bus.receive(queue, wait=0.3) is None
    assert await bus.receive(queue, wait=0.3) is None


async def test_when_a_lock_lapses_the_message_comes_again(place: Place, bus: Bus, other_bus: Bus) -> None:
    queue = place.queue("short")
    await bus.send(queue, outgoing())
    first = await received(bus, queue)
    second = await received(other_bus, queue)
    assert first.locked_until is not None
    assert datetime.now(UTC) >= first.locked_until
    assert (second.message_id, second.delivery_count) == (first.message_id, 1)
    with pytest.raises(LockLost):
        await bus.renew(first)
    with pytest.raises(LockLost):
        await bus.complete(first)
    await other_bus.complete(second)
    assert await bus.receive(queue, wait=LOCK + 0.3) is None


@pytest.mark.parametrize("settle", ["complete", "abandon", "dead_letter"])
async def test_settling_after_the_lock_has_lapsed_fails(place: Place, bus: Bus, settle: str) -> None:
    queue = place.queue("short")
    await bus.send(queue, outgoing())
    delivery = await received(bus, queue)
    await asyncio.sleep(LOCK + 0.2)
    with pytest.raises(LockLost):
        await (
            bus.dead_letter(delivery, reason="r", description="d")
            if settle == "dead_letter"
            else getattr(bus, settle)(delivery)
        )
    assert (await received(bus, queue)).delivery_count == 1


async def test_renewing_keeps_the_lock(place: Place, bus: Bus, other_bus: Bus) -> None:
    queue = place.queue("short")
    await bus.send(queue, outgoing())
    delivery = await received(bus, queue)
    await asyncio.sleep(0.3)
    until = await bus.renew(delivery)
    assert delivery.locked_until is not None
    assert until - delivery.locked_until > timedelta(seconds=0.25)
    assert until <= datetime.now(UTC) + timedelta(seconds=LOCK)
    await received(other_bus, queue)
    assert datetime.now(UTC) >= until, "it was given away while it was locked"


async def test_completing_twice_is_a_lost_lock(place: Place, bus: Bus) -> None:
    queue = place.queue()
    await bus.send(queue, outgoing())
    delivery = await received(bus, queue)
    await bus.complete(delivery)
    with pytest.raises(LockLost):
        await bus.complete(delivery)


async def test_of_two_tasks_that_complete_a_message_one_has_lost_its_lock(place: Place, bus: Bus) -> None:
    queue = place.queue()
    await bus.send(queue, outgoing())
    delivery = await received(bus, queue)
    outcomes = await asyncio.gather(bus.complete(delivery), bus.complete(delivery), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes if outcome is not None] == [LockLost]


async def test_an_abandoned_message_comes_again_at_once(place: Place, bus: Bus, other_bus: Bus) -> None:
    queue = place.queue()
    await bus.send(queue, outgoing())
    await bus.abandon(await received(bus, queue))
    assert (await received(other_bus, queue)).delivery_count == 1


async def test_closing_leaves_messages_in_hand_to_their_locks(place: Place, bus: Bus) -> None:
    queue, leaving = place.queue("short"), place.connect()
    await bus.send(queue, outgoing())
    held = await received(leaving, queue)
    await leaving.close()
    assert (await received(bus, queue)).delivery_count == 1
    assert held.locked_until is not None
    assert datetime.now(UTC) >= held.locked_until, "it was given away while it was locked"


# --- dead letters ----------------------------------------------------------------------------------------------------


async def test_a_dead_letter_keeps_its_message_and_tells_why(place: Place, bus: Bus, other_bus: Bus) -> None:
    queue = place.queue()
    await bus.send(queue, outgoing(b'{"a":1}', correlation_id="run_00000000"))
    delivery = await received(bus, queue)
    await bus.dead_letter(delivery, reason="wrong-digest", description="The weights are not those announced.")
    assert await bus.receive(queue, wait=0.2) is None
    dead = await received(other_bus, dead_letters_of(queue))
    assert dead.queue == dead_letters_of(queue)
    assert (dead.body, dead.message_id, dead.subject) == (delivery.body, delivery.message_id, delivery.subject)
    assert dead.correlation_id == "run_00000000"
    assert dead.dead_letter_reason == "wrong-digest"
    assert dead.dead_letter_description == "The weights are not those announced."
    await other_bus.complete(dead)
    assert await other_bus.receive(dead_letters_of(queue), wait=0.2) is None


async def test_a_long_description_is_shortened_not_refused(place: Place, bus: Bus) -> None:
    queue = place.queue()
    await bus.send(queue, outgoing())
    await bus.dead_letter(await received(bus, queue), reason="r", description="ä" * 9000)
    dead = await received(bus, dead_letters_of(queue))
    assert dead.dead_letter_description is not None
    assert dead.dead_letter_description.startswith("ää")
    assert len(dead.dead_letter_description.encode()) <= 4096


async def test_a_message_delivered_too_often_is_dead_lettered(place: Place, bus: Bus) -> None:
    queue = place.queue("two-deliveries")
    await bus.send(queue, outgoing())
    for count in range(2):
        delivery = await received(bus, queue)
        assert delivery.delivery_count == count
        await bus.abandon(delivery)
    assert await bus.receive(queue, wait=0.2) is None
    assert (await received(bus, dead_letters_of(queue))).dead_letter_reason == "MaxDeliveryCountExceeded"


# --- time ------------------------------------------------------------------------------------------------------------


async def test_scheduled_messages_join_the_end_of_the_queue_when_their_time_comes(place: Place, bus: Bus) -> None:
    queue = place.queue()
    await bus.send(queue, outgoing(b"before"))
    assert await bodies(bus, queue, 1) == [b"before"]  # the links are open: what follows takes no time
    now = datetime.now(UTC)
    due = {b"first": now, b"second": now + timedelta(seconds=2), b"third": now + timedelta(seconds=2.5)}
    for body in (b"third", b"second"):
        await bus.send(queue, outgoing(body, scheduled_at=due[body]))
    await bus.send(queue, outgoing(b"first"))
    for body, at in due.items():
        delivery = await received(bus, queue)
        assert delivery.body == body
        assert datetime.now(UTC) >= at, "it came before its time"
        await bus.complete(delivery)


async def test_a_message_scheduled_for_the_past_comes_at_once(place: Place, bus: Bus) -> None:
    queue = place.queue()
    await bus.send(queue, outgoing(scheduled_at=datetime.now(UTC) - timedelta(hours=1)))
    assert (await received(bus, queue)).delivery_count == 0


async def test_an_expired_message_is_never_delivered(place: Place, bus: Bus) -> None:
    queue = place.queue()
    await bus.send(queue, outgoing(b"short", time_to_live=timedelta(seconds=0.3)))
    await bus.send(queue, outgoing(b"long", time_to_live=timedelta(seconds=60)))
    await asyncio.sleep(0.6)
    assert await bodies(bus, queue, 1) == [b"long"]
    assert await bus.receive(dead_letters_of(queue), wait=0.1) is None


async def test_an_expired_message_is_dead_lettered_where_the_queue_says_so(place: Place, bus: Bus) -> None:
    queue = place.queue("burying")
    await bus.send(queue, outgoing(time_to_live=timedelta(seconds=0.3)))
    dead = await received(bus, dead_letters_of(queue))
    assert dead.dead_letter_reason == "TTLExpiredException"


# --- duplicates, peeking ---------------------------------------------------------------------------------------------


async def test_without_duplicate_detection_a_message_sent_twice_comes_twice(place: Place, bus: Bus) -> None:
    queue = place.queue()
    for body in (b"1", b"2"):
        await bus.send(queue, outgoing(body, message_id="same"))
    assert await bodies(bus, queue, 2) == [b"1", b"2"]


async def test_with_duplicate_detection_it_comes_once_even_when_completed_in_between(place: Place, bus: Bus) -> None:
    queue = place.queue("detecting")
    for body in (b"1", b"2"):
        await bus.send(queue, outgoing(body, message_id="same"))
    assert await bodies(bus, queue, 1) == [b"1"]
    await bus.send(queue, outgoing(b"3", message_id="same"))
    await bus.send(queue, outgoing(b"4", message_id="another"))
    assert await bodies(bus, queue, 1) == [b"4"]


async def test_peeking_shows_what_is_there_and_locks_nothing(place: Place, bus: Bus) -> None:
    queue, later = place.queue(), datetime.now(UTC) + timedelta(hours=1)
    assert await bus.peek(queue, count=10) == []
    await bus.send(queue, outgoing(b"0"))
    await bus.send(queue, outgoing(b"1", scheduled_at=later))
    await bus.send(queue, outgoing(b"2"))
    for _ in range(2):
        peeked = await bus.peek(queue, count=10)
        assert [d.body for d in peeked] == [b"0", b"1", b"2"]
    numbers = [d.sequence_number for d in peeked]
    assert numbers == sorted(set(numbers))
    scheduled = peeked[1].scheduled_at
    assert scheduled is not None
    assert abs(scheduled - later) < timedelta(seconds=1)
    assert [d.body for d in await bus.peek(queue, count=2)] == [b"0", b"1"]
    assert [d.body for d in await bus.peek(queue, count=10, from_sequence_number=numbers[1])] == [b"1", b"2"]
    assert (await received(bus, queue)).delivery_count == 0


async def test_peeking_into_dead_letters_shows_the_reason(place: Place, bus: Bus) -> None:
    queue = place.queue()
    await bus.send(queue, outgoing(b"x"))
    await bus.dead_letter(await received(bus, queue), reason="not-json", description="It is not.")
    (dead,) = await bus.peek(dead_letters_of(queue), count=10)
    assert (dead.body, dead.dead_letter_reason, dead.dead_letter_description) == (b"x", "not-json", "It is not.")
    assert await bus.peek(queue, count=10) == []


# --- what goes wrong -------------------------------------------------------------------------------------------------


async def test_an_unknown_queue_is_not_found(place: Place, bus: Bus) -> None:
    with pytest.raises(NotFound, match="no-such-queue"):
        await bus.send("no-such-queue", outgoing())
    with pytest.raises(NotFound, match="no-such-queue"):
        await bus.receive("no-such-queue", wait=1)
    with pytest.raises(NotFound, match="no-such-queue"):
        await bus.peek(dead_letters_of("no-such-queue"), count=1)


async def test_a_message_too_large_is_poison_and_the_next_one_is_sent(place: Place, bus: Bus) -> None:
    queue = place.queue()
    with pytest.raises(Poison) as caught:
        await bus.send(queue, outgoing(b"x" * 1_200_000))
    assert caught.value.reason == "too-large"
    await bus.send(queue, outgoing(b"small"))
    assert await bodies(bus, queue, 1) == [b"small"]


async def test_messages_survive_a_broker_that_is_killed(tmp_path: Path) -> None:
    process = EmulatorProcess(tmp_path, {"q": {"LockDuration": "PT1S"}, "r": {}})
    try:
        process.start()
        text = process.connection_string.replace("SharedAccessKey=any", "SharedAccessKey=secretsecret")
        bus = ServiceBus.from_connection_string(SecretStr(text), **client_options())
        await bus.send("q", outgoing(b"locked"))
        held = await received(bus, "q")
        await bus.send("q", outgoing(b"waiting"))
        process.kill()
        for attempt in (
            bus.send("r", outgoing()),
            bus.receive("q", wait=1),
            bus.complete(held),
            bus.send("q", outgoing()),
        ):
            with pytest.raises(Transient) as caught:
                await attempt
            assert "secretsecret" not in repr(caught.value)
            assert caught.value.__cause__ is None, "the SDK's own words may hold keys"
        process.start()
        assert sorted(await bodies(bus, "q", 2)) == [b"locked", b"waiting"]
        await bus.send("r", outgoing(b"after"))
        assert await bodies(bus, "r", 1) == [b"after"]
        await bus.close()
    finally:
        process.stop()


async def test_a_message_can_be_completed_over_a_new_connection_of_the_same_bus(tmp_path: Path) -> None:
    with EmulatorProcess(tmp_path, {"q": {"LockDuration": "PT30S"}}) as process:
        bus = ServiceBus.from_connection_string(SecretStr(process.connection_string), **client_options())
        await bus.send("q", outgoing(b"1"))
        held = await received(bus, "q")
        process.kill()
        with pytest.raises(Transient):
            await bus.receive("q", wait=1)
        process.start()
        try:
            await bus.complete(held)
        except LockLost:  # a broker may forget locks when it dies; then it delivers again
            await bus.complete(await received(bus, "q"))
        assert await bus.peek("q", count=1) == []
        await bus.close()


async def test_closing_ends_a_waiting_receive_and_takes_no_message_with_it(emulator: OnEmulator) -> None:
    queue, bus, closing = emulator.queue(), emulator.connect(), emulator.connect()
    waiting = asyncio.create_task(closing.receive(queue, wait=30))
    await asyncio.sleep(0.3)
    begun = time.monotonic()
    await closing.close()
    with pytest.raises(Transient):
        await waiting
    assert time.monotonic() - begun < 20, "it waited for the receive"
    await bus.send(queue, outgoing())
    assert (await received(bus, queue)).delivery_count == 0
    for attempt in (closing.receive(queue, wait=1), closing.send(queue, outgoing()), closing.peek("plain-0", count=1)):
        with pytest.raises(Transient):  # and does not connect again
            await attempt
    await bus.close()


async def test_whether_a_lock_has_lapsed_is_for_the_broker_to_say(
    emulator: OnEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus, queue = emulator.connect(), emulator.queue()
    await bus.send(queue, outgoing())
    delivery = await received(bus, queue)
    ahead = datetime.now(UTC) + timedelta(hours=1)
    monkeypatch.setattr("azure.servicebus._common.message.utc_now", lambda: ahead)  # this machine's clock is off
    await bus.renew(delivery)
    await bus.complete(delivery)
    assert await bus.peek(queue, count=1) == []
    await bus.close()
