"""Any number of orchestrators at once, and none between events: who dies is followed, who was asleep does no harm."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
from typing import Literal

import pytest

from messages import names
from messages.codec import encode
from messages.experiments import CancelExperiment, StartExperiment
from messages.ports import Outgoing
from messages.schemas import AggregateRound, SiloHeartbeat
from orchestrator.experiment.state import Aggregating, Collecting, RunOutcome
from orchestrator.outbox import Performer
from orchestrator.store import Documents
from orchestrator.transitions import Experiments
from tests.scenario.faults import FaultyBus, Trouble
from tests.scenario.model_silo import TASK, ModelSilo
from tests.scenario.test_orchestrator import CONSTANTS, collecting, world
from tests.scenario.world import Process, World
from tests.virtual_clock import rest

LOCK = 60
EXACT = [[6.0] * 4, [18.0] * 4, [30.0] * 4]
"""The weights of rounds 0, 1 and 2."""


class Stoppable(Trouble):
    """A process that can be stopped as by SIGSTOP: none of its calls begins or comes back until it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self._going = asyncio.Event()
        self._going.set()

    def stop(self) -> None:
        self._going.clear()

    def go(self) -> None:
        self._going.set()

    async def pass_by(self) -> None:
        await super().pass_by()
        await self._going.wait()


async def summing(w: World, *, at: str = "^open ") -> tuple[str, Process, Stoppable]:
    """A run whose round 1 is being summed by its one orchestrator, which is held at the first such call."""
    trouble = Stoppable()
    patterns = iter([at])

    def hold(queue: str, message: Outgoing) -> None:
        if message.subject == "aggregate-round" and b'"round":1' in message.body:
            for pattern in patterns:  # the first time
                trouble.hold_at(pattern)

    w.witness = hold
    first = await w.start(trouble)
    w.live_silos()
    run = await w.begin()
    await w.clock.until(lambda: trouble.holding, within=600)
    assert isinstance(w.state(), Aggregating)
    return run, first, trouble


def sums(w: World, number: int) -> int:
    """How often the state moved on from the sum of a round."""
    states = [document.state for _, document in w.store.history]
    return sum(
        isinstance(a, Aggregating) and a.closed.round == number and not isinstance(b, Aggregating)
        for a, b in itertools.pairwise(states)
    )


def is_exact(w: World, run: str) -> bool:
    """One blob per round, with the right numbers; each sum counted once."""
    return [w.weights(run, number) for number in range(3)] == EXACT and [sums(w, number) for number in (1, 2)] == [1, 1]


# --- a long sum, and those who make it ---------------------------------------------------------------------------


async def test_a_sum_whose_worker_dies_is_taken_over_when_the_lock_lapses() -> None:
    async with world() as w:
        run, first, _ = await summing(w)
        await w.start()
        await first.kill()
        died = w.clock.now()
        over = await w.ended()
        assert over.outcome is RunOutcome.COMPLETED
        assert is_exact(w, run)
        record = w.record(run, 1)
        assert record is not None
        assert LOCK / 2 <= (record.over_at - died).total_seconds() <= LOCK
        assert await w.dead_letters(names.WORK) == []


async def test_a_sum_takes_as_long_as_it_takes_while_its_worker_lives() -> None:
    async with world() as w:
        run, _, trouble = await summing(w)
        second = await w.start()
        await w.clock.advance(10 * LOCK)
        assert isinstance(w.state(), Aggregating)
        assert not any(line.startswith("open ") for line in second.trouble.log)
        trouble.release()
        await w.ended()
        assert is_exact(w, run)


async def test_nobody_asks_again_for_a_sum_that_is_being_made() -> None:
    async with world() as w:
        sent: list[bytes] = []
        run, _, trouble = await summing(w)
        w.witness = lambda queue, message: sent.append(message.body) if queue == names.WORK else None
        other = await w.start()
        await w.silos["east"].send(w.silos["east"].honest[run, 1])  # a duplicate, met by whoever comes first
        await other.orchestrator.take_up()
        await rest()
        assert sent == []
        trouble.release()
        await w.ended()


async def test_whoever_is_handed_a_sum_does_not_ask_for_it_again() -> None:
    async with world() as w:
        asked: list[str] = []
        trouble = Trouble()

        def note(queue: str, message: Outgoing) -> None:
            if message.subject == "aggregate-round" and b'"round":1' in message.body:
                asked.append(message.message_id)
                trouble.at[trouble.calls] = "crash-after"

        w.witness = note
        await w.start(trouble)
        w.live_silos()
        run = await w.begin()
        await w.clock.until(lambda: trouble.dead, within=600)
        handed, comes_by = another(w), another(w)  # both run already: neither looks into `work`, as a start would
        state = await handed.undertake("exp", lambda state: state, AggregateRound(run=run, round=1))
        assert isinstance(state, Aggregating)
        assert await comes_by.admit("exp", lambda state: state) == state
        assert len(asked) == 1
        await w.ended()
        assert is_exact(w, run)
        assert len(asked) == 1


