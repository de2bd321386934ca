"""`silobus queues`: what is in the queues; looking locks nothing, moves nothing and counts as no delivery.

Service Bus counts its messages itself, for whoever has the right Manage. Without it they are counted by peeking.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from messages import names
from messages.errors import NotFound
from messages.ports import Bus, Delivery
from orchestrator.cli.federation import Config, Dir, reach, settings
from orchestrator.cli.terminal import Json, command, console, say, say_json, table, warn

if TYPE_CHECKING:
    from messages.settings import BusSettings
    from messages.transport.administration import Counts

PAGE = 100
MOST = 10_000
"""Messages of one queue that are counted by peeking; beyond that the count says so."""
AT_ONCE = 8
BY_PEEKING = (
    f"Counted by peeking, up to {MOST} of each: the bus does not tell its own counts here. "
    "It tells them to an identity with the right Manage."
)
LONGEST = 10_000
"""Characters of a body that is no JSON that scripts are shown."""
DEEPEST = 100
"""Levels of a body that is shown as JSON; one that is deeper is shown as text."""

app = typer.Typer(help="What is in the queues; `silobus queues peek` shows messages.", invoke_without_command=True)


async def walk(bus: Bus, queue: str, *, most: int = MOST, start: int = 0) -> AsyncIterator[Delivery]:
    """The messages of a queue in order of their sequence numbers, up to `most`."""
    seen = 0
    while seen < most:
        page = await bus.peek(queue, count=min(PAGE, most - seen), from_sequence_number=start)
        for delivery in page:
            seen += 1
            yield delivery
        if not page:
            return
        start = max(delivery.sequence_number for delivery in page) + 1


async def ask(bus: BusSettings) -> dict[str, Counts] | None:
    """What Service Bus itself says; None where it does not."""
    from messages.transport.administration import counts

    return await counts(bus)


async def look_up(bus: Bus, queue: str, told: Counts | None) -> dict[str, Any]:
    """What was told of a queue, and how old its first active message is, which only looking shows."""
    if told is None:
        return _missing(queue) | {"counted_by": "administration"}
    row: dict[str, Any] = {"queue": queue, "active": told.active, "scheduled": told.scheduled}
    row |= {"dead_lettered": told.dead_lettered, "oldest_active": None, "counted_by": "administration"}
    try:
        async for delivery in walk(bus, queue, most=PAGE if told.active else 0):
            if delivery.scheduled_at is None:
                row["oldest_active"] = delivery.enqueued_at
                break
    except NotFound:
        return _missing(queue) | {"counted_by": "administration"}
    return row


async def count(bus: Bus, queue: str) -> dict[str, Any]:
    """How many messages a queue has: active (locked ones too), scheduled, dead-lettered."""
    row: dict[str, Any] = {"queue": queue, "active": 0, "scheduled": 0, "dead_lettered": 0, "oldest_active": None}
    row["counted_by"] = "peeking"
    try:
        async for delivery in walk(bus, queue):
            if delivery.scheduled_at is not None:
                row["scheduled"] += 1
                continue
            row["active"] += 1
            row["oldest_active"] = row["oldest_active"] or delivery.enqueued_at
        async for _ in walk(bus, names.dead_letters_of(queue)):
            row["dead_lettered"] += 1
    except NotFound:
        return _missing(queue) | {"counted_by": "peeking"}
    return row


def _missing(queue: str) -> dict[str, Any]:
    return {"queue": queue, "missing": True, **dict.fromkeys(("active", "scheduled", "dead_lettered"), 0)}


def in_full(delivery: Delivery) -> dict[str, Any]:
    """A message for scripts: its body as JSON where it is strict JSON, and otherwise as text."""
    row = {
        "queue": delivery.queue,
        "sequence_number": delivery.sequence_number,
        "message_id": delivery.message_id,
        "subject": delivery.subject,
        "correlation_id": delivery.correlation_id,
        "enqueued_at": delivery.enqueued_at,
        "scheduled_at": delivery.scheduled_at,
        "delivery_count": delivery.delivery_count,
        "body": _body(delivery.body),
    }
    if delivery.dead_letter_reason is not None or delivery.dead_letter_description is not None:
        row |= {"reason": delivery.dead_letter_reason, "description": delivery.dead_letter_description}
    return row


@app.callback()
@command
async def queues(context: typer.Context, directory: Dir = None, config: Config = None, as_json: Json = False) -> None:
    """Every queue with its active, scheduled and dead-lettered messages."""
    if context.invoked_subcommand is not None:
        return
    async with reach(directory, config) as federation:
        limit = asyncio.Semaphore(AT_ONCE)
        told = await ask(settings(directory, config).bus)

        async def counted(queue: str) -> dict[str, Any]:
            async with limit:
                if told is None:
                    return await count(federation.bus, queue)
                return await look_up(federation.bus, queue, told.get(queue.lower()))

        rows = await asyncio.gather(*(counted(queue) for queue in federation.queues()))
    if as_json:
        say_json(list(rows))
        return
    if told is None:
        warn(BY_PEEKING)
    columns = ("queue", "active", "scheduled", "dead letters", "oldest")
    cells = [
        (r["queue"], *(("missing", "", "", "") if r.get("missing") else (*_shown(r), r["oldest_active"]))) for r in rows
    ]
    console().print(table(columns, cells, numbers=columns[1:4]))


@app.command()
@command
async def peek(
    *,
    queue: Annotated[str, typer.Argument(help="The queue's name, as `silobus queues` lists it.")],
    most: Annotated[int, typer.Option("--count", "-n", min=1, max=1000, help="Messages to show.")] = 10,
    start: Annotated[int, typer.Option("--from", min=0, help="Sequence number to begin with.")] = 0,
    dead_letters: Annotated[bool, typer.Option("--dead-letters", help="Those of its dead letters.")] = False,
    directory: Dir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Shows messages without locking them."""
    async with reach(directory, config) as federation:
        source = federation.known_queue(queue)
        source = names.dead_letters_of(source) if dead_letters else source
        found = [delivery async for delivery in walk(federation.bus, source, most=most, start=start)]
    if as_json:
        say_json([in_full(delivery) for delivery in found])
    elif not found:
        say(f"{source} is empty.")
    else:
        for delivery in found:
            say(headline(delivery))
            say(f"  {delivery.body.decode('utf-8', 'replace')}")


