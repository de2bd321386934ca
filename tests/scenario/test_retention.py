"""Retention as it is met: what is deleted during a run and after it, what a hold protects, and who comes late."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from messages import names
from messages.codec import encode
from messages.errors import Stale
from messages.experiments import HoldExperiment, ReleaseExperiment
from messages.ports import Outgoing
from messages.schemas import AggregateRound, Purpose, RoundAnnounced, SweepRun
from messages.transport.memory_bus import QueueOptions
from orchestrator.blobs import Weights
from orchestrator.documents import Retained
from orchestrator.experiment.state import Aggregating, Collecting, RunOutcome
from orchestrator.settings import RetentionSettings
from tests.scenario.faults import Trouble
from tests.scenario.model_silo import Doing
from tests.scenario.world import World
from tests.virtual_clock import VirtualClock, rest

SILOS = {"north": 12.0, "south": 18.0}
TIGHT = RetentionSettings(updates=0, models=1, days=0.001)
"""Only what is needed."""
EXPIRY = 86.4
"""Seconds after its end in which nothing is deleted of a run for its age."""
WRONG = ("crash-before", "crash-after", "refuse", "lose-answer")
SWEEPING = re.compile(r"^(list|delete) |retention/|swept/|^send work")


@contextlib.asynccontextmanager
async def world(retention: RetentionSettings = TIGHT, **options: Any) -> AsyncIterator[World]:
    made = World(SILOS, retention=retention, **options)
    try:
        yield made
    finally:
        await made.close()


def rounds_kept(w: World, container: str) -> list[int]:
    """Rounds of which blobs are there."""
    found = {names.round_of_blob(name) for where, name in w.store.blobs if where == container}
    return sorted(number for number in found if number is not None)


def retained(w: World, run: str) -> Retained:
    return Retained.model_validate_json(w.store.blobs[names.STATE, names.retained_blob(run)].data)


def is_swept(w: World, run: str) -> bool:
    return bool(w.store.named(names.swept_blob(run)))


@pytest.mark.parametrize("held", [False, True])
async def test_an_update_that_comes_when_those_of_its_round_are_gone_goes_too(held: bool) -> None:
    """Where no last sweep would ever come; of a run that is held nothing goes."""
    async with world(RetentionSettings(updates=1, models=None, days=None)) as w:
        asked = []

        def slow(message: RoundAnnounced) -> Doing:
            if message.round == 1:
                asked.append(message)
                return "ignore"
            return "update"

        w.silos["south"].doing = slow
        await w.start()
        w.live_silos()
        run = await w.begin(rounds=4, quorum={"minimum": 1, "grace": 5})
        await w.ended()
        assert 1 not in rounds_kept(w, "updates-south")
        if held:
            await w.post(HoldExperiment(experiment="exp"))
            await w.clock.advance(1)
        late = await w.silos["south"].publish(asked[0])
        assert 1 in rounds_kept(w, "updates-south")
        await w.silos["south"].send(late)
        await w.clock.advance(1)
        assert (1 in rounds_kept(w, "updates-south")) is held
        assert retained(w, run).updates_gone > 1
        await no_dead_letters(w)


async def work(w: World, message: Any, message_id: str) -> None:
    await w.bus.send(names.WORK, Outgoing(body=encode(message), message_id=message_id, subject=message.kind))


async def swept(w: World, run: str) -> None:
    """Lets time pass until the run is swept for the last time, and nothing is left to be done."""
    await w.supervised(lambda: is_swept(w, run), within=10 * EXPIRY)
    await rest()


async def no_dead_letters(w: World) -> None:
    assert {queue: await w.dead_letters(queue) for queue in names.queues(list(w.enrolled))} == {
        queue: [] for queue in names.queues(list(w.enrolled))
    }


async def test_a_long_run_keeps_its_last_rounds_and_then_its_last_and_best_weights() -> None:
    async with world(RetentionSettings(updates=2, models=3, days=0.001)) as w:
        await w.start()
        w.live_silos()
        run = await w.begin(rounds=8, metric={"name": "loss", "mode": "min"})
        over = await w.ended()
        await rest()
        assert over.outcome is RunOutcome.COMPLETED
        assert w.weights(run, 8) == [12.0 + 8 * 15.0] * 4
        assert rounds_kept(w, "updates-north") == [8, 9]
        assert rounds_kept(w, names.GLOBAL) == [6, 7, 8]
        assert not is_swept(w, run)

        before = w.clock.now()
        await swept(w, run)
        assert w.clock.now() - before >= timedelta(seconds=EXPIRY / 2)
        assert [rounds_kept(w, names.updates_of(silo)) for silo in SILOS] == [[], []]
        assert over.run.best is not None
        assert rounds_kept(w, names.GLOBAL) == sorted({8, over.run.best.round})
        assert w.head(run).phase == "ended"
        assert w.record(run, 1) is not None
        assert [d.subject for d in await w.waiting(names.WORK) if d.subject == "sweep-run"] == []
        await no_dead_letters(w)


async def test_a_short_run_is_swept_too() -> None:
    """Of so few rounds nothing is deleted while it goes on: what is scheduled at its end is all there is."""
    async with world(RetentionSettings(updates=10, models=20, days=0.001)) as w:
        await w.start()
        w.live_silos()
        run = await w.begin(rounds=2)
        await w.ended()
        assert rounds_kept(w, "updates-north") == [0, 1, 2, 3]
        await swept(w, run)
        assert (rounds_kept(w, "updates-north"), rounds_kept(w, names.GLOBAL)) == ([], [2])


async def test_the_best_weights_stay_while_they_are_the_best_and_go_when_others_are() -> None:
    async with world() as w:
        await w.start()
        for silo in w.silos.values():
            silo.doing = lambda asked: "ignore" if asked.round == 5 and asked.announcement == 1 else "update"
        w.live_silos()
        falling = {"name": "loss", "mode": "max"}  # so the first weights are the best
        run = await w.begin(rounds=5, metric=falling, quorum={"deadline": 60})
        await w.clock.until(lambda: isinstance(s := w.state(), Collecting) and s.round == 5, within=600)
        await rest()
        state = w.state()
        assert isinstance(state, Collecting)
        assert state.run.best is not None
        best = state.run.best.round
        assert best in rounds_kept(w, names.GLOBAL)
        over = await w.ended()
        await swept(w, run)
        assert rounds_kept(w, names.GLOBAL) == sorted({best, 5})
        assert over.run.best is not None
        assert over.run.best.round == best

        later = await w.begin(rounds=3, metric={"name": "loss", "mode": "min"}, experiment="exp")
        await w.supervised(lambda: is_swept(w, later), within=10 * EXPIRY)
        kept = [name for where, name in w.store.blobs if where == names.GLOBAL and name.startswith(later)]
        rounds = sorted(number for name in kept if (number := names.round_of_blob(name)) is not None)
        assert rounds == [3]
        await no_dead_letters(w)


async def test_a_tombstone_is_there_before_anything_is_deleted() -> None:
    async with world() as w:
        process = await w.start()
        w.live_silos()
        run = await w.begin(rounds=2)
        await w.ended()
        await swept(w, run)
        log = process.trouble.log
        said = [i for i, line in enumerate(log) if line == f"write {names.retained_blob(run)}"]
        gone = [i for i, line in enumerate(log) if line.startswith("delete ")]
        assert min(said) < min(gone)
        created = [line for line in log if line.startswith("create ")]
        assert len(gone) == len(created) - 1 + sum(2 * len(silo.honest) - 1 for silo in w.silos.values())  # each once


async def test_a_sweep_costs_the_same_however_many_rounds_there_were() -> None:
    async with world(RetentionSettings(updates=2, models=2, days=None)) as w:
        process = await w.start()
        w.live_silos()
        await w.begin(rounds=40)
        await w.ended()
        calls = process.trouble.log
        ends = [i for i, line in enumerate(calls) if line.startswith("write rounds/")]
        per_round = [sum(bool(SWEEPING.search(line)) for line in calls[a:b]) for a, b in itertools.pairwise(ends[5:40])]
        assert len(set(per_round)) == 1, per_round


async def run_with(trouble: Trouble, **options: Any) -> tuple[Any, list[str], list[str]]:
    """A run of three rounds to its last sweep: what is left, its weights, and the calls its first orchestrator made."""
    async with world(**options) as w:
        await w.start(trouble)
        w.live_silos()
        run = await w.begin(rounds=2)
        over = await w.ended(within=10 * EXPIRY)
        assert over.outcome is RunOutcome.COMPLETED
        assert w.weights(run, 2) == [12.0 + 2 * 15.0] * 4
        await swept(w, run)
        left = sorted((c, n) for c, n in w.store.blobs if c != names.STATE or n.startswith(("retention/", "swept/")))
        await no_dead_letters(w)
        assert all(w.record(run, number) for number in range(4))
        return left, [retained(w, run).model_dump_json()], trouble.log


@pytest.mark.parametrize("what", WRONG)
async def test_whichever_call_of_a_sweep_goes_wrong_the_same_is_left_and_nothing_that_is_needed_goes(what: str) -> None:
    """Each call in one of these ways; no duplicate is detected, as in every world of these."""
    left, said, log = await run_with(Trouble())
    points = [number for number, line in enumerate(log, start=1) if SWEEPING.search(line)]
    assert len(points) > 40
    assert [container for container, name in left if container != names.STATE] == [names.GLOBAL] * 2
    for number in points[WRONG.index(what) :: len(WRONG)]:
        trouble = Trouble()
        trouble.at[number] = what
        assert (await run_with(trouble))[:2] == (left, said), f"{what} at {log[number - 1]}"


async def test_what_a_killed_sweep_left_is_deleted_though_no_last_sweep_comes() -> None:
    async with world(RetentionSettings(updates=0, models=1, days=None)) as w:
        trouble = Trouble()
        trouble.at_next(r"^delete .*/00001/", "crash-before")
        await w.start(trouble)
        w.live_silos()
        await w.begin(rounds=3)
        await w.ended()
        await w.clock.advance(120)  # until the lock of the message it died with is over
        await rest()
        assert trouble.dead
        assert [rounds_kept(w, container) for container in ("updates-north", "updates-south")] == [[], []]
        assert rounds_kept(w, names.GLOBAL) == [3]


async def test_two_orchestrators_sweep_at_once() -> None:
    left, _, _ = await run_with(Trouble())
    async with world(options=QueueOptions(lock_duration=60)) as w:
        for _ in range(2):
            await w.start()
        w.live_silos()
        run = await w.begin(rounds=2)
        await w.ended(within=10 * EXPIRY)
        for number in range(4):
            await work(w, SweepRun(run=run), f"again-{number}")
        await swept(w, run)
        for number in range(4):
            await work(w, SweepRun(run=run), f"and-again-{number}")
        await rest()
        found = sorted((c, n) for c, n in w.store.blobs if c != names.STATE or n.startswith(("retention/", "swept/")))
        assert [re.sub("_[0-9a-f]{8}", "", name) for _, name in found] == [
            re.sub("_[0-9a-f]{8}", "", name) for _, name in left
        ]
        assert w.weights(run, 2) == [12.0 + 2 * 15.0] * 4
        await no_dead_letters(w)


# --- holds -------------------------------------------------------------------------------------------------------


async def test_a_hold_stops_deletion_and_a_release_has_it_done() -> None:
    async with world() as w:
        await w.start()
        run = await w.begin(rounds=5)
        await w.post(HoldExperiment(experiment="exp"))
        await w.supervised(lambda: bool(w.store.named("retention/")))
        w.live_silos()
        await w.ended()
        await w.clock.advance(3 * EXPIRY)
        await rest()
        assert rounds_kept(w, "updates-north") == [0, 1, 2, 3, 4, 5, 6]
        assert rounds_kept(w, names.GLOBAL) == [0, 1, 2, 3, 4, 5]
        held = retained(w, run)
        assert held.held_at is not None
        assert not is_swept(w, run)

        w.lose_queues()
        await w.processes[-1].kill()
        await w.start()  # a hold outlives processes and queues, and a start deletes nothing
        assert retained(w, run) == held

        await w.post(ReleaseExperiment(experiment="exp"))
        await swept(w, run)
        assert (rounds_kept(w, "updates-north"), rounds_kept(w, names.GLOBAL)) == ([], [5])
        await no_dead_letters(w)


async def test_a_hold_stops_a_sweep_that_is_under_way() -> None:
    """What the tombstone names is given up; but what is still there when the hold comes, stays."""
    async with world() as w:
        process = await w.start()
        w.live_silos()
        run = await w.begin(rounds=6)
        await w.post(HoldExperiment(experiment="exp"), message_id="hold")
        await w.ended()
        kept = rounds_kept(w, "updates-north")
        await w.post(ReleaseExperiment(experiment="exp"))
        process.trouble.hold_at(f"list {names.round_prefix(run, kept[1])}")
        await w.clock.until(lambda: process.trouble.holding, within=60)
        await w.post(HoldExperiment(experiment="exp", run=run))
        await rest()
        process.trouble.release()
        await w.clock.advance(3 * EXPIRY)
        await rest()
        assert rounds_kept(w, "updates-north") == kept[2:]
        assert not is_swept(w, run)


async def test_an_older_release_takes_back_no_newer_hold() -> None:
    """A message whose settlement was lost comes again, and must not undo what was asked for since."""
    async with world() as w:
        process = await w.start()
        run = await w.begin(rounds=5)
        await w.supervised(lambda: w.phase() == "collecting")
        for message in (HoldExperiment(experiment="exp"), ReleaseExperiment(experiment="exp")):
            await w.post(message)
            await w.clock.advance(1)
        [late] = [d for d in [await _delivery(w, ReleaseExperiment(experiment="exp"))] if d]
        await w.clock.advance(1)
        await w.post(HoldExperiment(experiment="exp"))
        await w.clock.advance(1)
        with pytest.raises(Stale):
            await process.orchestrator.on_operator(late)
        assert retained(w, run).held_at is not None


async def _delivery(w: World, message: Any) -> Any:
    """The message as it would have been delivered now."""
    probe = World({"probe": 1.0})
    probe.clock = w.clock
    probe.broker = probe._made()
    from messages.transport.memory_bus import MemoryBus

    bus = MemoryBus(probe.broker)
    await bus.send(names.EXPERIMENTS, Outgoing(body=encode(message), message_id="late", subject=message.kind))
    return await bus.receive(names.EXPERIMENTS, wait=0)


async def test_what_cannot_be_held_is_refused() -> None:
    async with world() as w:
        await w.start()
        await w.post(HoldExperiment(experiment="nothing"))
        await w.post(HoldExperiment(experiment="exp", run="other_00000000"))
        await w.post(HoldExperiment(experiment="exp", run="exp_00000000"))
        await w.clock.advance(1)
        await rest()
        assert await w.dead_letters(names.EXPERIMENTS) == ["unknown-experiment", "unknown-run", "unknown-run"]


# --- who comes late ----------------------------------------------------------------------------------------------


async def test_updates_and_sums_that_come_again_after_everything_is_deleted_end_quietly() -> None:
    async with world() as w:
        await w.start()
        for silo in w.silos.values():
            silo.doing = lambda asked: "ignore" if asked.round == 3 and asked.announcement == 1 else "update"
        w.live_silos()
        run = await w.begin(rounds=3, quorum={"deadline": 60})
        await w.clock.until(lambda: isinstance(s := w.state(), Collecting) and s.round == 3, within=600)
        north = w.silos["north"]
        await north.send(north.honest[run, 1])
        await work(w, AggregateRound(run=run, round=1), "sum-again")
        await w.ended()
        await swept(w, run)
        await north.send(north.honest[run, 2])
        await north.send(north.honest[run, 3])
        await work(w, AggregateRound(run=run, round=3), "sum-again-later")
        await work(w, SweepRun(run=run), "sweep-again")
        await w.clock.advance(60)
        await rest()
        await no_dead_letters(w)


async def test_whoever_slept_while_its_round_was_summed_and_deleted_is_late_and_not_wrong() -> None:
    """A worker that was stopped in the middle of its round finds nothing, looks at the tombstone, and is Stale."""
    async with world() as w:
        await w.start()
        w.live_silos()
        run = await w.begin(rounds=4)
        states: dict[int, Aggregating] = {}
        await w.ended()
        for _, document in w.store.history:
            if isinstance(document.state, Aggregating):
                states[document.state.closed.round] = document.state
        open_rounds = [
            document.state
            for _, document in w.store.history
            if isinstance(document.state, Collecting) and document.state.purpose is Purpose.TRAIN
        ]
        weights = Weights(w.store, w.scratch, memory_budget=1 << 20)
        for number in (1, 2, 3):
            with pytest.raises(Stale):
                await weights.aggregate(states[number])
        update = w.silos["north"].honest[run, 2]
        asleep = next(state for state in open_rounds if state.round == 2)
        with pytest.raises(Stale):
            await weights.verify_update(asleep, "north", update.payloads["weights"])


async def test_a_run_is_swept_after_all_its_messages_were_lost() -> None:
    async with world() as w:
        await w.start()
        w.live_silos()
        run = await w.begin(rounds=2)
        await w.ended()
        await w.processes[-1].kill()
        w.lose_queues()
        await w.start()
        await swept(w, run)
        assert rounds_kept(w, names.GLOBAL) == [2]


async def test_orchestrators_that_come_and_go_leave_one_sweep_waiting() -> None:
    async with world() as w:
        await w.start()
        w.live_silos()
        await w.begin(rounds=2)
        await w.ended()
        await rest()
        before = len(await w.waiting(names.WORK))
        for _ in range(5):
            await w.processes[-1].kill()
            await w.start()
            await rest()
        assert len(await w.waiting(names.WORK)) == before


class _Behind:
    """A clock that is slow."""

    def __init__(self, clock: VirtualClock, seconds: float) -> None:
        self._clock, self._behind = clock, timedelta(seconds=seconds)
        self.sleep = clock.sleep

    def now(self) -> datetime:
        return self._clock.now() - self._behind


@pytest.mark.parametrize("seconds", [5, 300])
async def test_a_sweep_that_comes_before_its_time_waits_a_while(seconds: float) -> None:
    """By the clock of an orchestrator that is behind the broker's: what is due in its future is due already."""
    async with world() as w:
        process = await w.start()
        process.orchestrator._sweeper._clock = _Behind(w.clock, seconds)  # type: ignore[assignment]
        w.live_silos()
        run = await w.begin(rounds=2)
        await w.ended()
        await rest()
        log = process.trouble.log
        before = len(log)

        def sweeps() -> int:
            return sum(line == f"read {names.run_blob(run)}" for line in log[before:])

        await w.clock.until(lambda: is_swept(w, run) or sweeps() > 20, within=10 * EXPIRY)
        assert is_swept(w, run)
        assert sweeps() <= 2 + seconds / 60
        assert [d.subject for d in await w.waiting(names.WORK) if d.subject == "sweep-run"] == []


