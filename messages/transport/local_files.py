"""Single operations on local files, as a directory store needs them: durable, read-only, in ranges. All of them block.

Nothing here knows of containers, blobs or versions.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from io import RawIOBase
from pathlib import Path
from stat import S_IMODE
from typing import Final

_COPY_INSTEAD: Final = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP})
"""Errors of link() after which the bytes are copied: another device, another owner, too many links, no links."""


def make_directories(path: Path) -> None:
    """Makes a directory and those above it, durably."""
    if not path.is_dir():
        make_directories(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def sync(path: Path) -> None:
    """Makes a file, or the names in a directory, durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def link_or_copy(path: Path, fd: int, target: Path) -> None:
    """Makes `target`, read-only: the very file at `path`, or where that cannot be, a copy of the bytes of `fd`.

    A copy is locked (`lock_shared`) while it is being made.
    """
    try:
        os.link(path, target)
    except OSError as error:
        if error.errno not in _COPY_INSTEAD:
            raise
    else:
        mode = os.stat(target).st_mode
        if not mode & 0o222:
            return
        with contextlib.suppress(PermissionError):
            target.chmod(S_IMODE(mode) & ~0o222)
            return
        target.unlink()  # it belongs to somebody else, who could change it
    with open(fd, "rb", closefd=False) as source, target.open("xb") as copy:
        lock_shared(copy.fileno())
        shutil.copyfileobj(source, copy, 1 << 20)
        os.fchmod(copy.fileno(), S_IMODE(os.fstat(copy.fileno()).st_mode) & ~0o222)


def lock_shared(fd: int) -> None:
    """Says, for as long as the file is open, that somebody works on it. Others may as well."""
    with contextlib.suppress(OSError):  # a file system without locks: who looks for them finds that out too
        fcntl.flock(fd, fcntl.LOCK_SH)


def read_range(fd: int, offset: int, length: int) -> bytes:
    """`length` bytes from `offset`; fewer where the file ends."""
    parts: list[bytes] = []
    while length and (part := os.pread(fd, min(length, 1 << 30), offset)):
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def fill_range(fd: int, offset: int, target: memoryview) -> int:
    """Fills `target` from `offset`; how many bytes there were: fewer where the file ends."""
    filled = 0
    while filled < len(target) and (count := os.preadv(fd, [target[filled : filled + (1 << 30)]], offset + filled)):
        filled += count
    return filled


def write_all(file: RawIOBase, data: bytes) -> None:
    """Writes all of `data` to an unbuffered file."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) or 0 :]


def read_part(path: Path, offset: int, length: int) -> bytes:
    """`length` bytes of a file; opened anew, so that a call that nobody waits for any more meets no other file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_range(fd, offset, length)
    finally:
        os.close(fd)


def write_part(path: Path, offset: int, data: bytes) -> None:
    """Writes into a file that exists, at `offset`; opened anew for the same reason."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    with open(fd, "wb", buffering=0) as file:
        file.seek(offset)
        write_all(file, data)
