"""Documents in a store: read and written by compare-and-swap, parsed once, only ever moved forward."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from messages import names
from messages.errors import Conflict, Poison
from messages.ports import Document
from messages.schemas import Head, Offer, SiloHeartbeat, SiloHello
from messages.transport.memory_store import MemoryStore
from orchestrator import store as module
from orchestrator.documents import ExperimentDocument, Numbered
from orchestrator.experiment.effects import PublishHead
from orchestrator.experiment.state import Ended, RunOutcome, Tombstone
from orchestrator.presence import MOST_RUNS, Attendance
from orchestrator.store import Documents, DocumentUnreadable
from tests.unit.experiment.given import RUN, T0, at, training
from tests.virtual_clock import VirtualClock

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def tombstone(name: str = "exp") -> ExperimentDocument:
    return ExperimentDocument(state=Tombstone(experiment=name, since=T0))


def over() -> Ended:
    return Ended(run=training().run, round=1, outcome=RunOutcome.FAILED, reason="because", ended_at=at(9))


async def test_a_document_is_written_only_over_the_version_that_was_read() -> None:
    documents = Documents(MemoryStore())
    nothing = await documents.load("exp")
    assert (nothing.document, nothing.etag) == (None, None)
    first = await documents.save("exp", tombstone(), replacing=nothing)
    second = await documents.save("exp", ExperimentDocument(state=training(), sequence=4), replacing=first)
    for late in (nothing, first):
        with pytest.raises(Conflict):
            await documents.save("exp", tombstone(), replacing=late)
    assert await Documents(documents._store).load("exp") == second


async def test_a_version_is_parsed_once_and_another_one_is_seen() -> None:
    store = MemoryStore()
    one, two = Documents(store), Documents(store)
    saved = await one.save("exp", tombstone(), replacing=await one.load("exp"))
    assert (await one.load("exp")).document is saved.document
    newer = await two.save("exp", ExperimentDocument(state=training()), replacing=await two.load("exp"))
    assert await one.load("exp") == newer


async def test_a_document_of_a_later_version_is_told_as_one() -> None:
    store = MemoryStore()
    later = b'{"version": 2}'
    for container, blob in (
        (names.STATE, names.experiment_blob("exp")),
        (names.STATE, names.round_blob(RUN, 1)),
        (names.STATE, names.run_blob(RUN)),
        (names.STATE, names.retained_blob(RUN)),
        (names.STATE, names.presence_blob("north")),
        (names.GLOBAL, names.head_blob(RUN)),
    ):
        await store.write(container, blob, later, if_match=None)
    documents = Documents(store)
    head = Head(run=RUN, round=1, announcement=1, phase="open")
    for call, name in (
        (documents.load("exp"), "state/experiments/exp.json"),
        (documents.round_record(RUN, 1), names.round_blob(RUN, 1)),
        (documents.run_record(RUN), names.run_blob(RUN)),
        (documents.retained(RUN), names.retained_blob(RUN)),
        (documents.presence("north"), names.presence_blob("north")),
        (documents.publish_head(head), names.head_blob(RUN)),
    ):
        with pytest.raises(DocumentUnreadable, match="by a later version of Silobus, so use that one") as told:
            await call
        assert name in str(told.value)


async def test_a_document_that_grew_beyond_all_bounds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    documents = Documents(MemoryStore())
    with pytest.raises(Poison) as caught:
        await documents.save("exp", ExperimentDocument(state=training()), replacing=await documents.load("exp"))
    assert caught.value.reason == "state-too-large"


async def test_without_a_list_of_live_runs_it_is_made_from_the_experiments() -> None:
    store = MemoryStore()
    documents = Documents(store)
    live = ExperimentDocument(state=training())
    undone = PublishHead(head=Head(run=RUN, round=1, announcement=1, phase="ended"))
    pending = ExperimentDocument(state=over(), sequence=1, outbox=(Numbered(sequence=1, effect=undone),))
    done = ExperimentDocument(state=over(), sequence=1)
    for name, document in {"live": live, "dead": tombstone("dead"), "over": done, "pending": pending}.items():
        await documents.save(name, document, replacing=await documents.load(name))
    await store.create("state", "experiments/broken.json", b"{}")
    assert await documents.experiments() == ["broken", "dead", "live", "over", "pending"]
    assert await documents.live.experiments() == ["broken", "live", "pending"]
    await store.delete("state", "live.json")
    await documents.live.enter("new_00000001")
    assert await documents.live.experiments() == ["broken", "live", "new", "pending"]


async def test_a_run_that_is_over_leaves_no_later_one_of_its_name_unlisted() -> None:
    live = Documents(MemoryStore()).live
    await live.enter("exp_00000001")
    await live.enter("exp_00000002")
    await live.leave("exp_00000001")
    assert await live.experiments() == ["exp"]
    await live.leave("exp_00000002")
    assert await live.experiments() == []


async def test_a_record_is_written_once() -> None:
    documents = Documents(MemoryStore())
    ended = over()
    await documents.record_run(ended)
    await documents.record_run(ended.model_copy(update={"reason": "another"}))
    found = await documents._store.read(names.STATE, names.run_blob(RUN))
    assert Ended.model_validate_json(found.data) == ended
    assert await documents.is_over(RUN)
    assert not await documents.is_over("exp_11111111")


class Overtaken(MemoryStore):
    """Somebody else writes between a read and the write that follows from it, once."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def read(self, container: str, name: str, *, limit: int = 4 << 20) -> Document:
        found = await super().read(container, name, limit=limit)
        if (meanwhile := self.meanwhile) is not None:
            self.meanwhile = None
            await meanwhile()
        return found