def another(w: World) -> Experiments:
    """What another process moves experiments with."""
    documents = Documents(w.store)
    return Experiments(documents, Performer(FaultyBus(w.broker, Trouble(), witness=w.witness), documents), w.clock)


async def test_a_worker_stopped_beyond_its_lock_does_no_harm_when_it_goes_on() -> None:
    async with world() as w:
        run, first, trouble = await summing(w)
        trouble.stop()
        trouble.release()
        second = await w.start()
        await w.clock.until(lambda: w.phase() == "ended", within=600)
        assert is_exact(w, run)
        blobs, state = w.store.blobs, w.state()

        trouble.go()
        await w.clock.advance(3 * LOCK)
        assert (w.store.blobs.keys(), w.state()) == (blobs.keys(), state)
        assert not any(line.startswith("create ") and "/00001/" in line for line in trouble.log)
        assert await w.dead_letters(names.WORK) == []

        await second.kill()
        assert first.alive
        await w.begin(experiment="next")
        await w.clock.until(lambda: getattr(w.state("next"), "phase", None) == "ended", within=600)


async def test_two_workers_on_the_same_sum_make_the_same_bytes_and_one_move() -> None:
    async with world() as w:
        run, _, first = await summing(w, at="^create ")
        first.stop()
        second = Stoppable()
        second.hold_at("^create ")
        await w.start(second)
        await w.clock.until(lambda: second.holding, within=2 * LOCK)
        first.go()
        first.release()
        await rest()
        assert sums(w, 1) == 1
        second.release()
        await w.ended()
        assert is_exact(w, run)
        assert [f"create {run}/00001/" in "".join(trouble.log) for trouble in (first, second)] == [True, True]
        assert await w.dead_letters(names.WORK) == []


async def test_a_sum_that_another_has_made_is_given_up() -> None:
    async with world() as w:
        run, _, trouble = await summing(w)
        trouble.stop()
        await w.start()
        await w.clock.until(lambda: sums(w, 1) == 1, within=2 * LOCK)
        trouble.go()
        await w.clock.advance(31)
        trouble.release()
        await w.ended()
        assert is_exact(w, run)
        assert not any(line.startswith(f"create {run}/00001/") for line in trouble.log)
        assert list(w.scratch.iterdir()) == []


async def test_the_sum_of_a_run_that_was_cancelled_is_given_up() -> None:
    async with world() as w:
        await summing(w)
        await w.post(CancelExperiment(experiment="exp"))
        await w.clock.until(lambda: w.phase() == "ended", within=20)
        await w.clock.advance(31)
        assert [m.subject for m in await w.waiting(names.WORK) if m.subject == "aggregate-round"] == []


# --- what the dead leave -----------------------------------------------------------------------------------------


async def test_a_start_deletes_what_the_dead_left_in_the_scratch_directory_and_nothing_else() -> None:
    async with world() as w:
        for name in ("silobus-dead", "silobus-alive", "mine"):
            (w.scratch / name).mkdir()
            (w.scratch / name / "global.safetensors").write_bytes(b"half")
        alive = os.open(w.scratch / "silobus-alive", os.O_RDONLY)
        fcntl.flock(alive, fcntl.LOCK_EX)
        await w.start()
        assert sorted(path.name for path in w.scratch.iterdir()) == ["mine", "silobus-alive"]
        os.close(alive)


# --- starts ------------------------------------------------------------------------------------------------------


async def test_starts_say_nothing_to_anybody_as_long_as_the_queues_are_there() -> None:
    async with world() as w:
        first = await w.start()
        w.live_silos("east")
        await w.begin()
        await collecting(w, 1)
        await first.kill()
        heard = [len(await w.waiting(names.to_silo(silo))) for silo in CONSTANTS]
        second = await w.start()  # it cannot know what of the last event was done
        await second.kill()
        repeated = [len(await w.waiting(names.to_silo(silo))) for silo in CONSTANTS]
        assert all(before <= after <= before + 1 for before, after in zip(heard, repeated, strict=True))
        for _ in range(3):
            again = await w.start()
            await again.kill()
            assert not [line for line in again.trouble.log if line.split()[0] in {"send", "write"}]


