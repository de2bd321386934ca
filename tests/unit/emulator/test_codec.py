"""AMQP values survive the wire with their type; bytes that are not AMQP are refused, whatever they are."""

import math
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicebus_emulator.codec import (
    Array,
    Byte,
    Char,
    Decimal,
    DecodeError,
    Described,
    EncodeError,
    Float,
    Int,
    Short,
    Symbol,
    Timestamp,
    UByte,
    UInt,
    ULong,
    UShort,
    array_of,
    decode,
    encode,
    skip,
)


def integers(kind: Callable[[int], Any], bits: int, *, signed: bool) -> st.SearchStrategy[Any]:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return st.integers(low, high).map(kind)


ascii_text = st.text(st.characters(max_codepoint=127), max_size=300)
scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    integers(UByte, 8, signed=False),
    integers(UShort, 16, signed=False),
    integers(UInt, 32, signed=False),
    integers(ULong, 64, signed=False),
    integers(Byte, 8, signed=True),
    integers(Short, 16, signed=True),
    integers(Int, 32, signed=True),
    integers(int, 64, signed=True),
    integers(Timestamp, 64, signed=True),
    st.floats(width=32, allow_nan=False).map(Float),
    st.floats(allow_nan=False),
    st.characters(exclude_categories=["Cs"]).map(Char),
    st.text(max_size=300),
    st.binary(max_size=300),
    ascii_text.map(Symbol),
    st.uuids(),
    st.sampled_from([4, 8, 16]).flatmap(lambda size: st.binary(min_size=size, max_size=size)).map(Decimal),
    st.lists(integers(UInt, 32, signed=False)).map(lambda items: array_of(UInt, items)),
    st.lists(st.uuids()).map(lambda items: array_of(UUID, items)),
    st.lists(ascii_text.map(Symbol)).map(lambda items: array_of(Symbol, items)),
    st.lists(st.booleans()).map(lambda items: array_of(bool, items)),
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(st.text(max_size=5), inner, max_size=5),
        st.builds(Described, integers(ULong, 64, signed=False), inner),
    ),
    max_leaves=12,
)


def same(left: Any, right: Any) -> bool:
    """Equal, and of equal types all the way down."""
    if type(left) is not type(right):
        return False
    match left:
        case list():
            return len(left) == len(right) and all(map(same, left, right))
        case dict():
            return same(list(left.items()), list(right.items()))
        case tuple():
            return len(left) == len(right) and all(map(same, left, right))
        case Described():
            return same(left.descriptor, right.descriptor) and same(left.value, right.value)
        case Array():
            return left.code == right.code and same(left.items, right.items)
        case float():
            return left == right and math.copysign(1, left) == math.copysign(1, right)
    return bool(left == right)


@given(values)
def test_what_is_encoded_is_decoded_with_its_type(value: Any) -> None:
    raw = encode(value)
    decoded, end = decode(raw)
    assert end == len(raw)
    assert same(decoded, value), decoded


@given(values, values)
def test_skipping_ends_where_decoding_ends(first: Any, second: Any) -> None:
    raw = encode(first) + encode(second)
    assert skip(raw, 0) == decode(raw)[1] == len(encode(first))


@given(values, st.data())
def test_a_value_cut_short_is_refused(value: Any, data: st.DataObject) -> None:
    raw = encode(value)
    short = raw[: data.draw(st.integers(0, len(raw) - 1))]
    with pytest.raises(DecodeError):
        decode(short)


@given(st.binary(max_size=400))
def test_noise_decodes_or_is_refused_and_never_does_anything_else(noise: bytes) -> None:
    for read in (decode, skip):
        try:
            read(noise, 0)
        except DecodeError:
            continue


