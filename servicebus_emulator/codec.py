"""AMQP 1.0 values to bytes and back (part 1, types).

Only the type system lives here: what a value looks like on the wire. What a value *means* (a frame, a message,
an address) never does. Every AMQP type has one Python type, so that decoding what was encoded gives the same
value of the same type. Bytes from a peer are hostile: sizes and counts are checked before anything is built.
"""

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

MAX_DEPTH = 32
MAX_ZERO_WIDTH_ITEMS = 16  # they take no bytes, so a count alone could fill the memory


class DecodeError(Exception):
    """The peer's bytes are not AMQP."""


class EncodeError(Exception):
    """Our fault: a value that AMQP cannot carry."""


class UByte(int): ...


class UShort(int): ...


class UInt(int): ...


class ULong(int): ...


class Byte(int): ...


class Short(int): ...


class Int(int): ...


class Timestamp(int):
    """Milliseconds since the Unix epoch (1.6.17)."""


class Float(float):
    """A binary32; a plain float is a binary64."""


class Char(str): ...


class Symbol(str): ...


@dataclass(frozen=True, slots=True)
class Decimal:
    """A decimal32, 64 or 128, carried along unread (1.6.13 to 1.6.15)."""

    bits: bytes


@dataclass(frozen=True, slots=True)
class Described:
    """A value with a descriptor, unread (1.1.2)."""

    descriptor: Any
    value: Any


@dataclass(frozen=True, slots=True)
class Array:
    """Values of one type (1.6.24). ``code`` is the constructor that all of them share.

    It is 0 where they are described: then all share a descriptor too, and ``inner`` is the constructor behind it.
    """

    code: int
    items: tuple[Any, ...]
    inner: int = 0


def array_of(kind: type, items: Iterable[Any]) -> Array:
    """An array of one of the fixed-width or text types, in the width that holds every value."""
    return Array(_ARRAY_CODES[kind], tuple(items))


_ARRAY_CODES: dict[type, int] = {
    bool: 0x56,
    UByte: 0x50,
    UShort: 0x60,
    UInt: 0x70,
    ULong: 0x80,
    Byte: 0x51,
    Short: 0x61,
    Int: 0x71,
    int: 0x81,
    Timestamp: 0x83,
    Float: 0x72,
    float: 0x82,
    UUID: 0x98,
    bytes: 0xB0,
    str: 0xB1,
    Symbol: 0xB3,
}

# ------------------------------------------------------------------------------------------------ decoding

_FIXED: dict[int, tuple[struct.Struct, Callable[[Any], Any]]] = {
    0x50: (struct.Struct(">B"), UByte),
    0x51: (struct.Struct(">b"), Byte),
    0x52: (struct.Struct(">B"), UInt),
    0x53: (struct.Struct(">B"), ULong),
    0x54: (struct.Struct(">b"), Int),
    0x55: (struct.Struct(">b"), int),
    0x60: (struct.Struct(">H"), UShort),
    0x61: (struct.Struct(">h"), Short),
    0x70: (struct.Struct(">I"), UInt),
    0x71: (struct.Struct(">i"), Int),
    0x72: (struct.Struct(">f"), Float),
    0x80: (struct.Struct(">Q"), ULong),
    0x81: (struct.Struct(">q"), int),
    0x82: (struct.Struct(">d"), float),
    0x83: (struct.Struct(">q"), Timestamp),
    0x74: (struct.Struct(">4s"), Decimal),
    0x84: (struct.Struct(">8s"), Decimal),
    0x94: (struct.Struct(">16s"), Decimal),
    0x98: (struct.Struct(">16s"), lambda raw: UUID(bytes=raw)),
}
_EMPTY: dict[int, Callable[[], Any]] = {
    0x40: lambda: None,
    0x41: lambda: True,
    0x42: lambda: False,
    0x43: lambda: UInt(0),
    0x44: lambda: ULong(0),
    0x45: list,
}
_U32 = struct.Struct(">I")


