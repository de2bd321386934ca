"""A connection (AMQP 1.0 parts 2.2 and 2.4, SASL 5.3): from the first bytes to the close.

It owns the socket, negotiates, keeps the peer's idle clock from running out, and hands frames to sessions. Whatever
a peer sends, the worst that happens is that its own connection is closed with a reason; the process goes on.
"""

import asyncio
from collections.abc import Callable
from uuid import uuid4

from servicebus_emulator import errors, log, performatives
from servicebus_emulator.codec import Array, DecodeError, Symbol, array_of
from servicebus_emulator.errors import ConnectionFault, Fault, SessionFault
from servicebus_emulator.frames import (
    AMQP,
    AMQP_HEADER,
    EMPTY_FRAME,
    MIN_FRAME_SIZE,
    SASL,
    SASL_HEADER,
    Frame,
    FrameReader,
    write_frame,
)
from servicebus_emulator.performatives import (
    Begin,
    Close,
    End,
    Open,
    Performative,
    SaslInit,
    SaslMechanisms,
    SaslOutcome,
    expect,
)
from servicebus_emulator.rights import Claims
from servicebus_emulator.session import HANDLE_MAX, INCOMING_WINDOW, OUTGOING_WINDOW, Places, Session

MAX_FRAME_SIZE = 65536
CHANNEL_MAX = 255
IDLE_TIMEOUT_MS = 240_000
HANDSHAKE_SECONDS = 30.0
FAREWELL = 5.0  # seconds for the peer to take what was said last
MECHANISMS: Array = array_of(Symbol, [Symbol(name) for name in ("ANONYMOUS", "MSSBCBS", "PLAIN", "EXTERNAL")])


