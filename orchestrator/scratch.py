"""Where weights lie on this machine while they are made: a directory for each use, locked as long as it is used.

The system gives the lock back however the process ends, and keeps it while the process is merely stopped. So whoever
comes next on this machine deletes what the dead left, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, final

from messages.errors import Transient, says_full
from messages.log import EventLog

_log: Final = EventLog(__name__)
_PREFIX: Final = "silobus-"
"""Only what is called so is ever deleted: the directory may be one that others use too."""


class ScratchUnusable(Transient):
    """Nothing can be made in the directory: it is not this user's, or its disk is not there."""


@final
class Scratch:
    """A directory in which every use has one of its own; any number of processes may share it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextlib.asynccontextmanager
    async def directory(self) -> AsyncIterator[Path]:
        """An empty directory, deleted afterwards, with all that is in it.

        Raises ScratchUnusable, and Transient when the disk is full.
        """
        await self.sweep()
        try:
            path, lock = await self._usable()
            try:
                yield path
            finally:
                await asyncio.shield(asyncio.to_thread(_removed, path, lock))
        except OSError as error:
            if not says_full(error):
                raise
            raise Transient(f"the disk with the scratch directory {self._root} is full; make room there") from error

    async def _usable(self) -> tuple[Path, int]:
        try:
            return await asyncio.to_thread(self._made)
        except OSError as error:
            if says_full(error):
                raise
            about = f"the scratch directory {self._root} cannot be used ({error.strerror or error})"
            raise ScratchUnusable(f"{about}; this user must be able to make directories there") from error

    async def sweep(self) -> None:
        """Deletes what processes left that are gone."""
        if swept := await asyncio.to_thread(self._swept):
            _log.info("scratch.swept", directory=str(self._root), left_behind=swept)

    def _made(self) -> tuple[Path, int]:
        self._root.mkdir(parents=True, exist_ok=True)
        while True:
            path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._root))
            with contextlib.suppress(FileNotFoundError):  # swept before it was locked
                lock = _opened(path)
                with contextlib.suppress(OSError):  # a file system without locks: nobody sweeps there either
                    fcntl.flock(lock, fcntl.LOCK_EX)
                if _is(path, lock):
                    return path, lock
                os.close(lock)

    def _swept(self) -> int:
        swept = 0
        for path in self._root.glob(f"{_PREFIX}*"):
            if path.is_symlink() or not path.is_dir():
                continue
            with contextlib.suppress(OSError):  # in use, or another sweeps it
                lock = _opened(path)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
                    swept += 1
                finally:
                    os.close(lock)
        return swept


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _is(path: Path, lock: int) -> bool:
    """Whether what is locked is still there under its name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(lock))
    except FileNotFoundError:
        return False


def _removed(path: Path, lock: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)
