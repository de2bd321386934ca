"""What silos have said and no orchestrator has read: looked for in their queues, where the store tells of no life.

An agent says what it does whether or not anybody reads it, so silence in the store alone does not mean that it is gone.
Looking locks nothing. Where the bus does not answer, what is known stays what the store says.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from messages import names
from messages.codec import FromSilo, decode
from messages.errors import Poison, SilobusError
from messages.ports import Bus, Delivery
from messages.schemas import RoundDeclined, SiloHeartbeat, SiloHello, TrainingFailed, UpdatePublished
from orchestrator import presence
from orchestrator.cli.awaiting import quiet_silos
from orchestrator.cli.federation import Federation
from orchestrator.cli.standing import Standing, Unread
from orchestrator.documents import Presence

PATIENCE: Final = 5.0
"""Seconds that all the queues together may take to answer."""
AGAIN: Final = 5.0
"""Seconds until a queue is looked into again."""
AT_ONCE: Final = 16
PAGE: Final = 100


class Listening:
    """Looks into the queues of silos that seem silent, for as long as somebody watches."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self._heard: dict[str, tuple[float, Unread | None]] = {}
        """By silo: when it was asked for, and what was there; None where the bus did not say."""

    async def told(self, standings: Sequence[Standing]) -> list[Standing]:
        """The same, with what waits to be read of silos that are awaited and silent."""
        await self._look({silo for standing in standings for silo in quiet_silos(standing)})
        found = {silo: unread for silo, (_, unread) in self._heard.items() if unread is not None}
        return [with_unread(standing, found) for standing in standings]

    async def _look(self, silos: Iterable[str]) -> None:
        now = asyncio.get_running_loop().time()
        due = [silo for silo in silos if silo not in self._heard or now - self._heard[silo][0] > AGAIN]
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(silo: str) -> None:
            self._heard[silo] = now, None
            async with gate:
                with contextlib.suppress(SilobusError):  # no such queue, no right, no bus: then it is not known
                    self._heard[silo] = now, await unread_of(self._federation.bus, silo)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*(one(silo) for silo in due))


async def unread_of(bus: Bus, silo: str) -> Unread:
    """What waits in its queue: the oldest and the newest of it, since days of signs of life may have piled up."""
    queue = names.from_silo(silo)
    first = await bus.peek(queue, count=PAGE)
    found = [*first, *(await _last(bus, queue, first))]
    said = [(message, delivery.enqueued_at) for delivery in found if (message := _decoded(delivery)) is not None]
    signs = sorted(at for message, at in said if isinstance(message, SiloHeartbeat | SiloHello))
    answers = [(m, at) for m, at in said if isinstance(m, UpdatePublished | RoundDeclined | TrainingFailed)]
    said_so_far: Presence | None = None
    for message, at in sorted(said, key=lambda one: one[1]):
        said_so_far = _after(said_so_far, silo, message, at)
    return Unread(
        since=signs[0] if signs else None,
        said=said_so_far,
        answers={(message.run, message.round): at for message, at in reversed(answers)},
    )


async def _last(bus: Bus, queue: str, page: Sequence[Delivery]) -> Sequence[Delivery]:
    """The page with the last message; in strides that grow, and shrink where there is nothing any more."""
    stride = PAGE
    while len(page) == PAGE:
        further = await bus.peek(queue, count=PAGE, from_sequence_number=page[-1].sequence_number + stride)
        if further:
            page, stride = further, stride * 2
        elif stride > 1:
            stride = max(1, stride // 4)
        else:
            break
    return page


def _decoded(delivery: Delivery) -> FromSilo | None:
    try:
        message: FromSilo = decode(
            delivery.body, SiloHello, UpdatePublished, RoundDeclined, TrainingFailed, SiloHeartbeat
        )
    except Poison:
        return None
    return message


def _after(known: Presence | None, silo: str, message: FromSilo, at: datetime) -> Presence | None:
    """What is known once the message is read."""
    match message:
        case SiloHello():
            found = presence.greeted(known, silo, message, at)
        case SiloHeartbeat(run=run):
            found = presence.doing(known, silo, {run: (message, at)})
        case _:
            found = presence.answered(known, silo, at)
    return found or known


def with_unread(standing: Standing, unread: dict[str, Unread]) -> Standing:
    """The standing as it would be had an orchestrator read that."""
    known = dict(standing.presence)
    for silo, found in unread.items():
        if found.said is not None:
            known[silo] = _joined(known.get(silo), found.said)
    return replace(standing, presence=known, unread=unread)


def _joined(known: Presence | None, said: Presence) -> Presence:
    """The newest of both."""
    if known is None:
        return said
    if said.hello is not None and said.hello_at is not None:
        known = presence.greeted(known, said.silo, said.hello, said.hello_at) or known
    beats = {run: (beat, said.heartbeats_at[run]) for run, beat in said.heartbeats.items()}
    known = presence.doing(known, said.silo, beats) or known
    return presence.answered(known, said.silo, said.seen_at) or known
