"""AMQP over WebSocket: who may upgrade, what the bytes in between become, and how it ends."""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import h11
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, Request, TextMessage

from servicebus_emulator import websocket
from servicebus_emulator.websocket import PATH, WebSocket, accept
from tests.unit.emulator.doorway import PATIENTLY, Doorway, Echo, doorway, hung_up
from tests.unit.emulator.wire_peer import Wire


@pytest_asyncio.fixture
async def made() -> AsyncIterator[Doorway]:
    async with doorway() as running:
        yield running


class Client:
    """A WebSocket client that may misbehave."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.machine = WSConnection(ConnectionType.CLIENT)
        self.reader, self.writer = reader, writer
        self.heard: list[Event] = []

    async def say(self, *events: Event) -> None:
        self.writer.write(b"".join(self.machine.send(event) for event in events))
        await self.writer.drain()

    async def hear(self, kind: type[Event]) -> Any:
        """The next of that kind."""
        async with asyncio.timeout(PATIENTLY):
            while True:
                for index, event in enumerate(self.heard):
                    if isinstance(event, kind):
                        return self.heard.pop(index)
                data = await self.reader.read(65536)
                assert data, f"hung up; heard {self.heard}"
                self.machine.receive_data(data)
                self.heard += self.machine.events()


async def upgraded(made: Doorway) -> Client:
    client = Client(*await made.connect())
    client.writer.write(client.machine.send(Request(host="h", target=PATH, subprotocols=["AMQPWSB10"])))
    while client.machine.connection is None:
        client.machine.receive_data(await client.reader.read(65536))
        list(client.machine.events())
    return client


# ------------------------------------------------------------------------------------------------- the handshake

GOOD = {
    "Host": "h",
    "Upgrade": "websocket",
    "Connection": "keep-alive, Upgrade",
    "Sec-WebSocket-Key": base64.b64encode(b"0" * 16).decode(),
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Protocol": "AMQPWSB10",
}


def request(method: str = "GET", path: str = PATH, **changes: str | None) -> bytes:
    fields = GOOD | {name.replace("_", "-"): value for name, value in changes.items()}
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode()


@pytest.mark.parametrize(
    ("sent", "subprotocol"),
    [
        pytest.param(request(), "AMQPWSB10", id="service-bus"),
        pytest.param(request(path="/$ServiceBus/WebSocket?x=1"), "AMQPWSB10", id="any-case"),
        pytest.param(request(path="/%24servicebus/websocket"), "AMQPWSB10", id="encoded"),
        pytest.param(request(Sec_WebSocket_Protocol="chat, amqp"), "amqp", id="oasis"),
        pytest.param(request(Upgrade="WebSocket", Origin="http://H"), "AMQPWSB10", id="own-origin"),
    ],
)
async def test_a_good_request_becomes_a_websocket(made: Doorway, sent: bytes, subprotocol: str) -> None:
    reader, writer = await made.connect()
    writer.write(sent)
    async with asyncio.timeout(PATIENTLY):
        answer = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert answer.startswith("HTTP/1.1 101 ")
    assert f"Sec-WebSocket-Protocol: {subprotocol}\r\n" in answer
    assert len(made.echoes) == 1
    writer.close()


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        pytest.param(request(path="/elsewhere"), 404, b"", id="path"),
        pytest.param(request(Upgrade=None), 426, b"Upgrade: websocket", id="no-upgrade"),
        pytest.param(request(Upgrade="h2c"), 426, b"Upgrade: websocket", id="another-upgrade"),
        pytest.param(request().replace(b"HTTP/1.1", b"HTTP/1.0"), 426, b"", id="http-1.0"),
        pytest.param(request("POST"), 405, b"Allow: GET", id="method"),
        pytest.param(request(Sec_WebSocket_Protocol="chat"), 400, b"AMQPWSB10", id="subprotocol"),
        pytest.param(request(Sec_WebSocket_Protocol=None), 400, b"AMQPWSB10", id="no-subprotocol"),
        pytest.param(request(Sec_WebSocket_Key=None), 400, b"", id="key"),
        pytest.param(request(Sec_WebSocket_Version="8"), 426, b"Sec-WebSocket-Version: 13", id="version"),
        pytest.param(request(Host="\N{LATIN SMALL LETTER U WITH DIAERESIS}" * 80), 400, b"", id="host"),
        pytest.param(request(Origin="https://elsewhere.example"), 403, b"", id="origin"),
    ],
)
async def test_another_request_does_not(made: Doorway, sent: bytes, status: int, said: bytes) -> None:
    answer = await made.converse(sent)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert said in answer
    assert made.echoes == []


# ---------------------------------------------------------------------------------------------------- the stream


async def test_an_ordinary_client_talks_through_it(made: Doorway) -> None:
    url = f"http://127.0.0.1:{made.port}{PATH}"
    async with aiohttp.ClientSession() as session, session.ws_connect(url, protocols=["AMQPWSB10"]) as client:
        assert client.protocol == "AMQPWSB10"
        await client.send_bytes(b"AMQP")
        assert await client.receive_bytes(timeout=PATIENTLY) == b"AMQP"
        await client.ping()
    await asyncio.wait_for(made.echoes[0].is_lost.wait(), PATIENTLY)


async def test_pieces_of_a_message_are_the_stream_and_pings_between_them_are_answered(made: Doorway) -> None:
    client = await upgraded(made)
    await client.say(BytesMessage(b"AM", message_finished=False), Ping(b"there?"))
    await client.say(BytesMessage(b"", message_finished=False), BytesMessage(b"QP", message_finished=True))
    assert (await client.hear(Pong)).payload == b"there?"
    heard = (await client.hear(BytesMessage)).data
    while len(heard) < 4:
        heard += (await client.hear(BytesMessage)).data
    assert heard == b"AMQP" == made.echoes[0].heard
    client.writer.close()


async def test_what_came_along_with_the_request_is_not_lost(made: Doorway) -> None:
    client = Client(*await made.connect())
    upgrade = client.machine.send(Request(host="h", target=PATH, subprotocols=["amqp"]))
    early = WSConnection(ConnectionType.CLIENT)
    early.send(Request(host="h", target=PATH, subprotocols=["amqp"]))
    client.writer.write(upgrade + masked(b"early"))
    while client.machine.connection is None:
        client.machine.receive_data(await client.reader.read(65536))
        client.heard += client.machine.events()
    assert bytes((await client.hear(BytesMessage)).data) == b"early"
    client.writer.close()


def masked(payload: bytes, opcode: int = 2) -> bytes:
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + b"\0\0\0\0" + payload


async def test_a_large_write_leaves_as_messages_that_every_client_takes(made: Doorway) -> None:
    """aiohttp, and the SDK with it, refuses a message of more than four MiB."""
    url = f"http://127.0.0.1:{made.port}{PATH}"
    async with aiohttp.ClientSession() as session, session.ws_connect(url, protocols=["amqp"]) as client:
        await client.send_bytes(b"-")
        assert await client.receive_bytes(timeout=PATIENTLY) == b"-"
        transport = made.echoes[0].transport
        assert transport is not None
        transport.write(b"x" * 5_000_000)
        sizes: list[int] = []
        while sum(sizes) < 5_000_000:
            sizes.append(len(await client.receive_bytes(timeout=PATIENTLY)))
    assert max(sizes) == websocket.MAX_MESSAGE


async def test_reading_can_be_paused_and_a_slow_reader_is_told_of(made: Doorway) -> None:
    client = await upgraded(made)
    transport = made.echoes[0].transport
    assert transport is not None
    transport.pause_reading()
    assert not transport.is_reading()
    await client.say(BytesMessage(b"later"))
    await asyncio.sleep(0.1)
    assert made.echoes[0].heard == b""
    transport.resume_reading()
    assert (await client.hear(BytesMessage)).data == b"later"
    transport.write(b"x" * 20_000_000)
    assert not made.echoes[0].is_writable
    assert transport.get_write_buffer_size() > 0
    total = 0
    while total < 20_000_000:
        total += len((await client.hear(BytesMessage)).data)
    assert made.echoes[0].is_writable
    assert transport.get_extra_info("peername")[0] == "127.0.0.1"
    client.writer.close()


# -------------------------------------------------------------------------------------------------------- the end


async def test_goodbye_is_answered(made: Doorway) -> None:
    client = await upgraded(made)
    await client.say(CloseConnection(code=1001, reason="going"))
    assert (await client.hear(CloseConnection)).code == 1001
    assert await hung_up(client.reader) == b""
    await asyncio.wait_for(made.echoes[0].is_lost.wait(), PATIENTLY)
    client.writer.close()


async def test_whoever_closes_here_says_goodbye_first(made: Doorway) -> None:
    client = await upgraded(made)
    transport = made.echoes[0].transport
    assert transport is not None
    transport.write(b"last words")
    transport.close()
    transport.close()
    assert transport.is_closing()
    transport.write(b"too late")
    assert (await client.hear(BytesMessage)).data == b"last words"
    assert (await client.hear(CloseConnection)).code == 1000
    client.writer.write(masked(b"still going") + masked(b"\x03\xe8", opcode=8))
    assert await hung_up(client.reader) == b""
    await asyncio.wait_for(made.echoes[0].is_lost.wait(), PATIENTLY)
    assert made.echoes[0].heard == b""
    client.writer.close()


async def test_goodbye_is_heard_by_whoever_had_stopped_reading(made: Doorway) -> None:
    client = await upgraded(made)
    transport = made.echoes[0].transport
    assert transport is not None
    transport.pause_reading()
    transport.close()
    await client.hear(CloseConnection)
    await client.say(CloseConnection(code=1000))
    await asyncio.wait_for(made.echoes[0].is_lost.wait(), websocket.FAREWELL / 2)
    client.writer.close()


async def test_whoever_does_not_answer_goodbye_is_hung_up_on(made: Doorway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "FAREWELL", 0.2)
    client = await upgraded(made)
    transport = made.echoes[0].transport
    assert transport is not None
    transport.close()
    assert (await client.hear(CloseConnection)).code == 1000
    await hung_up(client.reader)
    await asyncio.wait_for(made.echoes[0].is_lost.wait(), PATIENTLY)
    client.writer.close()


async def test_whoever_says_goodbye_and_does_not_read_is_hung_up_on(
    made: Doorway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "FAREWELL", 0.2)
    client = await upgraded(made)
    transport = made.echoes[0].transport
    assert transport is not None
    transport.write(b"x" * 20_000_000)
    await client.say(CloseConnection(code=1000))
    await asyncio.wait_for(made.echoes[0].is_lost.wait(), PATIENTLY)
    client.writer.close()


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(masked(b"AMQP", opcode=1), 1003, id="text"),
        pytest.param(b"\x82\x04AMQP", 1002, id="unmasked"),
        pytest.param(masked(b"x", opcode=3), 1002, id="opcode"),
        pytest.param(masked(b"x", opcode=0), 1002, id="nothing-to-continue"),
        pytest.param(b"\xc2\x84\0\0\0\0AMQP", 1002, id="compressed"),
        pytest.param(masked(b"\x03", opcode=8), 1002, id="half-a-code"),
    ],
)
async def test_what_is_not_binary_messages_is_refused_with_its_code(made: Doorway, sent: bytes, code: int) -> None:
    client = await upgraded(made)
    client.writer.write(sent)
    assert (await client.hear(CloseConnection)).code == code
    if client.machine.connection is not None and code == 1003:
        await client.say(CloseConnection(code=code))
    assert await hung_up(client.reader) == b""
    assert made.echoes[0].heard == b""
    client.writer.close()


# ----------------------------------------------------------------------------------------- without a socket


def piece() -> tuple[WebSocket, Wire, Echo]:
    fields = [(name.encode(), value.encode()) for name, value in GOOD.items()]
    accepted = accept(h11.Request(method="GET", target=PATH, headers=fields))
    echo, wire = Echo(), Wire()
    socket = WebSocket(accepted, echo)
    socket.connection_made(wire)
    wire.written.clear()
    return socket, wire, echo


async def test_a_flood_of_pings_without_reading_is_answered_once() -> None:
    socket, wire, _ = piece()
    socket.pause_writing()
    for number in range(100):
        socket.data_received(masked(b"%d" % number, opcode=9))
    assert wire.written == b""
    socket.resume_writing()
    assert wire.written == b"\x8a\x0299"


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.builds(masked, st.binary(max_size=40), st.sampled_from([0, 1, 2, 8, 9, 10])),
        ),
        max_size=6,
    ),
    step=st.integers(1, 30),
)
async def test_whatever_comes_is_taken_or_refused_and_never_a_bug(pieces: list[bytes], step: int) -> None:
    socket, _, echo = piece()
    stream = b"".join(pieces)
    for start in range(0, len(stream), step):
        socket.data_received(stream[start : start + step])
    socket.connection_lost(None)
    assert echo.is_lost.is_set()


async def test_text_is_text_even_in_pieces(made: Doorway) -> None:
    client = await upgraded(made)
    await client.say(TextMessage("AM", message_finished=False))
    assert (await client.hear(CloseConnection)).code == 1003
    client.writer.close()