async def test_a_long_run_and_a_release_leave_one_sweep_waiting() -> None:
    """That which the end asked for; those of the last rounds come after it, and that of the release, too."""
    async with world(RetentionSettings(updates=0, models=1, days=1)) as w:
        await w.start()
        w.live_silos()
        await w.begin(rounds=8)
        await w.ended()
        await rest()
        for message in (HoldExperiment(experiment="exp"), ReleaseExperiment(experiment="exp")):
            await w.post(message)
            await w.clock.advance(1)
        await rest()
        assert [d.subject for d in await w.waiting(names.WORK)].count("sweep-run") == 1


@pytest.mark.parametrize("days", [None, 1])
async def test_a_start_asks_for_no_sweep_of_a_run_that_is_held(days: float | None) -> None:
    async with world(RetentionSettings(updates=0, models=1, days=days)) as w:
        await w.start()
        run = await w.begin(rounds=2)
        await w.post(HoldExperiment(experiment="exp"))
        await w.supervised(lambda: bool(w.store.named("retention/")))
        w.live_silos()
        await w.ended()
        await w.processes[-1].kill()
        w.lose_queues()
        process = await w.start()
        assert [line for line in process.trouble.log if line.startswith("send")] == []
        await w.post(ReleaseExperiment(experiment="exp", run=run))
        await w.clock.advance(1)
        assert rounds_kept(w, names.GLOBAL) == [2]


