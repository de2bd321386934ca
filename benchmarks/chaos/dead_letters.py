"""Dead letters, as operators' tools show them: collected before queues are emptied, and at the end."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass

from messages import names
from messages.errors import SilobusError
from messages.ports import Delivery
from orchestrator.cli.federation import Federation

_PATIENCE = 10.0
"""Seconds; the bus may be away."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter."""

    queue: str
    message_id: str
    kind: str
    run: str | None
    round: int | None
    reason: str
    description: str


class Collection:
    """All that were seen, each once."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self.letters: dict[tuple[str, str, int], Letter] = {}

    async def look(self) -> bool:
        """Adds those that are there now; False when the bus did not answer in time."""
        with suppress(SilobusError, TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await asyncio.gather(*(self._look(queue) for queue in self._federation.queues()))
            return True
        return False

    async def _look(self, queue: str) -> None:
        place = names.dead_letters_of(queue)
        beginning = 0
        while page := await self._federation.bus.peek(place, count=100, from_sequence_number=beginning):
            for found in page:
                at = int(found.enqueued_at.timestamp() * 1000)
                self.letters[queue, found.message_id, at] = _letter(queue, found)
            beginning = page[-1].sequence_number + 1


def _letter(queue: str, found: Delivery) -> Letter:
    try:
        said = json.loads(found.body)
    except ValueError:
        said = {}
    run, number = said.get("run"), said.get("round")
    return Letter(
        queue=queue,
        message_id=found.message_id,
        kind=str(said.get("kind", found.subject)),
        run=run if isinstance(run, str) else None,
        round=number if isinstance(number, int) else None,
        reason=found.dead_letter_reason or "",
        description=found.dead_letter_description or "",
    )
