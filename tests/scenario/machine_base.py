"""What all machines have in common: the federation, what silos and orchestrators do, what always holds.

A machine adds rules: what may happen. After every step the whole history of stored states must make sense.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from hypothesis.stateful import RuleBasedStateMachine, invariant

from messages import names
from messages.codec import decode
from messages.experiments import StartExperiment
from messages.ports import Delivery, Outgoing
from messages.schemas import Purpose, RoundAnnounced, UpdatePublished
from messages.transport.memory_bus import QueueOptions, _Message
from orchestrator.experiment.announcing import announcement_for
from orchestrator.experiment.state import Collecting, Ended, RoundOutcome, RunOutcome, Tombstone
from tests.scenario.faults import Trouble
from tests.scenario.machine_invariants import (
    LIES,
    assert_follows,
    assert_presence_follows,
    assert_true,
    head_order,
    is_honest,
    run_of,
)
from tests.scenario.model_silo import Doing
from tests.scenario.world import Process, World
from tests.virtual_clock import rest

T = TypeVar("T")


class Bugs(logging.Handler):
    """Remembers what orchestrators log of messages that met a bug."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "message.bug":
            self.found.append(repr(record.exc_info and record.exc_info[1]))


class Federation(RuleBasedStateMachine):
    """Model silos, up to two orchestrators, and what must hold between them."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.bugs = Bugs()
        logging.getLogger("messages.consumer").addHandler(self.bugs)
        self.world: World
        self.yields = random.Random(0)
        self.checked = self.presences = self.heads = self.letters = 0
        self.judged: set[tuple[str, int]] = set()
        self.refused: set[str] = set()
        self.over: set[str] = set()
        self.ahead: list[str] = []
        """Announcements that were sent before the head or the state said as much."""
        self.past: list[tuple[str, Delivery]] = []
        self.held: list[tuple[str, Delivery]] = []
        self.spoilt = False
        """Whether a silo did anything for which a run may fail."""
        self.unsummable = False
        """Whether anything was done for which a set cannot be summed."""
        self.cancelled = False

    def do(self, action: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(action)

    def found(
        self, silos: dict[str, float], enrolled: Sequence[str], *, detection: float | None = None, seed: int = 0
    ) -> None:
        """Makes the world and starts an orchestrator."""
        self.yields = random.Random(seed)

        async def action() -> None:
            options = QueueOptions(lock_duration=60, max_delivery_count=1000, duplicate_detection=detection)
            self.world = World(silos, options=options, enrolled=enrolled)
            self.world.witness = self._witness
            await self.world.start(Trouble(yields=self.yields))

        self.do(action())

    # --- what silos and orchestrators do -------------------------------------------------------------------------

    def settle(self) -> None:
        self.do(rest())

    def hears(self, silo: str, doing: Doing, completes: bool = True, *, then_rest: bool = True) -> None:
        """The silo takes one message, does so with it, and completes it or dies before."""

        async def action() -> None:
            delivery = self.world.broker.take(names.to_silo(silo))
            if delivery is not None:
                self._judge(doing)
                self.world.silos[silo].doing = lambda asked: doing
                await self.world.silos[silo].hear(delivery.body)
                if completes:
                    self.world.broker.complete(delivery)
            if then_rest:
                await rest()

        self.do(action())

    def says(self, silo: str, doing: Doing, asked: RoundAnnounced | None = None) -> None:
        """The silo answers the open round (or what it was once asked), whether it was asked or not."""
        if asked is None:
            state = self.world.state()
            if not isinstance(state, Collecting):
                return
            if silo in state.asked:
                self._judge(doing)
            asked = announcement_for(state, silo)
        self.do(self.world.silos[silo].answer(asked, doing))
        self.settle()

    def all_answer(self, completes: bool = True, *, times: int = 3) -> None:
        """Nobody comes to rest in between, so that their updates race."""
        for silo in self.reachable():
            for _ in range(times):
                self.hears(silo, "update", completes, then_rest=False)
        self.settle()

    def reachable(self) -> list[str]:
        """The silos whose queues are there."""
        return [silo for silo in sorted(self.world.silos) if names.to_silo(silo) in self.world.broker._queues]

    def alive(self) -> list[Process]:
        return [process for process in self.world.processes if process.alive]

    def kill_all(self) -> None:
        """Those that are dead already, too: what they were waiting for when they died would still be locked by them."""
        for process in self.world.processes:
            if not process.main.done():
                self.do(process.kill())

    def start_one(self) -> Process:
        return self.do(self.world.start(Trouble(yields=self.yields)))

    def only_one(self) -> Process:
        """A fresh orchestrator, alone, to which nothing has gone wrong yet; locks of those before it are over."""
        self.kill_all()
        for queue in list(self.world.broker._queues):
            self.lapse(queue)
        self.do(self.world.clock.advance(0.001))
        return self.start_one()

    def collecting(self, *, purpose: Purpose = Purpose.TRAIN) -> Collecting | None:
        """The open round, if it is for this."""
        state = self.world.state()
        return state if isinstance(state, Collecting) and state.purpose is purpose else None

    def _judge(self, doing: Doing) -> None:
        self.spoilt |= doing != "update"

    # --- what the bus does ---------------------------------------------------------------------------------------

    def remember(self) -> None:
        """Keeps what is in the queues, to bring it back some time."""
        known = {(name, delivery.message_id) for name, delivery in self.past}
        for name, queue in self.world.broker._queues.items():
            for message in queue.messages:
                if "/" not in name and (name, message.delivery.message_id) not in known:
                    self.past.append((name, message.delivery))

    def put_back(self, queue: str, delivery: Delivery, *, same_id: bool = False) -> None:
        """Sends a message once more, under the same id or another."""
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

    def lapse(self, queue: str) -> None:
        """All locks of a queue are over, as soon as any time passes."""
        for message in self.world.broker._queue(queue).messages:
            if message.locked_until is not None:
                message.locked_until = self.world.clock.now()

    def redeliver(self, queue: str, delivery: Delivery) -> None:
        """Delivers the very message again, as when a lock lapsed: it says when it was first enqueued."""
        again = replace(delivery, locked_until=None, lock_token="", delivery_count=delivery.delivery_count + 1)
        target = self.world.broker._queue(queue)
        target.messages.append(
            _Message(delivery=again, available_at=delivery.enqueued_at, waits_for_its_time=False, expires_at=None)
        )
        target.wake()
        self.settle()

    def _witness(self, queue: str, message: Outgoing) -> None:
        if message.subject != "round-announced":
            return
        told = decode(message.body, RoundAnnounced)
        assert isinstance(told, RoundAnnounced)
        where = (told.run, told.round, told.announcement)
        if not any(
            isinstance(s := document.state, Collecting) and (s.run.id, s.round, s.announcement) == where
            for _, document in reversed(self.world.store.history)
        ):
            self.ahead.append(f"{where} was announced before it was stored")
        head = (names.GLOBAL, names.head_blob(told.run))
        if head not in self.world.store.blobs or head_order(self.world.head(told.run)) < (
            False,
            told.round,
            False,
            told.announcement,
        ):
            self.ahead.append(f"{where} was announced before its head said so")

    # --- what always holds ---------------------------------------------------------------------------------------

    def history_makes_sense(self) -> None:
        history = self.world.store.history
        for number in range(self.checked, len(history)):
            now, after = history[number]
            if number:
                before = history[number - 1][1]
                assert_follows(before, after, now)
                assert all(n.sequence > before.sequence for n in after.outbox)
            self._no_run_comes_back(after.state)
            assert_true(after.state, self.world.silos)
        self.checked = len(history)

    def _no_run_comes_back(self, state: Any) -> None:
        if not isinstance(state, Tombstone | Ended):
            assert run_of(state) not in self.over, "a run that was over started again"
            return
        if isinstance(state, Ended):
            self.over.add(state.run.id)
        if state.refuses is not None:
            self.refused.add(state.refuses)

    def agents_find_what_they_are_told(self) -> None:
        assert self.ahead == []

    def no_message_meets_a_bug(self) -> None:
        assert self.bugs.found == []

    def heads_only_move_forward(self) -> None:
        last = {head.run: head for head in self.world.store.heads[: self.heads]}
        for head in self.world.store.heads[self.heads :]:
            assert head.run not in last or head_order(last[head.run]) < head_order(head)
            last[head.run] = head
        self.heads = len(self.world.store.heads)

    def presences_only_move_forward(self) -> None:
        found = self.world.store.presences
        last = {presence.silo: presence for presence in found[: self.presences]}
        for presence in found[self.presences :]:
            if presence.silo in last:
                assert_presence_follows(last[presence.silo], presence)
            last[presence.silo] = presence
        self.presences = len(found)

    def records_are_written_once(self) -> None:
        often = {n for n, times in self.world.store.written.items() if times > 1}
        assert not [n for n in often if n.startswith(("rounds/", "runs/"))]

    def dead_letters_have_a_reason_and_answer_their_round(self) -> None:
        for silo in self.world.enrolled:
            for letter in self.dead_letters(names.from_silo(silo)):
                assert letter.dead_letter_reason in {*LIES, "update-conflict", "not-asked"}
                if letter.dead_letter_reason not in LIES:
                    continue
                update = decode(letter.body, UpdatePublished)
                assert isinstance(update, UpdatePublished)
                assert not is_honest(update, self.world.silos[silo])
                state = self.world.state()
                if isinstance(state, Collecting) and (state.run.id, state.round) == (update.run, update.round):
                    assert silo in state.answers, "the round waits for a dead letter"
        for letter in self.dead_letters(names.EXPERIMENTS):
            assert letter.dead_letter_reason in {
                "experiment-is-live",
                "cancelled-before-start",
                "unknown-experiment",
                "digest-mismatch",
                "too-few-silos",
            }
            if letter.dead_letter_reason == "cancelled-before-start":
                assert names.run_id("exp", letter.message_id, letter.body) in self.refused
        self._starts_refused_are_other_starts()
        assert self.unsummable or not self.dead_letters(names.WORK)

    def _starts_refused_are_other_starts(self) -> None:
        letters, state = self.dead_letters(names.EXPERIMENTS), self.world.state()
        for letter in letters[self.letters :]:
            if letter.dead_letter_reason == "experiment-is-live":
                assert state is not None
                assert not isinstance(state, Tombstone)
                assert decode(letter.body, StartExperiment) != state.run.request, "the same start is a dead letter"
        self.letters = len(letters)

    def dead_letters(self, queue: str) -> list[Delivery]:
        dead = self.world.broker._queue(names.dead_letters_of(queue))
        return [message.delivery for message in dead.messages]

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
            weighed = [(self.world.silos[u.silo].constant, u.samples) for u in record.updates]
            if record.purpose is Purpose.INITIALISE:
                weighed = [(constant, 1) for constant, _ in weighed]
            mean = sum(c * n for c, n in weighed) / sum(n for _, n in weighed)
            before = 0.0 if record.purpose is Purpose.INITIALISE else self.world.weights(run, record.round - 1)[0]
            assert self.world.weights(run, record.round) == [before + mean] * 4

    # --- how it ends ---------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self.no_message_meets_a_bug()  # where one did, the end may be long in coming
                self.do(self.faults_stop())
                self.all_holds()
        finally:
            logging.getLogger("messages.consumer").removeHandler(self.bugs)
            if hasattr(self, "world"):
                self.do(self.world.close())
            self.loop.close()

    @invariant()
    def all_holds(self) -> None:
        self.history_makes_sense()
        self.agents_find_what_they_are_told()
        self.no_message_meets_a_bug()
        self.heads_only_move_forward()
        self.presences_only_move_forward()
        self.records_are_written_once()
        self.dead_letters_have_a_reason_and_answer_their_round()
        self.weights_are_right()

    async def faults_stop(self) -> None:
        """From here on nothing goes wrong: whatever there is must come to its end."""
        raise NotImplementedError

    async def calm(self) -> None:
        """Ends all trouble; every silo answers by itself, as a new agent."""
        world = self.world
        for process in self.alive():
            process.trouble.at.clear()
            process.trouble.next.clear()
        if not self.alive():
            await world.start()
        for queue, delivery in self.held:
            self.put_back(queue, delivery)
        for silo in world.silos.values():
            silo.doing = lambda asked: "update"
            silo.samples = 1
        world.live_silos(*self.reachable())
        for silo in world.silos.values():
            await silo.hello()
        await world.clock.advance(1)

    async def at_rest(self) -> None:
        """Once a run is over, an orchestrator that starts has nothing left to do."""
        world = self.world
        await world.clock.advance(200)
        await world.start()
        await world.clock.advance(1)
        _, document = world.store.history[-1]
        assert document.outbox == ()

    def check_the_end(self, over: Ended, *, tries: int) -> None:
        """How a run may have ended, and what it leaves behind."""
        world, run = self.world, over.run
        match over.outcome:
            case RunOutcome.CANCELLED:
                assert self.cancelled
            case RunOutcome.FAILED if "could not be aggregated" in over.reason:
                assert self.unsummable, over.reason
            case RunOutcome.FAILED:
                assert "no quorum" in over.reason or "no silo made the first model" in over.reason, over.reason
                assert self.spoilt or run.request.quorum.reminders < tries, over.reason
        first = 0 if run.request.initial is None else 1
        records = [world.record(run.id, number) for number in range(first, over.round + 1)]
        assert all(record is not None for record in records)
        assert names.run_blob(run.id) in world.store.named("runs/")
        assert world.head(run.id).phase == "ended"
        if over.outcome is RunOutcome.COMPLETED:
            assert [r.purpose for r in records if r] == [
                *[Purpose.INITIALISE] * (1 - first),
                *[Purpose.TRAIN] * run.request.rounds,
                Purpose.EVALUATE,
            ]
            assert run.model is not None
            assert run.model.round == run.request.rounds
