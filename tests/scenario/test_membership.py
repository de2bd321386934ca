"""Silos join, leave, are away for days and come too late, while the real orchestrator and its runs go on."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from messages import names
from messages.codec import encode
from messages.experiments import StartExperiment
from messages.ports import Outgoing
from messages.schemas import Purpose, RoundAnnounced
from orchestrator.documents import Presence
from orchestrator.experiment.membership import drawing_order
from orchestrator.experiment.state import Aggregating, Collecting, Paused, RunOutcome
from tests.scenario.faults import Trouble
from tests.scenario.model_silo import TASK
from tests.scenario.world import World
from tests.virtual_clock import rest

SILOS = {"east": 6.0, "north": 12.0, "south": 24.0}


@contextlib.asynccontextmanager
async def world(silos: dict[str, float] | None = None, **options: Any) -> AsyncIterator[World]:
    made = World(silos or SILOS, **options)
    try:
        yield made
    finally:
        await made.close()


async def open_round(w: World, number: int, purpose: Purpose = Purpose.TRAIN) -> Collecting:
    def found() -> bool:
        state = w.state()
        return isinstance(state, Collecting) and (state.round, state.purpose) == (number, purpose)

    await w.supervised(found)
    state = w.state()
    assert isinstance(state, Collecting)
    return state


async def held_round(w: World, number: int = 1, **start: Any) -> str:
    """A run whose silos go on answering once `w.live_silos()`; it stands in this round, which nobody has answered."""
    for silo in w.silos.values():
        silo.doing = lambda asked: "update" if asked.round < number else "ignore"
    await w.start()
    w.live_silos()
    run = await w.begin(**start)
    await open_round(w, number)
    await rest()
    return run


async def answers(w: World, *silos: str) -> None:
    """They answer the open round."""
    for silo in silos:
        state = w.state()
        assert isinstance(state, Collecting)
        told = [m for m in w.silos[silo].heard if isinstance(m, RoundAnnounced) and m.round == state.round]
        await w.silos[silo].answer(told[-1], "update")
        await rest()


async def test_a_silo_that_joins_is_asked_from_the_next_round_and_one_that_leaves_no_more() -> None:
    async with world({**SILOS, "kiel": 48.0}) as w:
        w.silos["kiel"].offers = False
        run = await held_round(w, rounds=3, quorum={"minimum": 2, "grace": 0})
        w.silos["kiel"].offers, w.silos["east"].offers = True, False
        await w.silos["kiel"].hello()
        await w.silos["east"].hello()
        await rest()
        state = w.state()
        assert isinstance(state, Collecting)
        assert (state.asked, state.run.silos) == (("east", "north", "south"), ("kiel", "north", "south"))
        for silo in w.silos.values():
            silo.doing = lambda asked: "update"
        await answers(w, "north", "south")
        over = await w.ended()

        assert over.outcome is RunOutcome.COMPLETED
        records = [w.record(run, number) for number in (1, 2, 3)]
        assert [r and r.asked for r in records] == [("east", "north", "south"), *[("kiel", "north", "south")] * 2]
        assert records[0] is not None
        assert records[0].others["east"] == "declined: task-not-offered"
        assert not [m for m in w.silos["kiel"].heard if m.round == 1]


@pytest.mark.parametrize("away", ["read experiments", "write experiments", "write presence", "read presence"])
@pytest.mark.parametrize("what", ["refuse", "lose-answer", "crash-before", "crash-after"])
async def test_a_hello_reaches_its_run_whatever_call_goes_wrong(away: str, what: str) -> None:
    async with world({**SILOS, "kiel": 48.0}) as w:
        w.silos["kiel"].offers = False
        await held_round(w)
        w.silos["kiel"].offers = True
        w.processes[-1].trouble.at_next(away, what)
        await w.silos["kiel"].hello()
        await w.clock.advance(5)
        if not w.processes[-1].alive:
            await w.processes[-1].kill()
            await w.clock.advance(61)
            await w.start()
        await rest()
        state = w.state()
        assert isinstance(state, Collecting)
        assert state.run.silos == ("east", "kiel", "north", "south")
        assert w.state().run.silos.count("kiel") == 1  # type: ignore[union-attr]


async def test_of_two_hellos_handled_at_once_the_newer_one_counts() -> None:
    """The older is taken by an orchestrator that stops in the middle of it, until another has handled the newer."""
    async with world({**SILOS, "kiel": 48.0}) as w:
        w.silos["kiel"].offers = False
        await held_round(w)
        slow = w.processes[-1]
        w.silos["kiel"].offers = True
        slow.trouble.hold_at("write presence/kiel")
        await w.silos["kiel"].hello()
        await rest()
        assert slow.trouble.holding
        await w.start(Trouble())
        w.silos["kiel"].offers = False
        await w.clock.advance(1)
        await w.silos["kiel"].hello()
        await rest()
        slow.trouble.release()
        await w.clock.advance(5)
        state = w.state()
        assert isinstance(state, Collecting)
        assert state.run.silos == ("east", "north", "south")


async def says_hello(w: World, silo: str, *, offers: bool) -> None:
    """An orchestrator handles the hello at once, at least as far as the silo's presence."""
    w.silos[silo].offers = offers
    await w.clock.advance(1)
    await w.silos[silo].hello()
    await rest()
    presence = Presence.model_validate_json(w.store.blobs[names.STATE, names.presence_blob(silo)].data)
    assert presence.hello is not None
    assert bool(presence.hello.offers) == offers


