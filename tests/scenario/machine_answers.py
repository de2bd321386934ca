"""What silos say: lies of every kind, the same thing twice, old messages again. Orchestrator and bus behave."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as some
from hypothesis.stateful import initialize, rule
from safetensors.numpy import save

from messages import names
from messages.experiments import ResumeExperiment
from messages.schemas import Purpose, RoundAnnounced, SiloHeartbeat
from orchestrator.experiment.announcing import announcement_for, awaited
from orchestrator.experiment.state import Collecting, Ended, RunOutcome, Updated
from tests.scenario.machine_base import Federation
from tests.scenario.model_silo import LYING, Doing

CONSTANTS = {"east": 6.0, "north": 12.0, "south": 24.0}
SILOS = some.sampled_from(sorted(CONSTANTS))
TRIES = 1000


class Answers(Federation):
    """A run whose silos answer as they like."""

    @initialize(
        quorum=some.fixed_dictionaries(
            {
                "minimum": some.sampled_from([1, 2, "all"]),
                "grace": some.sampled_from([0, 30]),
                "deadline": some.just(300),
                "reminders": some.sampled_from([TRIES, TRIES, 0]),
            }
        ),
        form=some.sampled_from(["weights", "delta"]),
        begun=some.sampled_from([True, True, True, False]),
    )
    def begin(self, quorum: dict[str, Any], form: str, begun: bool) -> None:
        self.found(CONSTANTS, sorted(CONSTANTS))
        self.do(self.world.begin(rounds=8, quorum=quorum, transfer={"form": form}))
        self.settle()
        if begun:
            self.all_answer(times=1)

    @rule(silo=SILOS, lies=some.permutations(LYING))
    def a_silo_tells_every_lie(self, silo: str, lies: list[Doing]) -> None:
        """What it sends is a dead letter each time, and the first of them its answer."""
        for lie in lies:
            self.says(silo, lie)

    @rule(silo=SILOS, lie=some.sampled_from(LYING))
    def a_silo_lies_twice(self, silo: str, lie: Doing) -> None:
        """In the same round; that is one answer."""
        self.says(silo, lie)
        self.says(silo, lie)

    @rule(silo=SILOS)
    def a_silo_that_declined_fails(self, silo: str) -> None:
        """In a round that can do without it, it is then still one that declined."""
        state = self.world.state()
        if isinstance(state, Collecting) and silo in awaited(state):
            asked = announcement_for(state, silo)
            self.says(silo, "decline", asked)
            self.says(silo, "fail", asked)
            self.spoilt = True

    @rule(late=SILOS)
    def nobody_can_train_for_very_long(self, late: str) -> None:
        self.nobody_can_train(late=late, times=8)

    @rule(late=SILOS, times=some.integers(2, 5))
    def nobody_can_train(self, late: str, times: int) -> None:
        """The round is announced again, each time after a longer pause; then a silo repeats its first report."""
        first: RoundAnnounced | None = None
        for _ in range(times):
            state = self.collecting()
            if state is None:
                return
            first = first or announcement_for(state, late)
            for silo in awaited(state):
                self.says(silo, "fail")
            state = self.collecting()
            if state is not None:
                self.do(self.world.clock.advance((state.deadline - self.world.clock.now()).total_seconds() + 1))
        self.says(late, "fail", first)

    @rule(silo=SILOS, chance=some.integers(0, 1))
    def an_update_is_replaced_once_it_was_verified(self, silo: str, chance: int) -> None:
        """Its blob is written over, by one of the same size. Then everybody answers."""
        state = self.world.state()
        if chance or not isinstance(state, Collecting):
            return
        if state.quorum > 1 or state.run.request.quorum.grace:
            self.says(silo, "update")
            state = self.world.state()
        answer = state.answers.get(silo) if isinstance(state, Collecting) else None
        if isinstance(state, Collecting) and isinstance(answer, Updated) and answer.payload is not None:
            name = names.weights_blob(state.run.id, state.round, answer.payload.sha256)
            self.world.store.replace(names.updates_of(silo), name, save({"w": np.full(4, 666, np.float32)}))
            self.spoilt = self.unsummable = True
            self.all_answer()

    @rule(chance=some.integers(0, 2))
    def there_is_nothing_to_weigh_by(self, chance: int) -> None:
        if chance or self.collecting() is None:
            return
        self.spoilt = self.unsummable = True
        for silo in self.world.silos.values():
            silo.samples = 0
        self.all_answer()
        for silo in self.world.silos.values():
            silo.samples = 1

    @rule(silo=SILOS)
    def a_silo_answers(self, silo: str) -> None:
        self.says(silo, "update")

    @rule()
    def silos_answer_one_after_the_other(self) -> None:
        """The grace begins with the quorum, and not again with each that comes after it."""
        state = self.world.state()
        for silo in awaited(state) if isinstance(state, Collecting) else ():
            self.says(silo, "update")
            self.do(self.world.clock.advance(1))

    @rule()
    def all_silos_hear_everything(self) -> None:
        self.all_answer(times=1)

    @rule(seconds=some.sampled_from([1, 40, 301]))
    def time_passes(self, seconds: int) -> None:
        self.do(self.world.clock.advance(seconds))

    @rule(silo=SILOS, what=some.sampled_from(["heartbeat", "answer", "hello"]))
    def an_older_message_comes_again(self, silo: str, what: str) -> None:
        """The process that had it held on to it for too long; meanwhile the silo said something newer."""
        queue = names.from_silo(silo)
        self.do(self._sends(silo, what))
        first = [message.delivery for message in self.world.broker._queue(queue).messages]
        self.settle()
        self.do(self.world.clock.advance(6))
        self.do(self._sends(silo, what))
        self.settle()
        self.do(self.world.clock.advance(6))
        for delivery in first:
            self.redeliver(queue, delivery)

    @rule(answering=some.integers(0, 1), chance=some.integers(0, 2))
    def too_few_evaluate(self, answering: int, chance: int) -> None:
        """The model is there all the same."""
        if chance:
            return  # it brings the run to its end
        for _ in range(12):
            if not self.collecting(purpose=Purpose.EVALUATE):
                self.all_answer(times=1)
                self.do(self.world.clock.advance(31))
        if self.collecting(purpose=Purpose.EVALUATE) is None:
            return
        for silo in sorted(CONSTANTS)[:answering]:
            self.says(silo, "decline")
        self.do(self.world.clock.advance(301))
        state = self.world.state()
        assert isinstance(state, Ended)
        assert state.outcome is RunOutcome.COMPLETED, state.reason

    async def _sends(self, silo: str, what: str) -> None:
        model, now = self.world.silos[silo], self.world.clock.now()
        state = self.world.state()
        run = "exp_00000000" if state is None or state.phase == "tombstone" else state.run.id
        match what:
            case "heartbeat":
                await model.send(
                    SiloHeartbeat(run=run, round=1, doing="training", steps=now.second, progress_age=0.1, at=now)
                )
            case "hello":
                await model.hello()
            case _ if told := [m for m in model.heard if isinstance(m, RoundAnnounced)]:
                await model.answer(told[-1], "update")

    async def faults_stop(self) -> None:
        await self.calm()
        await self.world.post(ResumeExperiment(experiment="exp"))
        over = await self.world.ended()
        await self.at_rest()
        self.check_the_end(over, tries=TRIES)
