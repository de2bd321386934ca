"""Who takes part: silos join and leave while rounds are open, summed or awaited, and their hellos are handled twice,
late, by two orchestrators at once, or half.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as some
from hypothesis.stateful import initialize, rule

from messages import names
from messages.experiments import PauseExperiment, ResumeExperiment
from messages.schemas import RoundAnnounced
from orchestrator.experiment.state import Aggregating, Collecting, Paused
from tests.scenario.machine_base import Federation

CONSTANTS = {"east": 6.0, "kiel": 12.0, "north": 24.0, "south": 48.0}  # any mean of them is a whole number
TRIES = 1000
SILOS = some.sampled_from(sorted(CONSTANTS))
CALLS = some.sampled_from(["read experiments", "write experiments", "read presence", "write presence", "send to-"])


class Members(Federation):
    """A run of which silos are members for a while."""

    @initialize(
        quorum=some.fixed_dictionaries(
            {
                "minimum": some.sampled_from([1, 0.5, 2]),
                "grace": some.sampled_from([0, 30]),
                "deadline": some.just(300),
                "reminders": some.sampled_from([TRIES, TRIES, 2]),
            }
        ),
        sample=some.sampled_from([None, {"share": 0.5, "minimum": 2}, {"share": 0.75, "seed": 7}]),
        listed=some.sampled_from([None, None, ["south", "east", "north", "kiel"]]),
        begun=some.sampled_from([True, True, False]),
    )
    def begin(
        self, quorum: dict[str, Any], sample: dict[str, Any] | None, listed: list[str] | None, begun: bool
    ) -> None:
        self.found(CONSTANTS, sorted(CONSTANTS))
        self.world.silos["kiel"].offers = False
        self.do(self.world.begin(rounds=6, quorum=quorum, sample=sample, silos=listed))
        self.settle()
        if begun:
            self.all_answer(times=1)

    def _offers(self, silo: str, offers: bool) -> None:
        """Its owner changed the policy, and started the agent again."""
        self.world.silos[silo].offers = offers
        self.spoilt |= not offers
        self.do(self.world.silos[silo].hello())

    @rule(silo=SILOS)
    def a_silo_joins_or_leaves(self, silo: str) -> None:
        self._offers(silo, not self.world.silos[silo].offers)
        self.settle()
        if self.alive():
            self._is_known(silo)

    def _is_known(self, silo: str) -> None:
        """What it offers decides whether the next round asks it."""
        state = self.world.state()
        process = self.alive()[-1]
        quiet = not process.trouble.at and not process.trouble.next
        if quiet and isinstance(state, Collecting | Aggregating | Paused) and state.run.request.silos is None:
            enrolled = silo in self.world.enrolled
            assert (silo in state.run.silos) == (self.world.silos[silo].offers and enrolled), "it is not known"

    @rule(silo=SILOS, call=CALLS, what=some.sampled_from(["refuse", "lose-answer", "crash-before", "crash-after"]))
    def a_call_goes_wrong_while_a_silo_joins_or_leaves(self, silo: str, call: str, what: str) -> None:
        process = self.only_one()
        process.trouble.at_next(call, what)
        self._offers(silo, not self.world.silos[silo].offers)
        self.settle()
        self.only_one()
        self.do(self.world.clock.advance(61))
        self._is_known(silo)

    @rule(silo=SILOS, call=CALLS)
    def a_hello_is_overtaken_by_a_newer_one(self, silo: str, call: str) -> None:
        """The orchestrator that has the older one stands still in the middle of it; another takes the newer one."""
        if silo not in self.world.enrolled:
            return
        slow = self.only_one()
        offers = self.world.silos[silo].offers
        slow.trouble.hold_at(call)
        self._offers(silo, not offers)
        self.settle()
        if slow.trouble.holding:
            self.start_one()
            self.do(self.world.clock.advance(1))
            self._offers(silo, offers)
            self.settle()
        slow.trouble.release()
        self.do(self.world.clock.advance(61))
        self._is_known(silo)

    @rule(silo=SILOS)
    def the_settings_name_other_silos(self, silo: str) -> None:
        """And every orchestrator is started again."""
        self.kill_all()
        self.spoilt = True
        there = set(self.world.enrolled) ^ {silo}
        if len(there) > 1:
            self.world.enrolled = tuple(sorted(there))
        self.start_one()
        state = self.world.state()
        if isinstance(state, Collecting | Aggregating | Paused):
            assert set(state.run.silos) <= set(self.world.enrolled)

    @rule(silo=SILOS)
    def a_silo_answers_a_round_that_is_over(self, silo: str) -> None:
        """For the first time, or again."""
        told = [m for m in self.world.silos[silo].heard if isinstance(m, RoundAnnounced)]
        state = self.world.state()
        if not told or not isinstance(state, Collecting) or silo not in self.world.enrolled:
            return
        asked = told[len(told) // 2]
        for _ in range(2):
            self.says(silo, "update", asked)

    @rule(silo=SILOS)
    def a_silo_ignores_what_it_is_told(self, silo: str) -> None:
        for _ in range(2):
            self.hears(silo, "ignore")

    @rule(silo=SILOS, doing=some.sampled_from(["update", "decline", "fail"]))
    def a_silo_answers(self, silo: str, doing: Any) -> None:
        self.hears(silo, doing)

    @rule()
    def all_silos_hear_everything(self) -> None:
        self.all_answer()

    @rule(seconds=some.sampled_from([1, 31, 301]))
    def time_passes(self, seconds: int) -> None:
        self.do(self.world.clock.advance(seconds))

    @rule(call=some.sampled_from(["create exp_", "write experiments"]), silo=SILOS)
    def a_silo_joins_or_leaves_while_the_sum_is_made(self, call: str, silo: str) -> None:
        slow = self.only_one()
        slow.trouble.hold_at(call)
        self.all_answer(times=1)
        self._offers(silo, not self.world.silos[silo].offers)
        self.settle()
        slow.trouble.release()
        self.settle()

    @rule(message=some.sampled_from(["pause", "resume", "resume"]))
    def an_operator_posts(self, message: str) -> None:
        kind = PauseExperiment if message == "pause" else ResumeExperiment
        self.do(self.world.post(kind(experiment="exp")))
        self.settle()

    async def faults_stop(self) -> None:
        """Every silo is enrolled and offers the task."""
        world = self.world
        for process in world.processes:
            await process.kill()
        for name in list(world.broker._queues):
            self.lapse(name)
        await world.clock.advance(0.001)
        world.enrolled = tuple(sorted(CONSTANTS))
        for silo in world.silos.values():
            silo.offers = True
        await world.start()
        await self.calm()
        state = world.state()
        if isinstance(state, Collecting | Aggregating | Paused):
            assert set(state.run.silos) == set(CONSTANTS), "a silo that offers the task does not take part"
        await world.post(ResumeExperiment(experiment="exp"))
        await world.supervised(lambda: world.phase() in {"ended", "paused"})
        if world.phase() == "paused":  # a pause that was delayed came after the resume
            await world.post(ResumeExperiment(experiment="exp"))
        over = await world.ended()
        await self.at_rest()
        self.check_the_end(over, tries=TRIES)
        assert not self.dead_letters(names.WORK)
