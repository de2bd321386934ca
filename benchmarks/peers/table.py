"""What was measured at each point, side by side: ours, the peers', and how many times longer they take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any, Final

OURS: Final = "silobus"


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """What is measured: FedAvg over so many silos and megabytes (10^6 bytes of float32), so many rounds."""

    silos: int
    megabytes: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """One framework at one point. Without a result, `problem` says why, and the times are None."""

    who: str
    version: str
    point: Point
    round_s: float | None
    """Seconds per round, the median."""
    slowest_s: float | None
    server_mib: float
    """The most memory of all server processes together."""
    client_mib: float
    """The most memory of all processes of one silo together."""
    problem: str | None = None
    floor_s: float | None = None
    """The least a round could take on this machine, measured just before (ours; see benchmarks.rounds)."""

    def as_json(self) -> dict[str, Any]:
        """Flat, and rounded to what means something."""
        fields = asdict(self)
        point = fields.pop("point")
        seconds = {
            key: None if fields[key] is None else round(fields[key], 4) for key in ("round_s", "slowest_s", "floor_s")
        }
        memory = {key: round(fields[key], 1) for key in ("server_mib", "client_mib")}
        return {"who": fields.pop("who"), "version": fields.pop("version"), **point, **fields, **seconds, **memory}


def ratio(theirs: Outcome | None, ours: Outcome | None) -> float | None:
    """How many times longer a peer's round takes than ours; None when one of them has no result."""
    if theirs is None or ours is None or theirs.round_s is None or not ours.round_s:
        return None
    return theirs.round_s / ours.round_s


def as_json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """All that was measured, flat, with how many times longer than ours each took (`times`)."""
    ours = {outcome.point: outcome for outcome in outcomes if outcome.who == OURS}
    return [
        {
            **outcome.as_json(),
            "times": None if (found := ratio(outcome, ours.get(outcome.point))) is None else round(found, 2),
        }
        for outcome in outcomes
    ]


def rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """The table, its heading first: one line per point, and in each group of columns one per framework."""
    who = sorted({outcome.who for outcome in outcomes}, key=lambda name: (name != OURS, name))
    peers = [name for name in who if name != OURS and OURS in who]
    table = [
        ["silos", "MB", "floor s"]
        + [f"{name} s" for name in who]
        + ["of floor" for name in who if name == OURS]
        + [f"{name} times" for name in peers]
        + [f"{name} server MiB" for name in who]
        + [f"{name} client MiB" for name in who]
    ]
    for point in sorted({outcome.point for outcome in outcomes}):
        at = {outcome.who: outcome for outcome in outcomes if outcome.point == point}
        table.append(
            [str(point.silos), f"{point.megabytes:g}", _floor(at.get(OURS))]
            + [_seconds(at.get(name)) for name in who]
            + [_of_floor(at.get(OURS)) for name in who if name == OURS]
            + [_times(ratio(at.get(name), at.get(OURS))) for name in peers]
            + [f"{at[name].server_mib:.0f}" if name in at else "" for name in who]
            + [f"{at[name].client_mib:.0f}" if name in at else "" for name in who]
        )
    return table


def text(outcomes: Sequence[Outcome]) -> str:
    """The table in columns, and below it why points have no result."""
    table = rows(outcomes)
    widths = [max(map(len, column)) for column in zip_longest(*table, fillvalue="")]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    return "\n".join([*lines, *_problems(outcomes)])


def _problems(outcomes: Iterable[Outcome]) -> list[str]:
    return [
        f"{outcome.who} with {outcome.point.silos} silos, {outcome.point.megabytes:g} MB: {outcome.problem}"
        for outcome in outcomes
        if outcome.problem
    ]


def _seconds(outcome: Outcome | None) -> str:
    if outcome is None:
        return ""
    return "none" if outcome.round_s is None else f"{outcome.round_s:.2f}"


def _floor(ours: Outcome | None) -> str:
    return f"{ours.floor_s:.2f}" if ours and ours.floor_s else ""


def _of_floor(ours: Outcome | None) -> str:
    return _times(ours.round_s / ours.floor_s) if ours and ours.floor_s and ours.round_s else ""


def _times(number: float | None) -> str:
    return "" if number is None else f"{number:.1f}"
