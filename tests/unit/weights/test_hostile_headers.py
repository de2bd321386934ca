"""Every way in which a header can be wrong, and that refusing it costs little memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messages import weights
from messages.errors import InvalidWeights
from messages.safetensors_layout import MAX_COMMAS, MAX_HEADER_BYTES, MAX_NAME, MAX_TENSORS


def a_file(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def with_tensors(data: int, **tensors: Any) -> bytes:
    return a_file(json.dumps(tensors).encode(), bytes(data))


def nested(depth: int) -> bytes:
    return b'{"a":' + b"[" * depth + b"]" * depth + b"}"


CASES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "truncated"),
    "seven bytes": (b"\x02\0\0\0\0\0\0", "truncated"),
    "length only": ((2).to_bytes(8, "little"), "truncated"),
    "header cut short": ((10).to_bytes(8, "little") + b"{}", "truncated"),
    "length that claims 25 MB": ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}", "header-too-large"),
    "length that claims everything": (b"\xff" * 8 + b"{}", "header-too-large"),
    "empty header": (a_file(b""), "header-invalid"),
    "not JSON": (a_file(b"{nonsense}"), "header-invalid"),
    "not UTF-8": (a_file(b'{"\xff\xfe":1}'), "header-invalid"),
    "a list": (a_file(b"[]"), "header-invalid"),
    "a space first": (a_file(b" {}"), "header-invalid"),
    "two objects": (a_file(b"{}{}"), "header-invalid"),
    "NaN": (a_file(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)), "header-invalid"),
    "nested too deeply": (a_file(nested(100_000)), "header-invalid"),
    "a number of many digits": (a_file(b'{"a":' + b"9" * 10_000 + b"}"), "header-invalid"),
    "the same tensor twice": (
        a_file(
            b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}',
            bytes(4),
        ),
        "header-invalid",
    ),
    "the same field twice": (
        a_file(b'{"a":{"dtype":"F32","dtype":"F16","shape":[],"data_offsets":[0,4]}}', bytes(4)),
        "header-invalid",
    ),
    "a tensor that is a number": (with_tensors(0, a=1), "header-invalid"),
    "a tensor that is null": (with_tensors(0, a=None), "header-invalid"),
    "a field is missing": (with_tensors(4, a={"dtype": "F32", "shape": [1]}), "header-invalid"),
    "a field too many": (with_tensors(4, a={**entry(), "strides": [1]}), "header-invalid"),
    "a name too long": (with_tensors(4, **{"n" * (MAX_NAME + 1): entry()}), "header-invalid"),
    "no name": (with_tensors(4, **{"": entry()}), "header-invalid"),
    "a name with a line break": (with_tensors(4, **{"a\nb": entry()}), "header-invalid"),
    "a name that is half a character": (with_tensors(4, **{"\ud800": entry()}), "header-invalid"),
    "an unknown dtype": (with_tensors(4, a=entry(dtype="F31")), "unknown-dtype"),
    "a dtype that is a list": (with_tensors(4, a=entry(dtype=["F32"])), "unknown-dtype"),
    "a dtype that is no code of ours": (with_tensors(4, a=entry(dtype="float32")), "unknown-dtype"),
    "a shape that is a number": (with_tensors(4, a=entry(shape=1)), "header-invalid"),
    "a negative size": (with_tensors(4, a=entry(shape=[-1])), "header-invalid"),
    "two negative sizes": (with_tensors(4, a=entry(shape=[-1, -1])), "header-invalid"),
    "a size that is a fraction": (with_tensors(4, a=entry(shape=[1.0])), "header-invalid"),
    "a size that is true": (with_tensors(4, a=entry(shape=[True])), "header-invalid"),
    "a size that is a string": (with_tensors(4, a=entry(shape=["1"])), "header-invalid"),
    "too many dimensions": (with_tensors(4, a=entry(shape=[1] * 33)), "header-invalid"),
    "sizes whose product overflows": (with_tensors(4, a=entry(shape=[2**32, 2**32])), "offsets-invalid"),
    "sizes whose product overflows to what is there": (
        with_tensors(4, a=entry(shape=[2**32, 2**32 + 1])),
        "offsets-invalid",
    ),
    "a size beyond any file": (with_tensors(4, a=entry(shape=[2**64, 0], offsets=[0, 0])), "header-invalid"),
    "one offset": (with_tensors(4, a=entry(offsets=[0])), "offsets-invalid"),
    "three offsets": (with_tensors(4, a=entry(offsets=[0, 4, 4])), "offsets-invalid"),
    "offsets that are no list": (with_tensors(4, a=entry(offsets="04")), "offsets-invalid"),
    "offsets that are fractions": (with_tensors(4, a=entry(offsets=[0.0, 4.0])), "offsets-invalid"),
    "negative offsets": (with_tensors(4, a=entry(offsets=[-4, 0])), "offsets-invalid"),
    "offsets backwards": (with_tensors(4, a=entry(offsets=[4, 0])), "offsets-invalid"),
    "offsets too wide": (with_tensors(8, a=entry(offsets=[0, 8])), "offsets-invalid"),
    "offsets too narrow": (with_tensors(4, a=entry(offsets=[0, 2])), "offsets-invalid"),
    "a gap at the start": (with_tensors(8, a=entry(offsets=[4, 8])), "offsets-invalid"),
    "a gap between": (with_tensors(12, a=entry(), b=entry(offsets=[8, 12])), "offsets-invalid"),
    "an overlap": (with_tensors(6, a=entry(), b=entry(offsets=[2, 6])), "offsets-invalid"),
    "the same bytes twice": (with_tensors(4, a=entry(), b=entry()), "offsets-invalid"),
    "an empty tensor inside another": (
        with_tensors(4, a=entry(), b=entry(shape=[0], offsets=[2, 2])),
        "offsets-invalid",
    ),
    "data cut short": (with_tensors(3, a=entry()), "truncated"),
    "data beyond the file": (with_tensors(4, a=entry(shape=[2**40], offsets=[0, 2**42])), "truncated"),
    "bytes after the data": (with_tensors(5, a=entry()), "offsets-invalid"),
    "bytes but no tensors": (a_file(b"{}", b"\0"), "offsets-invalid"),
}


@pytest.mark.parametrize(("file", "reason"), CASES.values(), ids=CASES.keys())
def test_a_bad_header_is_refused_with_its_reason(file: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidWeights) as caught:
        weights.parse_layout(file, len(file))
    assert caught.value.reason == reason
    assert len(caught.value.description) < 400

    (tmp_path / "file").write_bytes(file)
    for read in (weights.read_layout, weights.scan_file):
        with pytest.raises(InvalidWeights) as caught:
            read(tmp_path / "file")
        assert caught.value.reason == reason


def test_the_reasons_are_a_closed_list() -> None:
    assert {reason for _, reason in CASES.values()} < {str(fault) for fault in weights.WeightsFault}


def test_a_prefix_without_the_whole_header_is_refused() -> None:
    file = with_tensors(4, a=entry())
    with pytest.raises(InvalidWeights) as caught:
        weights.parse_layout(file[:20], len(file))
    assert caught.value.reason == "truncated"


def filled(unit: bytes, start: bytes = b'{"a":[', end: bytes = b"]}") -> bytes:
    """As many units as the largest header has room for."""
    room = MAX_HEADER_BYTES - len(start) - len(end)
    return start + unit * (room // len(unit)) + end


def a_tensor_too_many() -> bytes:
    many = {f"t{number}": entry("U8", [0], [0, 0]) for number in range(MAX_TENSORS + 1)}
    return json.dumps(many, separators=(",", ":")).encode()


def keys(count: int, value: bytes) -> bytes:
    return b"{" + b",".join(b'"%x":%b' % (number, value) for number in range(count)) + b"}"


LARGE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty objects": (lambda: filled(b"{},", end=b"{}]}"), "too-many-tensors"),
    "empty lists": (lambda: filled(b"[],", end=b"[]]}"), "too-many-tensors"),
    "numbers": (lambda: filled(b"1,", end=b"1]}"), "too-many-tensors"),
    "one long name": (lambda: filled(b"n", b'{"', b'":{}}'), "header-invalid"),
    "one long name of wide characters": (lambda: filled("𝔸".encode(), b'{"', b'":{}}'), "header-invalid"),
    "one long number": (lambda: filled(b"9"), "header-invalid"),
    "nesting": (lambda: filled(b"["), "header-invalid"),
    "a tensor too many": (a_tensor_too_many, "too-many-tensors"),
    "as many keys as there may be commas": (lambda: keys(MAX_COMMAS, b"0"), "too-many-tensors"),
    "as many objects as there may be commas": (lambda: keys(MAX_COMMAS, b"{}"), "too-many-tensors"),
}


@pytest.mark.parametrize(("header", "reason"), LARGE.values(), ids=LARGE.keys())
def test_a_large_hostile_header_costs_little_memory(header: Callable[[], bytes], reason: str) -> None:
    file = a_file(header())
    assert len(file) <= MAX_HEADER_BYTES + 8
    tracemalloc.start()
    try:
        with pytest.raises(InvalidWeights) as caught:
            weights.parse_layout(file, len(file))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.reason == reason
    assert peak < 8 * MAX_HEADER_BYTES


def test_a_claimed_length_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write((1 << 33).to_bytes(8, "little"))
        file.truncate(1 << 34)
    tracemalloc.start()
    try:
        for read in (weights.read_layout, weights.scan_file):
            with pytest.raises(InvalidWeights) as caught:
                read(path)
            assert caught.value.reason == "header-too-large"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000


VALID = with_tensors(12, a=entry(), b=entry("I64", [], [4, 12]))


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_in_our_words(junk: bytes) -> None:
    with pytest.raises(InvalidWeights):
        weights.parse_layout(junk, len(junk))


@given(st.integers(0, len(VALID) - 13), st.integers(0, 255))
def test_a_changed_byte_gives_a_layout_that_fits_or_is_refused_in_our_words(position: int, value: int) -> None:
    changed = VALID[:position] + bytes([value]) + VALID[position + 1 :]
    try:
        layout = weights.parse_layout(changed, len(changed))
    except InvalidWeights:
        return
    assert layout.data_offset + layout.data_bytes == len(changed)
    assert sum(s.elements * s.itemsize for s in layout.tensors) == layout.data_bytes