async def test_a_start_sends_again_what_is_not_in_the_queue_any_more() -> None:
    async with world() as w:
        first = await w.start()
        w.live_silos("east")
        await w.begin()
        await collecting(w, 1)
        await first.kill()
        await (await w.start()).kill()
        w.lose_queues()
        await w.start()
        told = [len(await w.waiting(names.to_silo(silo))) for silo in CONSTANTS]
        assert told == [0, 1, 1]  # east has answered
        assert [m.subject for m in await w.waiting(names.WORK)] == ["deadline-passed"]


# --- none at all, between events ---------------------------------------------------------------------------------


async def life(w: World, until_idle: float = 60.0) -> float:
    """An orchestrator from its start to its own end; for how long it lived."""
    born = w.clock.now()
    process = await w.start(until_idle=until_idle)
    await w.clock.until(process.main.done, within=3600)
    process.main.result()
    return (w.clock.now() - born).total_seconds()


async def posted(w: World) -> str:
    """A start that waits, with silos that are known and do nothing by themselves; the run's id."""
    for silo in w.silos.values():
        await silo.hello()
    await life(w)
    return await w.post(StartExperiment.model_validate({"experiment": "exp", "task": TASK, "rounds": 2}))


async def answer(*silos: ModelSilo) -> None:
    """Silos do what waits for them."""
    for silo in silos:
        while (delivery := await silo.bus.receive(names.to_silo(silo.name), wait=0)) is not None:
            await silo.hear(delivery.body)
            await silo.bus.complete(delivery)


async def test_a_run_is_finished_by_orchestrators_that_end_when_they_are_idle() -> None:
    async with world() as w:
        run = await posted(w)
        lives = [await life(w)]
        while w.phase() != "ended":
            await answer(*w.silos.values())
            lives.append(await life(w))
        assert len(lives) == 1 + 4
        assert all(60 <= lived <= 130 for lived in lives)
        assert is_exact(w, run)
        assert await w.dead_letters(names.WORK) == []
        assert "deadline-passed" in {message.subject for message in await w.waiting(names.WORK)}


async def test_signs_of_life_keep_no_orchestrator_and_are_taken_all_the_same() -> None:
    async with world() as w:
        run = await posted(w)
        process = await w.start(until_idle=60)
        while process.alive:
            beat = SiloHeartbeat(run=run, round=0, doing="training", progress_age=0, at=w.clock.now())
            outgoing = Outgoing(body=encode(beat), message_id="beat", subject=beat.kind)
            await w.bus.send(names.from_silo("east"), outgoing)
            await w.clock.advance(5)
            assert (w.clock.now() - w.store.history[0][0]).total_seconds() < 200
        assert await w.waiting(names.from_silo("east")) == []


async def test_a_sum_in_hand_is_not_idle() -> None:
    async with world() as w:
        trouble = Trouble()
        run = await posted(w)
        await life(w)
        await answer(w.silos["east"])
        trouble.hold_at("^fetch ")  # round 0 copies the first model
        process = await w.start(trouble, until_idle=60)
        await w.clock.advance(600)
        assert trouble.holding
        assert process.alive
        trouble.release()
        await w.clock.until(process.main.done, within=200)
        assert w.weights(run, 0) == EXACT[0]
        await rest()


@pytest.mark.parametrize("when", ["crash-before", "crash-after", "lose-answer"])
async def test_a_start_takes_no_old_deadline_for_one_that_was_brought_forward(when: str) -> None:
    async with world(silos={"east": 6.0, "north": 12.0}) as w:
        w.silos["north"].doing = lambda asked: "fail" if (asked.round, asked.announcement) == (1, 1) else "update"
        trouble = Trouble()
        sent: list[bytes] = []
        struck: list[str] = []

        def note(queue: str, message: Outgoing) -> None:
            if message.subject == "deadline-passed" and b'"round":1' in message.body:
                sent.append(message.body)

        def brought_forward(w: World) -> bool:
            state = w.state()
            return isinstance(state, Collecting) and (state.deadline - state.opened_at).total_seconds() < 3600

        hook = trouble.hook

        def at_its_send(stage: Literal["before", "after"], operation: str, where: str) -> None:
            if (stage, operation, where) == ("before", "send", names.WORK) and brought_forward(w) and not struck:
                struck.append(operation)
                trouble.in_calls(1, when)
            hook(stage, operation, where)

        trouble.hook = at_its_send  # type: ignore[method-assign]
        w.witness = note
        await w.start(trouble)
        w.live_silos()
        await w.begin(rounds=1, quorum={"deadline": 86400})
        began = w.clock.now()
        over = await w.ended()
        assert struck
        assert over.outcome is RunOutcome.COMPLETED
        assert (over.ended_at - began).total_seconds() <= 10 + LOCK
        assert len(set(sent)) == 3, "two of the first announcement, one of the second"
