"""Carrying out effects: what the core wants done, done through the bus and the store.

Everything here may run twice, anywhere, at the same time: message ids follow from run and sequence, heads only move
forward, records are written once. What is to be done, and when, is decided elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Final, assert_never, final

from pydantic import BaseModel

from messages import names
from messages.codec import encode
from messages.errors import Forbidden, NotFound, Poison
from messages.log import EventLog
from messages.ports import Bus, Outgoing
from messages.schemas import AggregateRound, DeadlinePassed, GraceOver, RoundClosed, SweepRun
from orchestrator.documents import ExperimentDocument, Numbered
from orchestrator.experiment.announcing import announcement_for
from orchestrator.experiment.effects import (
    Announce,
    CloseRound,
    Effect,
    PublishHead,
    RecordRound,
    RecordRun,
    RequestAggregation,
    ScheduleDeadline,
    ScheduleGrace,
)
from orchestrator.experiment.state import Collecting, Tombstone
from orchestrator.gathering import all_of
from orchestrator.retention import expires_at, is_due
from orchestrator.settings import RetentionSettings
from orchestrator.store import Documents

_log: Final = EventLog(__name__)
_AT_ONCE: Final = 32
CLOSING_LASTS: Final = timedelta(days=31)
"""How long a silo that is down can still learn that a round is closed: longer than any round lasts, and its jobs on a
compute of its own, which the message ends. Training what is over is not held off by it, but by the head.
"""


@final
class Performer:
    """Carries out effects."""

    def __init__(self, bus: Bus, documents: Documents, retention: RetentionSettings | None = None) -> None:
        self._bus, self._documents = bus, documents
        self._retention = retention or RetentionSettings()

    async def perform(self, document: ExperimentDocument, done: set[int]) -> None:
        """Carries out what is in the outbox and not `done`, adding to `done` what was. Raises the first error, then."""
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(numbered: Numbered) -> None:
            async with gate:
                await self._perform(document, numbered)
            done.add(numbered.sequence)

        for batch in batches(document.outbox):
            await all_of(one(numbered) for numbered in batch if numbered.sequence not in done)

    async def _perform(self, document: ExperimentDocument, numbered: Numbered) -> None:  # noqa: PLR0912  # one per effect
        effect, state = numbered.effect, document.state
        if isinstance(state, Tombstone):
            raise TypeError("a tombstone has no effects")
        message_id = f"{state.run.id}-{numbered.sequence}"
        match effect:
            case Announce(silo=silo):
                if not isinstance(state, Collecting):
                    raise TypeError("an announcement belongs to an open round")
                announced, lasts = announcement_for(state, silo), timedelta(seconds=state.run.request.quorum.deadline)
                await self._tell(silo, announced, state.run.id, message_id, lasts=lasts)
            case CloseRound(silo=silo, run=run, round=number, because=because):
                closed = RoundClosed(run=run, round=number, because=because)
                await self._tell(silo, closed, run, message_id, lasts=CLOSING_LASTS)
            case ScheduleDeadline(run=run, round=number, announcement=announcement, at=at):
                passed = DeadlinePassed(run=run, round=number, announcement=announcement, at=at)
                await self._send(names.WORK, passed, run, message_id, at)
            case ScheduleGrace(run=run, round=number, announcement=announcement, at=at):
                over = GraceOver(run=run, round=number, announcement=announcement)
                await self._send(names.WORK, over, run, message_id, at)
            case RequestAggregation(run=run, round=number, announcement=announcement):
                wanted = AggregateRound(run=run, round=number, announcement=announcement)
                await self._send(names.WORK, wanted, run, message_id)
            case PublishHead(head=head):
                await self._documents.publish_head(head)
            case RecordRound(record=record):
                await self._documents.record_round(record)
                if is_due(record.round, self._retention):
                    await self._send(names.WORK, SweepRun(run=record.run), record.run, message_id)
            case RecordRun(ended=ended):
                await self._documents.record_run(ended)
                if (expiry := expires_at(ended.ended_at, self._retention)) is not None:
                    await self._send(
                        names.WORK, SweepRun(run=ended.run.id, last=True), ended.run.id, message_id, expiry
                    )
            case _:
                assert_never(effect)

    async def _tell(self, silo: str, message: BaseModel, run: str, message_id: str, *, lasts: timedelta) -> None:
        """Sends to a silo. One whose queue is missing or closed to us is a silent silo; the others must not wait.

        What `lasts` is over after that time, so that a silo that is down for good finds no more than that many; an
        announcement is over at its deadline or soon after.
        """
        try:
            await self._send(names.to_silo(silo), message, run, message_id, lasts=lasts)
        except (NotFound, Forbidden, Poison) as error:
            _log.error("silo.unreachable", silo=silo, run=run, message_id=message_id, error=str(error))

    async def _send(
        self,
        queue: str,
        message: BaseModel,
        run: str,
        message_id: str,
        at: datetime | None = None,
        *,
        lasts: timedelta | None = None,
    ) -> None:
        outgoing = Outgoing(
            body=encode(message),
            message_id=message_id,
            subject=str(type(message).model_fields["kind"].default),
            correlation_id=run,
            scheduled_at=at,
            time_to_live=lasts,
        )
        await self._bus.send(queue, outgoing)


def work_of(effect: Effect) -> AggregateRound | DeadlinePassed | GraceOver | None:
    """The message in `work` that shows that this effect was carried out; None where none does."""
    match effect:
        case ScheduleDeadline(run=run, round=number, announcement=announcement, at=at):
            return DeadlinePassed(run=run, round=number, announcement=announcement, at=at)
        case ScheduleGrace(run=run, round=number, announcement=announcement):
            return GraceOver(run=run, round=number, announcement=announcement)
        case RequestAggregation(run=run, round=number, announcement=announcement):
            return AggregateRound(run=run, round=number, announcement=announcement)
        case _:
            return None


def batches(outbox: Iterable[Numbered]) -> Iterator[list[Numbered]]:
    """Effects that may be carried out together: whatever follows a head waits until the head is published."""
    batch: list[Numbered] = []
    for numbered in outbox:
        batch.append(numbered)
        if isinstance(numbered.effect, PublishHead):
            yield batch
            batch = []
    if batch:
        yield batch
