"""`silobus watch`: an experiment as it goes on, until it ends. On a terminal a live view, elsewhere a line per event.

Here lives only showing; what is shown is read by `standing`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, assert_never

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from orchestrator.cli.awaiting import Life, life_of, waiting_for
from orchestrator.cli.federation import Config, Dir, Experiment, Federation, reach
from orchestrator.cli.listening import Listening
from orchestrator.cli.standing import Reader, Standing
from orchestrator.cli.terminal import command, console, say, shown, table
from orchestrator.cli.wording import (
    history,
    last_seen,
    reason_of,
    round_of,
    silo_state,
    status_of,
    unknown,
)
from orchestrator.experiment.announcing import awaited
from orchestrator.experiment.state import Collecting, Declined, Failed, LeftOut, Updated
from orchestrator.store import CANNOT_BE_READ

ROUNDS_SHOWN = 12
"""The newest rounds that fit on a screen."""


@command
async def watch(experiment: Experiment, directory: Dir = None, config: Config = None) -> None:
    """Follows an experiment until it ends. Exit status 0 when it completed, 1 otherwise."""
    async with reach(directory, config) as federation:
        await follow(federation, experiment)


async def follow(federation: Federation, experiment: str) -> None:
    """Shows it until it has ended; raises Exit(1) unless it completed."""
    reader, listening = Reader(federation.store), Listening(federation)
    if await reader.read(experiment) is None:
        raise unknown(experiment)

    async def read() -> Standing | None:
        standing = await reader.read(experiment)
        return None if standing is None else (await listening.told([standing]))[0]

    standing = await show(read, federation.watch_interval)
    if status_of(standing) != "completed":
        raise typer.Exit(1)


async def show(
    read: Callable[[], Awaitable[Standing | None]],
    interval: float,
    *,
    line_by_line: Callable[[str], None] | None = None,
) -> Standing:
    """Shows what `read` gives, again and again, until the experiment is over; returns its end."""
    if line_by_line is None and sys.stdout.isatty():
        with Live(console=console(), auto_refresh=False) as live:
            while True:
                if (standing := await read()) is not None:
                    live.update(view(standing), refresh=True)
                    if standing.is_over:
                        return standing
                await asyncio.sleep(interval)
    lines = Lines()
    while True:
        if (standing := await read()) is not None:
            for line in lines.new(standing):
                (line_by_line or say)(line)
            if standing.is_over:
                return standing
        await asyncio.sleep(interval)


class Lines:
    """The plain view: what is new since the last look, a line each."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._gone: dict[str, datetime] = {}
        """Silos that are gone, and of when the last is that is known of them."""

    def new(self, standing: Standing) -> list[str]:
        """Lines not given before."""
        lines = [self._start(standing)]
        over = [row for row in history(standing) if row["metrics"] or standing.is_over]
        lines += [f"round {row['round']}: {_row(row)}" for row in over]
        lines += [f"left out: {name} {CANNOT_BE_READ}" for name in standing.unreadable]
        lines += self._heard(standing)
        if status_of(standing) != "running":
            lines.append(_end(standing))
        fresh = [line for line in lines if line not in self._said]
        self._said.update(fresh)
        return fresh

    def _heard(self, standing: Standing) -> list[str]:
        """What silos answered instead of an update, who is gone, who came back, and whose training stands still; the
        same until that changes. What the round waits for follows once, of however many silos there is news.
        """
        state = standing.state
        if not isinstance(state, Collecting):
            return []
        lives = {silo: life_of(standing, state, silo) for silo in awaited(state)}
        answers = _answers(state)
        lost = {silo: _lost(silo, found, state.round) for silo, found in lives.items() if found.gone}
        lines = [*answers, *lost.values(), *self._back(lives)]
        lines += [
            f"{silo}: {found.doing} without progress in round {state.round}"
            for silo, found in lives.items()
            if found.stalled is not None and not found.gone
        ]
        if any(line not in self._said for line in (*lost.values(), *(() if lives else answers))):
            lines.append(f"waiting for {waiting_for(standing)}")
        return lines

    def _back(self, lives: Mapping[str, Life]) -> list[str]:
        """Of whom something came since they were gone. That they are asked again is no sign of theirs."""
        gone, lines = {}, []
        for silo, found in lives.items():
            if found.gone:
                gone[silo] = max(found.heard_at, found.signed_at or found.heard_at)
            elif silo in self._gone and found.signed_at is not None and found.signed_at > self._gone[silo]:
                lines.append(f"{silo}: heard of again, at {_utc(found.signed_at)}")
            elif silo in self._gone:
                gone[silo] = self._gone[silo]
        self._gone = gone
        return lines

    @staticmethod
    def _start(standing: Standing) -> str:
        run = standing.run
        if run is None:
            return f"{standing.experiment}: never started"
        return f"{run.id}: {run.request.rounds} rounds of {run.request.task} with {', '.join(run.silos)}"


