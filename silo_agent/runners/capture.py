"""What a script prints: taken from a pipe and put into the files of the round it runs, no more than so much of it.

It goes nowhere else: not into the agent's log, and not into a message. Here lives no judgement of what was printed.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import IO, Final, final

LIMIT: Final = 4 << 20
"""Bytes of one file. When it is full it becomes `….1`, whatever that was before, and a new one begins."""


@final
class Capture:
    """A pipe whose write end a process gets as stdout and stderr; a thread of its own empties it."""

    def __init__(self, path: Path, *, limit: int = LIMIT) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._size = 0
        self._path = path
        self.switch(path)
        self._read_end, self.write_end = os.pipe()
        self._thread = threading.Thread(target=self._empty, name="training output", daemon=True)
        self._thread.start()

    def switch(self, path: Path) -> None:
        """From here on, what is printed goes to this file."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._path, self._file, self._size = path, path.open("ab", buffering=0), 0

    def started(self) -> None:
        """The process has its copy of the write end: ours is closed, so that the pipe ends when the process does."""
        os.close(self.write_end)

    def tail(self, most: int = 16_384) -> bytes:
        """The last bytes printed. Blocks for a moment while the last of them are on their way."""
        self._thread.join(timeout=0.5)
        with contextlib.suppress(OSError):
            return self._path.read_bytes()[-most:]
        return b""

    def _empty(self) -> None:
        with contextlib.suppress(OSError):
            while piece := os.read(self._read_end, 1 << 16):
                with self._lock, contextlib.suppress(OSError):  # a full disk must not stop the script at its pipe
                    self._write(piece)
        os.close(self._read_end)
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _write(self, piece: bytes) -> None:
        if self._file is None:
            return
        if self._size + len(piece) > self._limit:
            self._file.close()
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            self._file, self._size = self._path.open("ab", buffering=0), 0
        self._file.write(piece)
        self._size += len(piece)
