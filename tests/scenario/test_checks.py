"""Checks on what comes in: what is measured, what is left out of a sum, and that the run goes on rightly without."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from messages import names
from messages.ports import Reader
from messages.schemas import AggregateRound, ClosedBecause, Purpose, RoundAnnounced, RoundClosed
from messages.transport.memory_store import MemoryStore
from orchestrator.blobs import Weights
from orchestrator.experiment.checking import Change
from orchestrator.experiment.state import Aggregating, Collecting, Ended, RoundRecord, RunOutcome
from orchestrator.replay import Replay
from orchestrator.store import Documents
from tests.scenario.faults import Trouble
from tests.scenario.machine_invariants import assert_follows
from tests.scenario.model_silo import Doing
from tests.scenario.world import World
from tests.virtual_clock import rest

HONEST = {"east": 2.0, "north": 3.0, "west": 4.0}
"""What they add: together 3 a round."""
HUGE = {**HONEST, "south": 1e6}
FLIPPED = {**HONEST, "south": -3.0}
BOTH = {"max_norm_ratio": 5, "min_cosine": -0.5}
QUORUM = {"minimum": 3, "deadline": 100, "reminders": 1}


@contextlib.asynccontextmanager
async def world(silos: dict[str, float]) -> AsyncIterator[World]:
    made = World(silos)
    try:
        yield made
    finally:
        await made.close()


def record_of(w: World, run: str, number: int = 1) -> RoundRecord:
    record = w.record(run, number)
    assert record is not None
    return record


def changes(record: RoundRecord) -> dict[str, Change | None]:
    return {update.silo: update.change for update in (*record.updates, *record.left_out)}


async def finished(silos: dict[str, float], trouble: Trouble | None = None, **start: Any) -> tuple[World, str, Ended]:
    """A run that is over, in a world that is closed but can be looked at."""
    async with world(silos) as w:
        await w.start(trouble)
        w.live_silos()
        run = await w.begin(**{"rounds": 1, "quorum": QUORUM, **start})
        return w, run, await w.ended()


# --- left out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["weights", "delta"])
@pytest.mark.parametrize(
    ("silos", "checks", "why"),
    [
        (HUGE, {"max_norm": 10.0}, "its change has norm 2e+06, and max_norm is 10"),
        (HUGE, BOTH, "its change has norm 2e+06, 2.86e+05 times the round's median of 7, and max_norm_ratio is 5"),
        (FLIPPED, BOTH, "its change has cosine -1.000 to the others, and min_cosine is -0.5"),
    ],
)
async def test_an_update_beyond_a_bound_is_left_out_as_if_it_had_never_come(
    silos: dict[str, float], checks: dict[str, float], why: str, form: str
) -> None:
    w, run, over = await finished(silos, rounds=2, checks=checks, transfer={"form": form})
    without, honest_run, _ = await finished(HONEST, rounds=2, transfer={"form": form})
    assert over.outcome is RunOutcome.COMPLETED
    for number in (1, 2):
        record, honest = record_of(w, run, number), record_of(without, honest_run, number)
        assert (record.others, honest.others) == ({"south": f"left out: {why}"}, {})
        assert record.model == honest.model
        assert [u.silo for u in record.left_out] == ["south"]
    assert w.weights(run, 2) == [8.0] * 4


async def test_the_message_of_an_update_that_is_left_out_is_done_and_the_log_tells(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    async with world(HUGE) as w:
        await w.start()
        w.live_silos()
        await w.begin(rounds=1, quorum=QUORUM, checks={"max_norm": 10.0})
        await w.ended()
        assert await w.dead_letters(names.from_silo("south")) == []
        assert await w.waiting(names.from_silo("south")) == []
    assert [r.getMessage() for r in caplog.records].count("update.left-out") == 1


async def test_owners_read_of_the_bounds_in_the_announcement() -> None:
    w, _, _ = await finished(HONEST, checks=BOTH)
    heard = [m for m in w.silos["north"].heard if isinstance(m, RoundAnnounced)]
    told = {m.purpose: m.checks and m.checks.model_dump(exclude_defaults=True) for m in heard}
    assert told == {Purpose.TRAIN: BOTH, Purpose.EVALUATE: None}


async def test_a_replay_makes_the_same_bytes() -> None:
    async with world(FLIPPED) as w:
        await w.start()
        w.live_silos()
        await w.begin(rounds=2, quorum=QUORUM, checks=BOTH)
        over = await w.ended()
        weights = Weights(w.store, w.scratch, memory_budget=1 << 20)
        replay = Replay(w.store, Documents(w.store), weights, over.run)
        found = [one.verdict.value async for one in replay.replay([1, 2])]
    assert found == ["same", "same"]


async def test_bounds_with_fednova_are_refused_at_the_start() -> None:
    """A silo whose change is as long as the others' says 10^12 steps, and theirs become so many times longer."""
    async with world(HONEST) as w:
        await w.start()
        w.live_silos()
        await w.begin(quorum=QUORUM, strategy={"name": "fednova"}, checks=BOTH)
        await rest()
        assert await w.dead_letters(names.EXPERIMENTS) == ["checks-that-bound-nothing"]
        assert w.state() is None
        await w.begin(experiment="measured", quorum=QUORUM, strategy={"name": "fednova"}, checks={"measure": True})
        await rest()
        assert await w.dead_letters(names.EXPERIMENTS) == ["checks-that-bound-nothing"]


