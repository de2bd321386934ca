"""One pass over a weights file: its digest, its layout, whether every number is finite, its norm.

Nothing here decides what to do with a file that is not as it should be; `verify` only says so. Never more than a few
chunks are in memory, whatever the size of the file. Hashing and numerics release the GIL and run in threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from messages.ports import Reader
from messages.safetensors_layout import (
    DTYPES,
    FLOATING,
    Layout,
    TensorSpec,
    WeightsFault,
    header_bytes,
    parse_layout,
    refuse,
)

CHUNK: Final = 4 << 20
_AHEAD: Final = 3
"""Ranges in flight while one is worked on."""
_BLOCK: Final = 1 << 13
"""Numbers measured together: they stay in the processor's cache, and BLAS starts no threads for so few."""
_ROW: Final = 1 << 8
"""Squares added up in float32: the norm of so few is right to about 1 in 10^6, whatever the numbers."""
_AT_ONCE: Final = 8
"""Blocks converted to float32 at a time, where they are not."""
_LEAST: Final = 1e-25
_MOST: Final = 1e38
"""A block's square between these was neither cut off below float32's range nor above."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass found. `norm` is the L2 norm over all floating tensors; 0 when something is not finite."""

    sha256: str
    bytes: int
    layout: Layout
    finite: bool
    first_not_finite: str | None
    norm: float


