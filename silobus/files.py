"""Files of a round: safetensors read and written piece by piece, and JSON that is there whole or not at all.

Memory is what the caller gives, whatever the size of the model, and a digest, where one is wanted, is made while
writing. Here is no knowledge of models, rounds or what the names mean.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from silobus.tensors import DTYPES
from silobus.write_back import begin_writing_back

_PIECE = 1 << 20
_STRETCH = 32 << 20


@dataclass(frozen=True)
class Entry:
    """A tensor about to be written; its bytes, in pieces, are asked for when their turn comes."""

    name: str
    code: str
    shape: tuple[int, ...]
    raw: Callable[[], Iterable[Any]]

    @property
    def size(self) -> int:
        size = DTYPES[self.code][1]
        for length in self.shape:
            size *= length
        return size


@dataclass(frozen=True)
class Written:
    bytes: int
    sha256: str | None

    def report(self) -> dict[str, Any]:
        return {"bytes": self.bytes} if self.sha256 is None else {"bytes": self.bytes, "sha256": self.sha256}


def write_tensors(path: Path, entries: Iterable[Entry], *, hashes: bool, durable: bool = True) -> Written:
    """Write a safetensors file and make it durable. The same tensors give the same bytes, in whatever order.

    Not durable, the disk only begins with it: whoever takes it from here waits for that.
    """
    ordered = sorted(entries, key=lambda entry: (-DTYPES[entry.code][1], entry.name))
    header: dict[str, Any] = {}
    end = 0
    for entry in ordered:
        if entry.name == "__metadata__" or entry.name in header:
            raise ValueError(f"no tensor of a safetensors file can be named {entry.name!r} (reserved, or there twice)")
        start, end = end, end + entry.size
        header[entry.name] = {"dtype": entry.code, "shape": entry.shape, "data_offsets": (start, end)}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256() if hashes else None

    def put(piece: Any) -> int:
        if digest is not None:
            digest.update(piece)
        rest = memoryview(piece).cast("B")
        size = rest.nbytes
        while rest:
            rest = rest[file.write(rest) :]
        return size

    begun = 0
    with path.open("wb", buffering=0) as file:
        written = put(struct.pack("<Q", len(text)) + text)
        for entry in ordered:
            size = 0
            for piece in entry.raw():
                size += put(piece)
                if written + size - begun >= _STRETCH:
                    begin_writing_back(file.fileno(), begun, written + size - begun)
                    begun = written + size
            if size != entry.size:
                raise ValueError(f"tensor {entry.name!r} changed while it was written")
            written += size
        if durable:
            _make_durable(file)
    return Written(8 + len(text) + end, digest.hexdigest() if digest is not None else None)


class TensorFile:
    """A safetensors file to read from, tensor by tensor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="np"):
                pass  # the format's own library judges the header: offsets, sizes, overlaps
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            self._header: dict[str, Any] = json.loads(file.read(length))
        self._header.pop("__metadata__", None)
        self._start = 8 + length

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._header)

    def code(self, name: str) -> str:
        return str(self._header[name]["dtype"])

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._header[name]["shape"])

    @contextmanager
    def reading(self, name: str) -> Iterator[Callable[[memoryview], None]]:
        """What fills a buffer with a tensor's first bytes, the next one with those that follow."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(self._start + self._header[name]["data_offsets"][0])

            def take(rest: memoryview) -> None:
                while rest:
                    read = file.readinto(rest)  # a system call reads 2 GB at most
                    if not read:
                        raise ValueError(
                            f"{self.path} ends in the middle of tensor {name!r}: it changed while it was read"
                        )
                    rest = rest[read:]

            yield take


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def write_json(path: Path, value: object, *, durable: bool = True) -> None:
    """Put JSON in place by renaming: a reader sees the old file or the new one, never half of it."""
    beside = path.with_name(path.name + ".writing")
    with beside.open("w", encoding="utf-8") as file:
        json.dump(value, file, allow_nan=False)
        if durable:
            _make_durable(file)
    beside.replace(path)
    if durable:
        make_names_durable(path.parent)


def make_names_durable(directory: Path) -> None:
    """A file is only as durable as the directory that names it."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # mounted blob storage has nothing to make durable
            raise
    finally:
        os.close(handle)


def _make_durable(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
