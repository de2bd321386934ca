"""A store in a directory of a local file system, for any number of processes of one machine.

    <root>/<container>/<blob>               a blob made by `create`: a plain file, read-only, never changed
    <root>/<container>/<document>@/<n>      version n of a document made by `write`; the highest is the document
    <root>/.incoming/                       files not yet complete, each locked by who makes it; whoever comes next
                                            deletes what the dead left there

A document is changed by compare-and-swap (`directory_versions`). A name is for one of the two, blob or document. Files
are read with `pread`, never mapped: others may truncate them. Blobs and files handed out are links to one file, and
read-only; somebody who changes one nevertheless is found out by its digest.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISREG
from typing import ParamSpec, TypeVar

from messages.errors import AlreadyExists, Conflict, Forbidden, NotFound, Poison, Transient
from messages.ports import BlobInfo, Document, Reader
from messages.transport.blob_names import check_blob, check_container, check_prefix, check_range
from messages.transport.directory_versions import Versions
from messages.transport.local_files import (
    fill_range,
    link_or_copy,
    lock_shared,
    make_directories,
    read_range,
    sync,
    write_all,
)

P = ParamSpec("P")
T = TypeVar("T")


class DirectoryStore:
    """`messages.ports.Store` over a directory. Everything that touches a file runs in a thread."""

    def __init__(self, root: Path) -> None:
        self._files = _Files(root.absolute())

    async def read(self, container: str, name: str, *, limit: int = 4 << 20) -> Document:
        return await _in_thread(self._files.read, container, name, limit)

    async def write(self, container: str, name: str, data: bytes, *, if_match: str | None) -> str:
        return await _in_thread(self._files.write, container, name, data, if_match)

    async def create(self, container: str, name: str, source: Path | bytes) -> None:
        await _in_thread(self._files.create, container, name, source)

    async def open(self, container: str, name: str) -> Reader:
        return await _in_thread(self._files.open, container, name)

    async def fetch(self, container: str, name: str, target: Path) -> None:
        await _in_thread(self._files.fetch, container, name, target)

    async def list(self, container: str, prefix: str) -> Sequence[BlobInfo]:
        return await _in_thread(self._files.list, container, prefix)

    async def delete(self, container: str, name: str) -> None:
        await _in_thread(self._files.delete, container, name)

    async def close(self) -> None:
        """Nothing is held between calls."""


class _Files:
    """The blocking half."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / ".incoming"
        self._swept = False

    def read(self, container: str, name: str, limit: int) -> Document:
        with self._current(container, name) as (_, fd, etag):
            size = os.fstat(fd).st_size
            if size > limit:
                raise Poison("too-large", f"{container}/{name} has {size} bytes; {limit} is the most.")
            return Document(read_range(fd, 0, size), etag)

    def write(self, container: str, name: str, data: bytes, if_match: str | None) -> str:
        path = self._path(container, name)
        versions = Versions(path)
        make_directories(versions.directory)
        if path.is_file() or (etag := versions.swap(if_match, lambda: self._complete(data))) is None:
            raise Conflict(f"{container}/{name} was written by somebody else; read it again.")
        return etag

    def create(self, container: str, name: str, source: Path | bytes) -> None:
        path = self._path(container, name)
        versions = Versions(path)
        exists = AlreadyExists(f"{container}/{name} is there already.")
        if path.is_file() or versions.etag(versions.newest()):
            raise exists
        make_directories(path.parent)
        with self._complete(source) as made:
            try:
                os.link(made, path)
            except FileExistsError:
                raise exists from None
        sync(path.parent)

    def open(self, container: str, name: str) -> Reader:
        with self._current(container, name) as (path, fd, etag):
            return _FileReader(f"{container}/{name}", path, os.fstat(fd), etag)

    def fetch(self, container: str, name: str, target: Path) -> None:
        with self._current(container, name) as (path, fd, _):
            try:
                link_or_copy(path, fd, target)
            except FileExistsError:
                raise ValueError(f"{target} exists already") from None

    def list(self, container: str, prefix: str) -> Sequence[BlobInfo]:
        check_container(container)
        check_prefix(prefix)
        top = self._root / container
        found = _walk(top / prefix.rpartition("/")[0], top)
        return sorted((row for row in found if row.name.startswith(prefix)), key=lambda row: row.name)

    def delete(self, container: str, name: str) -> None:
        path = self._path(container, name)
        Versions(path).delete()
        if path.is_file():
            path.unlink(missing_ok=True)
            sync(path.parent)

    def _path(self, container: str, name: str) -> Path:
        check_container(container)
        check_blob(name)
        return self._root / container / name

    @contextlib.contextmanager
    def _current(self, container: str, name: str) -> Iterator[tuple[Path, int, str]]:
        """The file that is the blob now: its path, a descriptor, the ETag."""
        path = self._path(container, name)
        versions = Versions(path)
        missing = NotFound(f"There is no {container}/{name}.")
        while True:
            newest = versions.newest()
            file = versions.file(newest) if newest else path
            try:
                fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                if newest:
                    continue  # replaced, and removed, since the directory was read
                raise missing from None
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise missing from None
                raise
            break
        try:
            stat = os.fstat(fd)
            if not S_ISREG(stat.st_mode):
                raise missing
            yield file, fd, str(newest) if newest else _plain_etag(stat)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _complete(self, source: Path | bytes) -> Iterator[Path]:
        """A file with these bytes, read-only and durable, under a passing name from which it can be linked."""
        make_directories(self._incoming)
        if not self._swept:
            self._swept = True
            _remove_leftovers(self._incoming)
        while True:
            made = self._incoming / secrets.token_hex(12)
            with contextlib.ExitStack() as ending:
                ending.callback(made.unlink, missing_ok=True)
                fd = _begun(source, made)
                ending.callback(os.close, fd)
                lock_shared(fd)
                if not made.exists():
                    continue  # swept away before it was locked
                if isinstance(source, bytes):
                    with open(fd, "wb", buffering=0, closefd=False) as file:
                        write_all(file, source)
                os.fsync(fd)
                yield made
            return


