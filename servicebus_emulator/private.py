"""Files and directories that nobody but their owner may read, whatever the umask and whatever was there before."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from servicebus_emulator import log

OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_private(directory: Path, names: Iterable[str]) -> None:
    """The directory, and the first of these files in it, which the others are made like; those there are tightened.

    What belongs to somebody else, or is made for everybody, stays as it is: there is a warning. Raises OSError.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    first, *others = (directory / name for name in names)
    os.close(os.open(first, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    for path in (directory, first, *others):
        if path.exists():
            _tighten(path)


def _tighten(path: Path) -> None:
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    if not mode & OTHERS:
        return
    if mode & stat.S_ISVTX:  # /tmp and its like: the files in it are ours alone, and it is everybody's
        log.warning(
            "data.readable_by_others", path=str(path), mode=f"{mode:o}", remedy="give --data a directory of its own"
        )
    elif status.st_uid == os.geteuid():
        path.chmod(mode & ~OTHERS)
        log.info("data.tightened", path=str(path), was=f"{mode:o}", now=f"{mode & ~OTHERS:o}")
    else:
        remedy = "it holds keys: its owner should run chmod go="
        log.warning("data.readable_by_others", path=str(path), mode=f"{mode:o}", remedy=remedy)
