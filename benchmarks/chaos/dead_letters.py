"""Dead letters, as operators' tools show them: collected before queues are emptied, and at the end; and which of them
must not be.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from messages import names
from messages.errors import SilobusError
from messages.ports import Delivery
from orchestrator.cli.federation import Federation
from orchestrator.cli.folder import MAX_DELIVERY_COUNT
from orchestrator.experiment.rounds import UNANSWERED
from orchestrator.experiment.state import RoundRecord

_PATIENCE: Final = 10.0
"""Seconds; the bus may be away."""
BUG: Final = "bug"
UNTOLD: Final = "MaxDeliveryCountExceeded"
"""Reasons that killing processes can give: delivered so often that nobody will try again. The first is said by the
process that then tells the run, the second by the broker when such processes were killed as well. All others mean that
somebody said something wrong, and here nobody lies."""
DELIVERIES: Final = MAX_DELIVERY_COUNT - 2
"""After so many a process gives up: two are kept for telling the run."""
_ANSWERED: Final = frozenset({"round-announced", "update-published", "round-declined", "training-failed"})
"""Messages without which a round waits for a silo."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter."""

    queue: str
    message_id: str
    kind: str
    experiment: str | None
    run: str | None
    round: int | None
    reason: str
    description: str
    deliveries: int
    """How often it was delivered before it was set aside."""


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
    experiment, run, number = said.get("experiment"), said.get("run"), said.get("round")
    return Letter(
        queue=queue,
        message_id=found.message_id,
        kind=str(said.get("kind", found.subject)),
        experiment=experiment if isinstance(experiment, str) else None,
        run=run if isinstance(run, str) else None,
        round=number if isinstance(number, int) else None,
        reason=found.dead_letter_reason or "",
        description=found.dead_letter_description or "",
        deliveries=found.delivery_count,
    )


def wrong_with(
    letter: Letter,
    asked: Mapping[str, str],
    records: Mapping[str, Mapping[int, RoundRecord]],
    given_up: datetime | None,
) -> str | None:
    """Why this letter must not be; None when killing explains it, and its run knows.

    `asked`: the experiment of each run that was started. `records`: those of each run that completed, by round; of
    others the violation is that they did not. `given_up`: when a process first said that it sets the message aside.
    """
    if letter.reason not in {BUG, UNTOLD} or not letter.description:
        return f"{letter.reason}: {letter.description}"
    if letter.reason == BUG and letter.deliveries < DELIVERIES:
        return f"given up after {letter.deliveries} deliveries, of {DELIVERIES}: {letter.description}"
    if letter.experiment is not None and letter.experiment not in asked.values():
        return f"of an experiment that nobody started, {letter.experiment}"
    if letter.run is None:
        return None
    if letter.run not in asked:
        return "of a run that nobody started"
    if letter.run not in records or letter.round is None:
        return None
    record = records[letter.run].get(letter.round)
    if record is None:
        return "of a round that there is no record of"
    _, _, silo = letter.queue.partition("-")
    if letter.kind not in _ANSWERED or silo not in record.asked or _is_told(record, silo):
        return None
    is_late = given_up is not None and given_up > record.closed_at
    unanswered = record.others.get(silo, "").startswith(UNANSWERED)
    if unanswered and (is_late or letter.reason == UNTOLD):
        return None  # the round had closed without it; or nobody lived to tell
    return f"{letter.reason}, and its run does not know: {record.others.get(silo, 'not a word')}"


def _is_told(record: RoundRecord, silo: str) -> bool:
    """Whether the round has the silo's answer after all, or says what became of it."""
    if any(update.silo == silo for update in record.updates):
        return True
    did = record.others.get(silo, "")
    return f"failed: {BUG}:" in did or "declined: agent-fault" in did
