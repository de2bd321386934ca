"""`silobus orchestrator|reconcile|schema`: what runs, repairs and documents a federation rather than an experiment."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from messages import names
from messages.codec import json_schema
from messages.errors import Transient
from messages.ports import Bus
from messages.rights import ORCHESTRATOR
from messages.transport.clock import SystemClock
from orchestrator.cli.federation import Config, Dir, reach, settings, settings_file
from orchestrator.cli.terminal import Complaint, command, say
from orchestrator.idleness import seconds_of

SCHEMA_FILE = Path(__file__).resolve().parents[2] / "docs" / "schemas" / "messages.json"
PATIENCE = 10.0
"""Seconds that the bus may take to answer."""


@command
def orchestrator(
    directory: Dir = None,
    config: Config = None,
    until_idle: Annotated[
        str | None,
        typer.Option("--until-idle", metavar="TIME", help="End when there was nothing to do for so long: 60s, 5m, 90."),
    ] = None,
    memory_budget: Annotated[
        int | None,
        typer.Option(
            "--memory-budget",
            metavar="MIB",
            min=32,
            help="What summing a round may use besides the program itself, for models of any size; else the settings'.",
        ),
    ] = None,
) -> None:
    """Runs an orchestrator in the foreground. Any number may run at once."""
    try:
        ending = [] if until_idle is None else ["--until-idle", f"{seconds_of(until_idle):g}"]
    except ValueError as error:
        raise Complaint(f"--until-idle: {error}.") from None
    limit = [] if memory_budget is None else ["--memory-budget", str(memory_budget)]
    chosen = settings_file(directory, config, role=ORCHESTRATOR)
    arguments = [sys.executable, "-m", "orchestrator", "--config", str(chosen), *ending, *limit]
    os.execv(sys.executable, arguments)  # noqa: S606  (this process becomes the orchestrator: signals reach it)


@command
async def reconcile(directory: Dir = None, config: Config = None) -> None:
    """Has everything that live experiments wait for sent again, from their state alone."""
    from orchestrator.app import build

    chosen = settings(directory, config, role=ORCHESTRATOR)
    async with reach(directory, config, role=ORCHESTRATOR) as federation:
        await _answers(federation.bus)  # reconciling itself waits for a bus that is away for as long as it takes
        await build(chosen, bus=federation.bus, store=federation.store, clock=SystemClock()).reconcile()
    say("Sent again what every live experiment needs.")


async def _answers(bus: Bus) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            await bus.peek(names.EXPERIMENTS, count=1)
    except (Transient, TimeoutError):
        raise Complaint(
            "The bus cannot be reached, so nothing was sent. Is the federation running (`silobus up`)?"
        ) from None


@command
def schema(
    write: Annotated[bool, typer.Option("--write", help="Into docs/schemas/messages.json of a checkout.")] = False,
) -> None:
    """Prints the JSON Schema of every message."""
    text = schema_text()
    if not write:
        say(text.rstrip("\n"))
        return
    if not SCHEMA_FILE.parents[1].is_dir():
        raise Complaint(f"{SCHEMA_FILE.parents[1]} is not there: --write works in a checkout of Silobus.")
    SCHEMA_FILE.parent.mkdir(exist_ok=True)
    SCHEMA_FILE.write_text(text, encoding="utf-8")
    say(f"Wrote {SCHEMA_FILE}.")


def schema_text() -> str:
    """What docs/schemas/messages.json holds."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
