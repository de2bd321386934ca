"""The digest by which an owner approves code: of a file, or of a directory's files by name and content.

Here lives only how it is computed. A file's digest is SHA-256 of its bytes, what `sha256sum` prints. A directory's is
SHA-256 over one line per regular file below it, `<sha256 of the content>  <path with />` and a line feed, in order of
the path's bytes. `__pycache__` directories are left out, and removed before the code runs: Python would believe what
lies there instead of the approved source. The path itself may be a symbolic link; inside a directory, links and
everything else that is no regular file are an error: a digest cannot vouch for what they lead to.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path

_PIECE = 1 << 20


class CodeUnreadable(ValueError):
    """There is no digest for this path; the text says why."""


def code_digest(path: Path) -> str:
    """The digest of the file or directory at `path`. Raises CodeUnreadable."""
    try:
        path = path.resolve(strict=True)
        if not path.is_dir():
            return _file_digest(path)
        lines = [f"{_file_digest(path / name)}  {name}\n".encode(errors="surrogateescape") for name in _names(path)]
    except OSError as error:
        raise CodeUnreadable(f"the code at {path} cannot be read: {error.strerror}") from error
    if not lines:
        raise CodeUnreadable(f"{path} has no files")
    return hashlib.sha256(b"".join(lines)).hexdigest()


def measured(path: Path) -> str | None:
    """The digest of what lies at `path` now; None when there is none."""
    try:
        return code_digest(path)
    except CodeUnreadable:
        return None


def cleared(path: Path) -> str | None:
    """Removes the compiled files below `path`, and measures what is left: what will run is what the digest says.

    None when there is no digest, or when compiled files are there and cannot be removed.
    """
    try:
        for folder, folders, _ in os.walk(path.resolve(), followlinks=False):
            if "__pycache__" in folders:
                folders.remove("__pycache__")
                shutil.rmtree(Path(folder) / "__pycache__")
    except OSError:
        return None
    return measured(path)


def _names(top: Path) -> list[str]:
    names = []
    for folder, folders, files in os.walk(top, followlinks=False, onerror=_raise):
        folders[:] = [name for name in folders if name != "__pycache__"]
        if links := [Path(folder) / name for name in folders if (Path(folder) / name).is_symlink()]:
            raise CodeUnreadable(f"{links[0]} is a symbolic link; put the files themselves there")
        names += [(Path(folder) / name).relative_to(top).as_posix() for name in files]
    return sorted(names, key=os.fsencode)


def _file_digest(path: Path) -> str:
    """The link itself is never followed, so that what is measured is what lies here."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        raise CodeUnreadable(f"{path} is a symbolic link; put the file itself there")
    if not stat.S_ISREG(mode):
        raise CodeUnreadable(f"{path} is neither a file nor a directory")
    digest = hashlib.sha256()
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _raise(error: OSError) -> None:
    raise error
