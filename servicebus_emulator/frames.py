"""Bytes in, frames out, and the reverse (AMQP 1.0 part 2.3).

A machine without I/O: it knows protocol headers and frame headers, nothing of what a performative means.
"""

import struct
from dataclasses import dataclass

from servicebus_emulator import errors
from servicebus_emulator.codec import DecodeError, Described, decode
from servicebus_emulator.errors import ConnectionFault
from servicebus_emulator.performatives import Performative, Transfer, parse, render

AMQP_HEADER = b"AMQP\x00\x01\x00\x00"
SASL_HEADER = b"AMQP\x03\x01\x00\x00"
EMPTY_FRAME = b"\x00\x00\x00\x08\x02\x00\x00\x00"
AMQP, SASL = 0, 1
_HEADER = struct.Struct(">IBBH")
MIN_FRAME_SIZE = 512


@dataclass(frozen=True, slots=True)
class Header:
    """A protocol header (2.2)."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class Frame:
    """``body`` is None in an empty frame, which only says that the peer is alive (2.4.5)."""

    type: int
    channel: int
    body: Performative | None
    payload: bytes = b""


class FrameReader:
    """Collects bytes; hands out one header or frame at a time. Whoever reads says when a header is due."""

    def __init__(self, max_frame_size: int) -> None:
        self._max_frame_size = max_frame_size
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next_header(self) -> Header | None:
        if not b"AMQP".startswith(bytes(self._buffer[:4])):
            raise ConnectionFault(errors.FRAMING_ERROR, "this is not AMQP")
        if len(self._buffer) < 8:
            return None
        raw = bytes(self._buffer[:8])
        del self._buffer[:8]
        return Header(raw)

    def next_frame(self) -> Frame | None:
        if len(self._buffer) < 8:
            return None
        size, offset, kind, channel = _HEADER.unpack_from(self._buffer)
        start = 4 * offset
        if size > self._max_frame_size:
            raise ConnectionFault(errors.FRAMING_ERROR, f"a frame of {size} bytes is too large")
        if offset < 2 or start > size:
            raise ConnectionFault(errors.FRAMING_ERROR, "a frame header makes no sense")
        if kind not in (AMQP, SASL):
            raise ConnectionFault(errors.FRAMING_ERROR, f"frame type {kind} is unknown")
        if len(self._buffer) < size:
            return None
        content = bytes(self._buffer[start:size])
        del self._buffer[:size]
        if not content:
            return Frame(kind, channel, None)
        try:
            body, end = decode(content)
            if not isinstance(body, Described):
                raise DecodeError("a frame body is a described list")
            performative = parse(body)
            if end != len(content) and not isinstance(performative, Transfer):
                raise DecodeError("bytes after the performative")
        except DecodeError as fault:
            raise ConnectionFault(errors.DECODE_ERROR, str(fault)) from fault
        return Frame(kind, channel, performative, content[end:])


def write_frame(channel: int, performative: Performative, payload: bytes = b"", kind: int = AMQP) -> bytes:
    body = render(performative)
    return _HEADER.pack(8 + len(body) + len(payload), 2, kind, channel) + body + payload


def split_transfer(first: Transfer, payload: bytes, max_frame_size: int) -> list[tuple[Transfer, bytes]]:
    """One delivery as the frames it takes (2.6.14): all but the last say ``more``; ids only on the first."""
    room = max_frame_size - 8 - len(render(first)) - 8  # eight to spare for ``more``
    if len(payload) <= room:
        return [(first, payload)]
    pieces = [payload[i : i + room] for i in range(0, len(payload), room)]
    frames: list[tuple[Transfer, bytes]] = []
    for number, piece in enumerate(pieces):
        more = number < len(pieces) - 1
        if number == 0:
            transfer = Transfer(
                handle=first.handle,
                delivery_id=first.delivery_id,
                delivery_tag=first.delivery_tag,
                message_format=first.message_format,
                settled=first.settled,
                more=more,
            )
        else:
            transfer = Transfer(handle=first.handle, settled=first.settled, more=more)
        frames.append((transfer, piece))
    return frames
