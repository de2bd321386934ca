"""Anything, in any order: Hypothesis drives the real orchestrators through faults no one would think of.

The bus delivers twice, late, out of order, and drops what it takes for a duplicate; locks lapse; calls are refused or
their answers get lost; processes die between any two calls; queues are lost. After every step the whole history of
stored states must make sense, and once the faults stop every run must come to its end, with exactly the right weights.

The examples are the same each time. SILOBUS_EXAMPLES=1000 looks at so many others.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Coroutine
from datetime import datetime
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from messages import names
from messages.experiments import CancelExperiment, PauseExperiment, ResumeExperiment, StartExperiment
from messages.ports import Delivery, Outgoing
from messages.schemas import Head, Purpose
from messages.transport.memory_bus import QueueOptions
from orchestrator.documents import ExperimentDocument
from orchestrator.experiment.announcing import awaited
from orchestrator.experiment.state import (
    Aggregating,
    Collecting,
    Ended,
    Paused,
    RoundOutcome,
    RunOutcome,
    State,
    Tombstone,
    Updated,
)
from tests.scenario.faults import Trouble
from tests.scenario.model_silo import TASK, Doing
from tests.scenario.world import Process, World
from tests.virtual_clock import rest

T = TypeVar("T")
CONSTANTS = {"east": 6.0, "north": 12.0, "south": 24.0}  # any mean of them is a whole number
SILOS = some.sampled_from(sorted(CONSTANTS))
QUEUES = some.sampled_from([*names.queues(sorted(CONSTANTS)), names.WORK, names.WORK])
MISCHIEF = some.sampled_from(["decline", "fail", "fail", "spoil", "spoil", "ignore"])
CALLS = some.sampled_from(["write experiments", "write rounds/", "send to-", "send work", "head", "create", "complete"])
HARMLESS = {
    "not-finite",
    "update-conflict",
    "not-asked",
    "experiment-is-live",
    "cancelled-before-start",
    "unknown-experiment",
}
"""Reasons for dead letters that silos and operators here bring upon themselves."""
EXAMPLES = int(os.environ.get("SILOBUS_EXAMPLES", "0"))


class Federation(RuleBasedStateMachine):
    """Three silos, up to two orchestrators, and everything that can go wrong between them."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.checked = 0
        self.heads = 0
        self.judged: set[tuple[str, int]] = set()
        self.past: list[tuple[str, Delivery]] = []
        self.held: list[tuple[str, Delivery]] = []
        self.spoilt = False
        """Whether a silo did anything for which a run may fail."""
        self.cancelled = False

    def do(self, action: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(action)

    @initialize(
        start=some.fixed_dictionaries(
            {
                "rounds": some.integers(1, 3),
                "quorum": some.fixed_dictionaries(
                    {
                        "minimum": some.sampled_from([1, 2, "all"]),
                        "grace": some.sampled_from([0, 30]),
                        "deadline": some.just(300),
                        "reminders": some.just(1000),
                    }
                ),
                "transfer": some.sampled_from([{"form": "weights"}, {"form": "delta"}]),
            }
        ),
        detection=some.sampled_from([None, None, 600.0]),
        seed=some.integers(0, 1000),
        two=some.booleans(),
    )
    def begin(self, start: dict[str, Any], detection: float | None, seed: int, two: bool) -> None:
        self.yields = random.Random(seed)
        self.start = StartExperiment.model_validate({"experiment": "exp", "task": TASK, **start})

        async def action() -> None:
            options = QueueOptions(lock_duration=60, max_delivery_count=1000, duplicate_detection=detection)
            self.world = World(CONSTANTS, options=options)
            await self.world.start(Trouble(yields=self.yields))
            await self.world.begin(**start)
            if two:
                await self.world.start(Trouble(yields=self.yields))

        self.do(action())

    # --- what happens anyway -------------------------------------------------------------------------------------

    @rule(seconds=some.sampled_from([1, 40, 70, 301]))
    def time_passes(self, seconds: int) -> None:
        self.do(self.world.clock.advance(seconds))

    @rule(silo=SILOS, completes=some.booleans())
    def a_silo_hears(self, silo: str, completes: bool) -> None:
        self._hears(silo, "update", completes)

    @rule(silo=SILOS, doing=MISCHIEF, completes=some.booleans())
    def a_silo_gives_no_update(self, silo: str, doing: Doing, completes: bool) -> None:
        self._hears(silo, doing, completes)

    def _hears(self, silo: str, doing: Doing, completes: bool, *, then_rest: bool = True) -> None:
        async def action() -> None:
            delivery = self.world.broker.take(names.to_silo(silo))
            if delivery is not None:
                self.spoilt |= doing != "update"
                self.world.silos[silo].doing = lambda asked: doing
                await self.world.silos[silo].hear(delivery.body)
                if completes:
                    self.world.broker.complete(delivery)
            if then_rest:
                await rest()

        self.do(action())

    @rule(completes=some.booleans())
    def all_silos_hear_everything(self, completes: bool) -> None:
        """Nobody comes to rest in between, so that their updates race."""
        for silo in sorted(CONSTANTS):
            for _ in range(3):
                self._hears(silo, "update", completes, then_rest=False)
        self.do(rest())

    @rule(silo=SILOS)
    def an_agent_is_started_again(self, silo: str) -> None:
        async def action() -> None:
            await self.world.silos[silo].hello()
            await rest()

        self.do(action())

    @rule(message=some.sampled_from(["pause", "resume", "resume", "start again", "start otherwise", "cancel"]))
    def an_operator_posts(self, message: str) -> None:
        posted = {
            "pause": PauseExperiment(experiment="exp"),
            "resume": ResumeExperiment(experiment="exp"),
            "start again": self.start,
            "start otherwise": self.start.model_copy(update={"rounds": 9}),
            "cancel": CancelExperiment(experiment="exp"),
        }[message]
        if message == "cancel" and self.yields.random() < 0.7:
            return  # most runs should come further than this
        self.cancelled |= message == "cancel"

        async def action() -> None:
            await self.world.post(posted)
            await rest()

        self.do(action())

    # --- what goes wrong -----------------------------------------------------------------------------------------

    @rule(queue=QUEUES, which=some.integers(0, 50), copies=some.integers(1, 2), same_id=some.booleans())
    def a_message_comes_again(self, queue: str, which: int, copies: int, same_id: bool) -> None:
        """One that is there now, or one that was there long ago."""
        self._remember()
        candidates = [delivery for name, delivery in self.past if name == queue]
        if candidates:
            for _ in range(copies):
                self._put_back(queue, candidates[which % len(candidates)], same_id=same_id)
        self.do(rest())

    @rule(queue=QUEUES, which=some.integers(0, 5))
    def a_message_is_late(self, queue: str, which: int) -> None:
        messages = self.world.broker._queues[queue].messages
        free = [m for m in messages if m.locked_until is None]
        if free:
            message = free[which % len(free)]
            messages.remove(message)
            self.held.append((queue, message.delivery))

    @rule(which=some.integers(0, 50))
    def a_late_message_comes(self, which: int) -> None:
        if not self.held:
            return
        self._put_back(*self.held.pop(which % len(self.held)), same_id=False)
        self.do(rest())

    @rule(queue=QUEUES, by=some.integers(1, 5))
    def messages_change_places(self, queue: str, by: int) -> None:
        messages = self.world.broker._queues[queue].messages
        messages[:] = messages[by % (len(messages) or 1) :] + messages[: by % (len(messages) or 1)]

    @rule(queue=QUEUES)
    def locks_lapse(self, queue: str) -> None:
        async def action() -> None:
            for message in self.world.broker._queues[queue].messages:
                if message.locked_until is not None:
                    message.locked_until = self.world.clock.now()
            await self.world.clock.advance(0.001)

        self.do(action())

    @rule(
        which=some.integers(0, 1),
        calls=some.integers(1, 25),
        what=some.sampled_from(["crash-before", "crash-after", "refuse", "lose-answer", "lose-answer"]),
    )
    def a_call_will_go_wrong(self, which: int, calls: int, what: str) -> None:
        alive = self._alive()
        if alive:
            alive[which % len(alive)].trouble.in_calls(calls, what)

    @rule(which=some.integers(0, 1), call=CALLS, what=some.sampled_from(["refuse", "lose-answer", "lose-answer"]))
    def such_a_call_goes_wrong_while_silos_answer(self, which: int, call: str, what: str) -> None:
        self._goes_wrong(which, call, what)

    @rule(which=some.integers(0, 1), call=CALLS, started_again=some.booleans())
    def an_orchestrator_dies_at_such_a_call(self, which: int, call: str, started_again: bool) -> None:
        self._goes_wrong(which, call, "crash-before")
        if started_again:
            self.an_orchestrator_starts()
            self.all_silos_hear_everything(True)

    @rule(call=some.sampled_from(["write rounds/", "send to-", "send work"]))
    def all_die_between_saving_and_doing(self, call: str) -> None:
        for process in self._alive():
            process.trouble.at_next(call, "crash-before")
        self.all_silos_hear_everything(True)
        self.an_orchestrator_starts()
        self.all_silos_hear_everything(True)

    def _goes_wrong(self, which: int, call: str, what: str) -> None:
        alive = self._alive()
        if alive:
            alive[which % len(alive)].trouble.at_next(call, what)
        self.all_silos_hear_everything(True)
        self.all_silos_hear_everything(True)

    @rule(which=some.integers(0, 1))
    def an_orchestrator_is_killed(self, which: int) -> None:
        alive = self._alive()
        if alive:
            self.do(alive[which % len(alive)].kill())

    @rule()
    def an_orchestrator_starts(self) -> None:
        if len(self._alive()) < 2:
            self.do(self.world.start(Trouble(yields=self.yields)))

    @rule(chance=some.integers(0, 9))
    def the_queues_are_lost(self, chance: int) -> None:
        if chance or self.world.state() is None:
            return  # with the queues a start is lost that was not taken up yet
        for process in self._alive():
            self.do(process.kill())
        self._remember()
        self.world.lose_queues()
        self.do(self.world.start(Trouble(yields=self.yields)))

    # --- what always holds ---------------------------------------------------------------------------------------

    @invariant()
    def history_makes_sense(self) -> None:
        history = self.world.store.history
        for number in range(max(1, self.checked), len(history)):
            (_, before), (now, after) = history[number - 1], history[number]
            assert all(n.sequence > before.sequence for n in after.outbox)
            assert after.sequence >= before.sequence
            assert after.sequence >= max((n.sequence for n in after.outbox), default=0)
            assert_follows(before, after, now)
        self.checked = len(history)

    @invariant()
    def heads_only_move_forward(self) -> None:
        heads = self.world.store.heads
        for number in range(max(1, self.heads), len(heads)):
            before, after = heads[number - 1], heads[number]
            assert before.run != after.run or head_order(before) < head_order(after)
        self.heads = len(heads)

    @invariant()
    def weights_are_right(self) -> None:
        """Every round that was aggregated gave one model: that of exactly its frozen set, each update counted once."""
        for name in self.world.store.named("rounds/"):
            run, number = name.removeprefix("rounds/").removesuffix(".json").split("/")
            if (run, int(number)) in self.judged:
                continue
            record = self.world.record(run, int(number))
            assert record is not None
            self.judged.add((run, int(number)))
            if record.outcome is not RoundOutcome.AGGREGATED:
                continue
            silos = [update.silo for update in record.updates]
            assert len(set(silos)) == len(silos)
            mean = sum(CONSTANTS[silo] for silo in silos) / len(silos)
            before = 0.0 if record.purpose is Purpose.INITIALISE else self.world.weights(run, record.round - 1)[0]
            assert self.world.weights(run, record.round) == [before + mean] * 4

    # --- how it ends ---------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self.do(self._faults_stop())
                self.history_makes_sense()
                self.heads_only_move_forward()
                self.weights_are_right()
        finally:
            if hasattr(self, "world"):
                self.do(self.world.close())
            self.loop.close()

    async def _faults_stop(self) -> None:
        world = self.world
        for process in self._alive():
            process.trouble.at.clear()
            process.trouble.next.clear()
        if not self._alive():
            await world.start()
        for queue, delivery in self.held:
            self._put_back(queue, delivery, same_id=False)
        for silo in world.silos.values():
            silo.doing = lambda asked: "update"
        world.live_silos()
        for silo in world.silos.values():
            await silo.hello()
        await world.clock.until(lambda: world.phase() != "none")
        await world.clock.advance(1)
        await world.post(ResumeExperiment(experiment="exp"))
        if world.phase() != "tombstone":
            await world.supervised(lambda: world.phase() in {"ended", "paused"})
            while world.phase() == "paused":  # a pause that was delayed came after the resume
                await world.post(ResumeExperiment(experiment="exp"))
                await world.supervised(lambda: world.phase() != "paused")
                await world.supervised(lambda: world.phase() in {"ended", "paused"})
            over = await world.ended()
            await world.clock.advance(200)
            self._check_the_end(over)
        for queue in names.queues(sorted(CONSTANTS)):
            assert set(await world.dead_letters(queue)) <= HARMLESS

    def _check_the_end(self, over: Ended) -> None:
        world, run = self.world, over.run
        if not self.cancelled and not self.spoilt:
            assert over.outcome is RunOutcome.COMPLETED, over.reason
        assert over.outcome is not RunOutcome.CANCELLED or self.cancelled
        records = [world.record(run.id, number) for number in range(over.round + 1)]
        assert all(record is not None for record in records)
        assert names.run_blob(run.id) in world.store.named("runs/")
        assert world.head(run.id).phase == "ended"
        if over.outcome is RunOutcome.COMPLETED:
            assert [r.purpose for r in records if r] == [
                Purpose.INITIALISE,
                *[Purpose.TRAIN] * run.request.rounds,
                Purpose.EVALUATE,
            ]
            assert run.model is not None
            assert run.model.round == run.request.rounds

    # --- ways and means ------------------------------------------------------------------------------------------

    def _alive(self) -> list[Process]:
        return [process for process in self.world.processes if process.alive]

    def _remember(self) -> None:
        known = {(name, delivery.message_id) for name, delivery in self.past}
        for name, queue in self.world.broker._queues.items():
            for message in queue.messages:
                if "/" not in name and (name, message.delivery.message_id) not in known:
                    self.past.append((name, message.delivery))

    def _put_back(self, queue: str, delivery: Delivery, *, same_id: bool) -> None:
        message_id = delivery.message_id if same_id else f"{delivery.message_id}-{len(self.past)}-again"
        self.world.broker.accept(
            queue,
            Outgoing(
                body=delivery.body,
                message_id=message_id,
                subject=delivery.subject or "",
                correlation_id=delivery.correlation_id,
                scheduled_at=delivery.enqueued_at if delivery.enqueued_at > self.world.clock.now() else None,
            ),
        )


def head_order(head: Head) -> tuple[bool, int, bool, int]:
    return (head.phase == "ended", head.round, head.phase == "closed", head.announcement)


def assert_follows(before: ExperimentDocument, after: ExperimentDocument, now: datetime) -> None:
    """Whether one stored version may come after the other: what no event, however often or late, may break."""
    a, b = before.state, after.state
    assert place(a) <= place(b) or (isinstance(a, Ended | Tombstone) and run_of(a) != run_of(b))
    match (a, b):
        case (Collecting(), Collecting()) if a.round == b.round:
            assert updates(a).items() <= updates(b).items()
            if b.announcement > a.announcement and a.purpose is Purpose.TRAIN:
                assert now >= a.deadline or out_of_reach(b.model_copy(update={"announcement": a.announcement}))
        case (Collecting(), Aggregating()):
            assert b.closed.round == a.round
            assert updates(a).keys() <= {u.silo for u in b.closed.updates}
            assert {u.silo: u.payload for u in b.closed.updates}.items() >= {
                silo: update.payload for silo, update in updates(a).items()
            }.items()
            assert len(b.closed.updates) >= a.quorum
            assert_closed_in_time(a, b, now)
        case (Aggregating(), Aggregating()):
            assert a.closed == b.closed
        case (Aggregating(), Collecting() | Paused()):
            assert b.round == a.closed.round + 1
            assert b.run.model is not None
            assert b.run.model.round == a.closed.round
        case (Paused(), Collecting()):
            assert (b.round, b.purpose, b.run) == (a.round, a.purpose, a.run)
        case _:
            pass


def assert_closed_in_time(a: Collecting, b: Aggregating, now: datetime) -> None:
    """A round closes when all have answered, or the grace is over, or the deadline; the first model at once."""
    if a.purpose is Purpose.INITIALISE or a.run.request.quorum.grace == 0:
        return
    over = a.grace_until is not None and now >= a.grace_until
    silent = [silo for silo, did in b.closed.others.items() if did.startswith("had not answered")]
    assert over or now >= a.deadline or not silent


def place(state: State) -> tuple[int, int, int, int]:
    """Where in its life an experiment is; it never goes back."""
    match state:
        case Tombstone(refuses=refuses):
            return (0, int(refuses is not None), 0, 0)
        case Collecting(round=number, announcement=announcement):
            return (1, number, 0, announcement)
        case Aggregating(closed=closed):
            return (1, closed.round, 1, 0)
        case Paused(round=number):
            return (1, number - 1, 2, 0)
        case Ended():
            return (2, 0, 0, 0)


def run_of(state: State) -> str | None:
    return None if isinstance(state, Tombstone) else state.run.id


def updates(state: Collecting) -> dict[str, Updated]:
    return {silo: answer for silo, answer in state.answers.items() if isinstance(answer, Updated)}


def out_of_reach(state: Collecting) -> bool:
    return len(updates(state)) + len(awaited(state)) < state.quorum


TestFederation = Federation.TestCase
TestFederation.settings = settings(
    max_examples=EXAMPLES or 80,
    derandomize=not EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
