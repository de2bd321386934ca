"""An announcement that nobody took is over at its deadline, what closes a round a month later; what is due stays."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import TypeAdapter, ValidationError

from messages import names
from messages.fields import Seconds
from messages.ports import Outgoing
from messages.schemas import ClosedBecause
from messages.transport.memory_bus import MemoryBroker, MemoryBus
from messages.transport.memory_store import MemoryStore
from orchestrator.documents import ExperimentDocument, Numbered
from orchestrator.experiment.effects import Announce, CloseRound, Effect, ScheduleDeadline
from orchestrator.outbox import CLOSING_LASTS, Performer
from orchestrator.store import Documents
from tests.unit.experiment.given import RUN, SILOS, at, training
from tests.virtual_clock import VirtualClock

ANNOUNCE = Announce(silo="north", round=1, announcement=1)
CLOSE = CloseRound(silo="south", run=RUN, round=1, because=ClosedBecause.AGGREGATED)
DEADLINE = ScheduleDeadline(run=RUN, round=1, announcement=1, at=at(100))


class Watched(MemoryBus):
    """A bus that remembers what it was given."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.sent: dict[str, Outgoing] = {}

    async def send(self, queue: str, message: Outgoing) -> None:
        self.sent[queue] = message
        await super().send(queue, message)


async def sent(*effects: Effect) -> dict[str, Outgoing]:
    bus = Watched(MemoryBroker(VirtualClock(), names.queues(list(SILOS))))
    outbox = tuple(Numbered(sequence=i, effect=effect) for i, effect in enumerate(effects, 1))
    document = ExperimentDocument(state=training(), sequence=9, outbox=outbox)
    await Performer(bus, Documents(MemoryStore())).perform(document, set())
    return bus.sent


async def test_an_announcement_lasts_until_its_deadline_and_a_closing_longer_than_any_round() -> None:
    found = await sent(ANNOUNCE, CLOSE, DEADLINE)

    lasts = {queue: message.time_to_live for queue, message in found.items()}
    given = timedelta(seconds=training().run.request.quorum.deadline)
    assert lasts == {"to-north": given, "to-south": CLOSING_LASTS, "work": None}
    with pytest.raises(ValidationError):
        TypeAdapter(Seconds).validate_python(CLOSING_LASTS.total_seconds())  # no round has so much time
    assert CLOSING_LASTS / timedelta(milliseconds=1) < 1 << 32, "AMQP counts milliseconds in 32 bits"
