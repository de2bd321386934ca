"""A door over real sockets with almost nothing behind it: an echo for AMQP, and a site that says what it was asked."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from servicebus_emulator.door import Door
from servicebus_emulator.http import HttpRequest, HttpResponse

LOCAL = "127.0.0.1"
PATIENTLY = 30.0


class Echo(asyncio.Protocol):
    """Stands for a connection."""

    def __init__(self) -> None:
        self.heard = b""
        self.transport: asyncio.Transport | None = None
        self.is_lost = asyncio.Event()
        self.is_writable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard += data
        assert self.transport is not None
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost.set()

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True


@dataclass
class Site:
    """Answers with the request, as JSON; ``held`` collects what waits for the disk when there is a disk to wait for."""

    asked: list[HttpRequest] = field(default_factory=list)
    held: list[Callable[[], None]] = field(default_factory=list)
    is_slow: bool = False
    is_waiting: asyncio.Event = field(default_factory=asyncio.Event)
    large: int = 0

    def answer(self, request: HttpRequest) -> HttpResponse:
        self.asked.append(request)
        if request.path == "/bug":
            raise RuntimeError("a bug in the site")
        if request.path == "/nothing":
            return HttpResponse(204)
        if request.path == "/bad-header":
            return HttpResponse(200, headers={"X": "a\r\nSet-Cookie: b"})
        told = {"method": request.method, "path": request.path, "query": dict(request.query)}
        body = json.dumps({**told, "body": request.body.decode("latin-1")}) + " " * self.large
        return HttpResponse(200, body.encode(), "application/json", {"X-Site": "yes"})

    def after_commit(self, act: Callable[[], None]) -> None:
        if self.is_slow:
            self.held.append(act)
            self.is_waiting.set()
        else:
            act()


@dataclass
class Doorway:
    port: int
    site: Site
    echoes: list[Echo]
    door: Door

    async def connect(self, **options: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(LOCAL, self.port, **options)  # type: ignore[arg-type]

    async def converse(self, sent: bytes) -> bytes:
        """Everything that is answered until the door hangs up."""
        reader, writer = await self.connect()
        writer.write(sent)
        async with asyncio.timeout(PATIENTLY):
            answer = await reader.read()
        writer.close()
        return answer


@asynccontextmanager
async def doorway(
    tls: ssl.SSLContext | None = None, *, plain_anywhere: bool = False, hosts: Collection[str] | None = None
) -> AsyncIterator[Doorway]:
    site, echoes = Site(), list[Echo]()

    def connect() -> Echo:
        echoes.append(Echo())
        return echoes[-1]

    door = Door(connect, site, tls, plain_anywhere=plain_anywhere, hosts=hosts)
    made = Doorway(await door.open(LOCAL, 0), site, echoes, door)
    try:
        yield made
    finally:
        door.shut()
        door.clear()
        for echo in echoes:
            if echo.transport is not None:
                echo.transport.abort()
        await asyncio.sleep(0.01)


async def until(condition: Callable[[], bool]) -> None:
    """Returns when it is so; what is waited for has no event to wait on."""
    async with asyncio.timeout(PATIENTLY):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def hung_up(reader: asyncio.StreamReader) -> bytes:
    """What still comes before the end."""
    async with asyncio.timeout(PATIENTLY):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""
