"""AMQP over WebSocket (RFC 6455): binary messages, one after the other, are the stream of bytes that AMQP is.

What stands behind sees an asyncio.Transport and knows nothing of WebSocket. Where a message ends means nothing to
AMQP; text is refused; nothing is compressed. The request itself comes from `web`.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import h11
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import RemoteProtocolError

PATH = "/$servicebus/websocket"
SUBPROTOCOLS = ("amqpwsb10", "amqp")  # of Service Bus, and of the OASIS binding; compared in lower case
MAX_MESSAGE = 64 * 1024  # clients have limits of their own: aiohttp's is 4 MiB
FAREWELL = 5.0  # seconds for the other side to say goodbye too


class Refused(Exception):
    """This request does not become a WebSocket."""

    def __init__(self, status: int, reason: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = tuple(headers)


class Accepted:
    """A handshake that went well, and the answer that says so."""

    def __init__(self, machine: WSConnection, answer: bytes) -> None:
        self.machine = machine
        self.answer = answer


def accept(request: h11.Request) -> Accepted:
    """4.2.1 and 4.2.2. Raises Refused."""
    headers = dict(request.headers)
    if request.method != b"GET":
        raise Refused(405, "a WebSocket begins with GET", [("Allow", "GET")])
    if headers.get(b"upgrade", b"").lower() != b"websocket" or request.http_version < b"1.1":
        raise Refused(426, "this is a place for WebSocket", [("Upgrade", "websocket"), ("Connection", "Upgrade")])
    origin = headers.get(b"origin")
    if origin is not None and origin.partition(b"://")[2].lower() != headers.get(b"host", b"").lower():
        raise Refused(403, "the page of another site may not connect from a browser")  # 10.2
    machine = WSConnection(ConnectionType.SERVER)
    try:
        machine.initiate_upgrade_connection(list(request.headers), request.target)
        asked = next(machine.events())
    except RemoteProtocolError as error:
        hint = error.event_hint if isinstance(error.event_hint, RejectConnection) else RejectConnection()
        extra = [(bytes(name).decode("ascii"), bytes(value).decode("ascii")) for name, value in hint.headers]
        raise Refused(hint.status_code, str(error), extra) from None
    except (h11.LocalProtocolError, UnicodeError, StopIteration) as error:
        raise Refused(400, f"the request makes no sense: {error}") from None
    offered = asked.subprotocols if isinstance(asked, Request) else []
    chosen = next((name for name in offered if name.lower() in SUBPROTOCOLS), None)
    if chosen is None:
        raise Refused(400, "the subprotocol AMQPWSB10 is due (Sec-WebSocket-Protocol)")
    return Accepted(machine, machine.send(AcceptConnection(subprotocol=chosen)))


class WebSocket(asyncio.Protocol):
    """Between the socket and a protocol that believes to be talking to the socket."""

    def __init__(self, accepted: Accepted, inner: asyncio.Protocol) -> None:
        self._accepted = accepted
        self._machine = accepted.machine
        self._inner = inner
        self._loop = asyncio.get_running_loop()
        self._outer: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writable = True
        self._unanswered: Ping | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - narrows what asyncio types too widely
        self._outer = transport
        transport.write(self._accepted.answer)
        transport.resume_reading()
        self._inner.connection_made(Wire(self, transport))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._machine.state not in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING):
            return
        self._machine.receive_data(data)
        for event in self._machine.events():
            self._on_event(event)

    def _on_event(self, event: Event) -> None:
        match event:
            case BytesMessage() if self.is_open:
                self._inner.data_received(bytes(event.data))
            case TextMessage():
                self.close(CloseReason.UNSUPPORTED_DATA, "AMQP is binary")
            case Ping():
                self._unanswered = event  # 5.5.3: only the latest needs an answer
                self._answer_ping()
            case CloseConnection():
                self._on_close(event)

    def _on_close(self, close: CloseConnection) -> None:
        """5.5.1: goodbye is answered with goodbye; what makes no sense is answered with the reason (7.1.7)."""
        if self.is_open or self._machine.state is ConnectionState.REMOTE_CLOSING:
            self._send(close.response())
        if self._outer is not None:
            self._outer.close()
            self._take_leave()  # who does not read what is on its way is not waited for

    def _answer_ping(self) -> None:
        if self._unanswered is not None and self._writable and self.is_open:
            self._send(self._unanswered.response())
            self._unanswered = None

    def _send(self, event: Event) -> None:
        if self._outer is not None:
            self._outer.write(self._machine.send(event))

    def pause_writing(self) -> None:
        self._writable = False
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._writable = True
        self._answer_ping()
        self._inner.resume_writing()

    # -------------------------------------------------------------------------------------- for the wire

    @property
    def is_open(self) -> bool:
        return self._machine.state is ConnectionState.OPEN

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), MAX_MESSAGE):
            if self.is_open:
                self._send(BytesMessage(data=data[start : start + MAX_MESSAGE]))

    def close(self, code: CloseReason, reason: str | None = None) -> None:
        """7.1.1: the other side hangs up after it has said goodbye, and is given little time for it."""
        if not self.is_open or self._outer is None:
            return
        self._send(CloseConnection(code=code, reason=reason))
        self._outer.resume_reading()
        self._take_leave()

    def _take_leave(self) -> None:
        if self._timer is None and self._outer is not None:
            self._timer = self._loop.call_later(FAREWELL, self._outer.abort)


class Wire(asyncio.Transport):
    """What the protocol behind a WebSocket takes for its socket."""

    def __init__(self, socket: WebSocket, outer: asyncio.Transport) -> None:
        super().__init__()
        self._socket = socket
        self._outer = outer

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._outer.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return not self._socket.is_open or self._outer.is_closing()

    def write(self, data: Any) -> None:
        self._socket.write(bytes(data))

    def close(self) -> None:
        self._socket.close(CloseReason.NORMAL_CLOSURE)

    def abort(self) -> None:
        self._outer.abort()

    def pause_reading(self) -> None:
        self._outer.pause_reading()

    def resume_reading(self) -> None:
        self._outer.resume_reading()

    def is_reading(self) -> bool:
        return self._outer.is_reading()

    def get_write_buffer_size(self) -> int:
        return self._outer.get_write_buffer_size()
