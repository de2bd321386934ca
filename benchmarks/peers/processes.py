"""The processes of one measurement: found by a mark in their environment, however started; counted, and ended.

Peers start processes of their own, some in the background and some again when they die. All inherit the mark.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

MARK: Final = "SILOBUS_PEERS"
_PAGE_MIB: Final = os.sysconf("SC_PAGE_SIZE") / (1 << 20)
_LOOKS: Final = 3
"""How often none must be left before none is."""

Role = Callable[[str], str | None]
"""From a command line to what the process is part of ("server", "client-1"); None: of what its parent is part of."""


def marked(mark: str) -> set[int]:
    """The process ids that carry the mark, this one left out."""
    wanted = f"{MARK}={mark}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
    return found - {os.getpid()}


def end(mark: str, patience: float = 10.0) -> None:
    """Ends every process that carries the mark: asks for so many seconds, then kills. Returns when none is left.

    Raises RuntimeError if they do not go.
    """
    kill_from = time.monotonic() + patience
    give_up = kill_from + 10.0
    seen_none = 0
    # Some start others anew, and a process that is about to become another program shows no environment for a moment.
    while seen_none < _LOOKS:
        left = marked(mark)
        seen_none = 0 if left else seen_none + 1
        number = signal.SIGTERM if time.monotonic() < kill_from else signal.SIGKILL
        for pid in left:
            with suppress(OSError):
                os.kill(pid, number)
        if left and time.monotonic() > give_up:
            raise RuntimeError(f"processes {sorted(left)} do not end: end them before you measure again")
        time.sleep(0.1)


class Watch:
    """The most resident memory that the processes of each part had together, looked at several times a second.

    A peak between two looks is missed, so a peer may be shown smaller than it was, never larger but for pages that
    its processes share.
    """

    def __init__(self, mark: str, role: Role, every: float = 0.2) -> None:
        self._mark, self._role, self._every = mark, role, every
        self._parts: dict[int, str] = {}
        self._strangers: set[int] = set()
        self._most: dict[str, float] = defaultdict(float)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_often, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def peak(self, kind: str) -> float:
        """In MiB: of the part that had most, among those whose names begin with `kind`."""
        return max((most for part, most in self._most.items() if part.startswith(kind)), default=0.0)

    def look(self) -> None:
        """Adds up the resident memory of each part."""
        here = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
        self._strangers &= here
        for pid in sorted(here - self._strangers - self._parts.keys()):
            self._learn(pid)
        now: dict[str, float] = defaultdict(float)
        for pid in here & self._parts.keys():
            with suppress(OSError):
                now[self._parts[pid]] += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_MIB
        for part, mib in now.items():
            self._most[part] = max(self._most[part], mib)

    def _learn(self, pid: int) -> None:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            if f"{MARK}={self._mark}".encode() not in environment.split(b"\0"):
                if environment:  # none: it is about to become another program, and is asked again
                    self._strangers.add(pid)
                return
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return
        part = self._role(command) or self._parts.get(parent)
        # Between fork and exec a process has its parent's command line; it is asked again at the next look.
        if part is not None and (parent not in self._parts or self._parts[parent] == part):
            self._parts[pid] = part

    def _look_often(self) -> None:
        while not self._over.wait(self._every):
            self.look()
