"""A message's sections (AMQP 1.0 part 3.2), cut and joined without reading what is in them.

A sender's bytes are kept as they are; only what a broker adds (lock token, sequence number, delivery count,
receivers' properties) is spliced in when a message goes out, so that no type is lost on the way. Body sections are
never decoded. What the numbers mean is the broker's business, not this file's.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from servicebus_emulator import validity
from servicebus_emulator.codec import (
    DecodeError,
    Described,
    Symbol,
    UInt,
    ULong,
    compound,
    decode,
    encode,
    skip,
)
from servicebus_emulator.validity import is_simple

BATCH_FORMAT = 0x80013700
SCHEDULED = "x-opt-scheduled-enqueue-time"
HEADER, DELIVERY_ANNOTATIONS, MESSAGE_ANNOTATIONS, PROPERTIES, APPLICATION_PROPERTIES = 0x70, 0x71, 0x72, 0x73, 0x74
DATA, SEQUENCE, VALUE, FOOTER = 0x75, 0x76, 0x77, 0x78
_U32 = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Sections:
    """The encoded value of each section, without its descriptor; ``body`` is all body sections and the footer."""

    header: bytes | None = None
    delivery_annotations: bytes | None = None
    message_annotations: bytes | None = None
    properties: bytes | None = None
    application_properties: bytes | None = None
    body: bytes = b""


_ATTRIBUTES = {
    HEADER: "header",
    DELIVERY_ANNOTATIONS: "delivery_annotations",
    MESSAGE_ANNOTATIONS: "message_annotations",
    PROPERTIES: "properties",
    APPLICATION_PROPERTIES: "application_properties",
}


def cut(payload: bytes) -> Sections:
    """The sections in their order (3.2); anything else is a decode error.

    Except that delivery annotations may come last, after everything else: so the Azure SDK for Python sends them.
    """
    found: dict[str, bytes] = {}
    body = b""
    position = 0
    previous = 0
    while position < len(payload):
        code, value = _section(payload, position)
        if code >= DATA:
            end = _end_of_body(payload, position)
            body = payload[position:end]
            position, previous = end, FOOTER
            continue
        end = skip(payload, value)
        last_of_all = code == DELIVERY_ANNOTATIONS and "delivery_annotations" not in found and end == len(payload)
        if code <= previous and not last_of_all:
            raise DecodeError("message sections out of order")
        found[_ATTRIBUTES[code]] = payload[value:end]
        position, previous = end, code
    return Sections(body=body, **found)


def _section(payload: bytes, position: int) -> tuple[int, int]:
    """The section's code and where its value begins."""
    if payload[position] != 0:
        raise DecodeError("a message section is a described value")
    descriptor, value = decode(payload, position + 1)
    if not isinstance(descriptor, int) or not HEADER <= descriptor <= FOOTER:
        raise DecodeError("an unknown message section")
    return int(descriptor), value


def _end_of_body(payload: bytes, position: int) -> int:
    """Where the body and its footer end, which is where the payload ends, or another section begins."""
    previous: int | None = None
    while position < len(payload):
        code, value = _section(payload, position)
        if code < DATA:
            break
        if previous is not None and code != FOOTER and (code != previous or code == VALUE):
            raise DecodeError("message sections out of order")
        if previous == FOOTER:
            raise DecodeError("nothing of a body comes after its footer")
        previous = code
        position = skip(payload, value)
        validity.body(code, payload[value])
    return position


def data_sections(body: bytes) -> list[bytes]:
    """The content of every data section (3.2.6): in a batch, one message each."""
    contents = []
    position = 0
    while position < len(body):
        code, value = _section(body, position)
        content, position = decode(body, value)
        if code == FOOTER:
            break
        if code != DATA or not isinstance(content, bytes):
            raise DecodeError("a batch holds data sections only")
        contents.append(content)
    return contents


def value_section(body: bytes) -> Any:
    """The value of a body that is one AMQP value (3.2.8); None when it is something else."""
    if not body:
        return None
    code, value = _section(body, 0)
    return decode(body, value)[0] if code == VALUE else None


