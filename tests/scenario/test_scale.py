"""What grows and what must not, in counts of operations: never in time.

The simulation (`benchmarks.simulate`) is what the numbers in docs/scale.md come from; here it runs small.
"""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.simulate.fleet import Weather
from benchmarks.simulate.world import simulate
from messages.experiments import CancelExperiment, Quorum
from orchestrator.experiment.state import Ended
from orchestrator.settings import RetentionSettings
from orchestrator.store import Documents
from tests.scenario.faults import Trouble
from tests.scenario.world import World


def test_a_late_round_takes_the_same_operations_as_an_early_one() -> None:
    weather = Weather(period=4, vanish=0.2, fail=0.1, shortest_absence=5, longest_absence=40)
    kept = RetentionSettings(updates=1, models=2)
    outcome = simulate(4, 16, weather, Quorum(minimum=0.5, grace=20, deadline=120), kept)
    early, *later = (outcome.meters.rounds[number] for number in (8, 12, 16))
    assert early.counts["blob.delete"] > 0, "retention is at work, too"
    for late in later:
        assert _operations(late.counts) == _operations(early.counts)
        assert max(late.documents) <= max(early.documents) * 1.01, "but for the digits of larger numbers"


def test_operations_grow_with_the_silos_in_a_straight_line() -> None:
    fair = Weather(vanish=0, fail=0, heartbeat=1e6)
    quorum = Quorum(minimum="all", deadline=1e6)
    few, more, many = (simulate(silos, 4, fair, quorum).meters.rounds[3] for silos in (4, 8, 12))
    for name in few.counts | many.counts:
        if not name.startswith("bytes."):
            assert many.counts[name] - more.counts[name] == more.counts[name] - few.counts[name], name
    slope = [(max(b.documents) - max(a.documents)) / 4 for a, b in ((few, more), (more, many))]
    assert abs(slope[1] - slope[0]) < 10, "bytes of the state document per silo"


@pytest.mark.parametrize("days", [30, None])
async def test_a_hello_and_a_start_cost_the_same_however_many_experiments_have_ended(days: float | None) -> None:
    w = World({"east": 1.0, "north": 2.0}, retention=RetentionSettings(days=days))
    try:
        process = await w.start()
        w.live_silos()
        hellos, starts = [], []
        for number in range(1, 5):
            await w.begin(experiment=f"exp-{number}", rounds=1)
            await w.clock.until(lambda number=number: isinstance(w.state(f"exp-{number}"), Ended))
            await w.clock.advance(3600)
            before = len(process.trouble.log)
            await w.silos["east"].hello()
            await w.clock.advance(60)
            hellos.append(_calls(process.trouble.log[before:]))
            another = Trouble()
            second = await w.start(another)
            await w.clock.advance(60)
            starts.append(_calls(another.log))
            await second.kill()
            await w.clock.advance(120)
        assert hellos == hellos[:1] * 4
        assert starts == starts[:1] * 4
    finally:
        await w.close()


async def test_a_run_that_is_over_is_listed_no_longer_even_when_its_leaving_failed_at_first() -> None:
    w = World({"east": 1.0, "north": 2.0})
    try:
        process = await w.start()
        await w.begin(rounds=1)
        await w.clock.advance(1)
        live = Documents(w.store).live
        assert await live.experiments() == ["exp"]
        process.trouble.at_next("write live.json", "refuse")
        w.live_silos()
        await w.ended()
        await w.clock.advance(60)
        assert await live.experiments() == []
    finally:
        await w.close()


async def test_nothing_is_remembered_of_runs_that_are_over() -> None:
    w = World({"east": 1.0, "north": 2.0})
    try:
        process = await w.start()
        w.live_silos()
        for number in range(2):
            await w.begin(experiment=f"exp-{number}", rounds=1)
            await w.clock.until(lambda number=number: isinstance(w.state(f"exp-{number}"), Ended))
        await w.clock.advance(60)
        await w.post(CancelExperiment(experiment="exp-0"))  # somebody looks at it again
        await w.clock.advance(60)
        assert process.experiments._done == {}
        process.experiments._done |= {f"elsewhere-{number}": ("etag", set()) for number in range(2000)}
        await w.begin(experiment="exp-2", rounds=1)
        await w.clock.advance(1)
        assert len(process.experiments._done) <= 1000
    finally:
        await w.close()


async def test_a_run_is_listed_before_there_is_anything_of_it_to_find() -> None:
    w = World({"east": 1.0, "north": 2.0})
    try:
        process = await w.start()
        process.trouble.at_next("write experiments/exp.json", "crash-after")
        await w.begin(rounds=1)
        await w.clock.until(lambda: not process.alive, within=60)
        await process.kill()
        w.lose_queues()
        await w.start()
        w.live_silos()
        await w.ended()
    finally:
        await w.close()


def _operations(counts: Counter[str]) -> dict[str, int]:
    return {name: number for name, number in counts.items() if not name.startswith("bytes.")}


def _calls(log: list[str]) -> Counter[str]:
    """Calls by kind, but for receives, of which there are as many as a clock's minutes."""
    return Counter(call.split()[0] for call in log if not call.startswith("receive"))