@given(values, st.data())
def test_a_flipped_byte_decodes_or_is_refused_and_never_does_anything_else(value: Any, data: st.DataObject) -> None:
    raw = bytearray(encode(value))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(raw))
    except DecodeError:
        return


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "end where a value should begin"),
        (b"\x3f", "unknown constructor 0x3f"),
        (b"\x56\x02", "not a boolean"),
        (b"\xa1\x01\xff", "not UTF-8"),
        (b"\xa3\x01\xff", "not ASCII"),
        (b"\x73\x00\x11\x00\x00", "not a character"),
        (b"\xd0\x00\x00\x00\x04\xff\xff\xff\xff", "count is larger"),
        (b"\xf0\x00\x00\x00\x05\xff\xff\xff\xff\x40", "count is larger"),
        (b"\xc1\x02\x01\x40", "a key and no value"),
        (b"\xc1\x05\x04\x41\x40\x41\x40", "same key twice"),
        (b"\xc1\x03\x02\x45\x40", "cannot be compared"),
        (b"\xc0\x02\x00\x40", "disagree"),
        (b"\x00" * 100, "nested too deeply"),
        (b"\xc0\x03\x01\xa0\x09\x00", "longer than what holds it"),
    ],
)
def test_a_malformed_value_is_refused_with_the_reason(raw: bytes, why: str) -> None:
    with pytest.raises(DecodeError, match=why):
        decode(raw)


def test_deep_nesting_is_refused_before_it_exhausts_the_stack() -> None:
    raw = encode(None)
    for _ in range(100):
        raw = b"\xd0" + (len(raw) + 4).to_bytes(4, "big") + b"\x00\x00\x00\x01" + raw
    with pytest.raises(DecodeError, match="nested too deeply"):
        decode(raw)


@pytest.mark.parametrize("value", [UByte(256), UInt(-1), Int(1 << 31), 1 << 63, Symbol("ü"), object(), {1, 2}])
def test_a_value_that_does_not_fit_its_type_is_our_error(value: Any) -> None:
    with pytest.raises(EncodeError):
        encode(value)


@pytest.mark.parametrize(
    ("value", "raw"),
    [  # from AMQP 1.0 part 1, by hand
        (None, "40"),
        (True, "41"),
        (UInt(0), "43"),
        (UInt(255), "52ff"),
        (UInt(256), "7000000100"),
        (ULong(0x24), "5324"),
        (-1, "55ff"),
        (Timestamp(1), "830000000000000001"),
        ("hé", "a10368c3a9"),
        (Symbol("a"), "a30161"),
        ([], "45"),
        ([True, UInt(0)], "c003024143"),
        ({"a": None}, "c10502a1016140"),
        (Described(ULong(0x24), []), "00532445"),
        (array_of(int, [1]), "f00000000d00000001810000000000000001"),
    ],
)
def test_the_bytes_are_those_of_the_standard(value: Any, raw: str) -> None:
    assert encode(value).hex() == raw


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"\xe0\x04\x01\xc0\x01\x00", id="lists"),
        pytest.param(b"\xe0\x07\x01\xc0\x04\x02\x40\x54\x01", id="full-lists"),
        pytest.param(b"\xe0\x02\x02\x45", id="empty-lists"),
        pytest.param(b"\xe0\x08\x01\xc1\x05\x02\xa1\x01a\x40", id="maps"),
        pytest.param(b"\xe0\x07\x01\xe0\x04\x02\x50\x01\x02", id="arrays"),
        pytest.param(b"\xe0\x07\x01\x00\xa3\x01a\x54\x01", id="described"),
        pytest.param(b"\xe0\x0a\x01\x00\xa3\x01a\xc0\x03\x01\x54\x01", id="described-lists"),
        pytest.param(b"\xe0\x06\x00\x00\xa3\x01a\x54", id="described-none"),
        pytest.param(b"\xe0\x06\x01\x73\x00\x00\x00\x61", id="characters"),
        pytest.param(b"\xe0\x06\x01\x74\x00\x01\x02\x03", id="decimals"),
    ],
)
def test_whatever_array_can_be_read_can_be_written(raw: bytes) -> None:
    value, end = decode(raw)
    assert end == len(raw)
    again, _ = decode(encode(value))
    assert getattr(again, "items", None) == value.items
