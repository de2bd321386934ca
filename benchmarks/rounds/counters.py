"""What the processes of a federation have used, as /proc tells it: memory, CPU, bytes read and written.

Linux only. Processes are counted by kind: bus, orchestrator, agent, trainer (whatever an agent started).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

KINDS: Final = ("orchestrator", "agent", "trainer", "bus")
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Used:
    """What one process, or several, have used since they began."""

    cpu_s: float = 0.0
    read: float = 0.0
    """Bytes of files, from disk or cache."""
    written: float = 0.0
    """Bytes to files, whether or not they reached a disk."""

    def __add__(self, other: Used) -> Used:
        return Used(self.cpu_s + other.cpu_s, self.read + other.read, self.written + other.written)

    def part(self, later: Used, share: float) -> Used:
        """Between this (0) and `later` (1)."""
        return Used(
            self.cpu_s + share * (later.cpu_s - self.cpu_s),
            self.read + share * (later.read - self.read),
            self.written + share * (later.written - self.written),
        )


@dataclass(slots=True)
class Counters:
    """Looks at processes again and again, and remembers what those that are gone had used."""

    _used: dict[tuple[str, int], Used] = field(default_factory=dict)
    _peaks: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    _seen: list[tuple[datetime, dict[str, Used]]] = field(default_factory=list)

    def look(self, now: datetime, processes: Mapping[str, int]) -> None:
        """`processes` are process ids by name: `bus`, `orchestrator`, `agent-<silo>`."""
        for name, pid in processes.items():
            kind = "agent" if name.startswith("agent-") else name
            self._note(kind, pid)
            if kind == "agent":
                for child in descendants(pid):
                    self._note("trainer", child)
        totals = dict.fromkeys(KINDS, Used())
        for (kind, _), used in self._used.items():
            totals[kind] = totals.get(kind, Used()) + used
        self._seen.append((now, totals))

    def peaks(self) -> dict[str, float]:
        """The most memory that any process of a kind had, MiB."""
        return {f"{kind}_rss_mib": round(most, 1) for kind, most in self._peaks.items()}

    def between(self, begin: datetime, end: datetime) -> dict[str, Used]:
        """What each kind used between two moments."""
        first, last = self._at(begin), self._at(end)
        return {
            kind: Used(
                last[kind].cpu_s - first[kind].cpu_s,
                last[kind].read - first[kind].read,
                last[kind].written - first[kind].written,
            )
            for kind in KINDS
        }

    def _at(self, moment: datetime) -> dict[str, Used]:
        """What had been used by then; between two looks, in proportion."""
        before = self._seen[0]
        for after in self._seen:
            if after[0] >= moment:
                span = (after[0] - before[0]).total_seconds()
                share = max(0.0, (moment - before[0]).total_seconds() / span) if span else 1.0
                return {kind: before[1][kind].part(after[1][kind], share) for kind in KINDS}
            before = after
        return before[1]

    def _note(self, kind: str, pid: int) -> None:
        self._peaks[kind] = max(self._peaks.get(kind, 0.0), peak_mib(pid))
        if (used := used_by(pid)) is not None:
            self._used[kind, pid] = used


def used_by(pid: int) -> Used | None:
    """What a process has used so far; None when it is gone."""
    with suppress(OSError, ValueError, KeyError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
        counts = {name: int(count) for name, _, count in (line.partition(": ") for line in lines)}
        return Used((int(fields[11]) + int(fields[12])) / _TICKS, counts["rchar"], counts["wchar"])
    return None


def peak_mib(pid: int) -> float:
    """The highest resident memory of a process, ever; 0 when it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def descendants(pid: int) -> Iterator[int]:
    """Children, and theirs."""
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from descendants(child)
