"""What a layout says, and when two of them are the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from messages.weights import Layout, parse_layout, read_layout, write_file

MODEL = [
    ("w", "F32", (3, 4)),
    ("b", "BF16", (4,)),
    ("steps", "I64", ()),
    ("none", "F64", (0, 2)),
    ("mask", "BOOL", (5,)),
]


def test_tensors_are_sorted_by_name_and_found_by_it() -> None:
    layout = Layout.of(MODEL)
    assert [s.name for s in layout.tensors] == ["b", "mask", "none", "steps", "w"]
    assert layout.by_name["w"].shape == (3, 4)
    assert (layout.by_name["steps"].elements, layout.by_name["none"].elements) == (1, 0)


def test_the_digest_is_that_of_names_dtypes_and_shapes_as_compact_json() -> None:
    text = '[["b","BF16",[4]],["mask","BOOL",[5]],["none","F64",[0,2]],["steps","I64",[]],["w","F32",[3,4]]]'
    assert Layout.of(MODEL).digest == hashlib.sha256(text.encode()).hexdigest()


def test_the_order_of_bytes_does_not_change_the_digest(tmp_path: Path) -> None:
    arrays = {"a": np.zeros(3, np.float32), "b": np.zeros(2, np.int64)}
    theirs = parse_layout(raw := save(arrays, metadata={"format": "pt"}), len(raw))
    header = b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},'
    header += b'"b":{"dtype":"I64","shape":[2],"data_offsets":[12,28]}}'
    turned = len(header).to_bytes(8, "little") + header + bytes(28)
    write_file(tmp_path / "ours", arrays)
    assert {theirs.digest, parse_layout(turned, len(turned)).digest, read_layout(tmp_path / "ours").digest} == {
        Layout.of([("a", "F32", (3,)), ("b", "I64", (2,))]).digest
    }


@pytest.mark.parametrize(
    "other", [("w", "F32", (4, 3)), ("w", "F16", (3, 4)), ("v", "F32", (3, 4)), ("w", "F32", (12,))]
)
def test_another_name_dtype_or_shape_gives_another_digest(other: tuple[str, str, tuple[int, ...]]) -> None:
    assert Layout.of([other]).digest != Layout.of([("w", "F32", (3, 4))]).digest


@pytest.mark.parametrize(("transfer", "code"), [("float32", "F32"), ("bfloat16", "BF16"), ("float16", "F16")])
def test_a_cast_changes_floating_tensors_only(transfer: str, code: str) -> None:
    cast = Layout.of(MODEL).cast(transfer)
    assert {s.name: s.dtype for s in cast.tensors} == {
        "b": code,
        "mask": "BOOL",
        "none": code,
        "steps": "I64",
        "w": code,
    }
    assert cast.digest == Layout.of([(s.name, s.dtype, s.shape) for s in cast.tensors]).digest


def test_a_cast_to_nothing_is_the_same_layout() -> None:
    layout = Layout.of(MODEL)
    assert layout.cast(None) is layout


def test_equal_layouts_have_no_difference() -> None:
    assert Layout.of(MODEL).difference(Layout.of(reversed(MODEL))) is None


def test_a_difference_names_what_is_missing_extra_misshapen_and_of_another_type() -> None:
    expected = Layout.of([("gone", "F32", (1,)), ("shape", "F32", (2, 3)), ("type", "F32", (4,)), ("same", "I64", ())])
    found = Layout.of([("extra", "F32", (1,)), ("shape", "F32", (3, 2)), ("type", "F16", (4,)), ("same", "I64", ())])
    assert expected.difference(found) == (
        "missing: gone; not expected: extra; of another shape: shape (3, 2), not (2, 3); "
        "of another dtype: type F16, not F32."
    )


def test_a_difference_names_the_first_few() -> None:
    many = Layout.of([(f"t{number:03d}", "F32", (1,)) for number in range(100)])
    assert many.difference(Layout.of([])) == "missing: t000, t001, t002 and 97 more."


def test_our_files_align_every_tensor(tmp_path: Path) -> None:
    layout = Layout.of([("a", "U8", (3,)), ("b", "F64", (2,)), ("c", "BF16", (5,)), ("d", "F32", (1,))])
    assert layout.data_offset % 8 == 0
    assert all(s.begin % s.itemsize == 0 for s in layout.tensors)
