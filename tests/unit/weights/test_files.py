"""Writing, scanning and verifying files; other libraries read what we write."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from messages.errors import InvalidWeights
from messages.ports import Reader
from messages.safetensors_scan import CHUNK, Scanner
from messages.weights import (
    DTYPES,
    Layout,
    Scan,
    Writer,
    layout_of,
    read_tensors,
    scan_blob,
    scan_file,
    verify,
    write_file,
)

FLOATS = [np.dtype("f4"), np.dtype("f2"), np.dtype("f8"), np.dtype(ml_dtypes.bfloat16)]


def a_model(seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    model: dict[str, np.ndarray[Any, Any]] = {
        code.lower(): (rng.normal(size=(3, 5)) * 50).astype(dtype) for code, dtype in DTYPES.items()
    }
    return {
        **model,
        "scalar": np.array(3.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "ä": np.ones(1, np.int64),
    }


def norm_of(model: dict[str, np.ndarray[Any, Any]]) -> float:
    return math.sqrt(sum(float((a.astype(np.float64) ** 2).sum()) for a in model.values() if a.dtype in FLOATS))


def test_a_file_read_back_is_the_model(tmp_path: Path) -> None:
    model = a_model()
    write_file(tmp_path / "f", model)
    back = read_tensors(tmp_path / "f")
    assert back.keys() == model.keys()
    for name, array in model.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert back[name].tobytes() == array.tobytes()


def test_safetensors_and_torch_read_the_same_numbers(tmp_path: Path) -> None:
    model = a_model()
    write_file(tmp_path / "f", model)
    loaded = safetensors.torch.load_file(tmp_path / "f")
    assert loaded.keys() == model.keys()
    for name, array in model.items():
        assert tuple(loaded[name].shape) == array.shape
        assert loaded[name].to(torch.float64).numpy().tobytes() == array.astype(np.float64).tobytes()
    assert loaded["bf16"].dtype is torch.bfloat16


def test_we_read_what_torch_saves(tmp_path: Path) -> None:
    saved = {"w": torch.randn(7, 3), "b": torch.randn(5).to(torch.bfloat16), "n": torch.tensor(3)}
    safetensors.torch.save_file(saved, tmp_path / "f", metadata={"format": "pt"})
    back = read_tensors(tmp_path / "f")
    assert {name: array.shape for name, array in back.items()} == {"w": (7, 3), "b": (5,), "n": ()}
    assert back["b"].astype(np.float32).tolist() == saved["b"].to(torch.float32).tolist()


def test_the_same_model_gives_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    model = a_model()
    one = write_file(tmp_path / "one", model)
    two = write_file(tmp_path / "two", dict(reversed(model.items())))
    assert one == two
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("array", [np.array(["a"]), np.zeros(2, np.complex64), np.array([None])])
def test_an_array_that_is_no_tensor_is_refused(tmp_path: Path, array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ValueError, match="dtype"):
        write_file(tmp_path / "f", {"a": array})


def test_arrays_of_another_byte_order_and_with_strides_are_written_right(tmp_path: Path) -> None:
    big = np.arange(12, dtype=">f4").reshape(3, 4)
    write_file(tmp_path / "f", {"big": big, "turned": big.T, "part": big[:, ::2]})
    back = read_tensors(tmp_path / "f")
    assert back["big"].tolist() == big.tolist()
    assert back["turned"].tolist() == big.T.tolist()
    assert back["part"].tolist() == big[:, ::2].tolist()


# --- scanning ----------------------------------------------------------------------------------------------------


def test_a_scan_has_digest_size_layout_and_norm(tmp_path: Path) -> None:
    model = a_model()
    written = write_file(tmp_path / "f", model)
    raw = (tmp_path / "f").read_bytes()
    scan = scan_file(tmp_path / "f")
    assert scan == written
    assert (scan.sha256, scan.bytes) == (hashlib.sha256(raw).hexdigest(), len(raw))
    assert (scan.finite, scan.first_not_finite) == (True, None)
    assert scan.norm == pytest.approx(norm_of(model), rel=1e-12)


@given(st.lists(st.integers(1, 70_000), max_size=30), st.integers(0, 5))
def test_a_scan_does_not_depend_on_the_pieces(cuts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = rng.normal(size=20_000).astype(np.float32)
    layout = Layout.of([("a", "F32", (9_000,)), ("b", "F32", (11_000,)), ("c", "BOOL", (3,))])
    from messages.safetensors_layout import encode_header

    raw = encode_header(layout.in_file_order) + data.tobytes() + b"\0\1\0"
    whole = Scanner(len(raw))
    whole.feed(raw)
    pieces = Scanner(len(raw))
    position = 0
    for cut in [*cuts, len(raw)]:
        pieces.feed(raw[position : position + cut])
        position += cut
    assert pieces.finish() == whole.finish()
    assert whole.finish().norm == pytest.approx(float(np.linalg.norm(data.astype(np.float64))), rel=1e-6)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 8_191, 8_192, 20_000, 29_999])
def test_one_number_that_is_not_finite_is_found(
    tmp_path: Path, dtype: np.dtype[Any], value: float, position: int
) -> None:
    array = np.ones(30_000, dtype)
    array[position] = value
    write_file(tmp_path / "f", {"a": np.ones(3, dtype), "b": array, "c": np.full(3, np.nan, dtype)})
    scan = scan_file(tmp_path / "f")
    assert (scan.finite, scan.first_not_finite, scan.norm) == (False, "b", 0.0)


@pytest.mark.parametrize("value", [1e300, 1e200, 1e-200, 5e-324, 1.7e308])
def test_numbers_near_the_ends_of_float64_are_finite_and_have_a_norm(tmp_path: Path, value: float) -> None:
    write_file(tmp_path / "f", {"a": np.array([value, 0.0, 0.0])})
    scan = scan_file(tmp_path / "f")
    assert scan.finite
    assert scan.norm == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1.0, 1e25])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_long_tensors_have_a_norm_at_every_scale(tmp_path: Path, dtype: type, scale: float) -> None:
    numbers = (np.random.default_rng(1).normal(size=40_000) * scale).astype(dtype)
    write_file(tmp_path / "f", {"a": numbers, "zeros": np.zeros(20_000, dtype)})
    assert scan_file(tmp_path / "f").norm == pytest.approx(float(np.linalg.norm(numbers.astype(np.float64))), rel=1e-6)


@pytest.mark.parametrize("code", ["F16", "BF16", "F32", "F64"])
@pytest.mark.parametrize("where", [0, 8_191, 8_192, 39_999])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_one_number_that_is_not_finite_is_found_wherever_it_is(
    tmp_path: Path, code: str, where: int, value: float
) -> None:
    numbers = np.ones(40_000).astype(DTYPES[code])
    numbers[where] = value
    write_file(tmp_path / "f", {"a": np.zeros(10_000), "b": numbers})
    assert scan_file(tmp_path / "f").first_not_finite == "b"


def test_a_norm_too_large_for_a_float_is_the_largest_float(tmp_path: Path) -> None:
    write_file(tmp_path / "f", {"a": np.full(9, 1.7e308)})
    scan = scan_file(tmp_path / "f")
    assert scan.finite
    assert math.isfinite(scan.norm)


def test_integers_have_no_part_in_the_norm(tmp_path: Path) -> None:
    write_file(tmp_path / "f", {"a": np.full(9, 1 << 40), "b": np.array([3.0, 4.0])})
    assert scan_file(tmp_path / "f").norm == 5.0


def test_a_file_cut_off_while_it_is_read_is_truncated() -> None:
    scanner = Scanner(100)
    scanner.feed(b"\x02\0\0")
    with pytest.raises(InvalidWeights) as caught:
        scanner.finish()
    assert caught.value.reason == "truncated"


class _Bytes(Reader):
    """A blob that remembers how it was read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads: list[tuple[int, int]] = []

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def etag(self) -> str:
        return "1"

    async def read(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        if offset + length > len(self.data):
            raise ValueError("out of range")
        return self.data[offset : offset + length]

    async def close(self) -> None: ...


async def test_a_blob_is_scanned_in_one_pass(tmp_path: Path) -> None:
    written = write_file(tmp_path / "f", {"a": np.random.default_rng(0).normal(size=3 * CHUNK // 8 + 5)})
    blob = _Bytes((tmp_path / "f").read_bytes())
    assert await scan_blob(blob) == written
    assert [offset for offset, _ in blob.reads] == list(range(0, blob.size, CHUNK))
    assert sum(length for _, length in blob.reads) == blob.size


async def test_an_error_while_reading_ahead_stops_the_scan(tmp_path: Path) -> None:
    class Broken(_Bytes):
        async def read(self, offset: int, length: int) -> bytes:
            if offset:
                raise OSError("broken")
            return await super().read(offset, length)

    write_file(tmp_path / "f", {"a": np.zeros(CHUNK)})
    with pytest.raises(OSError, match="broken"):
        await scan_blob(Broken((tmp_path / "f").read_bytes()))


@pytest.mark.parametrize(("tensors", "reads"), [(3, 1), (3000, 2)])
async def test_the_layout_of_a_blob_takes_one_small_read_or_two(tmp_path: Path, tensors: int, reads: int) -> None:
    written = write_file(tmp_path / "f", {f"tensor-{number}": np.zeros(9) for number in range(tensors)})
    blob = _Bytes((tmp_path / "f").read_bytes())
    assert await layout_of(blob) == written.layout
    assert len(blob.reads) == reads


async def test_a_blob_of_junk_has_no_layout() -> None:
    for junk in (b"", b"1234567", b"\xff" * 100):
        with pytest.raises(InvalidWeights):
            await layout_of(_Bytes(junk))
        with pytest.raises(InvalidWeights):
            await scan_blob(_Bytes(junk))


# --- verifying ---------------------------------------------------------------------------------------------------


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    return write_file(tmp_path / "f", {"a": np.ones(3), "b": np.ones(2, np.float32)})


def test_the_file_that_was_announced_is_verified(scan: Scan) -> None:
    verify(scan, sha256=scan.sha256, bytes=scan.bytes, layout=scan.layout)
    verify(scan, sha256=scan.sha256, bytes=scan.bytes, layout=None)


def test_another_file_is_refused_with_the_reason(scan: Scan) -> None:
    other = Layout.of([("a", "F64", (4,))])
    not_finite = replace(scan, finite=False, first_not_finite="a")

    def reason(scan: Scan, sha256: str, size: int, layout: Layout | None) -> str:
        with pytest.raises(InvalidWeights) as caught:
            verify(scan, sha256=sha256, bytes=size, layout=layout)
        return caught.value.reason

    assert reason(scan, scan.sha256, scan.bytes + 1, scan.layout) == "size-mismatch"
    assert reason(scan, "0" * 64, scan.bytes, scan.layout) == "digest-mismatch"
    assert reason(scan, scan.sha256, scan.bytes, other) == "layout-mismatch"
    assert reason(not_finite, scan.sha256, scan.bytes, scan.layout) == "not-finite"
    assert reason(not_finite, scan.sha256, scan.bytes, None) == "not-finite"


# --- writing -----------------------------------------------------------------------------------------------------


def test_a_file_that_was_not_finished_is_removed(tmp_path: Path) -> None:
    def stop_half_way() -> None:
        with Writer(tmp_path / "f", Layout.of([("a", "F32", (3,))])) as writer:
            writer.write(b"1234")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stop_half_way()
    assert not (tmp_path / "f").exists()


def test_too_few_bytes_are_not_finished_and_too_many_not_taken(tmp_path: Path) -> None:
    with Writer(tmp_path / "f", Layout.of([("a", "F32", (3,))])) as writer:
        writer.write(bytes(8))
        with pytest.raises(ValueError, match="4 bytes of data have not been written"):
            writer.finish()
        with pytest.raises(ValueError, match="room for 4 more"):
            writer.write(bytes(5))
        writer.write(bytes(4))
        assert writer.finish() == scan_file(tmp_path / "f")


def test_an_existing_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "f", {"a": np.zeros(1)})
    assert (tmp_path / "f").read_bytes() == b"mine"