async def test_an_older_hello_that_is_told_last_is_corrected_by_whoever_told_it() -> None:
    """An orchestrator stops between reading what a silo offers and telling its run; another handles a newer hello."""
    async with world({**SILOS, "kiel": 48.0}) as w:
        w.silos["kiel"].offers = False
        await held_round(w)
        slow = w.processes[-1].trouble
        await w.start(Trouble())  # behind the other in every queue, so it has the second hello
        slow.hold_at("write experiments/exp")
        await says_hello(w, "kiel", offers=True)
        assert slow.holding
        await says_hello(w, "kiel", offers=False)
        slow.release()
        await w.clock.advance(5)
        state = w.state()
        assert isinstance(state, Collecting)
        assert state.run.silos == ("east", "north", "south")


async def test_an_orchestrator_that_starts_tells_runs_nothing_older_than_the_newest_hello() -> None:
    """It stops between reading all offers and telling a run of them; another handles a hello meanwhile."""
    async with world({**SILOS, "kiel": 48.0}) as w:
        w.silos["kiel"].offers = False
        await held_round(w)
        other, starting = w.processes[-1].trouble, Trouble()
        other.hold_at("write experiments/exp")
        await says_hello(w, "kiel", offers=True)
        assert other.holding
        starting.hold_at("write experiments/exp")
        await w.start(starting)
        assert starting.holding, "it is about to tell the run that kiel offers its task"
        other.release()
        await rest()
        await says_hello(w, "kiel", offers=False)
        starting.release()
        await w.clock.advance(5)
        state = w.state()
        assert isinstance(state, Collecting)
        assert state.run.silos == ("east", "north", "south")


async def test_a_hello_reaches_a_run_whose_sum_is_made_and_one_that_is_paused() -> None:
    async with world({**SILOS, "kiel": 48.0}) as w:
        w.silos["kiel"].offers = False
        await held_round(w, quorum={"minimum": 3, "grace": 0})
        w.processes[-1].trouble.hold_at("create exp_")
        await answers(w, "east", "north", "south")
        assert isinstance(w.state(), Aggregating)
        w.silos["kiel"].offers = True
        await w.silos["kiel"].hello()
        await rest()
        w.processes[-1].trouble.release()
        state = await open_round(w, 2)
        assert state.asked == ("east", "kiel", "north", "south")


