"""`silobus dead-letters`: messages that were set aside, with the reason; to be sent again, or thrown away.

A replay sends first and removes then, under an id made of the dead letter's own place: when it is killed in between,
the next replay sends the same message under the same id, which its receiver recognises. Nothing can be lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated

import typer

from messages import names
from messages.errors import Forbidden, LockLost
from messages.ports import Bus, Delivery, Outgoing
from orchestrator.cli import queues
from orchestrator.cli.federation import Config, Dir, Federation, reach
from orchestrator.cli.terminal import Complaint, Json, command, console, say, say_json, table

app = typer.Typer(help="Messages that were set aside, and why.", no_args_is_help=True)

Queue = Annotated[str, typer.Argument(help="The queue they were dead-lettered from.")]
Sequences = Annotated[list[int] | None, typer.Argument(metavar="SEQUENCE...", help="Sequence numbers, as listed.")]
All = Annotated[bool, typer.Option("--all", help="All that are there now.")]

WAIT = 2.0
"""Seconds to wait for a dead letter that was just seen."""

SPEAKS_AS_A_SILO = (
    "{queue} takes messages of its silo alone, and nobody else should get that right. No run waits for a dead letter:\n"
    "discard it. After `silobus reconcile` the silo is asked again for whatever is still wanted."
)


@app.command("list")
@command
async def list_(
    queue: Annotated[str | None, typer.Argument(help="Only those of this queue.")] = None,
    directory: Dir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Dead letters with their reasons; of every queue when none is named."""
    async with reach(directory, config) as federation:
        chosen = [federation.known_queue(queue)] if queue else federation.queues()
        found = [(name, letter) for name in chosen for letter in await _letters(federation.bus, name)]
    if as_json:
        say_json([queues.in_full(letter) | {"queue": name} for name, letter in found])
    elif not found:
        say("No dead letters.")
    else:
        columns = ("queue", "sequence", "kind", "run", "reason", "description")
        rows = [
            (name, i.sequence_number, i.subject, i.correlation_id, i.dead_letter_reason, i.dead_letter_description)
            for name, i in found
        ]
        console().print(table(columns, rows, numbers=("sequence",)))


@app.command()
@command
async def show(
    *,
    queue: Queue,
    sequence: Annotated[int, typer.Argument(help="Its sequence number, as listed.")],
    body: Annotated[
        bool, typer.Option("--body", help="Its body alone, as it is: to put right and post again.")
    ] = False,
    directory: Dir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """One dead letter, whole."""
    async with reach(directory, config) as federation:
        letters = await _letters(federation.bus, federation.known_queue(queue))
    letter = next((i for i in letters if i.sequence_number == sequence), None)
    if letter is None:
        raise _missing(queue, {sequence})
    if body:
        say(letter.body.decode("utf-8", "replace"))
        return
    if as_json:
        say_json(queues.in_full(letter) | {"queue": queue})
        return
    say(queues.headline(letter))
    say(f"reason: {letter.dead_letter_reason}")
    say(f"{letter.dead_letter_description}\n")
    say(letter.body.decode("utf-8", "replace"))


@app.command()
@command
async def replay(
    queue: Queue, sequences: Sequences = None, everything: All = False, directory: Dir = None, config: Config = None
) -> None:
    """Sends dead letters again, under new ids, and then removes them."""
    async with reach(directory, config) as federation, _taken(federation, queue, sequences, everything) as letters:
        for letter in letters:
            try:
                await federation.bus.send(queue, again(queue, letter))
            except Forbidden:
                if queue not in map(names.from_silo, federation.silos):
                    raise
                raise Complaint(SPEAKS_AS_A_SILO.format(queue=queue)) from None
            with suppress(LockLost):  # sent; the next replay would send the same under the same id
                await federation.bus.complete(letter)
            say(f"Sent {letter.sequence_number} to {queue} again.")


@app.command()
@command
async def discard(
    queue: Queue, sequences: Sequences = None, everything: All = False, directory: Dir = None, config: Config = None
) -> None:
    """Removes dead letters for good."""
    async with reach(directory, config) as federation, _taken(federation, queue, sequences, everything) as letters:
        for letter in letters:
            await federation.bus.complete(letter)
            say(f"Discarded {letter.sequence_number} of {queue}.")


def again(queue: str, letter: Delivery) -> Outgoing:
    """The same message under a new id, which is always the same for the same dead letter."""
    origin = hashlib.sha256(f"{queue}\0{letter.message_id}".encode()).hexdigest()[:16]
    return Outgoing(
        body=letter.body,
        message_id=f"replay-{letter.sequence_number}-{origin}",
        subject=letter.subject or "",
        correlation_id=letter.correlation_id,
    )


async def _letters(bus: Bus, queue: str) -> list[Delivery]:
    return [letter async for letter in queues.walk(bus, names.dead_letters_of(queue))]


@asynccontextmanager
async def _taken(
    federation: Federation, queue: str, sequences: list[int] | None, everything: bool
) -> AsyncIterator[list[Delivery]]:
    """The chosen dead letters under locks. Others that had to be locked on the way are given back at the end."""
    bus = federation.bus
    there = {letter.sequence_number for letter in await _letters(bus, federation.known_queue(queue))}
    wanted = there if everything else set(sequences or [])
    if not wanted and not everything:
        raise Complaint("Which? Give sequence numbers as `silobus dead-letters list` shows them, or --all.")
    if strangers := wanted - there:
        raise _missing(queue, strangers)
    chosen: list[Delivery] = []
    others: list[Delivery] = []
    try:
        while len(chosen) < len(wanted):
            letter = await bus.receive(names.dead_letters_of(queue), wait=WAIT)
            if letter is None:
                raise Complaint(f"Another receiver holds some of these dead letters of {queue}; try again in a minute.")
            (chosen if letter.sequence_number in wanted else others).append(letter)
        yield sorted(chosen, key=lambda letter: letter.sequence_number)
    except BaseException:
        others += chosen  # those that were settled meanwhile are not affected
        raise
    finally:
        for letter in others:
            with suppress(LockLost):
                await bus.abandon(letter)


def _missing(queue: str, sequences: set[int]) -> Complaint:
    which = ", ".join(map(str, sorted(sequences)))
    return Complaint(f"{queue} has no dead letter {which}. `silobus dead-letters list {queue}` shows those there are.")