def decode(data: bytes, position: int = 0, depth: int = 0) -> tuple[Any, int]:
    """The value at ``position`` and where the next one begins."""
    if position >= len(data):
        raise DecodeError("the bytes end where a value should begin")
    code = data[position]
    if code:
        return _decode_body(code, data, position + 1, depth)
    if depth >= MAX_DEPTH:
        raise DecodeError("values are nested too deeply")
    descriptor, position = decode(data, position + 1, depth + 1)
    value, position = decode(data, position, depth + 1)
    return Described(descriptor, value), position


def _decode_body(code: int, data: bytes, position: int, depth: int) -> tuple[Any, int]:
    fixed = _FIXED.get(code)
    if fixed is not None:
        layout, build = fixed
        end = position + layout.size
        if end > len(data):
            raise DecodeError("a value is cut off")
        return build(layout.unpack_from(data, position)[0]), end
    empty = _EMPTY.get(code)
    if empty is not None:
        return empty(), position
    match code >> 4:
        case 0xA | 0xB:
            start, end = _extent(code, data, position)
            return _decode_variable(code, data[start:end]), end
        case 0xC | 0xD | 0xE | 0xF:
            return _decode_compound(code, data, position, depth)
    match code:
        case 0x56:
            if position >= len(data) or data[position] > 1:
                raise DecodeError("not a boolean")
            return data[position] == 1, position + 1
        case 0x73:
            if position + 4 > len(data):
                raise DecodeError("a value is cut off")
            point = _U32.unpack_from(data, position)[0]
            if point > 0x10FFFF or 0xD800 <= point <= 0xDFFF:
                raise DecodeError("not a character")
            return Char(chr(point)), position + 4
    raise DecodeError(f"unknown constructor 0x{code:02x}")


def _extent(code: int, data: bytes, position: int) -> tuple[int, int]:
    """Where the octets of a variable-width, compound or array value begin and end (1.2.2 to 1.2.4)."""
    if (code >> 4) & 1:
        if position + 4 > len(data):
            raise DecodeError("a size is cut off")
        start = position + 4
        end = start + int(_U32.unpack_from(data, position)[0])
    else:
        if position >= len(data):
            raise DecodeError("a size is cut off")
        start = position + 1
        end = start + data[position]
    if end > len(data):
        raise DecodeError("a value is longer than what holds it")
    return start, end


def _decode_variable(code: int, raw: bytes) -> Any:
    match code:
        case 0xA0 | 0xB0:
            return raw
        case 0xA1 | 0xB1:
            try:
                return raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DecodeError("a string is not UTF-8") from error
        case 0xA3 | 0xB3:
            try:
                return Symbol(raw.decode("ascii"))
            except UnicodeDecodeError as error:
                raise DecodeError("a symbol is not ASCII") from error
    raise DecodeError(f"unknown constructor 0x{code:02x}")


def _decode_compound(code: int, data: bytes, position: int, depth: int) -> tuple[Any, int]:
    if depth >= MAX_DEPTH:
        raise DecodeError("values are nested too deeply")
    start, end = _extent(code, data, position)
    width = 4 if (code >> 4) & 1 else 1
    if start + width > end:
        raise DecodeError("a count is cut off")
    count = int.from_bytes(data[start : start + width], "big")
    position = start + width
    match code:
        case 0xC0 | 0xD0:
            value: Any
            value, position = _decode_items(data, position, end, count, depth)
        case 0xC1 | 0xD1:
            items, position = _decode_items(data, position, end, count, depth)
            if count % 2:
                raise DecodeError("a map with a key and no value")
            try:
                value = dict(zip(items[::2], items[1::2], strict=True))
            except TypeError as error:
                raise DecodeError("a map's key cannot be compared") from error
            if len(value) != count // 2:
                raise DecodeError("a map with the same key twice")
        case 0xE0 | 0xF0:
            value, position = _decode_array(data, position, end, count, depth)
        case _:
            raise DecodeError(f"unknown constructor 0x{code:02x}")
    if position != end:
        raise DecodeError("a compound value's size and content disagree")
    return value, end


def _decode_items(data: bytes, position: int, end: int, count: int, depth: int) -> tuple[list[Any], int]:
    if count > end - position:
        raise DecodeError("a count is larger than its bytes allow")
    items = []
    for _ in range(count):
        item, position = decode(data, position, depth + 1)
        items.append(item)
    return items, position