class Scanner:
    """Takes the bytes of one file of `size` bytes, in order, in pieces of any length."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._seen = 0
        self._hash = hashlib.sha256()
        self._header: bytearray | None = bytearray()
        self._layout: Layout | None = None
        self._ahead: Iterator[TensorSpec] = iter(())
        self._tensor: TensorSpec | None = None
        self._left = 0
        self._partial = bytearray()
        self._norm = 0.0
        self._not_finite: str | None = None

    def feed(self, data: bytes | memoryview) -> None:
        """The next bytes. Raises InvalidWeights as soon as the header is known to be bad."""
        self._hash.update(data)
        self._seen += len(data)
        view = memoryview(data)
        if self._header is not None:
            view = self._take_header(self._header, view)
        while len(view) and self._tensor is not None:
            part, view = view[: self._left], view[self._left :]
            self._left -= len(part)
            self._take_numbers(self._tensor, part)
            if not self._left:
                self._next_tensor()

    def finish(self) -> Scan:
        """The findings, after the last byte."""
        if self._seen != self._size or self._layout is None:
            refuse(WeightsFault.TRUNCATED, f"{self._seen} of {self._size} bytes could be read.")
        finite = self._not_finite is None
        norm = min(self._norm, sys.float_info.max) if finite else 0.0
        return Scan(self._hash.hexdigest(), self._size, self._layout, finite, self._not_finite, norm)

    def _take_header(self, header: bytearray, view: memoryview) -> memoryview:
        view = _fill(header, view, 8)
        if len(header) < 8:
            return view
        needed = header_bytes(bytes(header[:8]), self._size)
        view = _fill(header, view, needed)
        if len(header) < needed:
            return view
        self._layout = parse_layout(bytes(header), self._size)
        self._header = None
        self._ahead = iter(self._layout.in_file_order)
        self._next_tensor()
        return view

    def _next_tensor(self) -> None:
        self._tensor = next((spec for spec in self._ahead if spec.end > spec.begin), None)
        self._left = self._tensor.end - self._tensor.begin if self._tensor else 0

    def _take_numbers(self, spec: TensorSpec, part: memoryview) -> None:
        """Measures in blocks counted from the tensor's start, so that the norm does not depend on the pieces."""
        if spec.dtype not in FLOATING or self._not_finite is not None:
            return
        block = _BLOCK * spec.itemsize
        if self._partial:
            part = _fill(self._partial, part, block)
            if len(self._partial) == block or not self._left:
                measure = self._measure_blocks if len(self._partial) == block else self._measure
                measure(spec, memoryview(self._partial))
                self._partial = bytearray()
        whole = len(part) // block * block
        self._measure_blocks(spec, part[:whole])
        if whole < len(part):
            if self._left:
                self._partial += part[whole:]
            else:
                self._measure(spec, part[whole:])

    def _measure_blocks(self, spec: TensorSpec, data: memoryview) -> None:
        """Whole blocks. Several times as fast as one by one in float64, which is done where float32 does not do."""
        block = _BLOCK * spec.itemsize
        squares = _squares(data, spec.dtype) if spec.dtype != "F64" else [math.nan] * (len(data) // block)
        for index, square in enumerate(squares):
            if _LEAST < square < _MOST:
                self._norm = math.hypot(self._norm, math.sqrt(square))
            else:
                self._measure(spec, data[index * block : (index + 1) * block])

    def _measure(self, spec: TensorSpec, data: memoryview) -> None:
        norm = _norm(np.frombuffer(data, dtype=DTYPES[spec.dtype]).astype(np.float64))
        if norm is None:
            self._not_finite = self._not_finite or spec.name
        else:
            self._norm = math.hypot(self._norm, norm)


def _fill(target: bytearray, view: memoryview, length: int) -> memoryview:
    missing = max(0, length - len(target))
    target += view[:missing]
    return view[missing:]


def _squares(data: memoryview, dtype: str) -> list[float]:
    """The sum of squares of each block, roughly; what overflows is infinite, what is not a number is not one."""
    found: list[float] = []
    step = len(data) if dtype == "F32" else _AT_ONCE * _BLOCK * DTYPES[dtype].itemsize
    for start in range(0, len(data), step or 1):
        rows = np.frombuffer(data[start : start + step], DTYPES[dtype]).astype(np.float32, copy=False).reshape(-1, _ROW)
        with np.errstate(over="ignore", invalid="ignore"):
            sums = np.vecdot(rows, rows)
        found += sums.reshape(-1, _BLOCK // _ROW).sum(axis=1, dtype=np.float64).tolist()
    return found


def _norm(block: np.ndarray[Any, np.dtype[np.float64]]) -> float | None:
    """The L2 norm; None when a number is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        square = float(np.dot(block, block))
    if 1e-280 < square < math.inf or not block.any():
        return math.sqrt(square)
    largest = float(np.abs(block).max())  # squares overflow or vanish: scale first
    if not math.isfinite(largest):
        return None
    scaled = block / largest
    return largest * math.sqrt(float(np.dot(scaled, scaled)))


def scan_file(path: Path) -> Scan:
    """Scans a local file. Blocks: call it in a thread. Raises InvalidWeights, OSError."""
    with path.open("rb", buffering=0) as file:
        scanner = Scanner(file.seek(0, 2))
        file.seek(0)
        buffer = memoryview(bytearray(CHUNK))
        while count := file.readinto(buffer):
            scanner.feed(buffer[:count])
        return scanner.finish()


async def scan_blob(reader: Reader) -> Scan:
    """Scans an open blob, reading ahead while it hashes. Raises InvalidWeights, Conflict, Transient."""
    scanner = Scanner(reader.size)
    offsets = iter(range(0, reader.size, CHUNK))
    free: list[memoryview] = []  # memory is used again: having the system clear it costs a third of a hash
    reads: list[asyncio.Task[memoryview]] = []

    async def read(offset: int) -> memoryview:
        buffer = free.pop() if free else memoryview(bytearray(min(CHUNK, reader.size)))
        await reader.read_into(offset, buffer[: reader.size - offset])
        return buffer

    def read_ahead() -> None:
        while len(reads) < _AHEAD and (offset := next(offsets, None)) is not None:
            reads.append(asyncio.create_task(read(offset)))

    read_ahead()
    left = reader.size
    try:
        while reads:
            buffer = await reads[0]
            reads.pop(0)
            read_ahead()
            await asyncio.to_thread(scanner.feed, buffer[:left])
            left -= CHUNK
            free.append(buffer)
        return scanner.finish()
    finally:
        for task in reads:
            task.cancel()
        await asyncio.gather(*reads, return_exceptions=True)


async def layout_of(reader: Reader) -> Layout:
    """The layout of an open blob: one small read, or two when the header is long."""
    prefix = await reader.read(0, min(reader.size, 1 << 16))
    needed = header_bytes(prefix, reader.size)
    if needed > len(prefix):
        prefix += await reader.read(len(prefix), needed - len(prefix))
    return await asyncio.to_thread(parse_layout, prefix, reader.size)


def verify(scan: Scan, *, sha256: str, bytes: int, layout: Layout | None) -> None:
    """Raises InvalidWeights unless the file is the one announced, laid out as expected, and all finite."""
    if scan.bytes != bytes:
        refuse(WeightsFault.SIZE_MISMATCH, f"The file has {scan.bytes} bytes; {bytes} were announced.")
    if scan.sha256 != sha256:
        refuse(WeightsFault.DIGEST_MISMATCH, f"The file's SHA-256 is {scan.sha256}; {sha256} was announced.")
    if layout is not None and (difference := layout.difference(scan.layout)):
        refuse(WeightsFault.LAYOUT_MISMATCH, f"The tensors are not those of the model: {difference}")
    if not scan.finite:
        refuse(WeightsFault.NOT_FINITE, f"Tensor {scan.first_not_finite} holds a number that is not finite.")