async def test_a_head_that_was_overtaken_while_it_was_written_stays_behind() -> None:
    store = Overtaken()
    documents = Documents(store)
    first, second, third = (Head(run=RUN, round=number, announcement=1, phase="open") for number in (1, 2, 3))
    await documents.publish_head(first)
    store.meanwhile = lambda: documents.publish_head(third)
    await documents.publish_head(second)
    assert Head.model_validate_json((await store.read(names.GLOBAL, names.head_blob(RUN))).data) == third


# --- presence ----------------------------------------------------------------------------------------------------


def hello(instance: str, task: str = "toy") -> SiloHello:
    offers = [Offer(task=task, code="c" * 64)]
    return SiloHello(instance=instance * 32, agent_version="1", policy="d" * 64, offers=offers, at=NOON)


def beat(run: str = RUN, steps: int = 0) -> SiloHeartbeat:
    return SiloHeartbeat(run=run, round=1, doing="training", steps=steps, progress_age=0, at=NOON)


async def test_an_older_hello_never_replaces_a_newer_one() -> None:
    documents = Documents(MemoryStore())
    attendance = Attendance(documents, VirtualClock())
    assert await attendance.is_news("north", hello("a"), NOON)
    await attendance.said_hello("north", hello("a"), NOON)
    assert not await attendance.is_news("north", hello("a"), NOON)
    assert await attendance.is_news("north", hello("b"), NOON)
    earlier = NOON - timedelta(seconds=1)
    assert not await attendance.is_news("north", hello("b"), earlier)
    await attendance.said_hello("north", hello("b", task="old"), earlier)
    known = await documents.presence("north")
    assert known is not None
    assert (known.offers("toy"), known.offers("old")) == (True, False)


async def test_a_heartbeat_written_at_the_same_time_as_a_hello_loses_neither() -> None:
    store = Overtaken()
    documents = Documents(store)
    attendance = Attendance(documents, VirtualClock())
    await attendance.said_hello("north", hello("a"), NOON)
    later = NOON + timedelta(seconds=1)
    store.meanwhile = lambda: attendance.said_hello("north", hello("b", task="new"), later)
    await attendance.heartbeat("north", beat(), later)
    known = await documents.presence("north")
    assert known is not None
    assert known.offers("new")
    assert known.heartbeats == {RUN: beat()}


async def test_a_hello_does_not_forget_heartbeats_and_only_recent_runs_are_kept() -> None:
    documents, clock = Documents(MemoryStore()), VirtualClock()
    attendance = Attendance(documents, clock)
    for number in range(25):
        await attendance.heartbeat("north", beat(run=f"exp_{number:08x}"), NOON + timedelta(hours=number))
    await attendance.said_hello("north", hello("a"), NOON + timedelta(hours=30))
    await attendance.heartbeat("north", beat(run="exp_00000000"), NOON)
    known = await documents.presence("north")
    assert known is not None
    assert known.seen_at == NOON + timedelta(hours=30)
    assert sorted(known.heartbeats) == [f"exp_{number:08x}" for number in range(5, 25)]
    assert known.offers("toy")


async def test_signs_of_life_of_many_runs_at_once_are_kept() -> None:
    documents = Documents(MemoryStore())
    attendance = Attendance(documents, VirtualClock())
    for number in range(MOST_RUNS + 1):
        await attendance.heartbeat("north", beat(run=f"exp_{number:08x}"), NOON + timedelta(seconds=number))
    known = await documents.presence("north")
    assert known is not None
    assert sorted(known.heartbeats) == [f"exp_{number:08x}" for number in range(1, MOST_RUNS + 1)]


async def test_signs_of_life_of_runs_in_turn_are_written_no_more_often_than_those_of_one() -> None:
    store, clock = Counting(), VirtualClock()
    documents = Documents(store)
    attendance = Attendance(documents, clock)
    runs = [f"exp_{number:08x}" for number in range(30)]
    for run in runs:  # what is new is written at once
        await attendance.heartbeat("north", beat(run=run), NOON)
    before = store.writes
    for steps in range(1, 11):
        for run in runs:
            await attendance.heartbeat("north", beat(run=run, steps=steps), NOON + timedelta(seconds=3 * steps))
        await clock.advance(3)
    assert store.writes - before <= 10
    await attendance.heartbeat("north", beat(run=runs[0], steps=11), NOON + timedelta(seconds=33))
    known = await documents.presence("north")
    assert known is not None
    assert [known.heartbeats[run].steps for run in runs] == [11, *[10] * 29]
    assert known.heartbeats_at[runs[1]] == NOON + timedelta(seconds=30)


class Counting(MemoryStore):
    """Counts what is written."""

    writes = 0

    async def write(self, container: str, name: str, data: bytes, *, if_match: str | None) -> str:
        self.writes += 1
        return await super().write(container, name, data, if_match=if_match)
