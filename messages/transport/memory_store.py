"""A store in memory, for tests: the behaviour of the real ones without their latency. It forgets everything.

It holds no logic that a real store lacks; `tests/contract/test_store.py` runs over all of them.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from messages.errors import AlreadyExists, Conflict, NotFound, Poison
from messages.ports import BlobInfo, Document, Reader
from messages.transport.blob_names import check_blob, check_container, check_prefix, check_range


@dataclass(frozen=True, slots=True)
class _Blob:
    data: bytes
    etag: str
    modified: datetime


class MemoryStore:
    """`messages.ports.Store`, for one event loop."""

    def __init__(self) -> None:
        self._blobs: dict[tuple[str, str], _Blob] = {}
        self._versions = itertools.count(1)

    async def read(self, container: str, name: str, *, limit: int = 4 << 20) -> Document:
        blob = self._get(container, name)
        if len(blob.data) > limit:
            raise Poison("too-large", f"{container}/{name} has {len(blob.data)} bytes; {limit} is the most.")
        return Document(blob.data, blob.etag)

    async def write(self, container: str, name: str, data: bytes, *, if_match: str | None) -> str:
        blob = self._find(container, name)
        if (blob.etag if blob else None) != if_match:
            raise Conflict(f"{container}/{name} was written by somebody else; read it again.")
        return self._put(container, name, data)

    async def create(self, container: str, name: str, source: Path | bytes) -> None:
        data = source if isinstance(source, bytes) else await asyncio.to_thread(source.read_bytes)
        if self._find(container, name):
            raise AlreadyExists(f"{container}/{name} is there already.")
        self._put(container, name, data)

    async def open(self, container: str, name: str) -> Reader:
        return _MemoryReader(self, container, name, self._get(container, name))

    async def fetch(self, container: str, name: str, target: Path) -> None:
        blob = self._get(container, name)
        await asyncio.to_thread(_write_new, target, blob.data)

    async def list(self, container: str, prefix: str) -> Sequence[BlobInfo]:
        check_container(container)
        check_prefix(prefix)
        return [
            BlobInfo(name, len(blob.data), blob.etag, blob.modified)
            for (where, name), blob in sorted(self._blobs.items())
            if where == container and name.startswith(prefix)
        ]

    async def delete(self, container: str, name: str) -> None:
        if self._find(container, name):
            del self._blobs[container, name]

    async def close(self) -> None:
        """Nothing is held."""

    def _find(self, container: str, name: str) -> _Blob | None:
        check_container(container)
        check_blob(name)
        return self._blobs.get((container, name))

    def _get(self, container: str, name: str) -> _Blob:
        blob = self._find(container, name)
        if blob is None:
            raise NotFound(f"There is no {container}/{name}.")
        return blob

    def _put(self, container: str, name: str, data: bytes) -> str:
        etag = str(next(self._versions))
        self._blobs[container, name] = _Blob(bytes(data), etag, datetime.now(UTC))
        return etag


class _MemoryReader(Reader):
    def __init__(self, store: MemoryStore, container: str, name: str, blob: _Blob) -> None:
        self._store, self._container, self._name, self._blob = store, container, name, blob

    @property
    def size(self) -> int:
        return len(self._blob.data)

    @property
    def etag(self) -> str:
        return self._blob.etag

    async def read(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self.size)
        current = self._store._find(self._container, self._name)
        if current is None or current.etag != self._blob.etag:
            raise Conflict(f"{self._container}/{self._name} has changed since it was opened.")
        return self._blob.data[offset : offset + length]

    async def close(self) -> None:
        """Nothing is held."""


def _write_new(target: Path, data: bytes) -> None:
    try:
        with target.open("xb") as file:
            file.write(data)
    except FileExistsError:
        raise ValueError(f"{target} exists already") from None
    target.chmod(0o444)