def _decode_array(data: bytes, position: int, end: int, count: int, depth: int) -> tuple[Array, int]:
    if position >= end:
        if count == 0:
            return Array(0x40, ()), position
        raise DecodeError("an array without a constructor")
    code = data[position]
    position += 1
    if count > max(end - position, MAX_ZERO_WIDTH_ITEMS):
        raise DecodeError("a count is larger than its bytes allow")
    descriptor: Any = None
    described = code == 0
    if described:
        descriptor, position = decode(data, position, depth + 1)
        if position >= end:
            raise DecodeError("an array without a constructor")
        code = data[position]
        position += 1
    items = []
    for _ in range(count):
        item, position = _decode_body(code, data, position, depth + 1)
        items.append(Described(descriptor, item) if described else item)
    if described and not items:
        return Array(0x40, ()), position  # the descriptor of nothing
    return Array(0 if described else code, tuple(items), code if described else 0), position


_FIXED_WIDTHS = {0x4: 0, 0x5: 1, 0x6: 2, 0x7: 4, 0x8: 8, 0x9: 16}


def skip(data: bytes, position: int) -> int:
    """Where the value at ``position`` ends, without reading it (1.2: the width is in the constructor)."""
    for _ in range(MAX_DEPTH):
        if position >= len(data):
            break
        code = data[position]
        if code:
            width = _FIXED_WIDTHS.get(code >> 4)
            if width is None:
                if code < 0xA0:
                    raise DecodeError(f"unknown constructor 0x{code:02x}")
                return _extent(code, data, position + 1)[1]
            if position + 1 + width > len(data):
                raise DecodeError("a value is cut off")
            return position + 1 + width
        position = skip(data, position + 1)
    raise DecodeError("the bytes end where a value should begin")


# ------------------------------------------------------------------------------------------------ encoding


def encode(value: Any) -> bytes:
    out = bytearray()
    encode_into(out, value)
    return bytes(out)


def encode_into(out: bytearray, value: Any) -> None:
    try:
        _ENCODERS[type(value)](out, value)
    except KeyError:
        raise EncodeError(f"{type(value).__name__} has no AMQP type") from None
    except (struct.error, UnicodeEncodeError) as error:
        raise EncodeError(f"{value!r} does not fit its AMQP type") from error


def _smallest(
    narrow_code: int, wide_code: int, wide_layout: str, *, zero: int | None = None
) -> Callable[[bytearray, int], None]:
    """Integers that have a one-byte form, and unsigned ones a form for nought as well (1.6.4 to 1.6.10)."""
    signed = wide_layout.islower()
    narrow, wide = struct.Struct(">Bb" if signed else ">BB"), struct.Struct(">B" + wide_layout)
    low, high = (-128, 127) if signed else (0, 255)

    def encoder(out: bytearray, value: int) -> None:
        if value == 0 and zero is not None:
            out.append(zero)
        elif low <= value <= high:
            out += narrow.pack(narrow_code, value)
        else:
            out += wide.pack(wide_code, value)

    return encoder


def _fixed(code: int, layout: str) -> Callable[[bytearray, Any], None]:
    pack = struct.Struct(">B" + layout).pack

    def encoder(out: bytearray, value: Any) -> None:
        out += pack(code, value)

    return encoder


def _variable(out: bytearray, code: int, raw: bytes) -> None:
    if len(raw) < 256:
        out += bytes((code, len(raw)))
    else:
        out.append(code + 0x10)
        out += _U32.pack(len(raw))
    out += raw


def compound(small: int, count: int, body: bytes) -> bytes:
    """A list (0xC0) or map (0xC1) of ``count`` already encoded items; 32-bit where 8 bits are too few."""
    if len(body) < 255 and count < 256:
        return bytes((small, len(body) + 1, count)) + body
    return bytes((small + 0x10,)) + _U32.pack(len(body) + 4) + _U32.pack(count) + body


def _encode_list(out: bytearray, value: list[Any]) -> None:
    if not value:
        out.append(0x45)
        return
    body = bytearray()
    for item in value:
        encode_into(body, item)
    out += compound(0xC0, len(value), bytes(body))


