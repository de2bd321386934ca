"""The versions of one document, as files in a directory of their own: the compare-and-swap of the directory store.

A swap is `link()` to the name of the next version: it exists, so the swap is lost. A version's number is the document's
ETag and never comes back. Old versions are removed under an exclusive `flock` of the directory, new ones linked under a
shared one: so no number that a late writer may still link to becomes free again. Readers lock nothing. A deletion is a
version too: a symbolic link that leads nowhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

_KEPT: Final = 2
"""Versions that stay: the document, and the one before for readers that have just looked."""
_SPARE: Final = 8
"""Versions beyond those that may gather before they are removed."""


class Versions:
    """The directory `<document>@`. It need not exist: then there is no document. All methods block."""

    def __init__(self, document: Path) -> None:
        self._directory = document.with_name(document.name + "@")

    @classmethod
    def in_directory(cls, directory: Path) -> Versions | None:
        """The versions kept in this directory, if it is one of versions."""
        return cls(directory.with_name(directory.name[:-1])) if directory.name.endswith("@") else None

    @property
    def directory(self) -> Path:
        """Where they are."""
        return self._directory

    def newest(self) -> int:
        """The number of the last version, 0 when there is none. It may be a deletion."""
        return max(self._numbers(), default=0)

    def file(self, number: int) -> Path:
        """Where version `number` is, or was."""
        return self._directory / f"{number:09d}"

    def etag(self, number: int) -> str | None:
        """The document's ETag when `number` is its last version; None when that is a deletion, or there is none."""
        return str(number) if number and not self.file(number).is_symlink() else None

    def swap(self, if_match: str | None, complete: Callable[[], AbstractContextManager[Path]]) -> str | None:
        """Makes the file that `complete` provides the next version; its ETag, or None when the condition fails."""
        with self._locked(fcntl.LOCK_SH) as lock:
            numbers = self._numbers()
            last = max(numbers, default=0)
            if self.etag(last) != if_match:
                return None
            with complete() as made:
                try:
                    os.link(made, self.file(last + 1))
                except FileExistsError:
                    return None
            os.fsync(lock)
        if len(numbers) >= _KEPT + _SPARE:
            self._remove_all_but(_KEPT)
        return str(last + 1)

    def delete(self) -> None:
        """Ends the document, whatever its version. Numbers go on from there should it be written again."""
        while self.etag(last := self.newest()) is not None:
            with self._locked(fcntl.LOCK_SH) as lock, contextlib.suppress(FileExistsError):
                os.symlink("deleted", self.file(last + 1))
                os.fsync(lock)
            self._remove_all_but(1)

    def _numbers(self) -> list[int]:
        try:
            return [int(name) for name in os.listdir(self._directory) if name.isdecimal()]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _remove_all_but(self, kept: int) -> None:
        with contextlib.suppress(BlockingIOError), self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
            for number in sorted(self._numbers())[:-kept]:
                self.file(number).unlink()

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[int]:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, how)
            yield fd
        finally:
            os.close(fd)  # and with it the lock
