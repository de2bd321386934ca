"""Credit, windows, drains and dispositions, said frame by frame (AMQP 1.0 part 2.5 and 2.6)."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio

from servicebus_emulator.codec import Described, Symbol, ULong, decode, encode
from servicebus_emulator.config import QueueSettings, Status
from servicebus_emulator.frames import write_frame
from servicebus_emulator.links import ReceivingLink
from servicebus_emulator.message import cut
from servicebus_emulator.performatives import (
    ACCEPTED_STATE,
    SOURCE,
    Attach,
    Begin,
    Close,
    Detach,
    Disposition,
    End,
    Flow,
    Performative,
    Transfer,
    outcome_code,
)
from servicebus_emulator.store import Batch
from servicebus_emulator.validity import read_map
from tests.unit.emulator.wire_peer import Bench, Peer, bench, flow, message

REJECTED = 0x25


@pytest_asyncio.fixture
async def made(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as running:
        yield running


async def fill(made: Bench, *texts: str) -> None:
    sender = await made.peer()
    await sender.attach_sender()
    for number, text in enumerate(texts):
        await sender.send(text, delivery_id=number)
    assert [d.state for d in sender.take(Disposition)] == [ACCEPTED_STATE] * len(texts)


def payloads(peer: Peer) -> list[str]:
    """The texts of the transfers heard so far."""
    texts = []
    for body, payload in peer.heard:
        if isinstance(body, Transfer):
            content, _ = decode(cut(payload).body)
            texts.append(content.value.decode())
    return texts


async def test_nothing_is_sent_without_credit_and_no_more_than_it_allows(made: Bench) -> None:
    await fill(made, "a", "b", "c")
    peer = await made.peer()
    await peer.attach_receiver()
    assert payloads(peer) == []
    assert made.locked() == []
    await peer.credit(2)
    assert payloads(peer) == ["a", "b"]
    assert made.locked() == ["a", "b"]
    await peer.credit(1, delivery_count=2)
    assert payloads(peer) == ["a", "b", "c"]


async def test_credit_is_counted_from_the_deliveries_that_the_peer_has_seen(made: Bench) -> None:
    """2.6.7: what is on its way when a flow is written uses up what that flow grants."""
    await fill(made, "a", "b", "c")
    peer = await made.peer()
    await peer.attach_receiver()
    await peer.credit(2)
    await peer.credit(2, delivery_count=0)
    assert payloads(peer) == ["a", "b"]


async def test_revoked_credit_stops_the_stream(made: Bench) -> None:
    peer = await made.peer()
    await peer.attach_receiver()
    await peer.credit(5)
    await peer.credit(0)
    await fill(made, "a")
    assert payloads(peer) == []
    assert made.locked() == []


async def test_a_drain_uses_up_the_credit_and_says_so_after_the_last_message(made: Bench) -> None:
    await fill(made, "a", "b")
    peer = await made.peer()
    await peer.attach_receiver()
    await peer.credit(5, drain=True)
    assert [type(body) for body, _ in peer.heard if isinstance(body, Transfer | Flow)] == [Transfer, Transfer, Flow]
    (drained,) = peer.take(Flow)
    assert (drained.delivery_count, drained.link_credit, drained.drain) == (5, 0, True)
    await fill(made, "c")
    assert payloads(peer) == ["a", "b"]


async def test_a_closed_session_window_holds_messages_in_the_queue(made: Bench) -> None:
    """2.5.6: they are not locked for a peer that cannot take them."""
    await fill(made, "a", "b", "c")
    peer = await made.peer(incoming_window=1)
    await peer.attach_receiver()
    await peer.say(flow(handle=0, delivery_count=0, link_credit=10, incoming_window=1))
    assert payloads(peer) == ["a"]
    await peer.say(flow(next_incoming_id=1, incoming_window=1))
    assert payloads(peer) == ["a", "b"]
    other = await made.peer()
    await other.attach_receiver()
    await other.credit(1)
    assert payloads(other) == ["c"]


async def test_a_peer_that_does_not_read_is_sent_no_more_until_it_does(made: Bench) -> None:
    peer = await made.peer()
    await peer.attach_receiver()
    await peer.credit(10)
    peer.connection.pause_writing()
    await fill(made, "a")
    assert payloads(peer) == []
    assert made.locked() == []
    peer.connection.resume_writing()
    await peer.listen()
    assert payloads(peer) == ["a"]


async def test_a_large_message_is_cut_to_the_peers_frames_and_within_its_window(tmp_path: Path) -> None:
    async with bench(tmp_path, max_message_size=100_000) as made:
        await fill(made, "x" * 3000)
        peer = await made.peer(incoming_window=2, max_frame_size=512)
        await peer.attach_receiver()
        await peer.credit(1, incoming_window=2)
        assert len(peer.take(Transfer)) == 2
        await peer.say(flow(next_incoming_id=2, incoming_window=100))
        rest = peer.take(Transfer)
        assert [transfer.more for transfer in rest] == [True] * (len(rest) - 1) + [False]


async def test_one_disposition_settles_a_range_and_no_range_is_walked(made: Bench) -> None:
    await fill(made, "a", "b", "c")
    peer = await made.peer()
    await peer.attach_receiver()
    await peer.credit(3)
    await peer.say(Disposition(role=True, first=0, last=0xFFFFFFFF, settled=False, state=ACCEPTED_STATE))
    confirmed = peer.take(Disposition)
    assert [(d.first, d.settled, d.role, d.state) for d in confirmed] == [
        (number, True, False, ACCEPTED_STATE) for number in range(3)
    ]
    assert made.texts() == []


async def test_a_settled_disposition_is_not_answered(made: Bench) -> None:
    await fill(made, "a")
    peer = await made.peer()
    await peer.attach_receiver()
    await peer.credit(1)
    await peer.say(Disposition(role=True, first=0, settled=True, state=ACCEPTED_STATE))
    assert peer.take(Disposition) == []
    assert made.texts() == []


async def test_a_released_message_is_redelivered_at_once_without_counting(made: Bench) -> None:
    await fill(made, "a")
    peer = await made.peer()
    await peer.attach_receiver()
    await peer.credit(2)
    await peer.say(Disposition(role=True, first=0, settled=True, state=Described(ULong(0x26), [])))
    assert payloads(peer) == ["a", "a"]
    header = cut(next(p for body, p in reversed(peer.heard) if isinstance(body, Transfer))).header
    assert header is not None
    assert decode(header)[0][4] == 0


async def test_after_a_detach_dispositions_of_that_link_are_ignored(made: Bench) -> None:
    await fill(made, "a")
    peer = await made.peer()
    await peer.attach_receiver()
    await peer.credit(1)
    await peer.say(Detach(handle=0, closed=True))
    assert len(peer.take(Detach)) == 1
    await peer.say(Disposition(role=True, first=0, settled=False, state=ACCEPTED_STATE))
    assert peer.take(Disposition) == []
    assert made.locked() == ["a"]


async def test_messages_not_yet_sent_when_a_link_goes_are_given_back(made: Bench) -> None:
    await fill(made, "a")
    peer = await made.peer()
    await peer.attach_receiver()
    # Credit and detach in one piece: the lock is not on disk when the link goes.
    await peer.say(flow(handle=0, delivery_count=0, link_credit=1), Detach(handle=0, closed=True))
    assert payloads(peer) == []
    assert made.texts() == ["a"]
    assert made.locked() == []


async def test_a_lost_connection_leaves_no_one_in_line(made: Bench) -> None:
    peer = await made.peer()
    await peer.attach_receiver()
    await peer.credit(10)
    live = made.namespace.find("q")
    assert live is not None
    assert len(live._hungry[False]) == 1
    peer.connection.connection_lost(None)
    assert not live._hungry[False]
    await fill(made, "a")
    assert made.locked() == []


async def test_links_are_served_in_turn(made: Bench) -> None:
    first, second = await made.peer(), await made.peer()
    for peer in (first, second):
        await peer.attach_receiver()
        await peer.credit(10)
    await fill(made, "a", "b", "c", "d")
    for peer in (first, second):
        await peer.listen()
    assert (payloads(first), payloads(second)) == (["a", "c"], ["b", "d"])


# ------------------------------------------------------------------------------------------------------- sending


async def test_a_delivery_in_many_frames_is_one_message(made: Bench) -> None:
    peer = await made.peer()
    await peer.attach_sender()
    whole = message("abc")
    for number in range(len(whole)):
        first = {"delivery_id": 0, "delivery_tag": b"t"} if number == 0 else {}
        more = number < len(whole) - 1
        await peer.say(Transfer(handle=0, more=more, **first), payload=whole[number : number + 1])  # type: ignore[arg-type]
    assert made.texts() == ["abc"]


async def test_an_aborted_delivery_is_forgotten(made: Bench) -> None:
    peer = await made.peer()
    await peer.attach_sender()
    await peer.say(Transfer(handle=0, delivery_id=0, delivery_tag=b"t", more=True), payload=message("never"))
    await peer.say(Transfer(handle=0, aborted=True))
    await peer.send("next", delivery_id=1)
    assert made.texts() == ["next"]


async def test_a_message_over_the_limit_is_refused_and_the_next_one_is_not(made: Bench) -> None:
    peer = await made.peer()
    await peer.attach_sender()
    link = peer.connection._sessions[1]._links[0]
    assert isinstance(link, ReceivingLink)
    for delivery_id in range(2):
        first = Transfer(handle=0, delivery_id=delivery_id, delivery_tag=b"t", more=True)
        await peer.say(first, payload=b"x" * 999)
        for _ in range(3):
            await peer.say(Transfer(handle=0, more=True), payload=b"x" * 999)
        assert sum(map(len, link._parts)) == 0, "it is kept although it will be refused"
        await peer.say(Transfer(handle=0))
    await peer.send("small", delivery_id=2)
    large, again, small = peer.take(Disposition)
    assert large.state is not None
    assert large.state.value[0].value[0] == "amqp:link:message-size-exceeded"
    assert again.state == large.state
    assert small.state == ACCEPTED_STATE
    assert made.texts() == ["small"]


async def test_a_malformed_message_costs_one_delivery_only(made: Bench) -> None:
    peer = await made.peer()
    await peer.attach_sender()
    await peer.say(Transfer(handle=0, delivery_id=0, delivery_tag=b"t"), payload=b"nonsense")
    await peer.send("good", delivery_id=1)
    assert [outcome_code(d.state) for d in peer.take(Disposition)] == [REJECTED, 0x24]
    assert made.texts() == ["good"]


async def test_a_batch_with_one_bad_message_sends_none(made: Bench) -> None:
    peer = await made.peer()
    await peer.attach_sender()
    batch = b"".join(encode(Described(ULong(0x75), part)) for part in (message("a"), b"bad", message("c")))
    await peer.say(Transfer(handle=0, delivery_id=0, delivery_tag=b"t", message_format=0x80013700), payload=batch)
    assert [outcome_code(d.state) for d in peer.take(Disposition)] == [REJECTED]
    assert made.texts() == []


async def test_a_sender_is_kept_in_credit(made: Bench) -> None:
    peer = await made.peer()
    await peer.attach_sender()
    (granted,) = peer.take(Flow)
    assert granted.link_credit == 1000
    for number in range(500):
        peer.connection.data_received(_transfer(number))
    await peer.listen()
    again = [each for each in peer.take(Flow) if each.handle == 0]
    assert [(each.delivery_count, each.link_credit) for each in again] == [(500, 1000)]


def _transfer(number: int) -> bytes:
    return write_frame(1, Transfer(handle=0, delivery_id=number, delivery_tag=b"t"), message("x"))


# ----------------------------------------------------------------------------------------------------- attaching


@pytest.mark.parametrize(
    ("address", "as_sender", "condition"),
    [
        ("missing", True, "amqp:not-found"),
        ("missing", False, "amqp:not-found"),
        ("missing/$management", False, "amqp:not-found"),
        ("q/$deadletterqueue", True, "amqp:not-allowed"),
    ],
)
async def test_a_refused_link_is_attached_without_termini_and_detached_with_the_reason(
    made: Bench, address: str, as_sender: bool, condition: str
) -> None:
    peer = await made.peer()
    await (peer.attach_sender if as_sender else peer.attach_receiver)(3, address)
    (attached,) = peer.take(Attach)
    (detached,) = peer.take(Detach)
    assert (attached.source, attached.target, attached.handle) == (None, None, 3)
    assert detached.error is not None
    assert detached.error.value[0] == condition
    await peer.say(Detach(handle=3, closed=True))  # the peer confirms; the handle is free again
    await peer.attach_sender(3)
    assert peer.take(End) == []
    assert len(peer.take(Attach)) == 1


@pytest.mark.parametrize("status", ["Active", "SendDisabled", "ReceiveDisabled", "Disabled"])
async def test_a_disabled_queue_is_not_attached_to_by_those_it_keeps_out(tmp_path: Path, status: Status) -> None:
    async with bench(tmp_path, settings=QueueSettings(status=status)) as made:
        peer = await made.peer()
        for attach, refuse in (
            (peer.attach_sender, ("SendDisabled", "Disabled")),
            (peer.attach_receiver, ("ReceiveDisabled", "Disabled")),
        ):
            await attach(0)
            refused = [detached.error.value[0] for detached in peer.take(Detach) if detached.error is not None]
            assert refused == (["com.microsoft:entity-disabled"] if status in refuse else [])
            await peer.say(Detach(handle=0, closed=True))
            peer.heard.clear()


async def test_a_link_learns_what_the_queue_takes_at_most(tmp_path: Path) -> None:
    async with bench(tmp_path, settings=QueueSettings(max_message_size=500)) as made:
        peer = await made.peer()
        await peer.attach_sender(0)
        await peer.attach_receiver(1)
        assert [attached.max_message_size for attached in peer.take(Attach)] == [500, 1000]


async def test_sessions_are_refused_by_name(made: Bench) -> None:
    peer = await made.peer()
    source = Described(ULong(SOURCE), ["q", *[None] * 6, {Symbol("com.microsoft:session-filter"): None}])
    await peer.say(Attach(name="r", handle=0, role=True, source=source))
    (detached,) = peer.take(Detach)
    assert detached.error is not None
    assert detached.error.value[0] == "amqp:not-implemented"


async def test_the_echoed_source_has_no_more_fields_than_the_type(made: Bench) -> None:
    peer = await made.peer()
    await peer.attach_receiver()
    (attached,) = peer.take(Attach)
    assert attached.source == Described(ULong(SOURCE), ["q"])
    assert attached.initial_delivery_count == 0


async def test_a_handle_in_use_ends_the_session_and_another_can_begin(made: Bench) -> None:
    peer = await made.peer()
    await peer.attach_sender(0)
    await peer.attach_sender(0)
    (ended,) = peer.take(End)
    assert ended.error is not None
    assert ended.error.value[0] == "amqp:session:handle-in-use"
    await peer.say(Detach(handle=0, closed=True), End())  # said before the peer had heard
    await peer.say(Begin(next_outgoing_id=0, incoming_window=10, outgoing_window=10))
    assert len(peer.take(Begin)) == 1
    assert peer.take(Close) == []


# ----------------------------------------------------------------------------------------------------- management


def request(operation: str, value: object, *, reply_to: str | None = None, key: object = "r-1") -> bytes:
    return b"".join(
        encode(Described(ULong(code), section))
        for code, section in (
            (0x73, [key, None, None, None, reply_to]),
            (0x74, {"operation": operation, "name": "sb://host/q"}),
            (0x77, value),
        )
    )


async def ask(peer: Peer, payload: bytes, *, handle: int) -> None:
    await peer.say(Transfer(handle=handle, delivery_id=0, delivery_tag=b"t"), payload=payload)


async def test_a_reply_goes_to_the_link_that_the_request_names(made: Bench) -> None:
    peer = await made.peer()
    await peer.attach_receiver(0, "q/$management", reply_to="one")
    await peer.attach_receiver(1, "q/$management", reply_to="two")
    await peer.attach_sender(2, "q/$management")
    for handle in (0, 1):
        await peer.credit(5, handle=handle)
    key = uuid4()
    payload = request("com.microsoft:peek-message", {}, reply_to="two", key=key)
    await ask(peer, payload, handle=2)
    ((transfer, reply),) = [(body, reply) for body, reply in peer.heard if isinstance(body, Transfer)]
    assert (transfer.handle, transfer.settled) == (1, True)
    sections = cut(reply)
    assert sections.properties is not None
    assert decode(sections.properties)[0][5] == key
    assert read_map(sections.application_properties)["statusCode"] == 400  # no from-sequence-number


@pytest.mark.parametrize(
    ("operation", "value", "status", "condition"),
    [
        ("com.microsoft:peek-message", {"from-sequence-number": 1, "message-count": 1}, 204, None),
        ("com.microsoft:peek-message", "not a map", 400, "com.microsoft:argument-error"),
        ("com.microsoft:renew-lock", {"lock-tokens": [uuid4()]}, 410, "com.microsoft:message-lock-lost"),
        ("com.microsoft:renew-lock", {"lock-tokens": []}, 400, "com.microsoft:argument-error"),
        ("com.microsoft:cancel-scheduled-message", {"sequence-numbers": [7]}, 404, "com.microsoft:message-not-found"),
        ("com.microsoft:schedule-message", {"messages": [{"message": b"bad"}]}, 400, "com.microsoft:argument-error"),
        ("com.microsoft:get-session-state", {}, 501, "amqp:not-implemented"),
    ],
)
async def test_the_management_node_says_what_went_wrong(
    made: Bench, operation: str, value: object, status: int, condition: str | None
) -> None:
    peer = await made.peer()
    await peer.attach_receiver(0, "q/$management")
    await peer.attach_sender(1, "q/$management")
    await peer.credit(5)
    await ask(peer, request(operation, value), handle=1)
    (reply,) = [reply for body, reply in peer.heard if isinstance(body, Transfer)]
    told = read_map(cut(reply).application_properties)
    assert (told["statusCode"], told.get("errorCondition")) == (status, condition)


async def test_a_reply_waits_for_credit(made: Bench) -> None:
    peer = await made.peer()
    await peer.attach_receiver(0, "$cbs")
    await peer.attach_sender(1, "$cbs")
    await ask(peer, request("put-token", "token"), handle=1)
    assert peer.take(Transfer) == []
    await peer.credit(1)
    (reply,) = [reply for body, reply in peer.heard if isinstance(body, Transfer)]
    assert read_map(cut(reply).application_properties)["status-code"] == 202


# ----------------------------------------------------------------------------------------------------- durability


class Gate:
    """Holds back the disk."""

    def __init__(self, made: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self._free = threading.Event()
        self._free.set()
        write = made._store.write

        def wait_and_write(batch: Batch) -> None:
            assert self._free.wait(10)
            write(batch)

        monkeypatch.setattr(made._store, "write", wait_and_write)

    async def hear_without_disk(self, peer: Peer, *performatives: Performative, payload: bytes = b"") -> int:
        """How many frames were heard while nothing could be written. Then everything is."""
        await peer.listen()
        peer.heard.clear()
        self._free.clear()
        peer.connection.data_received(b"".join(write_frame(1, each, payload) for each in performatives))
        for _ in range(10):
            await asyncio.sleep(0)
        heard = len(peer.wire.written)
        self._free.set()
        await peer.listen()
        return heard


@pytest.fixture
def gate(made: Bench, monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(made, monkeypatch)


async def test_a_message_is_accepted_only_when_it_is_on_disk(made: Bench, gate: Gate) -> None:
    peer = await made.peer()
    await peer.attach_sender()
    transfer = Transfer(handle=0, delivery_id=0, delivery_tag=b"t")
    assert await gate.hear_without_disk(peer, transfer, payload=message("a")) == 0
    assert [d.state for d in peer.take(Disposition)] == [ACCEPTED_STATE]


@pytest.mark.parametrize("mode", [0, 1], ids=["peek-lock", "receive-and-delete"])
async def test_a_message_leaves_only_when_its_lock_or_removal_is_on_disk(made: Bench, gate: Gate, mode: int) -> None:
    await fill(made, "a")
    peer = await made.peer()
    await peer.attach_receiver(snd_settle_mode=mode)
    assert await gate.hear_without_disk(peer, flow(handle=0, delivery_count=0, link_credit=1)) == 0
    assert payloads(peer) == ["a"]


@pytest.mark.parametrize("code", [0x24, 0x25, 0x26, 0x27])
async def test_an_outcome_is_confirmed_only_when_it_is_on_disk(made: Bench, gate: Gate, code: int) -> None:
    await fill(made, "a")
    peer = await made.peer()
    await peer.attach_receiver()
    await peer.credit(1)
    outcome = Disposition(role=True, first=0, settled=False, state=Described(ULong(code), []))
    assert await gate.hear_without_disk(peer, outcome) == 0
    assert [outcome_code(d.state) for d in peer.take(Disposition)] == [code]


async def test_a_management_reply_waits_for_the_disk(made: Bench, gate: Gate) -> None:
    peer = await made.peer()
    await peer.attach_receiver(0, "q/$management")
    await peer.attach_sender(1, "q/$management")
    await peer.credit(5)
    payload = request("com.microsoft:schedule-message", {"messages": [{"message": message("a")}]})
    transfer = Transfer(handle=1, delivery_id=0, delivery_tag=b"t")
    assert await gate.hear_without_disk(peer, transfer, payload=payload) == 0
    assert len(peer.take(Transfer)) == 1


# -------------------------------------------------------------------------------------------------- back pressure


async def test_a_sender_that_outruns_the_disk_is_not_read_until_it_has_caught_up(
    made: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("servicebus_emulator.places.MOST_UNCOMMITTED", 10)
    peer = await made.peer()
    await peer.attach_sender()
    peer.connection.data_received(_transfer(0))
    assert not peer.wire.reading
    await peer.listen()
    assert peer.wire.reading


async def test_the_peer_hears_something_twice_in_its_idle_time(made: Bench) -> None:
    peer = made.unopened()
    await peer.open(idle_time_out=200)
    began = asyncio.get_running_loop().time()
    for _ in range(3):
        peer.wire.wrote.clear()
        await asyncio.wait_for(peer.wire.wrote.wait(), 30)
    await peer.listen()
    assert [body for body, _ in peer.heard] == [None] * 3
    assert asyncio.get_running_loop().time() - began >= 0.25  # and not more often than it must
