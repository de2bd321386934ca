"""Writes safetensors files, and reads small ones whole. The streaming `Writer` hashes what it writes as it goes.

Nothing here is durable: what a store creates from a file is made so by the store. The bytes depend on names, dtypes,
shapes and numbers only: the same model gives the same file, everywhere. No metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from messages.safetensors_layout import CODES, DTYPES, Layout, encode_header, parse_layout
from messages.safetensors_scan import Scan, Scanner
from messages.write_back import begin_writing_back

Array = np.ndarray[Any, np.dtype[Any]]
_DENSE: Final = 1 << 20
"""Small pieces are gathered until there are this many bytes to write."""
_STRETCH: Final = 32 << 20
"""Bytes after which the disk may begin with them."""


class Writer:
    """Writes one new file: the header of `layout` first, then the data in `layout.in_file_order`, in any pieces.

    Use it in a `with` block; a file that was not finished is removed. Blocks: call it in threads.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self.layout = Layout.in_order((s.name, s.dtype, s.shape) for s in layout.in_file_order)
        self._path = path
        self._gathered = bytearray(encode_header(self.layout.in_file_order))
        self._left = self.layout.data_bytes
        self._scanner = Scanner(self.layout.data_offset + self.layout.data_bytes)
        self._file = path.open("xb", buffering=0)
        self._written = self._begun = 0
        self._finished = False

    def write(self, data: bytes | memoryview) -> None:
        """The next bytes of the data section. Raises ValueError when there are more than the layout has room for."""
        if len(data) > self._left:
            raise ValueError(f"{len(data)} bytes given, but the layout has room for {self._left} more")
        self._left -= len(data)
        if len(self._gathered) + len(data) < _DENSE:
            self._gathered += data
        else:
            self._flush()
            self._put(data)

    def scan(self) -> Scan:
        """What a scan of the complete file finds, before it is kept. Raises ValueError when data is missing."""
        if self._left:
            raise ValueError(f"{self._left} bytes of data have not been written")
        self._flush()
        return self._scanner.finish()

    def finish(self) -> Scan:
        """Keeps the file and closes it; what a scan of it finds."""
        scan = self.scan()
        self._file.close()
        self._finished = True
        return scan

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        if not self._finished:
            self._path.unlink(missing_ok=True)

    def _flush(self) -> None:
        self._put(bytes(self._gathered))
        self._gathered.clear()

    def _put(self, data: bytes | memoryview) -> None:
        self._scanner.feed(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._written += len(data)
        if self._written - self._begun >= _STRETCH:
            begin_writing_back(self._file.fileno(), self._begun, self._written - self._begun)
            self._begun = self._written


def write_file(path: Path, tensors: Mapping[str, Array]) -> Scan:
    """Writes arrays to a new file. Raises ValueError for a dtype that safetensors, or Silobus, has no code for."""
    arrays = {name: _plain(name, array) for name, array in tensors.items()}
    layout = Layout.of((name, CODES[array.dtype], array.shape) for name, array in arrays.items())
    with Writer(path, layout) as writer:
        for spec in writer.layout.in_file_order:
            writer.write(arrays[spec.name].reshape(-1).view(np.uint8).data)
        return writer.finish()


def read_tensors(path: Path) -> dict[str, Array]:
    """All arrays of a file, in memory, by name. bfloat16 comes as ml_dtypes.bfloat16. Raises InvalidWeights."""
    data = path.read_bytes()
    layout = parse_layout(data, len(data))
    return {
        s.name: np.frombuffer(data, DTYPES[s.dtype], s.elements, layout.data_offset + s.begin).reshape(s.shape).copy()
        for s in layout.tensors
    }


def _plain(name: str, array: Array) -> Array:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False) if array.dtype.kind in "iuf" else array
    if little.dtype not in CODES:
        raise ValueError(f"tensor {name} has dtype {array.dtype}; known: {', '.join(map(str, CODES))}")
    return np.ascontiguousarray(little).reshape(array.shape)
