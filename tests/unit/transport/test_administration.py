"""Counting by administration is a try: whatever is on the other side, there is an answer or None, and soon."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from messages.settings import BusSettings, SettingsError
from messages.transport import administration
from messages.transport.administration import Counts, counts

VARIABLE = "TEST_BUS"
FEED = b"""<feed xmlns="http://www.w3.org/2005/Atom"><title type="text">Queues</title><id>x</id>
<updated>2027-01-15T08:00:00Z</updated><link rel="self" href="x"/>
<entry><title type="text">Work</title><content type="application/xml">
<QueueDescription xmlns="http://schemas.microsoft.com/netservices/2010/10/servicebus/connect">
<CountDetails xmlns:d2p1="http://schemas.microsoft.com/netservices/2011/06/servicebus">
<d2p1:ActiveMessageCount>12345</d2p1:ActiveMessageCount><d2p1:DeadLetterMessageCount>6</d2p1:DeadLetterMessageCount>
<d2p1:ScheduledMessageCount>7</d2p1:ScheduledMessageCount></CountDetails></QueueDescription></content></entry></feed>"""

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def http(status: int, body: bytes, content_type: str = "application/atom+xml") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nContent-Type: {content_type}\r\n\r\n"
    return head.encode() + body


@asynccontextmanager
async def listening(
    answer: bytes | None,
    heard: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    *,
    more: str = "UseDevelopmentEmulator=true",
) -> AsyncIterator[BusSettings]:
    """Something that answers everybody the same, or with None nothing."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(4096))
        if answer is None:
            await asyncio.sleep(30)
        else:
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    known = f"Endpoint=sb://127.0.0.1:{port};SharedAccessKeyName=n;SharedAccessKey=secret-key;{more}"
    monkeypatch.setenv(VARIABLE, known)
    async with server:
        yield BusSettings(connection_string_env=VARIABLE)


async def test_what_is_told_is_given_by_the_queue_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bytes] = []
    async with listening(http(200, FEED), heard, monkeypatch) as settings:
        assert await counts(settings) == {"work": Counts(active=12345, scheduled=7, dead_lettered=6)}
    [request] = heard
    assert request.startswith(b"GET /$Resources/queues?")
    assert b"Authorization: SharedAccessSignature " in request
    assert b"secret-key" not in request


@pytest.mark.parametrize(
    "answer",
    [
        *(
            http(status, b"<Error><Code>1</Code></Error>", "application/xml")
            for status in (401, 403, 404, 405, 500, 501)
        ),
        http(302, b""),
        http(200, b"<html><p>Hello", "text/html"),
        http(200, b"{}", "application/json"),
        http(200, b""),
        http(200, b'<feed xmlns="http://www.w3.org/2005/Atom"/>', "application/xml"),
        http(200, FEED.replace(b"12345", b"many")),
        http(200, FEED.replace(b"CountDetails", b"Nothing")),
        b"AMQP\x00\x01\x00\x00",
        b"",
    ],
)
async def test_anything_else_is_no_answer(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    heard: list[bytes] = []
    async with listening(answer, heard, monkeypatch) as settings:
        assert await counts(settings) is None
    assert len(heard) == (1 if answer else 2), "one try; aiohttp makes a second when it was hung up on"


async def test_nobody_is_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(administration, "READ_SECONDS", 0.2)
    started = time.monotonic()
    async with listening(None, [], monkeypatch) as settings:
        assert await counts(settings) is None
    assert time.monotonic() - started < 20
    assert await counts(settings) is None, "and nobody listens any more"


@pytest.mark.parametrize("more", ["", "UseDevelopmentEmulator=false", "UseDevelopmentEmulator=True"])
async def test_only_an_emulator_is_asked_without_tls(monkeypatch: pytest.MonkeyPatch, more: str) -> None:
    heard: list[bytes] = []
    async with listening(b"", heard, monkeypatch, more=more) as settings:
        assert await counts(settings) is None
    assert [data[:1] for data in heard] == [b"\x16"], "a TLS handshake"


async def test_a_proxy_is_gone_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXY_USER", "me")
    monkeypatch.setenv("PROXY_PASSWORD", "p@ss")
    heard: list[bytes] = []
    async with listening(http(407, b""), heard, monkeypatch, more="") as settings:
        port = settings.connection_string()
        assert port is not None
        number = int(port.get_secret_value().partition("127.0.0.1:")[2].partition(";")[0])
        monkeypatch.setenv(VARIABLE, "Endpoint=sb://bus.example;SharedAccessKeyName=n;SharedAccessKey=k")
        proxy = {"host": "127.0.0.1", "port": number, "user_env": "PROXY_USER", "password_env": "PROXY_PASSWORD"}
        assert await counts(BusSettings.model_validate({**settings.model_dump(), "proxy": proxy})) is None
    assert heard[0].startswith(b"CONNECT bus.example:443 ")
    assert b"Proxy-Authorization: Basic bWU6cEBzcw==" in heard[0]


async def test_a_connection_string_that_is_none_is_said_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "SharedAccessKey=secret-key")
    with pytest.raises(SettingsError, match="malformed") as raised:
        await counts(BusSettings(connection_string_env=VARIABLE))
    assert "secret" not in str(raised.value)