def headline(delivery: Delivery) -> str:
    """One line about a message."""
    words = [f"{delivery.sequence_number}", delivery.subject or "(no subject)", f"id {delivery.message_id}"]
    if delivery.correlation_id:
        words.append(f"run {delivery.correlation_id}")
    words.append(f"enqueued {delivery.enqueued_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}")
    if delivery.scheduled_at and delivery.scheduled_at > datetime.now(UTC):
        words.append(f"scheduled for {delivery.scheduled_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}")
    if delivery.delivery_count:
        words.append(f"delivered {delivery.delivery_count} times before")
    return "  ".join(words)


def _body(body: bytes) -> Any:
    try:
        said = json.loads(body)
        # What Python reads need not be what others can: NaN, 1e999, half a surrogate pair.
        json.dumps(said, allow_nan=False, ensure_ascii=False).encode()
        if _is_deeper_than(DEEPEST, said):
            raise ValueError("too deep")
    except (ValueError, RecursionError):
        text = body.decode("utf-8", "replace")
        return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(body)} bytes in all)"
    return said


def _is_deeper_than(levels: int, value: Any) -> bool:
    row = [value]
    for _ in range(levels):
        row = [i for v in row if isinstance(v, dict | list) for i in (v.values() if isinstance(v, dict) else v)]
    return bool(row)


def _shown(row: dict[str, Any]) -> list[str]:
    """The counts; where peeking stopped, that they go on."""
    stops = row["counted_by"] == "peeking"
    counts = (row["active"], row["scheduled"], row["dead_lettered"])
    return [f"{number}+" if stops and number >= MOST else str(number) for number in counts]
