"""What processes said, and how they ended: each word of a bug of ours is a violation, and so is each end that nobody
brought about.

One thing excuses an end: the disk that the process writes to was full, and it says so. Nothing excuses a traceback but
such an end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

_FULL: Final = ("No space left on device", "disk is full")
"""How the kernel and SQLite say it."""
_EXPECTED: Final = frozenset(
    {"home.full", "bus.refused", "silo.unreachable", "work.not-seen", "agent.forbidden", "runs.not-taken-up"}
)
"""Errors for a person to deal with that are brought about here: full disks, and a bus that at times refuses rights.
There is no other: files stay, and rights on the store are right.
"""
_OF_THE_SDK: Final = "azure"
"""Its records, which have a traceback for each connection that breaks under it, say nothing of us."""
_CUT_OFF: Final = '{"time": '
"""How a record begins; one that is none was cut off by a kill."""
_TRACEBACK: Final = "Traceback (most recent call last)"


@dataclass(frozen=True, slots=True)
class Departure:
    """A process that ended, though nobody killed it and it was not its turn; or that ended badly when it was."""

    name: str
    status: int
    """Negative: the signal that ended it."""
    log: Path
    wrote: range
    """Its part of the log, in bytes."""
    disk_was_full: bool
    """Whether the disk that it writes to was full at any time of its life."""

    @property
    def last_words(self) -> str:
        """The last line with a word in it that it wrote."""
        lines = (line.strip(" |") for line in reversed(self._said().splitlines()))
        return next((line for line in lines if any(map(str.isalpha, line))), "nothing")

    @property
    def is_excused(self) -> bool:
        """Whether a full disk explains it."""
        return self.disk_was_full and any(word in self._said() for word in _FULL)

    def _said(self) -> str:
        with self.log.open("rb") as log:
            log.seek(self.wrote.start)
            return log.read(len(self.wrote)).decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Heard:
    """What all logs say."""

    wrong: list[str]
    given_up: dict[str, datetime]
    """When a process first set a message aside, by its id."""


def heard(folder: Path, departures: Iterable[Departure]) -> Heard:
    """Reads every log."""
    departures = list(departures)
    wrong = [
        f"{it.name} ended by itself, with status {it.status}: {it.last_words[-300:]}"
        for it in departures
        if not it.is_excused
    ]
    given_up: dict[str, datetime] = {}
    for log in sorted(folder.glob("*.log")):
        excused = [it.wrote for it in departures if it.log == log and it.is_excused]
        wrong += _wrong_in(log, excused, given_up)
    return Heard(wrong, given_up)


def _wrong_in(log: Path, excused: Sequence[range], given_up: dict[str, datetime]) -> list[str]:
    found: list[str] = []
    at, is_told = 0, False
    for raw in log.read_bytes().splitlines(keepends=True):
        begins, at = at, at + len(raw)
        line = raw.decode(errors="replace").rstrip()
        said = event_of(line)
        if said is not None and said.get("event") == "message.dead-lettered":
            when = datetime.fromisoformat(said["time"])
            given_up[said["message"]] = min(when, given_up.get(said["message"], when))
        if any(begins in part for part in excused):
            continue
        if said is None and line.startswith(_CUT_OFF) and f'"logger": "{_OF_THE_SDK}' in line:
            continue
        if said is None:  # words of Python's own, which may go on for many lines
            if is_told and line.strip():
                found[-1] = f"{log.name}: {line.strip()[:200]}"  # the last of them says what it was
            elif _TRACEBACK in line:
                found.append(f"{log.name}: {line.strip()[:200]}")
                is_told = True
            continue
        is_told = False
        if _is_wrong(said):
            why = (
                str(said.get("traceback") or said.get("error") or said.get("text") or said).strip().rpartition("\n")[2]
            )
            found.append(f"{log.name}: {said.get('event')} at {said.get('time')}: {why[:200]}")
    return found


def _is_wrong(said: Mapping[str, Any]) -> bool:
    """Whether a process met a bug of ours, or an error that nobody brought about."""
    word = said.get("event")
    if word == "library.log" and str(said.get("logger")).startswith(_OF_THE_SDK):
        return False
    if word == "store.failed":  # the bus's last words when its disk is full; a kill may come before its end
        return not any(full in str(said.get("traceback")) for full in _FULL)
    return "traceback" in said or (said.get("level") == "error" and word not in _EXPECTED)


def event_of(line: str) -> dict[str, Any] | None:
    """A line of a log; None for what is none, or was cut off by a kill."""
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) else None
