"""What one client does is its own trouble: no other queue, client or message suffers from it, nor the process."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from servicebus_emulator import connection as connections
from servicebus_emulator import nodes, queue_links
from servicebus_emulator.codec import Array, Described, Int, ULong, array_of, decode, encode
from servicebus_emulator.config import QueueSettings
from servicebus_emulator.connection import Connection
from servicebus_emulator.frames import AMQP_HEADER
from servicebus_emulator.message import cut, read_arrival
from servicebus_emulator.performatives import ACCEPTED_STATE, Detach, Disposition, Transfer, outcome_code
from servicebus_emulator.record import Message
from servicebus_emulator.validity import read_map
from tests.unit.emulator.wire_peer import Bench, Peer, bench, message

REJECTED = 0x25


@pytest_asyncio.fixture
async def made(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path, max_message_size=100_000) as running:
        yield running


def request(operation: str, value: object, key: object = "r") -> bytes:
    return b"".join(
        encode(Described(ULong(code), section))
        for code, section in ((0x73, [key]), (0x74, {"operation": operation, "name": "n"}), (0x77, value))
    )


async def send(peer: Peer, handle: int, payload: bytes) -> None:
    await peer.say(Transfer(handle=handle, delivery_id=0, delivery_tag=b"t"), payload=payload)


async def manager(made: Bench, *, credit: int = 0, address: str = "q/$management") -> Peer:
    """Replies come on handle 0, requests go on handle 1."""
    peer = await made.peer()
    await peer.attach_receiver(0, address)
    await peer.attach_sender(1, address)
    if credit:
        await peer.credit(credit)
    peer.heard.clear()
    return peer


def statuses(peer: Peer) -> list[int]:
    found = []
    for body, payload in peer.heard:
        if isinstance(body, Transfer):
            named = read_map(cut(payload).application_properties)
            found.append(int(named.get("statusCode", named.get("status-code"))))
    return found


def bodies(peer: Peer) -> list[str]:
    found = [decode(cut(payload).body)[0].value for body, payload in peer.heard if isinstance(body, Transfer)]
    return [each.decode() for each in found]


# ----------------------------------------------------------------------------------------- odd values over management


@pytest.mark.parametrize("field", ["deadletter-reason", "deadletter-description", "disposition-status"])
@pytest.mark.parametrize(
    "odd", [Array(0xC0, ([1],)), Array(0, (Described(ULong(1), 1),), 0x53), {"a": 1}, [1], 7, b"x", True]
)
async def test_why_something_is_a_dead_letter_is_a_string(made: Bench, field: str, odd: Any) -> None:
    peer = await manager(made, credit=10)
    await peer.attach_sender(2)
    await send(peer, 2, message("a"))
    await peer.attach_receiver(3)
    await peer.credit(1, handle=3)
    (transfer,) = peer.take(Transfer)
    token = UUID(bytes_le=transfer.delivery_tag or b"")
    asked = {"disposition-status": "suspended", "lock-tokens": array_of(UUID, [token]), field: odd}
    await send(peer, 1, request("com.microsoft:update-disposition", asked))
    assert statuses(peer) == [400]
    assert made.locked() == ["a"]
    peer.heard.clear()
    await send(peer, 2, message("b"))
    assert [d.state for d in peer.take(Disposition)] == [ACCEPTED_STATE]


@pytest.mark.parametrize("key", [[1], {"a": 1}, True, Int(1), Described(ULong(1), 1)])
@pytest.mark.parametrize("address", ["q/$management", "$cbs"])
async def test_a_request_is_told_apart_by_what_amqp_takes_for_a_message_id(
    made: Bench, address: str, key: object
) -> None:
    peer = await manager(made, credit=10, address=address)
    await send(peer, 1, request("com.microsoft:peek-message", {}, key))
    assert [outcome_code(d.state) for d in peer.take(Disposition)] == [REJECTED]


@pytest.mark.parametrize("odd", [True, 1.5, "1", ULong(2**64 - 1), None, array_of(Int, [1])])
@pytest.mark.parametrize("field", ["from-sequence-number", "message-count"])
async def test_counts_and_sequence_numbers_are_whole_numbers(made: Bench, field: str, odd: object) -> None:
    peer = await manager(made, credit=10)
    asked = {"from-sequence-number": 1, "message-count": Int(1)}
    await send(peer, 1, request("com.microsoft:peek-message", asked | {field: odd}))
    await send(peer, 1, request("com.microsoft:cancel-scheduled-message", {"sequence-numbers": [odd]}))
    assert statuses(peer) == [400, 400]


# ------------------------------------------------------------------------- a message that cannot be given to anybody


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if what checks messages at their arrival had let one through."""
    render = queue_links.render_delivery

    def fail(given: Message) -> bytes:
        if given.payload.endswith(b"poison"):
            raise ValueError("poison")
        return render(given)

    monkeypatch.setattr(queue_links, "render_delivery", fail)
    monkeypatch.setattr("servicebus_emulator.management.render_delivery", fail)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("mode", [0, 1], ids=["peek-lock", "receive-and-delete"])
