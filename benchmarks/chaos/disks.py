"""Disks that can be full: a small file system of their own for some directories, and a file that takes what is left.

Here lives what belongs to Linux: tmpfs of a fixed size in a mount namespace that only this command and its children
see, so that nothing is left of it when they have ended. Full means full: writers get ENOSPC from the kernel.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

_INSIDE: Final = "SILOBUS_CHAOS_NAMESPACE"
_BALLAST: Final = ".ballast"


def enter_namespace() -> bool:
    """Starts this command again where it may mount; whether it may. Returns only in the process that goes on."""
    if os.environ.pop(_INSIDE, ""):
        return True
    for how in (["--mount"], ["--mount", "--user", "--map-root-user"]):
        if _works(["unshare", *how, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]):
            command = ["unshare", *how, sys.executable, "-m", "benchmarks.chaos", *sys.argv[1:]]
            os.execvpe("unshare", command, {**os.environ, _INSIDE: "1"})  # noqa: S606  # this very command
    return False


def _works(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


class Disk:
    """A directory that is a file system of `size` bytes."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.last_full = float("-inf")
        """When it was full last, by the monotonic clock."""
        path.mkdir(parents=True, exist_ok=True)
        options = f"size={size},mode=0700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], check=True, capture_output=True)

    def fill(self) -> None:
        """Takes what is left; again and again, since files that are deleted make room."""
        self.last_full = time.monotonic()
        at = os.open(self.path / _BALLAST, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            had, state = os.fstat(at).st_size, os.statvfs(self.path)
            if state.f_bavail:
                os.posix_fallocate(at, had, state.f_bavail * state.f_frsize)
        except OSError:
            pass  # somebody was faster: the next call takes what they left
        finally:
            os.close(at)

    def make_room(self) -> None:
        """Gives it all back."""
        self.last_full = time.monotonic()
        (self.path / _BALLAST).unlink(missing_ok=True)

    def become_plain(self) -> None:
        """Takes the file system away and leaves what was in it, for a look after this command has ended."""
        kept = self.path.with_name(f"{self.path.name}.kept")
        shutil.copytree(self.path, kept, symlinks=True, ignore=_not_sockets)
        subprocess.run(["umount", "--lazy", str(self.path)], check=True, capture_output=True)
        self.path.rmdir()
        kept.rename(self.path)

    def unmount(self) -> None:
        """Takes the file system away with what was in it."""
        subprocess.run(["umount", "--lazy", str(self.path)], check=False, capture_output=True)


def _not_sockets(directory: str, names: list[str]) -> set[str]:
    return {name for name in names if (Path(directory) / name).is_socket()}
