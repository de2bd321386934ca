"""The life of one experiment's name: runs that follow each other, starts that come again, cancels that come first.

One of the silos asked has no queue. Nothing is asked of the rounds here but that they go on.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from hypothesis import strategies as some
from hypothesis.stateful import initialize, invariant, rule
from safetensors.numpy import save

from messages import names
from messages.codec import encode
from messages.experiments import CancelExperiment, StartExperiment
from messages.schemas import RoundAnnounced
from orchestrator.experiment.state import Aggregating, Collecting, Ended, RunOutcome, Tombstone
from tests.scenario.faults import Trouble
from tests.scenario.machine_base import Federation
from tests.scenario.model_silo import TASK, Doing

CONSTANTS = {"east": 6.0, "north": 12.0}
GONE = "gone"
"""Asked like the others, but its queue is missing."""
TRIES = 1000
GIVEN = save({"w": np.full(4, 100.0, np.float32)})
DIGEST = hashlib.sha256(GIVEN).hexdigest()
LIE = "0" * 64
"""Under this name there are other weights than it says."""
BODIES: tuple[dict[str, Any], ...] = (
    {"rounds": 1},
    {"rounds": 2},
    {"rounds": 1, "initial": {"sha256": DIGEST}},
    {"rounds": 1, "initial": {"sha256": LIE}},
)
SILOS = some.sampled_from(sorted(CONSTANTS))
WHICH = some.integers(0, 9)


class Names(Federation):
    """Starts and cancels under one name."""

    @initialize(seed=some.integers(0, 1000), cancelled=some.booleans(), two=some.booleans())
    def begin(self, seed: int, cancelled: bool, two: bool) -> None:
        self.posted: list[tuple[str, StartExperiment]] = []
        self.cancels: set[str] = set()
        """The runs that may end so."""
        self.found({**CONSTANTS, GONE: 24.0}, [*CONSTANTS, GONE], seed=seed)
        del self.world.broker._queues[names.to_silo(GONE)]
        for sha256 in (DIGEST, LIE):
            self.do(self.world.store.create(names.INITIAL, names.initial_blob(sha256), GIVEN))
        for silo in self.world.silos.values():
            self.do(silo.hello())
        self.settle()
        if cancelled:
            self.do(self.world.post(CancelExperiment(experiment="exp")))
            self.settle()
        if two:
            self.start_one()

    @rule(which=WHICH)
    def an_experiment_is_started(self, which: int) -> None:
        self.posts(self._start(which))

    @rule(which=WHICH, times=some.integers(1, 2))
    def a_start_comes_again(self, which: int, times: int) -> None:
        if self.posted:
            for _ in range(times):
                self.posts(self.posted[which % len(self.posted)])

    @rule(which=WHICH)
    def the_same_is_asked_for_again(self, which: int) -> None:
        """In a message of its own: no news while that run is live."""
        if self.posted and self.world.phase() in {"collecting", "aggregating"}:
            _, request = self.posted[which % len(self.posted)]
            self.posts((self._next_id(), request))

    @rule()
    def the_run_is_cancelled(self) -> None:
        state = self.world.state()
        if state is not None and not isinstance(state, Tombstone):
            self.cancels.add(state.run.id)
            self.do(self.world.post(CancelExperiment(experiment="exp", run=state.run.id)))
            self.settle()

    @rule(which=WHICH)
    def another_run_is_cancelled(self, which: int) -> None:
        """One that is over; that is no matter of the run that is live."""
        others = sorted(self.over)
        if others and self.world.phase() in {"collecting", "aggregating"}:
            self.do(self.world.post(CancelExperiment(experiment="exp", run=others[which % len(others)])))
            self.settle()

    @rule(which=WHICH, times=some.integers(1, 3))
    def a_cancel_comes_before_its_start(self, which: int, times: int) -> None:
        start = self._start(which)
        self.cancels.add(self._run(start))
        self.do(self.world.post(CancelExperiment(experiment="exp", run=self._run(start))))
        self.settle()
        for _ in range(times):
            self.posts(start)

    @rule(times=some.integers(1, 4))
    def silos_answer(self, times: int) -> None:
        for _ in range(times):
            self.all_answer()
            self.do(self.world.clock.advance(6))

    @rule()
    def the_run_comes_to_its_end(self) -> None:
        """Then its start comes again."""
        self.only_one()
        for _ in range(8):
            if self.world.phase() in {"collecting", "aggregating"}:
                self.silos_answer(1)
        state = self.world.state()
        assert not isinstance(state, Collecting | Aggregating), "the run stands still"
        for start in [s for s in self.posted if isinstance(state, Ended) and self._run(s) == state.run.id]:
            self.posts(start)

    @rule(which=some.integers(0, 2))
    def a_run_follows_another_whose_start_comes_again(self, which: int) -> None:
        for _ in range(4):
            self.the_run_comes_to_its_end()
            if len(self.over) < 2:
                self.posts(self._start(which))
                self.history_makes_sense()
        state = self.world.state()
        now = state.run.id if isinstance(state, Ended) else ""
        for start in [s for s in self.posted if self._run(s) in self.over - {now}][:1]:
            self.posts(start)

    @rule(silo=SILOS, which=WHICH, doing=some.sampled_from(["update", "decline", "fail"]))
    def a_silo_answers_what_it_heard_long_ago(self, silo: str, which: int, doing: Doing) -> None:
        live = self.world.state()
        heard = [
            m
            for m in self.world.silos[silo].heard
            if isinstance(m, RoundAnnounced)
            and (m.run in self.over or live is None or isinstance(live, Tombstone) or live.run.id != m.run)
        ]
        if heard:
            self.says(silo, doing, heard[which % len(heard)])

    @rule()
    def the_start_comes_again_before_the_end_is_on_record(self) -> None:
        """The orchestrator that ended the run died before it wrote that down; the next one writes it a little late."""
        process = self.only_one()
        state = self.world.state()
        if state is None or isinstance(state, Tombstone | Ended):
            return
        process.trouble.at_next("write runs/", "crash-before")
        self.the_run_is_cancelled()
        for start in [s for s in self.posted if self._run(s) == state.run.id]:
            self.posts(start)
        trouble = Trouble(yields=self.yields)
        trouble.at_next("write runs/", "refuse")
        self.do(self.world.start(trouble))
        self.do(self.world.clock.advance(70))

    @rule(which=some.integers(0, 1), call=some.sampled_from(["write experiments", "write runs/", "create", "send to-"]))
    def an_orchestrator_dies_and_another_starts(self, which: int, call: str) -> None:
        alive = self.alive()
        if alive:
            alive[which % len(alive)].trouble.at_next(call, "crash-before")
        self.silos_answer(2)
        if len(self.alive()) < 2:
            self.start_one()
        self.do(self.world.clock.advance(61))

    @invariant()
    def only_what_was_cancelled_is_cancelled(self) -> None:
        state = self.world.state()
        if isinstance(state, Ended) and state.outcome is RunOutcome.CANCELLED:
            assert state.run.id in self.cancels

    # --- ways and means ------------------------------------------------------------------------------------------

    def posts(self, start: tuple[str, StartExperiment]) -> None:
        """Sends a start, under its id, however often it was sent before."""
        if start not in self.posted:
            self.posted.append(start)
        self.do(self.world.post(start[1], message_id=start[0]))
        self.settle()

    def _start(self, which: int) -> tuple[str, StartExperiment]:
        body = {
            "experiment": "exp",
            "task": TASK,
            "silos": ["east", "north", GONE],
            "quorum": {"minimum": 2, "grace": 5, "deadline": 300, "reminders": TRIES},
            **BODIES[which % len(BODIES)],
        }
        return self._next_id(), StartExperiment.model_validate(body)

    def _next_id(self) -> str:
        return f"start-{len(self.posted)}"

    def _run(self, start: tuple[str, StartExperiment]) -> str:
        return names.run_id("exp", start[0], encode(start[1]))

    async def faults_stop(self) -> None:
        await self.calm()
        await self.world.clock.advance(70)
        if self.world.phase() not in {"none", "tombstone"}:
            over = await self.world.ended()
            self.cancelled = over.run.id in self.cancels
            await self.at_rest()
            self.check_the_end(over, tries=TRIES)