# --------------------------------------------------------------------------------------------- what a broker reads


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message as it was sent, and the few facts in it that a queue acts upon."""

    payload: bytes
    message_id: str
    ttl: int | None
    scheduled_for: int | None


def read_arrival(payload: bytes) -> Arrival:
    """Read what matters; a message without an id is given one (3.2.4)."""
    sections = cut(payload)
    ttl = validity.header(sections.header)[2]
    validity.annotations(sections.delivery_annotations)
    annotations = validity.annotations(sections.message_annotations)
    scheduled = validity.moment(SCHEDULED, annotations.get(SCHEDULED))
    validity.application_properties(sections.application_properties)
    message_id = validity.properties(sections.properties)[0]
    if message_id is None:
        message_id = uuid4().hex
        items = _items(sections.properties) if sections.properties is not None else []
        listed = [encode(message_id), *items[1:]]
        payload = _join(sections, properties=compound(0xC0, len(listed), b"".join(listed)))
    return Arrival(payload, f"{type(message_id).__name__}:{message_id}", ttl, scheduled)


def read_properties(value: Any) -> dict[str, Any]:
    """Application properties that a receiver adds: names, and values that are neither lists nor maps (3.2.5)."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise DecodeError("properties to modify are a map of names")
    if not all(map(is_simple, value.values())):
        raise DecodeError("the value of an application property is simple")
    return {str(name): each for name, each in value.items()}


# --------------------------------------------------------------------------------------------- what a broker adds


def render(
    payload: bytes,
    *,
    delivery_count: int,
    annotations: Mapping[str, Any],
    lock_token: UUID | None,
    added: Mapping[str, Any] | None,
) -> bytes:
    """The message as a receiver gets it: the sender's, with what the broker knows spliced in."""
    sections = cut(payload)
    header = validity.header(sections.header)
    header[4] = UInt(delivery_count)
    delivery_annotations = sections.delivery_annotations
    if lock_token is not None:
        delivery_annotations = _merge(delivery_annotations, Symbol, {"x-opt-lock-token": lock_token})
    application_properties = sections.application_properties
    if added:
        application_properties = _merge(application_properties, str, added)
    return _join(
        sections,
        header=encode(header),
        delivery_annotations=delivery_annotations,
        message_annotations=_merge(sections.message_annotations, Symbol, annotations),
        application_properties=application_properties,
    )


def _join(sections: Sections, **changed: bytes | None) -> bytes:
    parts = []
    for code, name in _ATTRIBUTES.items():
        value = changed.get(name, getattr(sections, name))
        if value is not None:
            parts.append(b"\x00\x53" + bytes((code,)) + value)
    parts.append(sections.body)
    return b"".join(parts)


def _items(raw: bytes) -> list[bytes]:
    """Every item of an encoded list or map, still encoded."""
    code = raw[0]
    match code:
        case 0x45:
            return []
        case 0xC0 | 0xC1:
            count, position = raw[2], 3
        case 0xD0 | 0xD1:
            count, position = int(_U32.unpack_from(raw, 5)[0]), 9
        case _:
            raise DecodeError("not a list or a map")
    items = []
    for _ in range(count):
        end = skip(raw, position)
        items.append(raw[position:end])
        position = end
    return items


def _merge(raw: bytes | None, key_type: type[str], added: Mapping[str, Any]) -> bytes:
    """An encoded map with entries added; one of the same key is replaced, however its key was encoded."""
    items = _items(raw) if raw is not None else []
    kept: list[bytes] = []
    for key, value in zip(items[::2], items[1::2], strict=True):
        if decode(key)[0] not in added:
            kept += (key, value)
    for name, new in added.items():
        kept += (encode(key_type(name)), encode(new))
    return compound(0xC1, len(kept), b"".join(kept))


def write_message(
    *,
    properties: list[Any] | None = None,
    application_properties: dict[str, Any] | None = None,
    value: Any,
) -> bytes:
    """A message of our own making: the reply of a node."""
    parts = []
    if properties is not None:
        parts.append(encode(Described(ULong(PROPERTIES), properties)))
    if application_properties is not None:
        parts.append(encode(Described(ULong(APPLICATION_PROPERTIES), application_properties)))
    parts.append(encode(Described(ULong(VALUE), value)))
    return b"".join(parts)
