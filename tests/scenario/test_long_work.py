"""Work that takes longer than its message may be delivered: nothing has failed, so nothing may fail because of it.

Brokers set a message aside after so many deliveries, ten here, and every lost lock, stop and kill is one.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from messages import names
from messages.errors import Transient
from messages.transport.memory_bus import MemoryBus
from orchestrator.blobs import Weights
from orchestrator.experiment.state import RunOutcome
from silo_agent.runners.port import Job, Outcome
from silobus.round import Round
from tests.scenario.faults import Trouble
from tests.scenario.test_orchestrator import world
from tests.scenario.test_several_orchestrators import LOCK, is_exact, summing
from tests.scenario.whole import Called, Fault, Whole

HOUR = 3600.0
QUORUM = {"minimum": "all", "deadline": 7 * 86400}
Ends = Literal["killed", "stopped"]


def body(rnd: Round) -> None:
    """Trains."""
    model = {"w": np.zeros(2, np.float32)}
    rnd.load(model)
    if rnd.trains:
        rnd.submit(model, samples=30, steps=1)


class Elsewhere(Called):
    """Trains for hours on a compute of its own, where a job goes on whatever becomes of the agent."""

    def __init__(self, whole: Whole, hours: float) -> None:
        super().__init__(body)
        self._whole, self._hours = whole, hours
        self.ends: dict[int, datetime] = {}
        self.began = 0

    async def run(self, job: Job) -> Outcome:
        now = self._whole.clock.now()
        if job.round == 1:
            self.began += 1
            end = self.ends.setdefault(job.round, now + timedelta(hours=self._hours))
            await self._whole.clock.sleep((end - now).total_seconds())
        return await super().run(job)


def bad(whole: Whole) -> Fault:
    """A link that is down for longer than a lock lasts, ten times an hour."""
    began = whole.clock.now()

    def link(when: str, operation: str, queue: str) -> None:
        passed = (whole.clock.now() - began).total_seconds()
        if passed > 60 and passed % 360 < 90:
            raise Transient("the site's link is down")

    return link


async def dead_letters(whole: Whole) -> list[str | None]:
    bus = MemoryBus(whole.broker)
    queues = names.queues(list(whole.silos))
    return [d.dead_letter_reason for q in queues for d in await bus.peek(names.dead_letters_of(q), count=9)]


@pytest.fixture
def whole(tmp_path: Path) -> Any:
    def made() -> Whole:
        w = Whole(tmp_path, {"north": body, "south": body})
        w.heartbeat = HOUR
        return w

    return made


async def test_a_training_outlives_any_number_of_locks_that_a_bad_link_loses(whole: Any) -> None:
    w = whole()
    w.runners["south"] = south = Elsewhere(w, 2)
    w.links["south"] = bad(w)
    await w.run(quorum=QUORUM)
    assert south.began == 1, "what came again began it once more"
    assert await dead_letters(w) == []


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_an_agent_may_end_as_often_as_it_likes_while_its_job_runs(whole: Any, how: Ends) -> None:
    w = whole()
    w.runners["south"] = south = Elsewhere(w, 2)
    held: list[int] = []

    async def again_and_again() -> None:
        while True:
            await w.clock.sleep(HOUR / 10)
            task, stop = w.agents["south"]
            task.cancel() if how == "killed" else stop.set()
            await w.clock.sleep(40)
            assert task.done()
            w.start_agent("south")
            await w.clock.sleep(5)
            held.append(len(await MemoryBus(w.broker).peek(names.to_silo("south"), count=99)))

    ending = asyncio.create_task(again_and_again())
    await w.run(quorum=QUORUM)
    ending.cancel()
    assert south.began == len(held) + 1 > 15
    assert await dead_letters(w) == []
    assert max(held) <= 10, "each agent is announced the round once more; what is old has to go"


async def test_a_sum_may_lose_its_lock_any_number_of_times() -> None:
    async with world() as w:
        run, _, trouble = await summing(w)
        began, asked, calls = w.clock.now(), trouble.hook, len(trouble.log)

        def hook(when: Literal["before", "after"], operation: str, where: str) -> None:
            passed = (w.clock.now() - began).total_seconds()
            if when == "before" and where in names.queues(list(w.silos)) and passed % 360 > 250:
                raise Transient("the bus is away")
            asked(when, operation, where)

        trouble.hook = hook  # type: ignore[method-assign]
        await w.clock.advance(1.5 * HOUR)
        assert w.phase() == "aggregating"
        assert not any(line.startswith("open ") for line in trouble.log[calls:]), "another sum of it was begun"
        trouble.release()
        await w.ended()
        assert is_exact(w, run)
        assert await w.dead_letters(names.WORK) == []


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_the_worker_of_a_sum_may_end_any_number_of_times(how: Ends) -> None:
    async with world() as w:
        run, worker, _ = await summing(w)
        for _ in range(20):
            if how == "stopped":
                worker.stop.set()
                await w.clock.advance(30)
                assert worker.main.done()
            await worker.kill()
            await w.clock.advance(LOCK)
            trouble = Trouble()
            trouble.hold_at("^open ")
            worker = await w.start(trouble)
            await w.clock.advance(5)
            assert trouble.holding
        trouble.release()
        await w.ended()
        assert is_exact(w, run)
        assert await w.dead_letters(names.WORK) == []
        assert not [m for m in await w.waiting(names.WORK) if m.subject == "aggregate-round"]


async def test_a_sum_with_a_bug_ends_its_run_though_each_of_its_workers_has_seen_it_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where orchestrators are scaled to zero: they are gone when a lock has lapsed."""

    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Weights, "aggregate", broken)
    async with world() as w:
        await w.start()
        w.live_silos()
        await w.begin()
        tries = 0
        while w.phase() != "ended":
            tries += 1
            assert tries < 12
            await w.clock.advance(LOCK / 2)
            await w.processes[-1].kill()
            await w.clock.advance(LOCK)
            if w.phase() != "ended":
                await w.start()
        over = await w.ended()
        assert over.outcome is RunOutcome.FAILED
        assert "ZeroDivisionError at test_long_work.py:" in over.reason
        assert await w.dead_letters(names.WORK) == ["bug"]


async def test_a_bug_of_work_whose_message_went_is_told_to_the_run(whole: Any) -> None:
    """It was delivered often, for which nobody is to blame; then we are."""
    w = whole()

    class Breaks(Elsewhere):
        async def run(self, job: Job) -> Outcome:
            await super().run(job)
            raise ZeroDivisionError

    w.runners["south"] = Breaks(w, 1.5)
    w.links["south"] = bad(w)
    with pytest.raises(AssertionError, match="south: declined: agent-fault"):
        await w.run(quorum=QUORUM)
    assert await dead_letters(w) == []


async def test_a_training_that_always_breaks_our_code_is_a_dead_letter_with_its_reason(whole: Any) -> None:
    w = whole()

    class Breaks(Called):
        async def run(self, job: Job) -> Outcome:
            raise ZeroDivisionError

    w.runners["south"] = Breaks(body)
    with pytest.raises(AssertionError, match="south: declined: agent-fault"):
        await w.run(quorum=QUORUM)
    (dead,) = await MemoryBus(w.broker).peek(names.dead_letters_of(names.to_silo("south")), count=9)
    assert (dead.dead_letter_reason, dead.delivery_count) == ("bug", 7)
    assert "AgentFault" in (dead.dead_letter_description or "")
