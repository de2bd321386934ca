"""Well-formed AMQP values of every type, wherever a client may say one: whatever comes, everything else goes on."""

import asyncio
import logging
import tempfile
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from servicebus_emulator import codec
from servicebus_emulator.codec import (
    Array,
    Byte,
    Char,
    Decimal,
    Described,
    EncodeError,
    Float,
    Int,
    Short,
    Symbol,
    Timestamp,
    UByte,
    UInt,
    ULong,
    UShort,
    array_of,
    decode,
    encode,
)
from servicebus_emulator.config import QueueSettings
from servicebus_emulator.message import cut
from servicebus_emulator.performatives import ACCEPTED_STATE, Close, Disposition, End, Transfer
from tests.unit.emulator.wire_peer import Bench, Peer, bench, message

SCHEDULED = Symbol("x-opt-scheduled-enqueue-time")
SENDER, RECEIVER, REQUESTS, REPLIES, DEAD_REQUESTS, DEAD_REPLIES, DEAD = range(7)
REQUEST_LINKS = {"q/$management": (REQUESTS, REPLIES), "q/$deadletterqueue/$management": (DEAD_REQUESTS, DEAD_REPLIES)}


def whole(kind: type[int], low: int, high: int) -> st.SearchStrategy[Any]:
    return st.one_of(st.sampled_from([0, low, high]), st.integers(low, high)).map(kind)


texts = st.text(st.characters(codec="utf-8"), max_size=300)
names = st.sampled_from(["a", "DeadLetterReason", "x-opt-lock-token", "x-opt-sequence-number", SCHEDULED])
simple: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    whole(UByte, 0, 2**8 - 1),
    whole(UShort, 0, 2**16 - 1),
    whole(UInt, 0, 2**32 - 1),
    whole(ULong, 0, 2**64 - 1),
    whole(Byte, -(2**7), 2**7 - 1),
    whole(Short, -(2**15), 2**15 - 1),
    whole(Int, -(2**31), 2**31 - 1),
    whole(int, -(2**63), 2**63 - 1),
    whole(Timestamp, -(2**63), 2**63 - 1),
    st.floats(width=32).map(Float),
    st.floats(),
    st.sampled_from([4, 8, 16]).flatmap(lambda size: st.binary(min_size=size, max_size=size)).map(Decimal),
    st.characters(codec="utf-8").map(Char),
    st.uuids(),
    st.binary(max_size=300),
    texts,
    st.text(st.characters(codec="ascii"), max_size=300).map(Symbol),
)
arrays = st.sampled_from(
    [
        Array(0x40, ()),
        Array(0x45, ([], [])),
        Array(0xC0, ([1], [None])),
        Array(0xC1, ({"a": 1},)),
        Array(0xF0, (array_of(Int, [1]),)),
        Array(0, (Described(ULong(1), 1),), 0x53),
        Array(0, (Described(Symbol("a"), [1]),), 0xD0),
        Array(0x74, (Decimal(b"1234"),)),
        array_of(UUID, [UUID(int=1)]),
        array_of(int, [1, -1]),
    ]
)
keys = st.one_of(names, names.map(Symbol), st.uuids(), whole(ULong, 0, 9), st.binary(max_size=3), st.none(), arrays)


def compounds(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(keys.filter(lambda key: not isinstance(key, Array)), inner, max_size=4),
        st.builds(Described, simple, inner),
    )


values: st.SearchStrategy[Any] = st.one_of(simple, arrays, st.recursive(simple | arrays, compounds, max_leaves=5))


numbers = st.sampled_from([ULong(2**64 - 1), Timestamp(2**63 - 1), Timestamp(-(2**63)), (2**63 - 1), UInt(2**32 - 1)])


def fields(count: int) -> st.SearchStrategy[Any]:
    """A list of so many with one odd value in it, or something else altogether."""
    odd = st.one_of(numbers, values)
    places = st.tuples(st.integers(0, count), odd).map(lambda drawn: [None] * drawn[0] + [drawn[1]])
    return st.one_of(values, places, places)


