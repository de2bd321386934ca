"""Real conversations with bytes changed, lost or repeated: whatever comes, a connection answers or closes."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servicebus_emulator.codec import Described, ULong, encode
from servicebus_emulator.frames import AMQP_HEADER, SASL_HEADER, write_frame
from servicebus_emulator.performatives import (
    ACCEPTED_STATE,
    SOURCE,
    TARGET,
    Attach,
    Begin,
    Close,
    Detach,
    Disposition,
    End,
    Open,
    SaslInit,
    Transfer,
)
from tests.unit.emulator.wire_peer import Bench, bench, flow, message

Q, CBS, MANAGEMENT = "q", "$cbs", "q/$management"


def attach(handle: int, address: str, *, receives: bool) -> Attach:
    source, target = ([address], ["here"]) if receives else (["here"], [address])
    return Attach(
        name=f"l{handle}",
        handle=handle,
        role=receives,
        source=Described(ULong(SOURCE), source),
        target=Described(ULong(TARGET), target),
        initial_delivery_count=None if receives else 0,
        properties={"a": 1},
    )


REQUEST = b"".join(
    encode(Described(ULong(code), value))
    for code, value in (
        (0x73, ["key", None, None, None, "here"]),
        (0x74, {"operation": "com.microsoft:peek-message"}),
        (0x77, {"from-sequence-number": 1, "message-count": 10}),
    )
)
CONVERSATION = [
    SASL_HEADER,
    write_frame(0, SaslInit(mechanism="ANONYMOUS"), kind=1),
    AMQP_HEADER,
    write_frame(0, Open(container_id="c", max_frame_size=4096, idle_time_out=60_000)),
    write_frame(1, Begin(next_outgoing_id=0, incoming_window=100, outgoing_window=100)),
    write_frame(1, attach(0, Q, receives=False)),
    write_frame(1, Transfer(handle=0, delivery_id=0, delivery_tag=b"t", message_format=0), message("a")),
    write_frame(1, Transfer(handle=0, delivery_id=1, delivery_tag=b"t", more=True), message("b")[:5]),
    write_frame(1, Transfer(handle=0), message("b")[5:]),
    write_frame(1, attach(1, Q, receives=True)),
    write_frame(1, flow(handle=1, delivery_count=0, link_credit=10)),
    write_frame(1, Disposition(role=True, first=0, last=1, settled=False, state=ACCEPTED_STATE)),
    write_frame(1, attach(2, MANAGEMENT, receives=True)),
    write_frame(1, attach(3, MANAGEMENT, receives=False)),
    write_frame(1, flow(handle=2, delivery_count=0, link_credit=10)),
    write_frame(1, Transfer(handle=3, delivery_id=2, delivery_tag=b"t"), REQUEST),
    write_frame(1, attach(4, CBS, receives=True)),
    write_frame(1, Detach(handle=1, closed=True)),
    write_frame(1, End()),
    write_frame(0, Close()),
]


@pytest_asyncio.fixture
async def made(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as running:
        yield running


edits = st.lists(
    st.tuples(st.sampled_from(["flip", "drop", "repeat", "insert"]), st.integers(0, 1 << 20), st.integers(0, 255)),
    max_size=4,
)


def edited(frames: list[bytes], changes: list[tuple[str, int, int]]) -> bytes:
    pieces = list(frames)
    for how, where, byte in changes:
        index = where % len(pieces)
        match how:
            case "drop" if len(pieces) > 1:
                del pieces[index]
            case "repeat":
                pieces.insert(index, pieces[index])
            case "insert":
                pieces.insert(index, bytes([byte]) * (where % 40))
            case "flip" if pieces[index]:
                piece = bytearray(pieces[index])
                piece[where // len(pieces) % len(piece)] = byte
                pieces[index] = bytes(piece)
            case _:
                continue
    return b"".join(pieces)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=edits, step=st.integers(1, 400))
async def test_a_changed_conversation_is_answered_or_closed_and_never_a_bug(
    made: Bench, caplog: pytest.LogCaptureFixture, changes: list[tuple[str, int, int]], step: int
) -> None:
    caplog.clear()
    peer = made.unopened()
    stream = edited(CONVERSATION, changes)
    with caplog.at_level(logging.ERROR, logger="servicebus_emulator"):
        for start in range(0, len(stream), step):
            peer.connection.data_received(stream[start : start + step])
        await made.journal.drained()
        peer.connection.connection_lost(None)
    assert not caplog.records, [record.exc_text or record.exc_info for record in caplog.records]


async def test_the_unchanged_conversation_is_understood(made: Bench) -> None:
    """Else the test above would prove nothing."""
    peer = made.unopened()
    for piece in CONVERSATION[:-1]:
        peer.connection.data_received(piece)
        await made.journal.drained()
    assert made.texts() == []
    answered = bytes(peer.connection._outgoing) + bytes(peer.wire.written)
    assert answered.count(b"\x00\x53\x12") == 5  # attaches
    assert not peer.wire.closed
    peer.connection.data_received(CONVERSATION[-1])
    assert peer.wire.closed
