"""What a sender wrote stays as it was, byte for byte, around what the broker adds."""

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicebus_emulator.codec import (
    DecodeError,
    Described,
    Float,
    Short,
    Symbol,
    Timestamp,
    UByte,
    UInt,
    ULong,
    array_of,
    decode,
    encode,
)
from servicebus_emulator.message import cut, data_sections, read_arrival, read_properties, render
from servicebus_emulator.validity import read_map

TOKEN = UUID("00112233-4455-6677-8899-aabbccddeeff")


def section(code: int, value: Any) -> bytes:
    return encode(Described(ULong(code), value))


def rendered(payload: bytes, **changes: Any) -> bytes:
    options: dict[str, Any] = {"delivery_count": 0, "annotations": {}, "lock_token": None, "added": None}
    return render(payload, **(options | changes))


def test_types_survive_what_is_spliced_in() -> None:
    odd = {Symbol("x-mine"): Short(3), ULong(7): Float(1.5)}
    payload = (
        section(0x70, [True, UByte(9), UInt(1000)])
        + section(0x71, {Symbol("x-sender"): "kept"})
        + section(0x72, odd)
        + section(0x73, ["id"])
        + section(0x74, {"n": UByte(1)})
        + section(0x75, b"body")
        + section(0x78, {Symbol("foot"): 1})
    )
    out = cut(
        rendered(
            payload,
            delivery_count=3,
            annotations={"x-opt-sequence-number": 5},
            lock_token=TOKEN,
            added={"DeadLetterReason": "why"},
        )
    )
    assert out.header is not None
    assert decode(out.header)[0] == [True, UByte(9), UInt(1000), None, UInt(3)]
    annotations = read_map(out.message_annotations)
    assert annotations == {**odd, "x-opt-sequence-number": 5}
    assert type(annotations["x-mine"]) is Short
    assert type(annotations[7]) is Float
    assert read_map(out.delivery_annotations) == {"x-sender": "kept", "x-opt-lock-token": TOKEN}
    application = read_map(out.application_properties)
    assert application == {"n": 1, "DeadLetterReason": "why"}
    assert type(application["n"]) is UByte
    assert out.body == cut(payload).body


def test_what_the_broker_says_replaces_what_a_sender_claims() -> None:
    payload = section(0x72, {Symbol("x-opt-sequence-number"): 99, Symbol("x-opt-enqueued-time"): Timestamp(1)})
    payload += section(0x74, {"DeadLetterReason": "mine"}) + section(0x77, None)
    out = cut(rendered(payload, annotations={"x-opt-sequence-number": 5}, added={"DeadLetterReason": "real"}))
    assert read_map(out.message_annotations) == {"x-opt-enqueued-time": 1, "x-opt-sequence-number": 5}
    assert read_map(out.application_properties) == {"DeadLetterReason": "real"}


@pytest.mark.parametrize("body", [section(0x75, b"x") + section(0x78, {}), section(0x77, 1), b""])
def test_delivery_annotations_may_come_last_as_the_sdk_sends_them(body: bytes) -> None:
    late = read_arrival(section(0x73, ["id"]) + body + section(0x71, {Symbol("x"): 1}))
    assert cut(late.payload).body == body
    out = rendered(late.payload, lock_token=TOKEN)
    assert out == rendered(section(0x71, {Symbol("x"): 1}) + section(0x73, ["id"]) + body, lock_token=TOKEN)
    assert read_map(cut(out).delivery_annotations) == {"x": 1, "x-opt-lock-token": TOKEN}


@given(st.binary(max_size=70_000))
def test_bodies_of_any_size_are_untouched(body: bytes) -> None:
    payload = section(0x73, ["id"]) + section(0x75, body)
    assert data_sections(cut(rendered(payload, delivery_count=1)).body) == [body]


def test_a_message_without_an_id_is_given_one_and_keeps_its_other_properties() -> None:
    bare = read_arrival(section(0x77, 1))
    kept = read_arrival(section(0x73, [None, b"user", "to"]) + section(0x77, 1))
    for arrival in (bare, kept):
        properties = cut(arrival.payload).properties
        assert properties is not None
        assert f"str:{decode(properties)[0][0]}" == arrival.message_id
    properties = cut(kept.payload).properties
    assert properties is not None
    assert decode(properties)[0][1:] == [b"user", "to"]
    assert bare.message_id != kept.message_id


def test_ids_of_different_types_are_different_ids() -> None:
    ids = [read_arrival(section(0x73, [key]) + section(0x77, 1)).message_id for key in ("7", ULong(7), b"7")]
    assert len(set(ids)) == 3


def test_an_arrival_knows_its_life_and_its_schedule() -> None:
    payload = section(0x70, [None, None, UInt(1500)])
    payload += section(0x72, {Symbol("x-opt-scheduled-enqueue-time"): Timestamp(77)}) + section(0x77, 1)
    arrival = read_arrival(payload)
    assert (arrival.ttl, arrival.scheduled_for) == (1500, 77)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"\x40", id="not-described"),
        pytest.param(section(0x60, []), id="unknown-section"),
        pytest.param(section(0x75, b"x") + section(0x70, []), id="header-after-body"),
        pytest.param(section(0x73, []) + section(0x72, {}), id="out-of-order"),
        pytest.param(section(0x70, []) + section(0x70, []), id="twice"),
        pytest.param(section(0x75, b"x") + section(0x77, 1), id="two-kinds-of-body"),
        pytest.param(section(0x75, b"x") + section(0x71, {}) + section(0x75, b"x"), id="body-after-body"),
        pytest.param(section(0x71, {}) + section(0x75, b"x") + section(0x71, {}), id="delivery-annotations-twice"),
        pytest.param(section(0x75, b"x") + section(0x72, {}), id="other-annotations-after-body"),
        pytest.param(section(0x73, {}), id="properties-not-a-list"),
        pytest.param(section(0x72, []), id="annotations-not-a-map"),
        pytest.param(section(0x70, [None] * 6), id="long-header"),
        pytest.param(section(0x70, [None, None, "soon"]), id="ttl-not-a-number"),
        pytest.param(section(0x75, b"x")[:-1], id="cut-off"),
    ],
)
def test_a_malformed_message_is_refused(payload: bytes) -> None:
    with pytest.raises(DecodeError):
        read_arrival(payload)


@given(st.binary(max_size=200))
def test_noise_is_a_message_or_refused_and_never_anything_else(noise: bytes) -> None:
    for payload in (noise, section(0x73, ["id"]) + noise, b"\x00\x53\x72" + noise):
        try:
            arrival = read_arrival(payload)
            rendered(arrival.payload, annotations={"a": 1}, lock_token=TOKEN)
            data_sections(cut(payload).body)
        except DecodeError:
            continue


def test_properties_of_receivers_are_names_and_simple_values() -> None:
    assert read_properties(None) == {}
    read = read_properties({Symbol("n"): Short(3), "text": "x", "none": None, "id": TOKEN})
    assert read == {"n": 3, "text": "x", "none": None, "id": TOKEN}
    assert [type(name) for name in read] == [str] * 4
    assert type(read["n"]) is Short


@pytest.mark.parametrize(
    "value", [[], "x", {1: "x"}, {"x": []}, {"x": {}}, {"x": Described(ULong(1), 1)}, {"x": array_of(Short, [1])}]
)
def test_anything_else_is_no_property(value: Any) -> None:
    with pytest.raises(DecodeError):
        read_properties(value)
