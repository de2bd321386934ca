"""Processes started and ended whole: with every child, and those that a killed agent has left behind.

Here lives what belongs to the operating system. A training process leads a session of its own; beyond that, every
process it starts is known by a marker in its environment, since some (torchrun's workers) lead sessions themselves. A
record on disk says what runs, by process id and start time, so that a stranger with a reused id is never killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Final, final

from silo_agent.home import read_json

_PROC: Final = Path("/proc")


@final
class Records:
    """What runs, as files in a directory: one per process. Blocks: use it in a thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def add(self, pid: int, marker: str) -> None:
        """Remembers a process that was just started."""
        (self._directory / str(pid)).write_text(json.dumps({"started": start_time(pid), "marker": marker}))

    def remove(self, pid: int) -> None:
        """Forgets one that has ended."""
        (self._directory / str(pid)).unlink(missing_ok=True)

    def kill_left_over(self) -> int:
        """Kills what a killed agent has left running; returns how many processes that were."""
        killed = 0
        for record in self._directory.iterdir():
            entry = read_json(record)
            if entry is not None and record.name.isdigit():
                pid = int(record.name)
                same = entry["started"] is not None and start_time(pid) == entry["started"]
                killed += kill_whole(pid if same else None, entry["marker"])
            record.unlink(missing_ok=True)
        return killed


def kill_whole(leader: int | None, marker: str) -> int:
    """Kills a session's leader with its group, and every process that carries the marker. Blocks for a moment.

    A child may be forked while the others are being killed: it is looked for until none is left.
    """
    killed = 0
    if leader is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)
            killed += 1
    for _ in range(50):
        found = [pid for pid in marked(marker) if pid != leader]
        if not found:
            break
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        time.sleep(0.01)
    return killed


def marked(marker: str) -> list[int]:
    """Living processes with the marker in their environment. Empty where there is no /proc."""
    wanted = marker.encode()
    found = []
    for path in _PROC.glob("[0-9]*") if _PROC.is_dir() else ():
        with contextlib.suppress(OSError):
            if wanted in (path / "environ").read_bytes() and _state(path) != "Z":
                found.append(int(path.name))
    return found


def start_time(pid: int) -> str | None:
    """When a process started, as a word that no later process of the same id has; None: there is no such process."""
    if _PROC.is_dir():
        try:
            boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
            return f"{boot} {_stat(_PROC / str(pid))[19]}"
        except (OSError, IndexError):
            return None
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip() or None


def out_of_memory_kills() -> int:
    """How often the kernel has killed a process of this control group for lack of memory; 0 where that is not told."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers == "":
                events = Path("/sys/fs/cgroup") / group.lstrip("/") / "memory.events"
            elif "memory" in controllers.split(","):
                events = Path("/sys/fs/cgroup/memory") / group.lstrip("/") / "memory.oom_control"
            else:
                continue
            for row in events.read_text().splitlines() if events.exists() else ():
                if row.startswith("oom_kill "):
                    return int(row.split()[1])
    return 0


def _stat(path: Path) -> list[str]:
    """The fields of /proc/<pid>/stat from the third on; the second, a name, may hold anything."""
    return (path / "stat").read_text().rpartition(")")[2].split()


def _state(path: Path) -> str:
    return _stat(path)[0]