# --- the quorum, again -------------------------------------------------------------------------------------------


def silent_at_first(asked: RoundAnnounced) -> Doing:
    return "update" if asked.announcement > 1 or asked.purpose is Purpose.EVALUATE else "ignore"


async def reopened(trouble: Trouble | None = None) -> tuple[World, str, Ended]:
    """North is silent until it is asked again; without it and without south, who is flipped, there are two of three."""
    async with world(FLIPPED) as w:
        w.silos["north"].doing = silent_at_first
        await w.start(trouble)
        w.live_silos()
        run = await w.begin(rounds=1, quorum=QUORUM, checks=BOTH)
        over = await w.ended()
    for (_, before), (at, later) in itertools.pairwise(w.store.history):
        assert_follows(before, later, at)
    return w, run, over


async def test_with_too_few_left_those_who_are_silent_are_asked_again() -> None:
    w, run, over = await reopened()
    assert over.outcome is RunOutcome.COMPLETED
    record = record_of(w, run)
    assert (record.announcements, [u.silo for u in record.updates]) == (2, ["east", "north", "west"])
    assert [u.silo for u in record.left_out] == ["south"]
    assert w.weights(run, 1) == [5.0] * 4
    asked = {s: [m.announcement for m in silo.heard if is_training(m)] for s, silo in w.silos.items()}
    assert asked == {"east": [1], "north": [1, 2], "south": [1], "west": [1]}
    assert not any(isinstance(m, RoundClosed) and m.round == 1 for m in w.silos["north"].heard)


def is_training(message: RoundAnnounced | RoundClosed) -> bool:
    return isinstance(message, RoundAnnounced) and message.purpose is Purpose.TRAIN


async def test_with_too_few_left_and_nobody_to_ask_the_run_fails_and_names_who_was_left_out() -> None:
    w, run, over = await finished(FLIPPED, quorum={**QUORUM, "minimum": 4}, checks=BOTH)
    assert over.outcome is RunOutcome.FAILED
    assert over.reason.startswith("Round 1: no quorum, 3 of 4 updates. south: left out: its change has cosine")
    assert [u.silo for u in record_of(w, run).left_out] == ["south"]


async def test_who_is_waited_for_no_longer_is_told_once_the_set_was_judged() -> None:
    async with world({**FLIPPED, "zone": 3.0}) as w:
        w.silos["zone"].doing = lambda asked: "ignore" if asked.purpose is Purpose.TRAIN else "update"
        await w.start()
        w.live_silos()
        await w.begin(rounds=1, quorum=QUORUM, checks=BOTH)
        await w.ended()
        closed = [m for m in w.silos["zone"].heard if isinstance(m, RoundClosed)]
    assert [(m.round, m.because) for m in closed] == [(1, ClosedBecause.AGGREGATED)]


# --- whatever goes wrong -----------------------------------------------------------------------------------------


def outcome(w: World, run: str, over: Ended) -> object:
    record = record_of(w, run)
    left_out = [(u.silo, u.payload, u.change) for u in record.left_out]
    updates = [(u.silo, u.payload, u.change) for u in record.updates]
    return over.outcome, record.others, left_out, updates, record.model, record.announcements


