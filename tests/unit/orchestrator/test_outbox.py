"""Effects are carried out in an order that agents can rely on, once if all goes well, and never twice with effect."""

from __future__ import annotations

from datetime import timedelta

import pytest

from messages import names
from messages.errors import Transient
from messages.schemas import ClosedBecause, Head, RoundAnnounced, RoundClosed
from messages.transport.memory_bus import MemoryBroker, MemoryBus
from messages.transport.memory_store import MemoryStore
from orchestrator.documents import ExperimentDocument, Numbered
from orchestrator.experiment.effects import (
    Announce,
    CloseRound,
    Effect,
    PublishHead,
    RequestAggregation,
    ScheduleDeadline,
    ScheduleGrace,
)
from orchestrator.outbox import Performer, batches
from orchestrator.store import Documents
from tests.unit.experiment.given import RUN, SILOS, T0, at, training
from tests.virtual_clock import VirtualClock

HEAD = PublishHead(head=Head(run=RUN, round=1, announcement=1, phase="open"))
TELL = Announce(silo="north", round=1, announcement=1)
DISMISS = CloseRound(silo="south", run=RUN, round=1, because=ClosedBecause.AGGREGATED)


def document(*effects: Effect) -> ExperimentDocument:
    outbox = tuple(Numbered(sequence=40 + i, effect=effect) for i, effect in enumerate(effects))
    return ExperimentDocument(state=training(), sequence=60, outbox=outbox)


def performer(*queues: str) -> tuple[Performer, MemoryBroker, MemoryStore]:
    broker, store = MemoryBroker(VirtualClock(), queues or names.queues(list(SILOS))), MemoryStore()
    return Performer(MemoryBus(broker), Documents(store)), broker, store


def test_what_follows_a_head_waits_for_it() -> None:
    outbox = document(DISMISS, HEAD, TELL, TELL, HEAD).outbox
    assert [[n.sequence for n in batch] for batch in batches(outbox)] == [[40, 41], [42, 43, 44]]


async def test_messages_say_what_is_so_under_ids_of_run_and_sequence() -> None:
    does, broker, store = performer()
    deadline = ScheduleDeadline(run=RUN, round=1, announcement=1, at=at(100))
    grace = ScheduleGrace(run=RUN, round=1, announcement=1, at=at(10))
    await does.perform(document(HEAD, TELL, DISMISS, deadline, grace, RequestAggregation(run=RUN, round=1)), set())
    (told,) = broker.peek("to-north", 9, 0)
    said = RoundAnnounced.model_validate_json(told.body)
    assert (said.run, said.round, said.deadline) == (RUN, 1, at(100))
    assert (told.message_id, told.subject, told.correlation_id) == (f"{RUN}-41", "round-announced", RUN)
    (dismissed,) = broker.peek("to-south", 9, 0)
    assert RoundClosed.model_validate_json(dismissed.body).because is ClosedBecause.AGGREGATED
    work = broker.peek("work", 9, 0)
    assert [(d.message_id, d.subject, d.enqueued_at) for d in work] == [
        (f"{RUN}-43", "deadline-passed", T0 + timedelta(seconds=100)),
        (f"{RUN}-44", "grace-over", T0 + timedelta(seconds=10)),
        (f"{RUN}-45", "aggregate-round", T0),
    ]
    assert Head.model_validate_json((await store.read(names.GLOBAL, names.head_blob(RUN))).data).phase == "open"


async def test_what_is_done_is_not_done_again() -> None:
    does, broker, _ = performer()
    done: set[int] = set()
    await does.perform(document(TELL, DISMISS), done)
    await does.perform(document(TELL, DISMISS), done)
    assert done == {40, 41}
    assert len(broker.peek("to-north", 9, 0)) == 1


async def test_a_failure_hinders_nothing_in_its_batch_and_everything_after() -> None:
    def fail(when: str, operation: str, queue: str) -> None:
        if queue == "to-north":
            raise Transient("away")

    broker, store = MemoryBroker(VirtualClock(), names.queues(list(SILOS))), MemoryStore()
    does = Performer(MemoryBus(broker, faults=fail), Documents(store))
    done: set[int] = set()
    with pytest.raises(Transient):
        await does.perform(document(TELL, DISMISS, HEAD, DISMISS), done)
    assert done == {41, 42}


async def test_a_silo_without_a_queue_is_a_silent_silo() -> None:
    does, broker, _ = performer("to-south", "work")
    done: set[int] = set()
    await does.perform(document(TELL, DISMISS), done)
    assert done == {40, 41}
    assert len(broker.peek("to-south", 9, 0)) == 1