async def test_under_other_settings_what_was_kept_for_ever_is_swept() -> None:
    async with world(RetentionSettings(updates=1, models=1, days=None)) as w:
        await w.start()
        w.live_silos()
        run = await w.begin(rounds=2)
        await w.ended()
        for settings, kept in [
            (RetentionSettings(updates=1, models=1, days=None), [3]),
            (RetentionSettings(updates=0, models=1, days=None), []),
        ]:
            await w.processes[-1].kill()
            w.retention = settings
            await w.start()
            await w.clock.advance(1)
            assert rounds_kept(w, "updates-north") == kept
        await w.processes[-1].kill()
        w.retention = TIGHT
        await w.start()
        await swept(w, run)


async def test_sweeps_of_many_runs_are_asked_for_once_each_over_a_bad_line() -> None:
    async with world() as w:
        runs = [f"exp-{n}_0000000{n}" for n in range(9)]
        for run in runs:
            await w.store.create(names.STATE, names.run_blob(run), b"{}")
        process = await w.start()
        before = len(await w.waiting(names.WORK))
        for calls in range(2, 30, 4):  # each sending but the first of these fails once
            process.trouble.in_calls(calls, "refuse")

        rearming = asyncio.create_task(process.orchestrator.reconcile())
        await w.clock.until(rearming.done)
        asked = [d.correlation_id for d in (await w.waiting(names.WORK))[before:] if d.subject == "sweep-run"]
        assert sorted(asked) == runs


async def test_a_silo_whose_container_is_closed_to_us_does_not_hold_up_the_others() -> None:
    from messages.errors import Forbidden

    async with world() as w:
        process = await w.start()
        listed = w.store.list

        async def closed(container: str, prefix: str) -> Any:
            if container == "updates-south":
                raise Forbidden("updates-south: not yours any more")
            return await listed(container, prefix)

        w.store.list = closed  # type: ignore[method-assign]
        w.live_silos()
        run = await w.begin(rounds=2)
        await w.ended()
        await swept(w, run)
        assert process.alive
        assert rounds_kept(w, "updates-north") == []
        assert rounds_kept(w, "updates-south") != []