def _encode_map(out: bytearray, value: dict[Any, Any]) -> None:
    body = bytearray()
    for key, item in value.items():
        encode_into(body, key)
        encode_into(body, item)
    out += compound(0xC1, 2 * len(value), bytes(body))


_LARGE = {0x45: 0xD0, 0xC0: 0xD0, 0xC1: 0xD1, 0xE0: 0xF0}  # what is written for a constructor in an array


def _encode_array(out: bytearray, value: Array) -> None:
    body = bytearray()
    code, items = value.code, value.items
    if code == 0:
        body.append(0)
        encode_into(body, items[0].descriptor)
        code, items = value.inner, tuple(item.value for item in items)
    code = _LARGE.get(code, code)
    body.append(code)
    for item in items:
        _encode_element(body, code, item)
    out.append(0xF0)
    out += _U32.pack(len(body) + 4) + _U32.pack(len(items))
    out += body


def _encode_element(body: bytearray, code: int, item: Any) -> None:
    """A value without its constructor."""
    if code in (0x74, 0x84, 0x94):
        body += item.bits
    elif code == 0x98:
        body += item.bytes
    elif code in _FIXED:
        body += _FIXED[code][0].pack(item)
    elif code == 0x56:
        body.append(bool(item))
    elif code == 0x73:
        body += _U32.pack(ord(item))
    elif code in (0xA0, 0xA1, 0xA3, 0xB0, 0xB1, 0xB3):
        raw = item if isinstance(item, bytes) else item.encode("utf-8")
        body += (_U32.pack(len(raw)) if code & 0x10 else bytes((len(raw),))) + raw
    elif code in (0xD0, 0xD1):
        inside = bytearray()
        each = item if code == 0xD0 else [side for entry in item.items() for side in entry]
        for value in each:
            encode_into(inside, value)
        body += _U32.pack(len(inside) + 4) + _U32.pack(len(each)) + inside
    elif code == 0xF0:
        inside = bytearray()
        _encode_array(inside, item)
        body += inside[1:]
    elif code not in _EMPTY:
        raise EncodeError(f"arrays of 0x{code:02x} are not written")


def _encode_described(out: bytearray, value: Described) -> None:
    out.append(0)
    encode_into(out, value.descriptor)
    encode_into(out, value.value)


def _encode_decimal(out: bytearray, value: Decimal) -> None:
    try:
        out.append({4: 0x74, 8: 0x84, 16: 0x94}[len(value.bits)])
    except KeyError:
        raise EncodeError("a decimal has 4, 8 or 16 bytes") from None
    out += value.bits


def _encode_char(out: bytearray, value: Char) -> None:
    out.append(0x73)
    out += _U32.pack(ord(value))


_ENCODERS: dict[type, Callable[[bytearray, Any], None]] = {
    type(None): lambda out, _: out.append(0x40),
    bool: lambda out, value: out.append(0x41 if value else 0x42),
    UByte: _fixed(0x50, "B"),
    UShort: _fixed(0x60, "H"),
    UInt: _smallest(0x52, 0x70, "I", zero=0x43),
    ULong: _smallest(0x53, 0x80, "Q", zero=0x44),
    Byte: _fixed(0x51, "b"),
    Short: _fixed(0x61, "h"),
    Int: _smallest(0x54, 0x71, "i"),
    int: _smallest(0x55, 0x81, "q"),
    Float: _fixed(0x72, "f"),
    float: _fixed(0x82, "d"),
    Timestamp: _fixed(0x83, "q"),
    Char: _encode_char,
    Decimal: _encode_decimal,
    UUID: lambda out, value: out.extend(b"\x98" + value.bytes),
    bytes: lambda out, value: _variable(out, 0xA0, value),
    str: lambda out, value: _variable(out, 0xA1, value.encode("utf-8")),
    Symbol: lambda out, value: _variable(out, 0xA3, value.encode("ascii")),
    list: _encode_list,
    dict: _encode_map,
    Array: _encode_array,
    Described: _encode_described,
}
