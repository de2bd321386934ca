"""The frame bodies of AMQP 1.0 as classes (part 2.7, SASL 5.3.3) and the delivery states (3.4).

A class per performative, its fields in wire order, and the translation to and from a described list. What a
performative makes a connection do is not here.
"""

from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, ClassVar, TypeVar

from servicebus_emulator.codec import (
    Array,
    DecodeError,
    Described,
    Symbol,
    UByte,
    UInt,
    ULong,
    UShort,
    encode,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Performative:
    CODE: ClassVar[int]
    WIRE: ClassVar[tuple[type, ...]]  # the AMQP type of each field, in order


@dataclass(frozen=True, slots=True, kw_only=True)
class Open(Performative):
    """2.7.1"""

    CODE: ClassVar[int] = 0x10
    WIRE: ClassVar[tuple[type, ...]] = (str, str, UInt, UShort, UInt, object, object, object, object, dict)
    container_id: str
    hostname: str | None = None
    max_frame_size: int = 4294967295
    channel_max: int = 65535
    idle_time_out: int | None = None
    outgoing_locales: Any = None
    incoming_locales: Any = None
    offered_capabilities: Any = None
    desired_capabilities: Any = None
    properties: dict[Any, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin(Performative):
    """2.7.2"""

    CODE: ClassVar[int] = 0x11
    WIRE: ClassVar[tuple[type, ...]] = (UShort, UInt, UInt, UInt, UInt, object, object, dict)
    remote_channel: int | None = None
    next_outgoing_id: int
    incoming_window: int
    outgoing_window: int
    handle_max: int = 4294967295
    offered_capabilities: Any = None
    desired_capabilities: Any = None
    properties: dict[Any, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach(Performative):
    """2.7.3"""

    CODE: ClassVar[int] = 0x12
    WIRE: ClassVar[tuple[type, ...]] = (
        *(str, UInt, bool, UByte, UByte, Described, Described),
        *(dict, bool, UInt, ULong, object, object, dict),
    )
    name: str
    handle: int
    role: bool
    snd_settle_mode: int = 2
    rcv_settle_mode: int = 0
    source: Described | None = None
    target: Described | None = None
    unsettled: dict[Any, Any] | None = None
    incomplete_unsettled: bool = False
    initial_delivery_count: int | None = None
    max_message_size: int | None = None
    offered_capabilities: Any = None
    desired_capabilities: Any = None
    properties: dict[Any, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow(Performative):
    """2.7.4"""

    CODE: ClassVar[int] = 0x13
    WIRE: ClassVar[tuple[type, ...]] = (UInt, UInt, UInt, UInt, UInt, UInt, UInt, UInt, bool, bool, dict)
    next_incoming_id: int | None = None
    incoming_window: int
    next_outgoing_id: int
    outgoing_window: int
    handle: int | None = None
    delivery_count: int | None = None
    link_credit: int | None = None
    available: int | None = None
    drain: bool = False
    echo: bool = False
    properties: dict[Any, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer(Performative):
    """2.7.5"""

    CODE: ClassVar[int] = 0x14
    WIRE: ClassVar[tuple[type, ...]] = (
        *(UInt, UInt, bytes, UInt, bool, bool, UByte),
        *(Described, bool, bool, bool),
    )
    handle: int
    delivery_id: int | None = None
    delivery_tag: bytes | None = None
    message_format: int | None = None
    settled: bool | None = None
    more: bool = False
    rcv_settle_mode: int | None = None
    state: Described | None = None
    resume: bool = False
    aborted: bool = False
    batchable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Disposition(Performative):
    """2.7.6"""

    CODE: ClassVar[int] = 0x15
    WIRE: ClassVar[tuple[type, ...]] = (bool, UInt, UInt, bool, Described, bool)
    role: bool
    first: int
    last: int | None = None
    settled: bool = False
    state: Described | None = None
    batchable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Detach(Performative):
    """2.7.7"""

    CODE: ClassVar[int] = 0x16
    WIRE: ClassVar[tuple[type, ...]] = (UInt, bool, Described)
    handle: int
    closed: bool = False
    error: Described | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class End(Performative):
    """2.7.8"""

    CODE: ClassVar[int] = 0x17
    WIRE: ClassVar[tuple[type, ...]] = (Described,)
    error: Described | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Close(Performative):
    """2.7.9"""

    CODE: ClassVar[int] = 0x18
    WIRE: ClassVar[tuple[type, ...]] = (Described,)
    error: Described | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SaslMechanisms(Performative):
    """5.3.3.1"""

    CODE: ClassVar[int] = 0x40
    WIRE: ClassVar[tuple[type, ...]] = (object,)
    sasl_server_mechanisms: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SaslInit(Performative):
    """5.3.3.2"""

    CODE: ClassVar[int] = 0x41
    WIRE: ClassVar[tuple[type, ...]] = (Symbol, bytes, str)
    mechanism: str
    initial_response: bytes | None = None
    hostname: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SaslOutcome(Performative):
    """5.3.3.6"""

    CODE: ClassVar[int] = 0x44
    WIRE: ClassVar[tuple[type, ...]] = (UByte, bytes)
    code: int
    additional_data: bytes | None = None


P = TypeVar("P", bound=Performative)

_CLASSES: tuple[type[Performative], ...] = (
    *(Open, Begin, Attach, Flow, Transfer, Disposition, Detach, End, Close),
    *(SaslMechanisms, SaslInit, SaslOutcome),
)
_SHAPES: dict[int, tuple[type[Performative], tuple[Field[Any], ...]]] = {
    cls.CODE: (cls, fields(cls)) for cls in _CLASSES
}


def parse(body: Described) -> Performative:
    """The performative in a frame body; a wrong field or an unknown descriptor is a decode error."""
    try:
        cls, shape = _SHAPES[int(body.descriptor)]
    except (KeyError, TypeError, ValueError):
        raise DecodeError("an unknown performative") from None
    if not isinstance(body.value, list) or len(body.value) > len(shape):
        raise DecodeError(f"not the fields of {cls.__name__}")
    values: dict[str, Any] = {}
    for field, kind, value in zip(shape, cls.WIRE, body.value, strict=False):
        if value is None:
            continue
        if kind is not object and not isinstance(value, kind):
            raise DecodeError(f"{cls.__name__}.{field.name} has the wrong type")
        values[field.name] = value
    try:
        return cls(**values)
    except TypeError:
        missing = [f.name for f in shape if f.default is MISSING and f.name not in values]
        raise DecodeError(f"{cls.__name__} lacks {', '.join(missing)}") from None


def render(performative: Performative) -> bytes:
    """The described list, without the trailing fields that have their default (1.4)."""
    cls, shape = _SHAPES[performative.CODE]
    wire: list[Any] = []
    length = 0
    for field, kind in zip(shape, cls.WIRE, strict=True):
        value = getattr(performative, field.name)
        if value is None or value == field.default:
            wire.append(None)
            continue
        wire.append(kind(value) if kind in _NUMBERS or kind is Symbol else value)
        length = len(wire)
    return encode(Described(ULong(performative.CODE), wire[:length]))


_NUMBERS = (UByte, UShort, UInt, ULong)


def expect(performative: Performative, cls: type[P]) -> P:
    if not isinstance(performative, cls):
        raise DecodeError(f"{type(performative).__name__} where {cls.__name__} was due")
    return performative


# ---------------------------------------------------------------------------------------- delivery states (3.4)

RECEIVED, ACCEPTED, REJECTED, RELEASED, MODIFIED = 0x23, 0x24, 0x25, 0x26, 0x27
ACCEPTED_STATE = Described(ULong(ACCEPTED), [])
SOURCE, TARGET = 0x28, 0x29


def error(condition: str, description: str, info: dict[Any, Any] | None = None) -> Described:
    """2.8.14; clients read all three fields by position, so all three are there."""
    return Described(ULong(0x1D), [Symbol(condition), description, info or {}])


def rejected(condition: str, description: str) -> Described:
    return Described(ULong(REJECTED), [error(condition, description)])


def outcome_code(state: Described | None) -> int | None:
    """Which delivery state this is; None for none."""
    if state is None:
        return None
    if not isinstance(state.descriptor, int) or not isinstance(state.value, list):
        raise DecodeError("not a delivery state")
    return int(state.descriptor)


def symbols(value: Any) -> list[str]:
    """A field with multiple="true": nothing, one symbol, or an array of them (1.4)."""
    if value is None:
        return []
    if isinstance(value, Array):
        return [str(item) for item in value.items]
    return [str(value)]
