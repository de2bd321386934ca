"""A store in a directory of a local file system, for any number of processes of one machine.

    <root>/<container>/<blob>               a blob made by `create`: a plain file, read-only, never changed
    <root>/<container>/<document>@/<n>      version n of a document made by `write`; the highest is the document
    <root>/.incoming/                       files not yet complete; a crash may leave some, nobody looks at them

Compare-and-swap is `link()` to the name of the next version: it exists, so the swap is lost. A version's number is its
ETag, and never comes back: a deletion is a mark (a dangling symbolic link) as last version. Old versions
are removed under an exclusive, writers link under a shared `flock` of the document's directory, so that no number a
late writer may still link to becomes free again. Readers lock nothing.

A name is for one of the two, blob or document. Files are read with `pread`, never mapped: others may truncate them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from io import RawIOBase
from pathlib import Path
from stat import S_ISREG
from typing import Final, ParamSpec, TypeVar

from messages.errors import AlreadyExists, Conflict, Forbidden, NotFound, Poison, Transient
from messages.ports import BlobInfo, Document, Reader
from messages.transport.blob_names import check_blob, check_container, check_prefix, check_range

P = ParamSpec("P")
T = TypeVar("T")

_KEPT: Final = 2
"""Versions of a document that stay, for readers that have just looked."""
_SPARE: Final = 8
"""Versions beyond those that may gather before they are removed."""
_LEFTOVER_SECONDS: Final = 86_400
_COPY_INSTEAD: Final = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP})
"""Errors of link() after which the bytes are copied: another device, another owner, too many links, no links."""


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
            return Document(_read_range(fd, 0, size), etag)

    def write(self, container: str, name: str, data: bytes, if_match: str | None) -> str:
        path = self._path(container, name)
        versions = _versions_of(path)
        _make_directories(versions)
        with _locked(versions, fcntl.LOCK_SH) as directory:
            numbers = _numbers(versions)
            newest = max(numbers, default=0)
            if _etag(versions, newest) != if_match or (if_match is None and path.exists()):
                raise Conflict(f"{container}/{name} was written by somebody else; read it again.")
            with self._complete(data) as made:
                try:
                    os.link(made, _version(versions, newest + 1))
                except FileExistsError:
                    raise Conflict(f"{container}/{name} was written by somebody else; read it again.") from None
            os.fsync(directory)
        if len(numbers) >= _KEPT + _SPARE:
            _remove_old_versions(versions, keep=_KEPT)
        return str(newest + 1)

    def create(self, container: str, name: str, source: Path | bytes) -> None:
        path = self._path(container, name)
        versions = _versions_of(path)
        if path.exists() or _etag(versions, max(_numbers(versions), default=0)):
            raise AlreadyExists(f"{container}/{name} is there already.")
        _make_directories(path.parent)
        with self._complete(source) as made:
            try:
                os.link(made, path)
            except FileExistsError:
                raise AlreadyExists(f"{container}/{name} is there already.") from None
        _sync(path.parent)

    def open(self, container: str, name: str) -> Reader:
        with self._current(container, name) as (path, fd, _):
            return _FileReader(f"{container}/{name}", path, os.fstat(fd))

    def fetch(self, container: str, name: str, target: Path) -> None:
        with self._current(container, name) as (path, fd, _):
            try:
                _link_or_copy(path, fd, target)
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
        versions = _versions_of(path)
        while newest := max(_numbers(versions), default=0):
            with _locked(versions, fcntl.LOCK_SH) as directory:
                if _etag(versions, newest) is None:
                    break
                with contextlib.suppress(FileExistsError):
                    os.symlink("deleted", _version(versions, newest + 1))
                    os.fsync(directory)
            _remove_old_versions(versions, keep=1)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
            _sync(path.parent)

    def _path(self, container: str, name: str) -> Path:
        check_container(container)
        check_blob(name)
        return self._root / container / name

    @contextlib.contextmanager
    def _current(self, container: str, name: str) -> Iterator[tuple[Path, int, str]]:
        """The file that is the blob now: its path, a descriptor, the ETag."""
        path = self._path(container, name)
        versions = _versions_of(path)
        missing = NotFound(f"There is no {container}/{name}.")
        while True:
            newest = max(_numbers(versions), default=0)
            file = _version(versions, newest) if newest else path
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
        if not self._swept:
            self._swept = True
            _make_directories(self._incoming)
            _remove_leftovers(self._incoming)
        made = self._incoming / secrets.token_hex(12)
        try:
            if isinstance(source, bytes):
                fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
                with open(fd, "wb", buffering=0) as file:
                    _write_all(file, source)
                    os.fsync(fd)
            else:
                with source.open("rb") as file:
                    _link_or_copy(source.resolve(), file.fileno(), made)
                    _sync(made)
            yield made
        finally:
            made.unlink(missing_ok=True)


class _FileReader:
    """Pinned to what the file was when opened; holds no descriptor, so thousands may be open."""

    def __init__(self, label: str, path: Path, stat: os.stat_result) -> None:
        self._label, self._path, self._pin, self._size = label, path, _identity(stat), stat.st_size

    @property
    def size(self) -> int:
        return self._size

    async def read(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self._size)
        return await _in_thread(self._read, offset, length)

    async def close(self) -> None:
        """Nothing is held."""

    def _read(self, offset: int, length: int) -> bytes:
        changed = Conflict(f"{self._label} has changed since it was opened.")
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise changed from None
        try:
            data = _read_range(fd, offset, length)
            if len(data) != length or _identity(os.fstat(fd)) != self._pin:
                raise changed
            return data
        finally:
            os.close(fd)


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


def _versions_of(path: Path) -> Path:
    return path.with_name(path.name + "@")


def _version(versions: Path, number: int) -> Path:
    return versions / f"{number:09d}"


def _numbers(versions: Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(versions) if name.isdecimal()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _etag(versions: Path, newest: int) -> str | None:
    """The ETag of a document; None when there is none, or its last version is the mark of a deletion."""
    return str(newest) if newest and not _version(versions, newest).is_symlink() else None


@contextlib.contextmanager
def _locked(directory: Path, how: int) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, how)
        yield fd
    finally:
        os.close(fd)  # and with it the lock


def _remove_old_versions(versions: Path, *, keep: int) -> None:
    try:
        with _locked(versions, fcntl.LOCK_EX | fcntl.LOCK_NB):
            for number in sorted(_numbers(versions))[:-keep]:
                _version(versions, number).unlink()
    except BlockingIOError:
        pass  # somebody is writing; a later write removes them


def _remove_leftovers(incoming: Path) -> None:
    for entry in os.scandir(incoming):
        with contextlib.suppress(FileNotFoundError):
            if entry.stat(follow_symlinks=False).st_mtime < time.time() - _LEFTOVER_SECONDS:
                os.unlink(entry.path)


def _walk(directory: Path, top: Path) -> Iterator[BlobInfo]:
    try:
        entries = list(os.scandir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = Path(entry.path)
        if not entry.is_dir(follow_symlinks=False):
            yield from _row(path, path, top, None)
        elif not entry.name.endswith("@"):
            yield from _walk(path, top)
        elif newest := max(_numbers(path), default=0):
            yield from _row(path.with_name(entry.name[:-1]), _version(path, newest), top, str(newest))


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


def _make_directories(path: Path) -> None:
    if not path.is_dir():
        _make_directories(path.parent)
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _link_or_copy(path: Path, fd: int, target: Path) -> None:
    """Makes `target`, read-only: the very file at `path`, or where that cannot be, a copy of the bytes of `fd`."""
    try:
        os.link(path, target)
    except OSError as error:
        if error.errno not in _COPY_INSTEAD:
            raise
    else:
        if not os.stat(target).st_mode & 0o222:
            return
        with contextlib.suppress(PermissionError):
            target.chmod(0o444)
            return
        target.unlink()  # it belongs to somebody else, who could change it
    with open(fd, "rb", closefd=False) as source, target.open("xb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)
    target.chmod(0o444)


def _read_range(fd: int, offset: int, length: int) -> bytes:
    parts: list[bytes] = []
    while length and (part := os.pread(fd, min(length, 1 << 30), offset)):
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _write_all(file: RawIOBase, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]