async def test_a_silo_taken_out_of_the_settings_is_not_waited_for_once_an_orchestrator_starts() -> None:
    async with world() as w:
        run = await held_round(w, rounds=2, silos=["south", "north", "east"], quorum={"minimum": 2, "grace": 500})
        await answers(w, "south", "north")
        assert isinstance(w.state(), Collecting)
        await w.processes[-1].kill()
        w.enrolled = ("north", "south")
        for silo in w.silos.values():
            silo.doing = lambda asked: "update"
        await w.start()
        over = await w.ended()
        assert over.outcome is RunOutcome.COMPLETED
        first = w.record(run, 1)
        assert first is not None
        assert first.others == {"east": "declined: not-enrolled"}
        assert (first.closed_at - first.opened_at).total_seconds() < 100, "nobody waits for the grace"
        assert [w.record(run, n).asked for n in (2, 3)] == [("south", "north")] * 2  # type: ignore[union-attr]


async def initial_weights(w: World) -> str:
    """Uploads weights; returns their digest."""
    data = save({"w": np.full(4, 100.0, np.float32)})
    sha256 = hashlib.sha256(data).hexdigest()
    await w.store.create(names.INITIAL, names.initial_blob(sha256), data)
    return sha256


async def held_start(w: World, at: str, *, given: bool) -> Trouble:
    """A start that has read what silos offer and is held at a call; south begins to offer, which another handles."""
    w.silos["south"].offers = False
    starting = (await w.start()).trouble
    await w.start(Trouble())
    for silo in w.silos.values():
        await silo.hello()
    await rest()
    request: dict[str, Any] = {"experiment": "exp", "task": TASK, "rounds": 2, "quorum": {"minimum": 2}}
    if given:
        data = save({"w": np.full(4, 100.0, np.float32)})
        request["initial"] = {"sha256": hashlib.sha256(data).hexdigest()}
        await w.store.create(names.INITIAL, names.initial_blob(request["initial"]["sha256"]), data)
    starting.hold_at(at)
    await w.post(StartExperiment.model_validate(request))
    await rest()
    assert starting.holding
    await says_hello(w, "south", offers=True)
    assert w.phase() == "none", "nobody could be told"
    return starting


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("at", ["write live", "write experiments/exp"])
async def test_a_silo_that_says_hello_while_the_run_is_being_started_takes_part(at: str, given: bool) -> None:
    """Before the run is listed among those that go on, or before there is a document of it."""
    async with world() as w:
        starting = await held_start(w, at, given=given)
        starting.release()
        await w.clock.advance(3)
        state = w.state()
        assert isinstance(state, Collecting)
        assert state.run.silos == ("east", "north", "south")


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("what", ["refuse", "crash-before"])
async def test_it_takes_part_though_the_start_never_came_to_look_again(what: str, given: bool) -> None:
    """The store is away, or the orchestrator is killed: the start comes again, and is a duplicate by then."""
    async with world() as w:
        starting = await held_start(w, "write experiments/exp", given=given)
        starting.at_next("read presence", what)
        starting.release()
        await w.clock.advance(100)
        state = w.state()
        assert isinstance(state, Collecting)
        assert state.run.silos == ("east", "north", "south")


async def test_a_run_that_lost_its_quorum_goes_on_when_a_silo_comes_back() -> None:
    async with world() as w:
        await held_round(w, rounds=2, quorum={"minimum": 3, "grace": 0})
        w.processes[-1].trouble.hold_at("create exp_")
        await answers(w, "east", "north", "south")
        w.silos["east"].offers = False
        await w.silos["east"].hello()
        await rest()
        w.processes[-1].trouble.release()
        await w.supervised(lambda: w.phase() == "paused")
        state = w.state()
        assert isinstance(state, Paused)
        assert "needs 3 updates, and of 2 silos" in state.because
        for silo in w.silos.values():
            silo.doing = lambda asked: "update"
        w.silos["east"].offers = True
        await w.silos["east"].hello()
        assert (await w.ended()).outcome is RunOutcome.COMPLETED