def mapped(key: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(values, *[st.dictionaries(key, each, max_size=3) for each in (values, simple)])


symbols = st.one_of(names.map(Symbol), names)
SECTIONS = {
    0x70: st.one_of(fields(5), numbers.map(lambda ttl: [None, None, ttl])),
    0x71: mapped(symbols),
    0x72: st.one_of(mapped(symbols), numbers.map(lambda when: {SCHEDULED: when})),
    0x73: fields(13),
    0x74: mapped(names),
    0x75: st.one_of(st.binary(max_size=9), values),
    0x78: mapped(symbols),
}
sections = st.one_of(
    *[st.fixed_dictionaries({code: drawn}) for code, drawn in SECTIONS.items()],  # one at a time, as one is refused
    st.fixed_dictionaries({}, optional=SECTIONS),
)
MANAGEMENT = {
    "renew-lock": ["lock-tokens"],
    "peek-message": ["from-sequence-number", "message-count"],
    "schedule-message": ["messages"],
    "cancel-scheduled-message": ["sequence-numbers"],
    "receive-by-sequence-number": ["sequence-numbers", "receiver-settle-mode"],
    "update-disposition": [
        *("lock-tokens", "disposition-status", "deadletter-reason", "deadletter-description", "properties-to-modify"),
    ],
}
USUAL = {
    "from-sequence-number": 0,
    "message-count": Int(10),
    "messages": [{"message": message("mine")}],
    "sequence-numbers": array_of(int, [1]),
    "receiver-settle-mode": UInt(1),
    "disposition-status": "suspended",
}
odd_requests = st.sampled_from(sorted(MANAGEMENT)).flatmap(
    lambda operation: st.tuples(
        st.just(operation),
        st.dictionaries(
            st.sampled_from(MANAGEMENT[operation]),
            st.one_of(values, mapped(names), values.map(lambda value: [value])),
            min_size=1,
        ),
        st.sampled_from(sorted(REQUEST_LINKS)),
        st.one_of(st.just("key"), values),
    )
)
outcomes = st.tuples(
    st.sampled_from([0x24, 0x25, 0x26, 0x27]), st.lists(st.one_of(values, mapped(symbols)), max_size=4)
)
errors_told = mapped(symbols).map(lambda info: (0x25, [Described(ULong(0x1D), [Symbol("why"), "said", info])]))


def wire(described: dict[int, Any]) -> bytes:
    try:
        return b"".join(encode(Described(ULong(code), described[code])) for code in sorted(described))
    except EncodeError:
        assume(False)
        raise


def request(operation: str, asked: dict[str, Any], key: object) -> bytes:
    return wire({0x73: [key], 0x74: {"operation": f"com.microsoft:{operation}"}, 0x77: asked})


async def send(peer: Peer, handle: int, payload: bytes) -> None:
    await peer.say(Transfer(handle=handle, delivery_id=0, delivery_tag=b"t"), payload=payload)


async def client(made: Bench, queue: str = "q") -> Peer:
    peer = await made.peer()
    await peer.attach_sender(SENDER, queue)
    await peer.attach_receiver(RECEIVER, queue)
    for node, (requests, replies) in REQUEST_LINKS.items():
        await peer.attach_receiver(replies, node.replace("q", queue, 1))
        await peer.attach_sender(requests, node.replace("q", queue, 1))
        await peer.credit(100, handle=replies)
    await peer.attach_receiver(DEAD, f"{queue}/$deadletterqueue")
    peer.heard.clear()
    return peer


def received(peer: Peer, handle: int) -> list[tuple[Transfer, bytes]]:
    return [(body, raw) for body, raw in peer.heard if isinstance(body, Transfer) and body.handle == handle]


async def check_that_all_goes_on(made: Bench) -> None:
    """What is good passes on both queues, also what is due in a moment, and all that is stored can be shown."""
    for queue in ("q", "other"):
        peer = await client(made, queue)
        await peer.credit(100, handle=RECEIVER)
        await peer.credit(100, handle=DEAD)
        peer.heard.clear()
        soon = {0x72: {SCHEDULED: Timestamp(made.namespace.now() + 20)}, 0x73: ["due"], 0x75: b"due"}
        await send(peer, SENDER, wire(soon))
        await send(peer, SENDER, wire({0x73: ["good"], 0x75: b"good"}))
        assert [each.state for each in peer.take(Disposition)] == [ACCEPTED_STATE] * 2
        for _ in range(3000):
            bodies = [cut(raw).body for _, raw in received(peer, RECEIVER)]
            if any(body.endswith(b"due") for body in bodies):
                break
            await asyncio.sleep(0.01)
            await peer.listen()
        assert any(body.endswith(b"good") for body in bodies)
        assert any(body.endswith(b"due") for body in bodies)
        for requests, replies in REQUEST_LINKS.values():
            peer.heard.clear()
            await send(peer, requests, request("peek-message", {k: USUAL[k] for k in MANAGEMENT["peek-message"]}, "k"))
            assert len(received(peer, replies)) == 1
        peer.connection.connection_lost(None)


async def locked(made: Bench, payload: bytes) -> tuple[Peer, UUID] | None:
    """A client, and the lock of the message that it sent itself; None where nothing came of it."""
    peer = await client(made)
    await send(peer, SENDER, payload)
    await peer.credit(1, handle=RECEIVER)
    found = received(peer, RECEIVER)
    if not found:
        peer.connection.connection_lost(None)  # else its credit would take what is sent later
        return None
    return peer, UUID(bytes_le=found[-1][0].delivery_tag or b"")


def check_no_bug(caplog: pytest.LogCaptureFixture) -> None:
    assert not caplog.records, [record.exc_text or record.exc_info for record in caplog.records]


common = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@settings(common, max_examples=60)
@given(described=sections, body=values)
@example(described={0x71: "hello"}, body=1)
@example(described={0x74: "hello"}, body=1)
@example(described={0x70: [None, None, ULong(2**64 - 1)]}, body=1)
@example(described={0x72: {SCHEDULED: ULong(2**64 - 1)}}, body=1)
async def test_a_message_of_any_values_is_delivered_for_ever_or_refused(
    caplog: pytest.LogCaptureFixture, described: dict[int, Any], body: Any
) -> None:
    caplog.clear()
    payload = wire(described if 0x75 in described else {**described, 0x77: body})
    with tempfile.TemporaryDirectory() as directory, caplog.at_level(logging.ERROR, logger="servicebus_emulator"):
        async with bench(Path(directory), max_message_size=100_000) as made:
            made.namespace.create("other", QueueSettings())
            got = await locked(made, payload)
            if got is not None:
                peer, token = got
                asked = {"lock-tokens": array_of(UUID, [token]), "disposition-status": "suspended"}
                asked |= {"deadletter-reason": "why"}
                await send(peer, REQUESTS, request("update-disposition", asked, "k"))
            await check_that_all_goes_on(made)
        async with bench(Path(directory), max_message_size=100_000) as made:
            await check_that_all_goes_on(made)
    check_no_bug(caplog)


@common
@given(odd=odd_requests)
@example(odd=("update-disposition", {"deadletter-reason": Array(0xC0, ([1],))}, "q/$management", "key"))
async def test_a_request_of_any_values_is_answered_or_refused(
    caplog: pytest.LogCaptureFixture, odd: tuple[str, dict[str, Any], str, Any]
) -> None:
    caplog.clear()
    operation, strange, node, key = odd
    with tempfile.TemporaryDirectory() as directory, caplog.at_level(logging.ERROR, logger="servicebus_emulator"):
        async with bench(Path(directory), max_message_size=100_000) as made:
            made.namespace.create("other", QueueSettings())
            got = await locked(made, message("mine"))
            assert got is not None
            peer, token = got
            usual = {"lock-tokens": array_of(UUID, [token]), **USUAL}
            asked = {name: usual.get(name) for name in MANAGEMENT[operation]} | strange
            requests, replies = REQUEST_LINKS[node]
            peer.heard.clear()
            await send(peer, requests, request(operation, asked, key))
            assert len(received(peer, replies)) == 1 or len(peer.take(Disposition)) == 1
            assert not peer.take(End) + peer.take(Close)  # type: ignore[operator]
            await check_that_all_goes_on(made)
        async with bench(Path(directory), max_message_size=100_000) as made:
            await check_that_all_goes_on(made)
    check_no_bug(caplog)


@common
@given(outcome=st.one_of(outcomes, errors_told))
async def test_an_outcome_of_any_values_settles_or_costs_its_connection(
    caplog: pytest.LogCaptureFixture, outcome: tuple[int, list[Any]]
) -> None:
    caplog.clear()
    code, told = outcome
    wire({code: told})
    with tempfile.TemporaryDirectory() as directory, caplog.at_level(logging.ERROR, logger="servicebus_emulator"):
        async with bench(Path(directory), max_message_size=100_000) as made:
            made.namespace.create("other", QueueSettings())
            got = await locked(made, message("mine"))
            assert got is not None
            await got[0].say(Disposition(role=True, first=0, settled=False, state=Described(ULong(code), told)))
            await check_that_all_goes_on(made)
        async with bench(Path(directory), max_message_size=100_000) as made:
            await check_that_all_goes_on(made)
    check_no_bug(caplog)


@given(value=values)
def test_every_value_that_can_be_read_can_be_written_again(value: Any) -> None:
    raw = wire({1: value})
    again, end = decode(raw)
    assert end == len(raw)
    assert encode(again) == raw
    assert codec.skip(raw, 0) == end
