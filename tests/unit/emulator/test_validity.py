"""What is stored can be handed out at any time: every section is what AMQP says, or its sender is refused."""

from typing import Any
from uuid import uuid4

import pytest

from servicebus_emulator import validity
from servicebus_emulator.codec import (
    Byte,
    DecodeError,
    Described,
    Int,
    Symbol,
    Timestamp,
    UByte,
    UInt,
    ULong,
    array_of,
    encode,
)
from servicebus_emulator.message import read_arrival

HEADER, DELIVERY, MESSAGE, PROPERTIES, APPLICATION, DATA, SEQUENCE, VALUE, FOOTER = range(0x70, 0x79)
SCHEDULED = Symbol("x-opt-scheduled-enqueue-time")


def section(code: int, value: Any) -> bytes:
    return encode(Described(ULong(code), value))


def properties(place: int, value: Any) -> list[Any]:
    return [None] * place + [value]


@pytest.mark.parametrize(
    ("code", "value"),
    [
        *[(code, value) for code in range(HEADER, DATA) for value in ("hello", None, 7, array_of(Int, [1]))],
        (HEADER, {}),
        (HEADER, [1]),
        (HEADER, [None, Byte(4)]),
        (HEADER, [None, None, ULong(2**64 - 1)]),
        (HEADER, [None, None, True]),
        (HEADER, [None, None, None, "yes"]),
        (HEADER, [None, None, None, None, [1]]),
        (DELIVERY, []),
        (DELIVERY, {"text": 1}),
        (MESSAGE, []),
        (MESSAGE, {b"bytes": 1}),
        (MESSAGE, {SCHEDULED: ULong(2**64 - 1)}),
        (MESSAGE, {SCHEDULED: Timestamp(validity.LAST_MOMENT + 1)}),
        (MESSAGE, {SCHEDULED: Timestamp(validity.FIRST_MOMENT - 1)}),
        (MESSAGE, {SCHEDULED: "soon"}),
        (PROPERTIES, {}),
        (PROPERTIES, [None] * 14),
        *[(PROPERTIES, properties(place, [])) for place in range(13)],
        *[(PROPERTIES, properties(place, True)) for place in range(13)],
        (PROPERTIES, [array_of(Int, [1])]),
        (PROPERTIES, properties(11, Int(1))),
        (APPLICATION, []),
        (APPLICATION, {Symbol("n"): 1}),
        (APPLICATION, {7: 1}),
        *[(APPLICATION, {"n": value}) for value in ([], {}, array_of(Int, [1]), Described(ULong(1), 1))],
        (DATA, "text"),
        (SEQUENCE, {}),
        (FOOTER, []),
    ],
)
def test_what_amqp_does_not_say_is_refused(code: int, value: Any) -> None:
    with pytest.raises(DecodeError):
        read_arrival(section(code, value) + (b"" if code >= DATA else section(VALUE, 1)))


def test_what_amqp_says_is_taken_as_it_is() -> None:
    key = uuid4()
    payload = (
        section(HEADER, [True, UByte(4), UInt(2**32 - 1), False, UInt(3)])
        + section(DELIVERY, {Symbol("a"): [1, {"x": array_of(Int, [1])}], ULong(7): None})
        + section(MESSAGE, {SCHEDULED: Timestamp(validity.LAST_MOMENT), Symbol("b"): Described(Symbol("c"), 1)})
        + section(
            PROPERTIES,
            [
                *(key, b"u", "to", "subject", "reply", ULong(1), Symbol("t"), Symbol("e"), Timestamp(1), Timestamp(-1)),
                *("group", UInt(1), "there"),
            ],
        )
        + section(APPLICATION, {"n": None, "text": "x", "id": key, "flag": True, "at": Timestamp(1)})
        + section(DATA, b"x")
        + section(FOOTER, {Symbol("f"): 1})
    )
    arrival = read_arrival(payload)
    assert (arrival.payload, arrival.ttl, arrival.scheduled_for) == (payload, 2**32 - 1, validity.LAST_MOMENT)


@pytest.mark.parametrize("extra", [DATA, FOOTER])
def test_nothing_of_a_body_comes_after_its_footer(extra: int) -> None:
    payload = section(DATA, b"x") + section(FOOTER, {}) + section(extra, b"x" if extra == DATA else {})
    with pytest.raises(DecodeError):
        read_arrival(payload)


def test_a_body_is_one_value_at_most() -> None:
    with pytest.raises(DecodeError):
        read_arrival(section(VALUE, 1) + section(VALUE, 2))


@pytest.mark.parametrize("value", [True, 1.0, "1", Timestamp(1), ULong(2**63), None, [1]])
def test_a_sequence_number_is_a_whole_number_of_64_bits(value: Any) -> None:
    assert not validity.is_whole(value)
    assert validity.is_whole(ULong(2**63 - 1))
    assert validity.is_whole(UByte(1))