async def test_each_round_asks_its_sample_and_no_other_silo() -> None:
    silos = {f"s{number}": 6.0 for number in range(8)}
    async with world(silos) as w:
        await w.start()
        w.live_silos()
        run = await w.begin(rounds=4, sample={"share": 0.3, "seed": 3})
        over = await w.ended()
        assert over.outcome is RunOutcome.COMPLETED
        for number in range(1, 5):
            sample = sorted(drawing_order(3, number, silos)[:3])
            record = w.record(run, number)
            assert record is not None
            assert [u.silo for u in record.updates] == sample == list(record.asked)
            told = [name for name, silo in w.silos.items() if any(m.round == number for m in silo.heard)]
            assert sorted(told) == sample
        assert w.weights(run, 4) == [30.0] * 4


async def test_a_late_update_is_counted_once_and_its_weights_are_not_read() -> None:
    async with world() as w:
        run = await held_round(w, rounds=3, quorum={"minimum": 2, "grace": 5})
        await answers(w, "east", "north")
        state = await open_round(w, 2)
        south = w.silos["south"]
        asked = next(m for m in south.heard if isinstance(m, RoundAnnounced) and m.round == 1)
        update = await south.publish(asked)
        calls = len(w.processes[-1].trouble.log)
        for _ in range(3):
            await south.send(update)
            await rest()
        told = w.processes[-1].trouble.log[calls:]
        assert not [line for line in told if "updates-" in line or ".safetensors" in line], told
        state = await open_round(w, 2)
        assert (state.run.paces["south"].late, state.run.paces["south"].late_for) == (1, 1)
        for silo in w.silos.values():
            silo.doing = lambda asked: "update"
        await answers(w, "east", "north", "south")
        over = await w.ended()
        assert over.run.paces["south"].late == 1
        assert await w.dead_letters(names.from_silo("south")) == []
        blob = w.store.blobs[names.STATE, names.run_blob(run)]
        assert b'"late":1' in blob.data


async def test_an_update_whose_round_closed_while_it_was_verified_is_late() -> None:
    async with world() as w:
        await held_round(w, rounds=3, quorum={"minimum": 2, "grace": 5})
        process = w.processes[-1]
        south = w.silos["south"]
        asked = next(m for m in south.heard if isinstance(m, RoundAnnounced) and m.round == 1)
        process.trouble.hold_at("open exp_")
        task = asyncio.create_task(south.answer(asked, "update"))
        await rest()
        await task
        assert process.trouble.holding
        other = await w.start(Trouble())
        await answers(w, "east", "north")
        await w.clock.advance(6)
        await open_round(w, 2)
        process.trouble.release()
        await w.clock.advance(1)
        assert other.alive
        state = w.state()
        assert isinstance(state, Collecting)
        assert state.run.paces["south"].late == 1


async def test_announcements_nobody_took_do_not_outlast_their_deadline() -> None:
    """A silo that was down for days finds what the newest round says, and no announcement of those before it."""
    async with world() as w:
        w.silos["south"].doing = lambda asked: "update"
        await w.start()
        w.live_silos("east", "north")
        await w.begin(rounds=5, quorum={"minimum": 2, "grace": 50, "deadline": 100})
        await open_round(w, 4)
        await w.silos["south"].hello()
        await rest()
        waiting = [d for d in await w.waiting(names.to_silo("south")) if d.subject == "round-announced"]
        rounds = [RoundAnnounced.model_validate_json(d.body).round for d in waiting]
        assert set(rounds) <= {3, 4}
        assert rounds.count(4) == 2, "announced to all, and again to the new agent"


async def test_an_offer_in_a_hello_of_the_same_instance_counts_too() -> None:
    async with world() as w:
        await held_round(w, quorum={"minimum": 2})
        hello = next(m for m in w.silos["east"].said if getattr(m, "kind", "") == "silo-hello")
        changed = hello.model_copy(update={"offers": []})
        await w.bus.send(
            names.from_silo("east"), Outgoing(body=encode(changed), message_id="again", subject="silo-hello")
        )
        await rest()
        state = w.state()
        assert isinstance(state, Collecting)
        assert state.run.silos == ("north", "south")
