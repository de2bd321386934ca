"""HTTP/1.1 (RFC 9110, RFC 9112): requests in, the answers of a ``Site`` out. What they mean is the site's business.

One request at a time per connection: the next one is not read before the answer to the last one has left, which is
not before what it tells of is on disk. Everything has a limit: the header, the body, and the time an exchange takes.
A request to upgrade to WebSocket (RFC 6455, 4.2) on its path leaves this file for `websocket`.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable
from email.utils import formatdate
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote

import h11

from servicebus_emulator import log
from servicebus_emulator.hosts import host_of, is_address
from servicebus_emulator.http import HttpRequest, HttpResponse, Site
from servicebus_emulator.websocket import PATH, Refused, WebSocket, accept

MAX_HEADER = 16 * 1024
MAX_BODY = 1024 * 1024
EXCHANGE_SECONDS = 60.0  # from the end of one answer to the end of the next
LINGER_SECONDS = 2.0  # after an answer that came before the end of its request, so that it is read (9112, 9.6)
PHRASES = {status.value: status.phrase for status in HTTPStatus}

UNKNOWN_HOST = (
    "This is not the host that the request names. Without AuthorizationRules only localhost, addresses and the name "
    "given with --host are answered, so that no page in a browser gets in by a name of its own (DNS rebinding). "
    "Use one of these, or TLS, or a configuration with AuthorizationRules."
)

Headers = Iterable[tuple[str, str]]


class Web(asyncio.Protocol):
    """One HTTP connection."""

    def __init__(
        self,
        site: Site,
        connect: Callable[[], asyncio.Protocol],
        on_gone: Callable[["Web"], None],
        hosts: Collection[str] | None = None,
    ) -> None:
        self._site = site
        self._connect = connect
        self._on_gone = on_gone
        self._hosts = hosts
        self._loop = asyncio.get_running_loop()
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._request: h11.Request | None = None
        self._body = bytearray()
        self._deaf = False
        self._writable = True
        self._is_next_due = False

    # ------------------------------------------------------------------------------------------- the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - narrows what asyncio types too widely
        self._transport = transport
        self._allow(EXCHANGE_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._leave()

    def data_received(self, data: bytes) -> None:
        if not self._deaf:
            self._http.receive_data(data)
            self._advance()

    def eof_received(self) -> bool:
        """Whoever has nothing more to say may still wait for an answer; TLS cannot be half closed."""
        if self._deaf or self._transport is None or not self._transport.can_write_eof():
            return False
        self._http.receive_data(b"")
        self._advance()
        return True

    def pause_writing(self) -> None:
        """The client reads too slowly: its next request waits."""
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if self._is_next_due:
            self._next()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _allow(self, seconds: float) -> None:
        """That much time for what is due now."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._too_late)

    def _too_late(self) -> None:
        if self._transport is not None:
            log.debug("web.too_late")
            self._transport.abort()  # not close, which would wait for the client to read

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._on_gone(self)

    # ------------------------------------------------------------------------------------------ one exchange

    def _advance(self) -> None:
        try:
            while not self._deaf and self._transport is not None:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    return
                if isinstance(event, h11.ConnectionClosed):
                    if self._http.our_state is not h11.SEND_RESPONSE:
                        self._transport.close()
                    return
                if event is h11.PAUSED:  # the answer is due first; what comes after this request waits in the kernel
                    self._transport.pause_reading()
                    return
                self._on_event(event)
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint, str(error))
        except Exception as error:  # noqa: BLE001 - our bug must cost one connection only
            log.error("web.bug", exc_info=error)
            self._refuse(500, "an internal error")

    def _on_event(self, event: object) -> None:
        match event:
            case h11.Request():
                self._on_request(event)
            case h11.Data():
                self._body += event.data
                if len(self._body) > MAX_BODY:
                    self._refuse(413, f"a body may have {MAX_BODY} bytes")
            case h11.EndOfMessage():
                self._on_end()

    def _on_request(self, request: h11.Request) -> None:
        self._request = request
        self._body.clear()
        if len(request.target) + sum(len(name) + len(value) for name, value in request.headers) > MAX_HEADER:
            self._refuse(431, f"a header may have {MAX_HEADER} bytes")
        elif _header(request, b"transfer-encoding") and _header(request, b"content-length"):  # 9112, 6.1: smuggling
            self._refuse(400, "a request has a Content-Length or a Transfer-Encoding, not both")
        elif int(_header(request, b"content-length") or 0) > MAX_BODY:
            self._refuse(413, f"a body may have {MAX_BODY} bytes")
        elif self._http.they_are_waiting_for_100_continue:
            self._write(h11.InformationalResponse(status_code=100, headers=[]))

    def _on_end(self) -> None:
        request = self._request
        if request is None:
            return
        try:
            path, query = _path_and_query(request.target)
        except ValueError as error:
            self._refuse(400, str(error))
            return
        if not self._is_welcome(request):
            self._refuse(421, UNKNOWN_HOST)
        elif path.lower() == PATH:
            self._upgrade(request)
        elif _header(request, b"upgrade").lower() == b"websocket":
            self._refuse(404, f"WebSocket is spoken on {PATH} only")
        else:
            self._answer(request, path, query)

    def _is_welcome(self, request: h11.Request) -> bool:
        """Against DNS rebinding: a browser's page is told from us by the name that it believes to be talking to.

        An address is nobody's name; inside TLS the browser has compared the name with the certificate itself.
        """
        if self._hosts is None or (self._transport and self._transport.get_extra_info("ssl_object") is not None):
            return True
        name = host_of(_header(request, b"host").decode("latin-1"))
        return name in self._hosts or is_address(name)

    def _answer(self, request: h11.Request, path: str, query: dict[str, str]) -> None:
        method = request.method.decode("ascii").upper()
        response = self._site.answer(
            HttpRequest(
                method="GET" if method == "HEAD" else method,  # 9110, 9.3.2: the same, without the content
                path=path,
                query=query,
                headers=_as_mapping(request),
                body=bytes(self._body),
            )
        )
        self._site.after_commit(lambda: self._respond(response))

    def _respond(self, response: HttpResponse, more: Headers = ()) -> None:
        if self._transport is None:
            return  # gone while the disk was working
        headers = [("Date", formatdate(usegmt=True)), *response.headers.items(), *more]
        if response.status not in (204, 304):
            headers.append(("Content-Length", str(len(response.body))))
        if response.body:
            headers.append(("Content-Type", response.content_type))
        method = self._request.method if self._request is not None else b""
        try:
            phrase = PHRASES.get(response.status, "").encode()
            self._write(h11.Response(status_code=response.status, headers=headers, reason=phrase))
            if response.body and method != b"HEAD" and response.status not in (204, 304):
                self._write(h11.Data(data=response.body))
            self._write(h11.EndOfMessage())
        except h11.LocalProtocolError as error:
            log.error("web.bug", exc_info=error)
            self._transport.abort()
            return
        self._is_next_due = True
        if self._writable:
            self._next()

    def _next(self) -> None:
        """The answer has left, or the system holds it."""
        self._is_next_due = False
        if self._transport is None or self._deaf:
            return
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            self._allow(EXCHANGE_SECONDS)
            self._transport.resume_reading()
            self._loop.call_soon(self._advance)  # a hundred requests in one piece are no hundred calls deep
        elif self._http.their_state is h11.MUST_CLOSE or self._http.their_state is h11.CLOSED:
            self._deaf = True
            self._transport.close()
        else:
            self._linger()

    def _refuse(self, status: int, reason: str, more: Headers = ()) -> None:
        """An answer that ends the connection."""
        if self._deaf or self._transport is None:
            return
        log.debug("web.refused", status=status, reason=reason)
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = f"{reason}\n".encode()
            close = (("Connection", "close"), *more)
            self._respond(HttpResponse(status, body, "text/plain;charset=utf-8"), close)
        self._linger()

    def _linger(self) -> None:
        """A socket that is closed with something unread takes the answer with it (9112, 9.6)."""
        if self._transport is None or self._deaf:
            return
        self._deaf = True
        self._allow(LINGER_SECONDS)
        if self._http.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED):
            self._transport.close()
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._transport.resume_reading()

    def _write(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data and self._transport is not None:
            self._transport.write(data)

    # ------------------------------------------------------------------------------------------ WebSocket

    def _upgrade(self, request: h11.Request) -> None:
        if self._transport is None:
            return
        try:
            accepted = accept(request)
        except Refused as refused:
            self._refuse(refused.status, str(refused), refused.headers)
            return
        transport, rest = self._transport, self._http.trailing_data[0]
        self._leave()
        self._transport, self._deaf = None, True
        socket = WebSocket(accepted, self._connect())
        transport.set_protocol(socket)
        socket.connection_made(transport)
        if rest:
            socket.data_received(rest)


def _header(request: h11.Request, wanted: bytes) -> bytes:
    """The last of that name, or nothing. h11 writes names in lower case."""
    return next((value for name, value in reversed(list(request.headers)) if name == wanted), b"")


def _as_mapping(request: h11.Request) -> dict[str, str]:
    """9110, 5.3: fields of one name are one, joined with commas."""
    found: dict[str, str] = {}
    for name, value in request.headers:
        key, text = name.decode("ascii"), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def _path_and_query(target: bytes) -> tuple[str, dict[str, str]]:
    """9112, 3.2: `/path?query`, or the same after `http://host`. Raises ValueError for anything else."""
    text = target.decode("ascii")
    scheme, found, rest = text.partition("://")
    if found and scheme.lower() in ("http", "https", "ws", "wss"):
        text = "/" + rest.partition("/")[2]
    if not text.startswith("/"):
        raise ValueError("a request names a path, which begins with a slash")
    path, _, query = text.partition("?")
    return unquote(path), dict(parse_qsl(query, keep_blank_values=True))
