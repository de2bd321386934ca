"""How silos keep up with a run, in words and numbers: who is slow, who is late. Nothing is read here."""

from __future__ import annotations

from statistics import median
from typing import Any, Final

from orchestrator.experiment.pace import Pace, Paces, Taken

SLOWER: Final = 2.0
"""A silo whose answers take more than so many times the median of the others' is a straggler …"""
AT_LEAST: Final = 10.0
"""… if that is at least so many seconds more."""


def stragglers(paces: Paces) -> dict[str, str]:
    """Silos that hold rounds up, and why they count as such."""
    found: dict[str, str] = {}
    for silo, pace in paces.items():
        others = [p.answering.mean for name, p in paces.items() if name != silo and p.answering is not None]
        if pace.missed_since:
            found[silo] = f"the last {pace.missed_since} rounds it was asked for closed without it"
            if pace.missed_since == 1:
                found[silo] = "the last round it was asked for closed without it"
        elif pace.answering is not None and others:
            usual, mean = median(others), pace.answering.mean
            if mean > SLOWER * usual and mean > usual + AT_LEAST:
                found[silo] = f"answers after {mean:.0f} s, the others after {usual:.0f} s"
    return found


def numbers(pace: Pace | None) -> dict[str, Any]:
    """For scripts; seconds, and means in which newer rounds weigh more."""
    pace = pace or Pace()
    return {
        "training_seconds": _taken(pace.training),
        "answering_seconds": _taken(pace.answering),
        "updates": pace.updates,
        "missed": pace.missed,
        "late": pace.late,
        "left_out": pace.left_out,
        "bytes": pace.bytes,
    }


def row(silo: str, paces: Paces, straggler: str | None) -> tuple[object, ...]:
    """For the table of `status`: see `COLUMNS`."""
    pace = paces[silo]
    return (
        silo,
        _shown(pace.training),
        _shown(pace.answering),
        pace.updates,
        pace.missed,
        pace.late,
        _size(pace.bytes),
        straggler,
    )


COLUMNS: Final = ("silo", "trains, s", "answers, s", "updates", "missed", "late", "sent", "straggler")


def _taken(taken: Taken | None) -> dict[str, float] | None:
    return None if taken is None else {"last": round(taken.last, 3), "mean": round(taken.mean, 3)}


def _size(size: int) -> str:
    """In the unit in which it has digits before the point; below a kB in bytes."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"


def _shown(taken: Taken | None) -> str | None:
    return None if taken is None else f"{taken.last:.1f} (mean {taken.mean:.1f})"
