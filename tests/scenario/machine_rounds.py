"""One experiment's rounds: three silos that are asked, a fourth that is not, and everything that can go wrong."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as some
from hypothesis.stateful import initialize, rule

from messages import names
from messages.codec import encode
from messages.experiments import CancelExperiment, PauseExperiment, ResumeExperiment, StartExperiment
from messages.ports import Outgoing
from messages.schemas import GraceOver
from orchestrator.experiment.announcing import announcement_for, awaited
from orchestrator.experiment.state import Aggregating, Collecting
from tests.scenario.machine_base import Federation
from tests.scenario.model_silo import TASK, Doing

CONSTANTS = {"east": 6.0, "north": 12.0, "south": 24.0}  # any mean of them is a whole number
STRANGER = "west"
"""Enrolled, and offers the task, but is not among those the run asks."""
TRIES = 1000
SILOS = some.sampled_from(sorted(CONSTANTS))
ANYONE = some.sampled_from([*sorted(CONSTANTS), STRANGER])
QUEUES = some.sampled_from([*names.queues(sorted(CONSTANTS)), names.WORK, names.WORK])
MISCHIEF = some.sampled_from(["decline", "fail", "fail", "spoil", "mislabel", "ignore"])
ANSWERS = some.sampled_from(["update", "decline", "fail", "spoil", "mislabel"])
CALLS = some.sampled_from(["write experiments", "write rounds/", "send to-", "send work", "head", "create", "complete"])


class Rounds(Federation):
    """A run, from its start to its end."""

    @initialize(
        start=some.fixed_dictionaries(
            {
                "rounds": some.integers(1, 3),
                "quorum": some.fixed_dictionaries(
                    {
                        "minimum": some.sampled_from([1, 2, "all"]),
                        "grace": some.sampled_from([0, 30]),
                        "deadline": some.sampled_from([300, 300, 5]),
                        "reminders": some.sampled_from([TRIES, TRIES, TRIES, 2, 0]),
                    }
                ),
                "transfer": some.sampled_from([{"form": "weights"}, {"form": "delta"}]),
            }
        ),
        detection=some.sampled_from([None, None, 600.0]),
        seed=some.integers(0, 1000),
        two=some.booleans(),
        begun=some.sampled_from([True, True, False]),
    )
    def begin(self, start: dict[str, Any], detection: float | None, seed: int, two: bool, begun: bool) -> None:
        silos = {**CONSTANTS, STRANGER: 48.0}
        start = {**start, "silos": sorted(CONSTANTS)}
        self.start = StartExperiment.model_validate({"experiment": "exp", "task": TASK, **start})
        self.found(silos, sorted(silos), detection=detection, seed=seed)
        self.do(self.world.begin(**start))
        if two:
            self.start_one()
        if begun:
            self.all_answer()

    # --- what happens anyway -------------------------------------------------------------------------------------

    @rule(seconds=some.sampled_from([1, 40, 70, 301]))
    def time_passes(self, seconds: int) -> None:
        self.do(self.world.clock.advance(seconds))

    @rule(silo=SILOS, completes=some.booleans())
    def a_silo_hears(self, silo: str, completes: bool) -> None:
        self.hears(silo, "update", completes)

    @rule(silo=SILOS, doing=MISCHIEF, completes=some.booleans())
    def a_silo_gives_no_update(self, silo: str, doing: Doing, completes: bool) -> None:
        self.hears(silo, doing, completes)

    @rule(completes=some.booleans())
    def all_silos_hear_everything(self, completes: bool) -> None:
        self.all_answer(completes)

    @rule(silo=SILOS)
    def an_agent_is_started_again(self, silo: str) -> None:
        self.do(self.world.silos[silo].hello())
        self.settle()

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
        if message.startswith("start") and self.world.phase() in {"none", "ended"}:
            return  # that would be another run: see machine_names
        self.cancelled |= message == "cancel"
        self.do(self.world.post(posted))
        self.settle()

    @rule()
    def a_slow_sum_is_overtaken(self) -> None:
        """Its lock lapses, and another orchestrator sums that round; when the slow one is done, the next sum is due."""
        slow = self.only_one()
        slow.trouble.hold_at("create exp_")
        self.all_answer(times=1)
        if slow.trouble.holding:
            self.lapse(names.WORK)
            self.do(self.world.clock.advance(0.001))
            other = self.start_one()
            other.trouble.hold_at("create exp_")
            self.all_answer(times=1)
            slow.trouble.release()
            self.settle()
            other.trouble.release()
        slow.trouble.release()
        self.settle()

    @rule()
    def a_grace_over_comes_that_nobody_scheduled(self) -> None:
        """Anyone with the right to send to the queue can post one."""
        state = self.collecting()
        if state is not None and state.grace_until is None:
            over = GraceOver(run=state.run.id, round=state.round, announcement=state.announcement)
            stray = Outgoing(body=encode(over), message_id=f"stray-{len(self.past)}", subject=over.kind)
            self.world.broker.accept(names.WORK, stray)
            self.settle()

    # --- what silos say that they should not ---------------------------------------------------------------------

    @rule(silo=ANYONE, first=ANSWERS, then=ANSWERS)
    def a_silo_says_two_things(self, silo: str, first: Doing, then: Doing) -> None:
        """Of a round that is open; it may not have been asked."""
        self.says(silo, first)
        self.says(silo, then)

    @rule(silo=SILOS, then=some.sampled_from(["fail", "decline"]))
    def a_silo_whose_update_counts_says_something_else(self, silo: str, then: Doing) -> None:
        state = self.collecting()
        if state is not None and len(awaited(state)) > 1:
            self.says(silo, "update")
            self.says(silo, then, announcement_for(state, silo))

    @rule(silo=SILOS, lie=some.sampled_from(["spoil", "mislabel"]))
    def a_silo_lies(self, silo: str, lie: Doing) -> None:
        """What it sends is a dead letter, and its answer."""
        self.says(silo, lie)

    # --- hellos --------------------------------------------------------------------------------------------------

    @rule(silo=SILOS, away=some.sampled_from(["read experiments", "write experiments", "send to-", "write presence"]))
    def a_new_agent_says_hello_while_something_is_away(self, silo: str, away: str) -> None:
        """If its silo owes the round an answer, it is told of the round, whatever its predecessor was told."""
        process = self.only_one()
        before = self._told(silo)
        process.trouble.at_next(away, "refuse")
        self.do(self.world.silos[silo].hello())
        self.settle()
        self.do(self.world.clock.advance(2))
        state = self.world.state()
        if isinstance(state, Collecting) and silo in awaited(state):
            assert self._told(silo) > before, "the new agent waits in vain"
        process.trouble.next.clear()

    def _told(self, silo: str) -> int:
        return sum(m.delivery.subject == "round-announced" for m in self._messages(names.to_silo(silo)))

    @rule(silo=ANYONE)
    def an_older_hello_comes_again(self, silo: str) -> None:
        """The process that had it held on to it for too long; meanwhile another agent was started."""
        kept = self.world.broker.take(names.from_silo(silo))
        self.do(self.world.silos[silo].hello())
        first = [m.delivery for m in self._messages(names.from_silo(silo)) if m.delivery.subject == "silo-hello"]
        self.settle()
        self.do(self.world.clock.advance(1))
        self.do(self.world.silos[silo].hello())
        self.settle()
        for delivery in first:
            self.redeliver(names.from_silo(silo), delivery)
        if kept is not None:
            self.world.broker.abandon(kept)
            self.settle()

    # --- what goes wrong on the bus ------------------------------------------------------------------------------

    @rule(queue=QUEUES, which=some.integers(0, 50), copies=some.integers(1, 2), same_id=some.booleans())
    def a_message_comes_again(self, queue: str, which: int, copies: int, same_id: bool) -> None:
        """One that is there now, or one that was there long ago."""
        self.remember()
        candidates = [delivery for name, delivery in self.past if name == queue]
        if candidates:
            for _ in range(copies):
                self.put_back(queue, candidates[which % len(candidates)], same_id=same_id)
        self.settle()

    @rule(queue=QUEUES, which=some.integers(0, 5))
    def a_message_is_late(self, queue: str, which: int) -> None:
        messages = self._messages(queue)
        free = [m for m in messages if m.locked_until is None]
        if free:
            message = free[which % len(free)]
            messages.remove(message)
            self.held.append((queue, message.delivery))

    @rule(which=some.integers(0, 50))
    def a_late_message_comes(self, which: int) -> None:
        if self.held:
            self.put_back(*self.held.pop(which % len(self.held)))
            self.settle()

    @rule(queue=QUEUES, by=some.integers(1, 5))
    def messages_change_places(self, queue: str, by: int) -> None:
        messages = self._messages(queue)
        messages[:] = messages[by % (len(messages) or 1) :] + messages[: by % (len(messages) or 1)]

    @rule(queue=QUEUES)
    def locks_lapse(self, queue: str) -> None:
        self.lapse(queue)
        self.do(self.world.clock.advance(0.001))

    # --- what goes wrong at the calls of an orchestrator ---------------------------------------------------------

    @rule(
        which=some.integers(0, 1),
        calls=some.integers(1, 25),
        what=some.sampled_from(["crash-before", "crash-after", "refuse", "lose-answer", "lose-answer"]),
    )
    def a_call_will_go_wrong(self, which: int, calls: int, what: str) -> None:
        alive = self.alive()
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
            self.all_answer()

    @rule(call=some.sampled_from(["write rounds/", "send to-", "send work"]))
    def all_die_between_saving_and_doing(self, call: str) -> None:
        for process in self.alive():
            process.trouble.at_next(call, "crash-before")
        self.all_answer()
        self.an_orchestrator_starts()
        self.all_answer()

    @rule(call=some.sampled_from(["send work", "send work", "send to-", "write rounds/", "head"]))
    def what_follows_an_answer_is_refused_once(self, call: str) -> None:
        """The same message is tried again: a duplicate now, but what it had brought about is still to be done."""
        process = self.only_one()
        process.trouble.at_next(call, "refuse")
        self.all_answer(times=1)
        self.do(self.world.clock.advance(3))
        assert self.unsummable or not process.alive or self.world.phase() != "aggregating", "the run stands still"

    def _goes_wrong(self, which: int, call: str, what: str) -> None:
        alive = self.alive()
        if alive:
            alive[which % len(alive)].trouble.at_next(call, what)
        self.all_answer()
        self.all_answer()

    @rule(which=some.integers(0, 1))
    def an_orchestrator_is_killed(self, which: int) -> None:
        alive = self.alive()
        if alive:
            self.do(alive[which % len(alive)].kill())

    @rule()
    def an_orchestrator_starts(self) -> None:
        if len(self.alive()) < 2:
            self.start_one()

    @rule(chance=some.integers(0, 4), summing=some.booleans())
    def the_queues_are_lost(self, chance: int, summing: bool) -> None:
        """The orchestrator that starts then has everything sent again that the live run needs."""
        if chance or self.world.state() is None:
            return  # with the queues a start is lost that was not taken up yet
        if summing:
            for process in self.alive():
                process.trouble.at_next("create exp_", "crash-before")
            self.all_answer()
        self.kill_all()
        self.remember()
        self.world.lose_queues()
        process = self.start_one()
        state = self.world.state()
        if process.alive and isinstance(state, Collecting):
            assert all(self._told(silo) for silo in awaited(state))
            assert any(m.delivery.subject == "deadline-passed" for m in self._messages(names.WORK))
        assert not process.alive or not isinstance(state, Aggregating) or self.unsummable

    # --- how it ends ---------------------------------------------------------------------------------------------

    async def faults_stop(self) -> None:
        await self.calm()
        world = self.world
        await world.clock.until(lambda: world.phase() != "none")
        await world.post(ResumeExperiment(experiment="exp"))
        if world.phase() != "tombstone":
            await world.supervised(lambda: world.phase() in {"ended", "paused"})
            while world.phase() == "paused":  # a pause that was delayed came after the resume
                await world.post(ResumeExperiment(experiment="exp"))
                await world.supervised(lambda: world.phase() != "paused")
                await world.supervised(lambda: world.phase() in {"ended", "paused"})
            over = await world.ended()
            await self.at_rest()
            self.check_the_end(over, tries=TRIES)

    def _messages(self, queue: str) -> list[Any]:
        return self.world.broker._queue(queue).messages