@pytest.mark.parametrize("what", ["crash-before", "lose-answer"])
async def test_judging_comes_to_the_same_whichever_call_around_it_goes_wrong(what: str) -> None:
    """A share of the calls from the round's first announcement to its record."""
    watched = Trouble()
    undisturbed = outcome(*await reopened(watched))
    opened, closed = [n for n, call in enumerate(watched.log, 1) if call.startswith("write rounds/")][:2]
    assert closed - opened > 60
    for call in range(opened + len(what), closed, 15):
        trouble = Trouble()
        trouble.at[call] = what
        assert outcome(*await reopened(trouble)) == undisturbed, trouble.log[call - 1]


@pytest.mark.parametrize("second_dies", [False, True])
async def test_two_workers_that_judge_at_the_same_time_come_to_one_verdict(second_dies: bool) -> None:
    """The first has compared, and stands still; the second judges, and sums or dies before it could."""
    async with world(FLIPPED) as w:
        first = await w.start()
        comparing, go_on = asyncio.Event(), asyncio.Event()

        async def held(state: Aggregating, compared: Any = first.orchestrator._weights.compared) -> Any:
            found = await compared(state)
            comparing.set()
            await go_on.wait()
            return found

        first.orchestrator._weights.compared = held  # type: ignore[method-assign]
        w.live_silos()
        run = await w.begin(rounds=1, quorum=QUORUM, checks=BOTH)
        await w.clock.until(comparing.is_set, within=600)
        second = await w.start()
        if second_dies:
            second.orchestrator._weights.aggregate = never  # type: ignore[method-assign]
        other = asyncio.create_task(second.orchestrator._sums.make(AggregateRound(run=run, round=1)))
        await rest()
        judged = w.state()
        if second_dies:
            assert isinstance(judged, Aggregating)
            assert judged.judging is None
            other.cancel()
            await second.kill()
        else:
            assert other.done()
        go_on.set()
        await w.clock.until(lambda: w.record(run, 1) is not None, within=20)
        over = await w.ended()
        assert first.alive
        record = record_of(w, run)
    assert over.outcome is RunOutcome.COMPLETED
    assert [u.silo for u in record.left_out] == ["south"]
    assert (over.run.paces["south"].left_out, over.run.paces["west"].updates) == (1, 2)


async def never(state: Aggregating) -> Any:
    await asyncio.Event().wait()


@pytest.mark.parametrize("form", ["weights", "delta"])
@pytest.mark.parametrize("checks", [{"max_norm": 100}, {"max_norm_ratio": 5}, {"min_cosine": -0.5}, {"measure": True}])
async def test_what_is_not_finite_is_refused_as_it_is_without_checks(checks: dict[str, Any], form: str) -> None:
    """At once, and by its name: a grace of an hour is over when the last silo has answered."""
    async with world({**HONEST, "south": 1.0}) as w:
        w.silos["south"].doing = lambda asked: "spoil" if asked.purpose is Purpose.TRAIN else "update"
        await w.start()
        w.live_silos()
        quorum = {"minimum": 3, "grace": 3600, "deadline": 7200}
        run = await w.begin(rounds=1, quorum=quorum, checks=checks, transfer={"form": form})
        over = await w.ended()
        assert await w.dead_letters(names.from_silo("south")) == ["not-finite"]
        record = record_of(w, run)
    assert over.outcome is RunOutcome.COMPLETED
    assert record.others["south"].startswith("failed: not-finite: ")
    assert (record.closed_at - record.opened_at).total_seconds() < 60


# --- what is measured --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["weights", "delta"])
async def test_what_is_measured_stands_in_the_record(form: str) -> None:
    w, run, _ = await finished(FLIPPED, rounds=2, checks={"measure": True}, transfer={"form": form})
    first, second = record_of(w, run, 1), record_of(w, run, 2)
    assert [u.silo for u in first.updates] == ["east", "north", "south", "west"]
    norms = {"east": 4.0, "north": 6.0, "south": 6.0, "west": 8.0}
    for record, to_last in ((first, None), (second, 1.0)):
        found = changes(record)
        assert {silo: change and change.norm for silo, change in found.items()} == norms
        assert {silo: change and change.cosine_last for silo, change in found.items()} == dict.fromkeys(norms, to_last)
        cosines = {silo: change.cosine for silo, change in found.items() if change}
        assert cosines == pytest.approx({"east": 1.0, "north": 1.0, "south": -1.0, "west": 1.0})


