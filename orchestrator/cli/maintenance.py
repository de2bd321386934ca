"""`silobus orchestrator|reconcile|schema`: what runs, repairs and documents a federation rather than an experiment."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from messages.codec import json_schema
from messages.transport.clock import SystemClock
from orchestrator.cli.federation import Config, Dir, reach, settings, settings_file
from orchestrator.cli.terminal import Complaint, command, say

SCHEMA_FILE = Path(__file__).resolve().parents[2] / "docs" / "schemas" / "messages.json"


@command
def orchestrator(directory: Dir = None, config: Config = None) -> None:
    """Runs an orchestrator in the foreground. Any number may run at once."""
    chosen = settings_file(directory, config)
    arguments = [sys.executable, "-m", "orchestrator", "--config", str(chosen)]
    os.execv(sys.executable, arguments)  # noqa: S606  (this process becomes the orchestrator: signals reach it)


@command
async def reconcile(directory: Dir = None, config: Config = None) -> None:
    """Has everything that live experiments wait for sent again, from their state alone."""
    from orchestrator.app import build

    chosen = settings(directory, config)
    async with reach(directory, config) as federation:
        await build(chosen, bus=federation.bus, store=federation.store, clock=SystemClock()).reconcile()
    say("Sent again what every live experiment needs.")


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
