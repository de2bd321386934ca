"""The one port: who knocks is looked at and handed to AMQP, to HTTP, or first to TLS. No protocol is spoken here.

The first byte, looked at and left where it is, tells TLS (RFC 8446, 5.1: a handshake record begins with 22) from
everything else; the first four bytes, inside TLS or outside, tell AMQP (2.2) from an HTTP method. What is neither
goes to AMQP, which answers with its header and hangs up (2.2). Whoever says nothing is shown out after a while, and
when too many say nothing, the one that has waited longest goes first.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable, Collection
from pathlib import Path

from servicebus_emulator import log
from servicebus_emulator.http import Site
from servicebus_emulator.web import Web

PATIENCE = 30.0  # seconds for the first byte, for the TLS handshake, and for the first four bytes
FAREWELL = 5.0  # seconds for the other side to end TLS properly
MOST_UNDECIDED = 1000
BREATH = 1.0  # seconds without accepting, when the system has no more sockets to give
HANDSHAKE_RECORD = b"\x16"
METHODS = (b"GET ", b"PUT ", b"POST", b"HEAD", b"DELE", b"PATC", b"OPTI", b"TRAC", b"CONN")

Connect = Callable[[], asyncio.Protocol]


class TlsError(Exception):
    """The certificate or its key cannot be used; the text says why."""


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 or later with this certificate. Raises TlsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for option, file in (("--cert", cert), ("--key", key)):
        try:
            file.read_bytes()
        except OSError as error:
            raise TlsError(f"{option} {file} cannot be read: {error.strerror}") from None
    try:
        context.load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        raise TlsError(
            f"--cert {cert} and --key {key} cannot be used ({error.reason or 'not understood'}): "
            "both must be PEM files, and the key the certificate's own, without a password"
        ) from None
    return context


def is_loopback(address: str) -> bool:
    """Whether an address of the system, as getaddrinfo writes it, is this machine's own."""
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


def is_local(host: str) -> bool:
    """Whether listening on a host means to be heard by this machine only. Raises OSError for unknown names."""
    found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return all(is_loopback(str(address[0])) for *_, address in found)


class Door:
    """Listens. ``tls`` is None where TLS is not offered; ``plain_anywhere`` admits plain TCP from other machines.

    ``hosts`` are the names that HTTP without TLS is answered under besides addresses; None where every name will do.
    """

    def __init__(
        self,
        connect: Connect,
        site: Site,
        tls: ssl.SSLContext | None,
        *,
        plain_anywhere: bool,
        hosts: Collection[str] | None = None,
    ) -> None:
        self._hosts = hosts
        self._connect = connect
        self._site = site
        self._tls = tls
        self._plain_anywhere = plain_anywhere
        self._loop = asyncio.get_running_loop()
        self._listeners: list[socket.socket] = []
        self._undecided: dict[asyncio.Task[None], None] = {}  # in the order in which they came
        self._guests: set[Threshold | Web] = set()

    async def open(self, host: str, port: int) -> int:
        """Listen on all addresses of a host; the port. Raises OSError."""
        found = await self._loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((each[0], str(each[4][0])) for each in found):
            listener = socket.create_server((address, port), family=family, backlog=512)
            listener.setblocking(False)
            self._listeners.append(listener)
            port = listener.getsockname()[1]  # whatever was picked for the first is good for all
        self._listen()
        return port

    def shut(self) -> None:
        """Nobody else comes in, and those who have not said what they want leave."""
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()
        for task in list(self._undecided):
            task.cancel()

    def clear(self) -> None:
        """Those who speak HTTP leave too; AMQP connections belong to whoever made them."""
        for guest in list(self._guests):
            guest.close()

    def _listen(self) -> None:
        for listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(100):  # then others get a turn
            try:
                client, peer = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no more sockets: trying at once would only keep the processor busy
                log.error("door.cannot_accept", error=error.strerror)
                self._loop.remove_reader(listener)
                self._loop.call_later(BREATH, self._listen)
                return
            client.setblocking(False)
            if len(self._undecided) >= MOST_UNDECIDED:
                next(iter(self._undecided)).cancel()
            task = self._loop.create_task(self._admit(client, str(peer[0])))
            self._undecided[task] = None
            task.add_done_callback(lambda done: self._undecided.pop(done, None))

    async def _admit(self, client: socket.socket, peer: str) -> None:
        """From the first byte to the first protocol. Whatever goes wrong costs this socket only."""
        try:
            tls = self._tls if await self._first_byte(client) == HANDSHAKE_RECORD else None
            if tls is None and not self._plain_anywhere and not is_loopback(peer):
                log.warning("door.plain_refused", peer=peer, remedy="use TLS, or start with --plain-anywhere")
                client.close()
                return
        except OSError as error:
            log.debug("door.left", peer=peer, reason=_reason(error))
            client.close()
            return
        except asyncio.CancelledError:
            client.close()
            raise
        patience, farewell = (PATIENCE, FAREWELL) if tls is not None else (None, None)
        try:  # the transport that this makes owns the socket, also when it fails
            await self._loop.connect_accepted_socket(
                self._threshold, client, ssl=tls, ssl_handshake_timeout=patience, ssl_shutdown_timeout=farewell
            )
        except OSError as error:
            log.info("door.handshake_failed", peer=peer, reason=_reason(error))

    async def _first_byte(self, client: socket.socket) -> bytes:
        """The first byte, not taken. Raises OSError when none comes."""
        readable: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(client, _resolve, readable)
        try:
            async with asyncio.timeout(PATIENCE):
                await readable
        finally:
            self._loop.remove_reader(client)
        first = client.recv(1, socket.MSG_PEEK)
        if not first:
            raise ConnectionResetError("hung up without a word")
        return first

    def _threshold(self) -> "Threshold":
        return Threshold(self._connect, self._web, self._guests)

    def _web(self) -> Web:
        web = Web(self._site, self._connect, self._guests.discard, self._hosts)
        self._guests.add(web)
        return web


class Threshold(asyncio.Protocol):
    """Listens to as many bytes as it takes to tell AMQP from HTTP, and hands over."""

    def __init__(self, connect: Connect, web: Connect, guests: "set[Threshold | Web]") -> None:
        self._connect = connect
        self._web = web
        self._guests = guests
        self._heard = b""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - narrows what asyncio types too widely
        self._transport = transport
        self._guests.add(self)  # not before: a TLS handshake may fail without a word to its protocol
        self._timer = asyncio.get_running_loop().call_later(PATIENCE, transport.abort)

    def data_received(self, data: bytes) -> None:
        self._heard += data
        beginning = self._heard[:4]
        if beginning in METHODS:
            self._hand_over(self._web())
        elif len(beginning) == 4 or not any(method.startswith(beginning) for method in (b"AMQP", *METHODS)):
            self._hand_over(self._connect())

    def _hand_over(self, protocol: asyncio.Protocol) -> None:
        self._leave()
        if self._transport is not None:
            self._transport.set_protocol(protocol)
            protocol.connection_made(self._transport)
            protocol.data_received(self._heard)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._guests.discard(self)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _reason(error: OSError) -> str:
    """An ssl.SSLError is an OSError that says it shorter; a TimeoutError says nothing."""
    return getattr(error, "reason", None) or error.strerror or str(error) or type(error).__name__