@pytest.mark.parametrize(
    ("checks", "form", "beside", "again"),
    [
        ({"max_norm": 100}, "weights", 3, 0),
        ({"max_norm": 100}, "delta", 0, 0),
        ({"max_norm_ratio": 5}, "weights", 3, 0),
        ({"min_cosine": -0.5}, "weights", 0, 4),
        ({"measure": True}, "weights", 3, 4),
        ({"measure": True}, "delta", 0, 4),
    ],
)
async def test_checks_cost_what_they_are_said_to_cost_and_none_costs_nothing(
    checks: dict[str, Any], form: str, beside: int, again: int
) -> None:
    """In blobs opened: the base beside each update, and all of them once more before they are summed."""
    opened = []
    for asked in (None, checks):
        trouble = Trouble()
        w, run, _ = await finished(HONEST, trouble, checks=asked, transfer={"form": form})
        opened.append(sum(call.startswith("open") for call in trouble.log))
        assert (changes(record_of(w, run)) == dict.fromkeys(HONEST)) == (asked is None)
    assert opened[1] - opened[0] == beside + again


async def test_the_last_update_is_not_missed_when_it_is_gone() -> None:
    async with world(HONEST) as w:

        def deleting(asked: RoundAnnounced) -> Doing:
            if asked.round == 2:
                prefix = names.round_prefix(asked.run, 1)
                gone = [(c, n) for c, n in w.store.blobs if c == names.updates_of("west") and n.startswith(prefix)]
                for key in gone:
                    del w.store._blobs[key]
            return "update"

        w.silos["west"].doing = deleting
        await w.start()
        w.live_silos()
        run = await w.begin(rounds=2, quorum=QUORUM, checks={"measure": True})
        over = await w.ended()
        record = record_of(w, run, 2)
    assert over.outcome is RunOutcome.COMPLETED
    lasts = {silo: change.cosine_last for silo, change in changes(record).items() if change}
    assert lasts == {"east": 1.0, "north": 1.0, "west": None}


class _Vanishing(Reader):
    """A reader of a blob that is deleted once so many ranges of it were read."""

    def __init__(self, store: MemoryStore, container: str, name: str, reader: Reader, reads: int) -> None:
        self._store, self._container, self._name, self._reader, self._reads = store, container, name, reader, reads

    @property
    def size(self) -> int:
        return self._reader.size

    @property
    def etag(self) -> str:
        return self._reader.etag

    async def read(self, offset: int, length: int) -> bytes:
        if self._reads == 0:
            await self._store.delete(self._container, self._name)
        self._reads -= 1
        return await self._reader.read(offset, length)

    async def close(self) -> None:
        await self._reader.close()


@pytest.mark.parametrize("reads", [0, 1])
@pytest.mark.parametrize("container", ["updates-west", names.GLOBAL])
async def test_the_last_update_may_be_deleted_while_it_is_read(container: str, reads: int) -> None:
    """Or what it was a change to. The first range that is read is the header's, the second has numbers."""
    async with world(HONEST) as w:
        opened = w.store.open

        async def vanishing(where: str, name: str) -> Reader:
            reader, state = await opened(where, name), w.state()
            number = 1 if container != names.GLOBAL else 0  # that the last update was for; what it started from
            if not (isinstance(state, Collecting) and state.round == 2 and where == container):
                return reader
            theirs = name.startswith(names.round_prefix(state.run.id, number))
            return _Vanishing(w.store, where, name, reader, reads) if theirs else reader

        w.store.open = vanishing  # type: ignore[method-assign]
        await w.start()
        w.live_silos("west")
        run = await w.begin(rounds=2, silos=["west"], quorum={"minimum": 1}, checks={"measure": True})
        over = await w.ended()
        assert await w.dead_letters(names.from_silo("west")) == []
    assert over.outcome is RunOutcome.COMPLETED
    assert changes(record_of(w, run, 2)) == {"west": Change(norm=8.0)}
