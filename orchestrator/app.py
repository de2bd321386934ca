"""Wiring: settings in, a running orchestrator out. The only place of this package that picks adapters."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from messages import log
from messages.errors import Transient
from messages.health import answering
from messages.ports import Bus, Clock, Store
from messages.settings import SettingsError
from messages.transport.clock import SystemClock
from messages.transport.connect import open_bus, open_store
from orchestrator.blobs import Weights
from orchestrator.idleness import seconds_of
from orchestrator.outbox import Performer
from orchestrator.presence import Attendance
from orchestrator.scratch import Scratch, ScratchUnusable
from orchestrator.service import Orchestrator
from orchestrator.settings import OrchestratorSettings, load
from orchestrator.store import Documents
from orchestrator.sweeping import Sweeper
from orchestrator.transitions import Experiments


def build(settings: OrchestratorSettings, *, bus: Bus, store: Store, clock: Clock) -> Orchestrator:
    """An orchestrator over these adapters. Nothing is sent or read yet."""
    documents = Documents(store)
    return Orchestrator(
        bus=bus,
        clock=clock,
        silos=settings.silos,
        documents=documents,
        experiments=Experiments(documents, Performer(bus, documents, settings.retention), clock),
        weights=Weights(store, settings.scratch, memory_budget=settings.memory_budget << 20),
        attendance=Attendance(documents, clock),
        sweeper=Sweeper(
            bus=bus, store=store, documents=documents, clock=clock, settings=settings.retention, silos=settings.silos
        ),
        max_delivery_count=settings.max_delivery_count,
    )


async def serve(settings: OrchestratorSettings, *, until_idle: float | None = None) -> None:
    """Runs until SIGTERM or SIGINT, or until idle for so many seconds; messages in hand are finished, or given back.

    Raises SettingsError.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(answering(settings.health))
        await _try_out(settings.scratch)
        store = open_store(settings.store)
        stack.push_async_callback(store.close)
        bus = open_bus(settings.bus)
        stack.push_async_callback(bus.close)
        await build(settings, bus=bus, store=store, clock=SystemClock()).run(stop, until_idle=until_idle)


async def _try_out(scratch: Path) -> None:
    """An orchestrator that cannot sum must not take work from those that can."""
    try:
        async with Scratch(scratch).directory():
            pass
    except ScratchUnusable as error:
        raise SettingsError(f"scratch: {error}") from error
    except Transient:
        pass  # a full disk is waited for


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m orchestrator --config FILE`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="orchestrator", description="Announces rounds and aggregates what silos send."
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the settings, in YAML")
    parser.add_argument(
        "--until-idle",
        type=_seconds,
        metavar="TIME",
        help="end, with status 0, when there was nothing to do for so long: 60s, 5m, 90",
    )
    parser.add_argument(
        "--memory-budget",
        type=int,
        metavar="MIB",
        help="what summing a round may use; else the settings' memory_budget",
    )
    options = parser.parse_args(arguments)
    try:
        settings = load(options.config)
        if options.memory_budget is not None:
            settings = settings.model_copy(update={"memory_budget": options.memory_budget})
        log.configure("orchestrator", level=settings.log_level)
        asyncio.run(serve(settings, until_idle=options.until_idle))
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201  # for the person who started it
        return 2
    return 0


def _seconds(text: str) -> float:
    try:
        return seconds_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
