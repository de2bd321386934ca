"""An append-only file of JSON lines that survives being cut off in the middle of one.

Here lives only how lines get to the disk; what they mean is `budget`'s and `egress`'s business. A last line without its
line feed was cut off while it was written. Nothing was done on the strength of it, and it is taken away on opening.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import final


@final
class Journal:
    """The file at `path`, created when it is not there. Blocks: use it in a thread, and from one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        existed = path.exists()
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not existed:
            make_durable(path.parent)
        whole, cut_off = complete_lines(path)
        if cut_off:
            os.ftruncate(self._file, sum(len(line) + 1 for line in whole))
            os.fsync(self._file)
        self.found = whole
        """The lines that were there, without their line feeds."""

    def append(self, line: bytes, *, durable: bool = True) -> None:
        """Adds a line; if `durable`, it is on the disk on return. Raises OSError, also when the file was deleted."""
        if os.fstat(self._file).st_nlink == 0 or not self.path.exists():
            raise FileNotFoundError(f"{self.path} was deleted: what is written to it would be lost")
        before = os.fstat(self._file).st_size
        data = line + b"\n"
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError:  # a full disk: half a line would spoil the next one
            os.ftruncate(self._file, before)
            raise
        if durable:
            os.fsync(self._file)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)


def complete_lines(path: Path) -> tuple[list[bytes], bytes]:
    """The lines of a file, and what is left after the last line feed."""
    *whole, rest = path.read_bytes().split(b"\n")
    return whole, rest


def make_durable(path: Path) -> None:
    """What is written under this name (or, for a directory, the names in it) is on the disk on return."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