async def test_a_message_that_cannot_be_delivered_is_put_aside_and_the_next_one_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    async with bench(tmp_path) as made:
        peer = await made.peer()
        await peer.attach_sender()
        for text in ("poison", "good"):
            await send(peer, 0, message(text))
        await peer.attach_receiver(1, snd_settle_mode=mode)
        with caplog.at_level(logging.ERROR, logger="servicebus_emulator"):
            await peer.credit(1, handle=1)
            assert bodies(peer) == ["good"], "the credit was eaten"
            await peer.attach_receiver(2, "q/$deadletterqueue", snd_settle_mode=mode)
            await peer.credit(5, handle=2)
        assert [record.message for record in caplog.records] == ["delivery.bug"] * 2
        reader = await manager(made, credit=9, address="q/$deadletterqueue/$management")
        asked = {"from-sequence-number": 0, "message-count": 9}
        await send(reader, 1, request("com.microsoft:peek-message", asked))
        assert statuses(reader) == [204]
    async with bench(tmp_path) as again:
        live = again.namespace.find("q")
        assert live is not None
        (aside,) = live.queue.peek(0, 9, dead=True)
        assert aside.added["DeadLetterReason"] == "DeliveryFailed"


async def test_time_goes_on_for_other_queues(made: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    other = made.namespace.create("z", QueueSettings())
    bad = made.namespace.find("q")
    assert bad is not None
    now = made.namespace.now()
    for live, wait in ((bad, 30), (other, 60)):
        arrival = read_arrival(message("later"))
        live.send([type(arrival)(arrival.payload, arrival.message_id, None, now + wait)])

    def fail(now: int) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(bad.queue, "tick", fail)
    for _ in range(1000):
        await asyncio.sleep(0.02)
        if other.queue.has_available(dead=False):
            break
    assert other.queue.counts()["scheduled"] == 0


# -------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("address", ["q/$management", "$cbs"])
async def test_who_asks_and_takes_no_replies_loses_the_link(
    made: Bench, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "MOST_WAITING", 3)
    peer = await manager(made, address=address)
    for _ in range(3):
        await send(peer, 1, request("com.microsoft:peek-message", {}))
    assert peer.take(Detach) == []
    await send(peer, 1, request("com.microsoft:peek-message", {}))
    (ended,) = peer.take(Detach)
    assert ended.error is not None
    assert (ended.handle, ended.error.value[0]) == (0, "amqp:resource-limit-exceeded")


@pytest.mark.parametrize(("address", "most"), [("q/$management", "MOST_WAITING_BYTES"), ("$cbs", "MOST_CBS_BYTES")])
async def test_replies_that_wait_are_counted_in_bytes_too(
    made: Bench, address: str, most: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, most, 150_000)
    peer = await manager(made, address=address)
    for _ in range(3):
        await send(peer, 1, request("com.microsoft:peek-message", {}, "k" * 60_000))
    assert peer.take(Detach) == []
    await send(peer, 1, request("com.microsoft:peek-message", {}, "k" * 60_000))
    assert len(peer.take(Detach)) == 1


async def test_replies_that_left_count_no_more(made: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "MOST_WAITING", 3)
    peer = await manager(made, credit=100)
    for _ in range(20):
        await send(peer, 1, request("com.microsoft:peek-message", {}))
    assert statuses(peer) == [400] * 20


async def test_replies_wait_for_a_peer_that_does_not_read(made: Bench) -> None:
    peer = await manager(made, credit=100)
    peer.connection.pause_writing()
    await send(peer, 1, request("com.microsoft:peek-message", {}))
    assert statuses(peer) == []
    peer.connection.resume_writing()
    await peer.listen()
    assert statuses(peer) == [400]


async def test_the_largest_credit_is_a_credit(made: Bench) -> None:
    peer = await made.peer()
    await peer.attach_sender()
    for text in ("a", "b"):
        await send(peer, 0, message(text))
    await peer.attach_receiver(1)
    await peer.credit(0xFFFFFFFF, handle=1)
    assert bodies(peer) == ["a", "b"]
    await send(peer, 0, message("c"))
    await peer.credit(0xFFFFFFFF, handle=1, delivery_count=0)
    assert bodies(peer) == ["a", "b", "c"]


async def test_management_ends_with_its_queue(made: Bench) -> None:
    peer = await manager(made, credit=10)
    live = made.namespace.find("q")
    assert live is not None
    made.namespace.delete(live)
    made.namespace.create("q", QueueSettings())
    await peer.listen()
    ended = {detached.handle: detached.error for detached in peer.take(Detach)}
    assert {handle: error.value[0] for handle, error in ended.items() if error} == dict.fromkeys(
        (0, 1), "amqp:not-found"
    )
    for handle in (0, 1):
        await peer.say(Detach(handle=handle, closed=True))
    await peer.attach_receiver(0, "q/$management")
    await peer.attach_sender(1, "q/$management")
    await peer.credit(1)
    asked = {"from-sequence-number": 0, "message-count": 1}
    await send(peer, 1, request("com.microsoft:peek-message", asked))
    assert statuses(peer) == [204]


async def test_who_reads_nothing_more_loses_the_socket(made: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "FAREWELL", 0.2)
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    here, there = socket.socketpair()
    with there:
        here.setblocking(False)
        transport, connection = await loop.connect_accepted_socket(
            lambda: Connection(made.places, lambda _: gone.set()), here
        )
        there.sendall(AMQP_HEADER)
        await asyncio.sleep(0.05)
        transport.write(b"x" * 10_000_000)  # more than any buffer of the system holds
        connection.close()
        await asyncio.wait_for(gone.wait(), 30)