class Connection(asyncio.Protocol):
    """Its phases follow each other: SASL header, SASL, AMQP header, open, and then sessions."""

    def __init__(self, places: Places, on_gone: Callable[["Connection"], None]) -> None:
        self._places = places
        self._on_gone = on_gone
        self._claims = Claims(places.keyring, self._claims_changed)
        self._id = uuid4().hex[:8]
        self._reader = FrameReader(MAX_FRAME_SIZE)
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._awaiting_header = True
        self._awaiting_sasl = False
        self._header_sent = False
        self._opened: Open | None = None
        self._open_sent = False
        self._closing = False
        self._sessions: dict[int, Session] = {}
        self._past_channels: set[int] = set()
        self._heard_at = self._loop.time()
        self._outgoing = bytearray()
        self._held = False
        self._writable = True
        self._timers: list[asyncio.TimerHandle] = []

    # ------------------------------------------------------------------------------------------- the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - narrows what asyncio types too widely
        self._transport = transport  # asyncio has set TCP_NODELAY
        log.debug("connection.made", connection=self._id)
        self._later(HANDSHAKE_SECONDS, self._check_handshake)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        for timer in self._timers:
            timer.cancel()
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
        log.debug("connection.lost", connection=self._id, error=repr(exc) if exc else None)
        self._on_gone(self)

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        if self._closing:
            return
        self._reader.feed(data)
        try:
            self._consume()
            self._ease_off()
        except Fault as fault:
            self._fail(fault)
        except DecodeError as error:
            self._fail(ConnectionFault(errors.DECODE_ERROR, str(error)))
        except Exception as error:  # noqa: BLE001 - our bug must cost one connection only
            log.error("connection.bug", exc_info=error, connection=self._id)
            self._fail(ConnectionFault(errors.INTERNAL_ERROR, "an internal error"))

    def _consume(self) -> None:
        while not self._closing:
            if self._awaiting_header:
                header = self._reader.next_header()
                if header is None:
                    return
                self._on_header(header.raw)
            else:
                frame = self._reader.next_frame()
                if frame is None:
                    return
                self._on_frame(frame)

    def _write(self, data: bytes) -> None:
        """What is written in one turn of the loop leaves in one piece."""
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing += data

    def hold(self, seconds: float) -> None:
        """What is not yet sent leaves that much later, in its order."""
        if not self._held:
            self._held = True
            self._later(seconds, self._let_go)

    def _let_go(self) -> None:
        self._held = False
        self._flush()

    def abort(self) -> None:
        """As if the network had cut it."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        if self._held and not self._closing:
            return
        if self._outgoing and self._transport is not None and not self._transport.is_closing():
            self._transport.write(bytes(self._outgoing))
        self._outgoing.clear()

    def pause_writing(self) -> None:
        """The peer reads too slowly: no more messages are locked for it."""
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        for session in list(self._sessions.values()):
            session.resume()

    def _ease_off(self) -> None:
        """The disk is behind: read no more from this peer until it has caught up."""
        transport = self._transport
        if transport is None or self._closing or not self._places.is_congested():
            return
        transport.pause_reading()
        self._places.after_commit(lambda: None if transport.is_closing() else transport.resume_reading())

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        self._timers = [timer for timer in self._timers if timer.when() > self._loop.time()]
        self._timers.append(self._loop.call_later(seconds, act))

    # ------------------------------------------------------------------------------------------- negotiation

    def _on_header(self, raw: bytes) -> None:
        """2.2; a version that is not ours is answered with ours, and the connection closed."""
        self._awaiting_header = False
        self._header_sent = True
        if raw == SASL_HEADER and not self._awaiting_sasl and self._opened is None:
            self._awaiting_sasl = True
            self._write(SASL_HEADER)
            self._write(write_frame(0, SaslMechanisms(sasl_server_mechanisms=MECHANISMS), kind=SASL))
        elif raw == AMQP_HEADER:
            self._write(AMQP_HEADER)
        else:
            self._write(AMQP_HEADER)
            self._hang_up()

    def _on_sasl(self, frame: Frame) -> None:
        """5.3: whoever asks is let in; rights are a matter of claims, and a key shown here counts as one."""
        if frame.type != SASL or frame.body is None:
            raise ConnectionFault(errors.FRAMING_ERROR, "a SASL frame was due")
        init = expect(frame.body, SaslInit)
        known = init.mechanism in MECHANISMS.items
        self._write(write_frame(0, SaslOutcome(code=0 if known else 1), kind=SASL))
        if not known:
            self._hang_up()
        if init.mechanism == "PLAIN":
            self._log_in(init.initial_response or b"")
        self._awaiting_sasl = False
        self._awaiting_header = True

    def _log_in(self, response: bytes) -> None:
        """RFC 4616: an identity to act as, NUL, a name, NUL, a password."""
        _, name, password = (*response.decode("utf-8", "replace").split("\0"), "", "", "")[:3]
        self._claims.login(name, password)

    def _on_open(self, opened: Open) -> None:
        """2.4.1"""
        if self._opened is not None:
            raise ConnectionFault(errors.ILLEGAL_STATE, "the connection is open already")
        self._opened = opened
        self._send_open()
        if opened.max_frame_size < MIN_FRAME_SIZE:
            raise ConnectionFault(errors.INVALID_FIELD, "max-frame-size is at least 512")
        if opened.idle_time_out:
            self._keep_alive(opened.idle_time_out / 2000)
        self._check_idle()
        log.debug("connection.opened", connection=self._id, container=opened.container_id)

    def _send_open(self) -> None:
        self._open_sent = True
        self._send(
            0,
            Open(
                container_id="servicebus-emulator",
                max_frame_size=MAX_FRAME_SIZE,
                channel_max=CHANNEL_MAX,
                idle_time_out=IDLE_TIMEOUT_MS,
            ),
        )

    # ------------------------------------------------------------------------------------------------ frames

    def _on_frame(self, frame: Frame) -> None:
        if self._awaiting_sasl:
            self._on_sasl(frame)
            return
        if frame.type != AMQP:
            raise ConnectionFault(errors.FRAMING_ERROR, "an AMQP frame was due")
        match frame.body:
            case None:
                return
            case Open():
                self._on_open(frame.body)
            case Close():
                self._send(0, Close())
                self._hang_up()
            case _ if self._opened is None:
                raise ConnectionFault(errors.ILLEGAL_STATE, "the connection is not open")
            case Begin():
                self._on_begin(frame.channel, frame.body)
            case End():
                self._on_end(frame.channel)
            case _:
                self._on_session_frame(frame.channel, frame.body, frame.payload)

    def _on_begin(self, channel: int, begin: Begin) -> None:
        """2.5.1: our channel for a session is the peer's."""
        if channel > CHANNEL_MAX:
            raise ConnectionFault(errors.FRAMING_ERROR, "a channel is larger than channel-max")
        if channel in self._sessions:
            raise ConnectionFault(errors.ILLEGAL_STATE, f"channel {channel} has a session")
        peer_limit = self._opened.max_frame_size if self._opened is not None else MIN_FRAME_SIZE
        self._past_channels.discard(channel)
        self._sessions[channel] = Session(
            begin,
            self._places,
            claims=self._claims,
            line=self,
            send=lambda performative, payload: self._send(channel, performative, payload),
            is_writable=lambda: self._writable,
            max_frame_size=min(peer_limit, MAX_FRAME_SIZE),
        )
        self._send(
            channel,
            Begin(
                remote_channel=channel,
                next_outgoing_id=0,
                incoming_window=INCOMING_WINDOW,
                outgoing_window=OUTGOING_WINDOW,
                handle_max=HANDLE_MAX,
            ),
        )

    def _on_end(self, channel: int) -> None:
        """2.5.4"""
        session = self._sessions.pop(channel, None)
        if session is not None:
            session.close()
            self._past_channels.add(channel)
            self._send(channel, End())
        elif channel not in self._past_channels:
            raise ConnectionFault(errors.NOT_ALLOWED, f"channel {channel} has no session")

    def _on_session_frame(self, channel: int, performative: Performative, payload: bytes) -> None:
        session = self._sessions.get(channel)
        if session is None:
            if channel in self._past_channels:
                return  # sent before the peer knew, or (some clients detach after end) out of order
            raise ConnectionFault(errors.NOT_ALLOWED, f"channel {channel} has no session")
        try:
            session.handle(performative, payload)
        except SessionFault as fault:
            log.info("session.ended", connection=self._id, condition=fault.condition, description=fault.description)
            session.close()
            del self._sessions[channel]
            self._past_channels.add(channel)
            self._send(channel, End(error=performatives.error(fault.condition, fault.description)))

    def _send(self, channel: int, performative: Performative, payload: bytes = b"") -> None:
        self._write(write_frame(channel, performative, payload))

    # ------------------------------------------------------------------------------------------ time and the end

    def _keep_alive(self, seconds: float) -> None:
        """2.4.5: the peer hears from us at least twice in its idle time-out."""
        if not self._closing:
            self._write(EMPTY_FRAME)
            self._later(max(seconds, 0.05), lambda: self._keep_alive(seconds))

    def _check_idle(self) -> None:
        silent = self._loop.time() - self._heard_at
        if silent > IDLE_TIMEOUT_MS / 1000:
            self._fail(ConnectionFault(errors.CONNECTION_FORCED, "nothing was heard for too long"))
        elif not self._closing:
            self._later(IDLE_TIMEOUT_MS / 4000, self._check_idle)

    def _claims_changed(self) -> None:
        """What was attached under a token ends with it; looked at again when the next one expires."""
        now = self._places.now()
        for session in list(self._sessions.values()):
            session.check_rights()
        expiry = self._claims.next_expiry(now)
        if expiry is not None and not self._closing:
            self._later(min((expiry - now) / 1000 + 0.001, 86400.0), self._claims_changed)

    def _check_handshake(self) -> None:
        if self._opened is None:
            self._fail(ConnectionFault(errors.CONNECTION_FORCED, "the connection was not opened in time"))

    def close(self) -> None:
        """We are going down."""
        self._fail(ConnectionFault(errors.CONNECTION_FORCED, "the emulator is stopping"))

    def _fail(self, fault: Fault) -> None:
        """2.4.3: say why (an open must come first), then hang up."""
        if self._closing:
            return
        log.info("connection.closed", connection=self._id, condition=fault.condition, description=fault.description)
        if not self._header_sent or self._awaiting_header:
            self._write(AMQP_HEADER)
        elif not self._awaiting_sasl:
            if not self._open_sent:
                self._send_open()
            self._send(0, Close(error=performatives.error(fault.condition, fault.description)))
        self._hang_up()

    def _hang_up(self) -> None:
        """A peer that reads nothing more does not keep the socket."""
        self._closing = True
        self._flush()
        if self._transport is not None:
            self._transport.close()
            self._later(FAREWELL, self._transport.abort)