def _answers(state: Collecting) -> list[str]:
    """What was answered instead of an update, before it was announced again and since."""
    before: list[str] = []
    since: list[str] = []
    for silo, answer in state.answers.items():
        match answer:
            case Failed(reason=reason, announcement=number):
                which = f", try {number}" if number > 1 else ""
                lines = since if number >= state.announcement else before
                lines.append(f"{silo}: failed: {reason}, in round {state.round}{which}")
            case Declined(reason=reason):
                since.append(f"{silo}: declined: {reason}, in round {state.round}")
            case LeftOut(reason=reason):
                since.append(f"{silo}: left out: {reason}, in round {state.round}")
            case Updated():
                pass
            case _:
                assert_never(answer)
    if state.reminded and state.announced_at is not None:
        again = f"({state.reminded} of {state.run.request.quorum.reminders})"
        before.append(f"round {state.round}: announced again {again} at {_utc(state.announced_at)}")
    return before + since


def _lost(silo: str, found: Life, round_number: int) -> str:
    at = _utc(found.heard_at)
    was = f"last heard of at {at}, {found.doing}" if found.doing else f"not heard of since {at}"
    return f"{silo}: {found.lost}, {was}, in round {round_number}"


def _utc(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


def _row(row: Mapping[str, Any]) -> str:
    metrics = "  ".join(f"{name} {shown(number)}" for name, number in row["metrics"].items())
    updates = f"{row['updates']} update{'s' if row['updates'] != 1 else ''}"
    others = "".join(f"  {silo} {what}" for silo, what in row["others"].items() if row["round"] > 0)
    return f"{updates} in {row['seconds']:.2f} s  {metrics}{others}".rstrip()


def _end(standing: Standing) -> str:
    reason = reason_of(standing)
    words = f"{standing.experiment} is {status_of(standing)}" + (f": {reason}" if reason else "")
    waits = waiting_for(standing)
    return f"{words}, waiting for {waits}" if waits else words


def view(standing: Standing) -> RenderableType:
    """The live view."""
    run = standing.run
    if run is None:
        return Text(_end(standing))
    head = f"[bold]{escape(run.id)}[/bold]  {status_of(standing)}"
    head += f"  round {round_of(standing)} of {run.request.rounds}"
    parts: list[RenderableType] = [Text.from_markup(head)]
    silos = [(silo, silo_state(standing, silo), last_seen(standing, silo)) for silo in standing.silos]
    parts.append(table(("silo", "does", "last sign of life"), silos))
    rows = history(standing)
    metrics = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    columns = ("after round", "updates", "seconds", *metrics)
    cells = [
        (row["round"], row["updates"], f"{row['seconds']:.2f}", *(row["metrics"].get(name) for name in metrics))
        for row in rows[-ROUNDS_SHOWN:]
    ]
    parts.append(table(columns, cells, numbers=columns))
    waits = waiting_for(standing)
    parts.append(Text(f"waiting for {waits}" if waits else _end(standing)))
    return Group(*parts)
