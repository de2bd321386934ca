"""What AMQP says of each section of a message (1.0 part 3.2), asked when a message arrives.

What is stored must be fit to be handed out again at any time, so a message that is not is refused to its sender.
Bodies stay unread: only the type that their constructor names is looked at.
"""

from typing import Any, NoReturn
from uuid import UUID

from servicebus_emulator.codec import (
    Array,
    Byte,
    DecodeError,
    Described,
    Int,
    Short,
    Symbol,
    Timestamp,
    UByte,
    UInt,
    ULong,
    UShort,
    decode,
)

FIRST_MOMENT, LAST_MOMENT = -62_135_596_800_000, 253_402_300_799_999  # the years 1 to 9999, which clients can show
WHOLE_NUMBERS = (UByte, UShort, UInt, ULong, Byte, Short, Int, int)
_MESSAGE_ID = (ULong, UUID, bytes, str)
_HEADER: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("durable", (bool,)),
    ("priority", (UByte,)),
    ("ttl", (UInt,)),
    ("first-acquirer", (bool,)),
    ("delivery-count", (UInt,)),
)
_PROPERTIES: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("message-id", _MESSAGE_ID),
    ("user-id", (bytes,)),
    ("to", (str,)),
    ("subject", (str,)),
    ("reply-to", (str,)),
    ("correlation-id", _MESSAGE_ID),
    ("content-type", (Symbol,)),
    ("content-encoding", (Symbol,)),
    ("absolute-expiry-time", (Timestamp,)),
    ("creation-time", (Timestamp,)),
    ("group-id", (str,)),
    ("group-sequence", (UInt,)),
    ("reply-to-group-id", (str,)),
)
_BODIES = {0x75: (0xA0, 0xB0), 0x76: (0x45, 0xC0, 0xD0), 0x78: (0xC1, 0xD1)}


def header(raw: bytes | None) -> list[Any]:
    """durable, priority, ttl, first-acquirer, delivery-count (3.2.1)."""
    return _fields("a header", raw, _HEADER)


def properties(raw: bytes | None) -> list[Any]:
    """All thirteen (3.2.4)."""
    return _fields("properties", raw, _PROPERTIES)


def annotations(raw: bytes | None) -> dict[Any, Any]:
    """Symbols, or the ulongs that are reserved, to anything (3.2.10)."""
    value = read_map(raw)
    if not all(type(key) in (Symbol, ULong) for key in value):
        raise DecodeError("the keys of annotations are symbols")
    return value


def application_properties(raw: bytes | None) -> dict[Any, Any]:
    """Strings to simple values (3.2.5)."""
    value = read_map(raw)
    if not all(type(key) is str for key in value):
        raise DecodeError("the names of application properties are strings")
    if not all(map(is_simple, value.values())):
        raise DecodeError("the value of an application property is simple")
    return value


def body(code: int, constructor: int) -> None:
    """3.2.6 to 3.2.9"""
    if constructor not in _BODIES.get(code, (constructor,)):
        raise DecodeError("data is binary, a sequence is a list, and a footer is a map")


def read_map(raw: bytes | None) -> dict[Any, Any]:
    if raw is None:
        return {}
    value, _ = decode(raw)
    if not isinstance(value, dict):
        raise DecodeError("annotations and application properties are maps")
    return value


def is_simple(value: Any) -> bool:
    """Neither made of other values nor described (3.2.5)."""
    return not isinstance(value, list | dict | Array | Described)


def is_message_id(value: Any) -> bool:
    return value is None or type(value) in _MESSAGE_ID


def is_whole(value: Any) -> bool:
    """A number as sequence numbers and counts are, of whatever width that a client thinks fit."""
    return type(value) in WHOLE_NUMBERS and -(2**63) <= value < 2**63


def moment(name: str, value: Any) -> int | None:
    """A timestamp that clients can show; None for none."""
    if value is None:
        return None
    if type(value) is not Timestamp or not FIRST_MOMENT <= value <= LAST_MOMENT:
        raise DecodeError(f"{name} is a timestamp in the years 1 to 9999")
    return int(value)


def _fields(what: str, raw: bytes | None, types: tuple[tuple[str, tuple[type, ...]], ...]) -> list[Any]:
    if raw is None:
        return [None] * len(types)
    value, _ = decode(raw)
    if not isinstance(value, list) or len(value) > len(types):
        raise DecodeError(f"{what}: a list of at most {len(types)} fields is due")
    for (name, allowed), field in zip(types, value, strict=False):
        if field is not None and type(field) not in allowed:
            _refuse(name, allowed)
    return value + [None] * (len(types) - len(value))


def _refuse(name: str, allowed: tuple[type, ...]) -> NoReturn:
    raise DecodeError(f"{name} is of type {' or '.join(each.__name__.lower() for each in allowed)}")
