"""What an experiment's checks found of updates, in words and numbers. Nothing is read here."""

from __future__ import annotations

from typing import Any, Final

from messages.experiments import Checks
from orchestrator.cli.standing import Standing
from orchestrator.experiment.state import Aggregating, ClosedRound, UpdateRecord

COLUMNS: Final = ("silo", "change", "cosine to others", "cosine to its last", "counts")


def bounds(checks: Checks) -> str:
    """What is asked for, as the start says it."""
    asked = checks.model_dump(exclude_defaults=True)
    return ", ".join(name if value is True else f"{name} {value:g}" for name, value in asked.items())


def changes(closed: ClosedRound) -> dict[str, dict[str, Any]]:
    """By silo, for scripts; empty of a round of which nothing was measured."""
    return {update.silo: _change(closed, update) for update in _measured(closed)}


def newest(standing: Standing) -> ClosedRound | None:
    """The newest round whose set is frozen and of whose updates something was measured."""
    rounds: list[ClosedRound] = [standing.records[number] for number in sorted(standing.records, reverse=True)]
    if isinstance(standing.state, Aggregating):
        rounds.insert(0, standing.state.closed)
    return next((closed for closed in rounds if _measured(closed)), None)


def rows(closed: ClosedRound) -> list[tuple[object, ...]]:
    """For the table of `status`: see `COLUMNS`."""
    return [
        (silo, found["norm"], found["cosine"], found["cosine_last"], found["counts"])
        for silo, found in sorted(changes(closed).items())
    ]


def _measured(closed: ClosedRound) -> list[UpdateRecord]:
    return [u for u in (*closed.updates, *closed.left_out) if u.change is not None]


def _change(closed: ClosedRound, update: UpdateRecord) -> dict[str, Any]:
    found = update.change.model_dump() if update.change else {}
    return {**found, "counts": not any(left.silo == update.silo for left in closed.left_out)}