class _FileReader(Reader):
    """Pinned to what the file was when opened; holds no descriptor, so thousands may be open."""

    def __init__(self, label: str, path: Path, stat: os.stat_result, etag: str) -> None:
        self._label, self._path, self._etag = label, path, etag
        self._pin, self._size = _identity(stat), stat.st_size

    @property
    def size(self) -> int:
        return self._size

    @property
    def etag(self) -> str:
        return self._etag

    async def read(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self._size)
        return await _in_thread(self._read, offset, length)

    async def read_into(self, offset: int, target: memoryview) -> None:
        check_range(offset, len(target), self._size)
        await _in_thread(self._read_into, offset, target)

    async def close(self) -> None:
        """Nothing is held."""

    def _read(self, offset: int, length: int) -> bytes:
        with self._pinned() as fd:
            data = read_range(fd, offset, length)
            if len(data) != length:
                raise self._changed()
        return data

    def _read_into(self, offset: int, target: memoryview) -> None:
        with self._pinned() as fd:
            if fill_range(fd, offset, target) != len(target):
                raise self._changed()

    @contextlib.contextmanager
    def _pinned(self) -> Iterator[int]:
        """A descriptor; Conflict at the end when it was not of the file that was opened, as it was then."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self._changed() from None
        try:
            yield fd
            if _identity(os.fstat(fd)) != self._pin:
                raise self._changed()
        finally:
            os.close(fd)

    def _changed(self) -> Conflict:
        return Conflict(f"{self._label} has changed since it was opened.")


async def _in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs blocking work, and says in our words what the operating system said."""
    try:
        return await asyncio.to_thread(work, *args, **kwargs)
    except FileNotFoundError as error:
        raise NotFound(f"There is no {error.filename}.") from error
    except OSError as error:
        about = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise Forbidden(about) from error
        raise Transient(about) from error


def _begun(source: Path | bytes, made: Path) -> int:
    """A descriptor of the new file `made`: empty, or with all that is in `source`."""
    if isinstance(source, bytes):
        return os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    with source.open("rb") as file:
        link_or_copy(source.resolve(), file.fileno(), made)
        try:
            return os.open(made, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # swept away, as the caller will see
            return os.dup(file.fileno())


def _remove_leftovers(incoming: Path) -> None:
    """Deletes what nobody works on: the system gives locks back however a process ends, and not while it is stopped."""
    for entry in os.scandir(incoming):
        with contextlib.suppress(OSError):  # somebody works on it, or is through with it
            fd = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(entry.path)
            finally:
                os.close(fd)


def _walk(directory: Path, top: Path) -> Iterator[BlobInfo]:
    try:
        entries = list(os.scandir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith("."):
            continue
        if not entry.is_dir(follow_symlinks=False):
            yield from _row(path, path, top, None)
        elif versions := Versions.in_directory(path):
            while (newest := versions.newest()) and versions.etag(newest):
                row = list(_row(path.with_name(entry.name[:-1]), versions.file(newest), top, str(newest)))
                yield from row
                if row:
                    break  # else it was replaced, and removed, since the directory was read
        else:
            yield from _walk(path, top)


def _row(blob: Path, file: Path, top: Path, etag: str | None) -> Iterator[BlobInfo]:
    with contextlib.suppress(FileNotFoundError):
        stat = file.lstat()
        if S_ISREG(stat.st_mode):
            modified = datetime.fromtimestamp(stat.st_mtime, UTC)
            yield BlobInfo(str(blob.relative_to(top)), stat.st_size, etag or _plain_etag(stat), modified)


def _plain_etag(stat: os.stat_result) -> str:
    return f"{stat.st_ino:x}-{stat.st_mtime_ns:x}"


def _identity(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size
