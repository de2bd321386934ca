"""What must be gone soon after everything has ended: messages in queues, and runs that are listed as going on."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Final

from messages import names
from messages.errors import NotFound, SilobusError
from messages.ports import Bus, Delivery, Store
from orchestrator.cli.federation import Federation
from orchestrator.live import LiveDocument

_TIMED: Final = frozenset({"deadline-passed", "grace-over", "sweep-run"})
"""May wait for a time to come: then the first two are of the past, and the last is for weeks later."""
_OF_NO_RUN: Final = "silo-heartbeat"
_PATIENCE: Final = 10.0
"""Seconds; the bus may be slow."""


async def left_over(federation: Federation) -> list[str]:
    """What is there now and must not stay, in words."""
    found = await _live(federation.store)
    try:
        async with asyncio.timeout(_PATIENCE):
            for queue in federation.queues():
                found += await _in_queue(federation.bus, queue)
    except (SilobusError, TimeoutError) as error:
        found.append(f"what is left in the queues could not be seen: {error!r}")
    return found


async def _live(store: Store) -> list[str]:
    try:
        there = await store.read(names.STATE, names.live_blob())
    except NotFound:
        return ["there is no list of live runs"]
    return [f"{name} is listed as live" for name in LiveDocument.model_validate_json(there.data).runs]


async def _in_queue(bus: Bus, queue: str) -> list[str]:
    found, beginning = [], 0
    while page := await bus.peek(queue, count=100, from_sequence_number=beginning):
        found += [f"{queue} still holds {_about(it)}" for it in page if is_left_over(it, datetime.now(UTC))]
        beginning = page[-1].sequence_number + 1
    return found


def is_left_over(message: Delivery, now: datetime) -> bool:
    """Whether somebody should have taken it from its queue."""
    if message.subject == _OF_NO_RUN:
        return False
    waits = message.scheduled_at is not None and message.scheduled_at > now
    return not (waits and message.subject in _TIMED)


def _about(message: Delivery) -> str:
    return f"{message.message_id} ({message.subject}, delivered {message.delivery_count} times)"
