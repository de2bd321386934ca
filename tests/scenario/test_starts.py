"""What an orchestrator meets when it starts, and what a start that is refused leaves: nothing."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from messages import names
from messages.errors import Forbidden
from messages.experiments import CancelExperiment, StartExperiment
from messages.transport.memory_bus import MemoryBus
from messages.transport.memory_store import MemoryStore
from orchestrator.documents import ExperimentDocument
from orchestrator.experiment.state import Ended, RunOutcome
from orchestrator.live import LiveDocument
from tests.scenario.faults import Trouble
from tests.scenario.model_silo import TASK
from tests.scenario.test_orchestrator import world
from tests.scenario.world import Process, World
from tests.virtual_clock import rest


@pytest.mark.parametrize(("port", "operation"), [(MemoryStore, "read"), (MemoryBus, "send"), (MemoryBus, "peek")])
async def test_an_orchestrator_waits_for_a_right_that_is_not_there_yet(
    port: type, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Roles take minutes to hold. What it takes up then is what it would have taken up at once: here, the deadline, for
    south says nothing before it is asked again.
    """
    allowed, granted = getattr(port, operation), False

    async def asked(self: Any, where: str, *more: Any, **options: Any) -> Any:
        if not granted and where in {names.STATE, names.WORK}:
            raise Forbidden(f"no right to {operation} {where}")
        return await allowed(self, where, *more, **options)

    async with world() as w:
        first = await w.start()
        w.silos["south"].doing = lambda asked: "ignore" if asked.announcement == 1 else "update"
        w.live_silos()
        await w.begin(quorum={"minimum": 3, "deadline": 600, "reminders": 3})
        await w.clock.advance(60)
        await first.kill()
        w.lose_queues()
        monkeypatch.setattr(port, operation, asked)
        second = await w.start()
        await w.clock.advance(300)
        assert second.alive
        granted = True
        assert (await w.ended()).outcome is RunOutcome.COMPLETED
        assert second.alive


async def test_what_goes_wrong_while_runs_are_taken_up_ends_no_orchestrator() -> None:
    async with world() as w:
        process = Process(w, Trouble())
        w.processes.append(process)
        process.orchestrator.take_up = broken  # type: ignore[method-assign]
        w.live_silos()
        await w.begin()
        assert (await w.ended()).outcome is RunOutcome.COMPLETED
        assert w.processes == [process]


async def broken() -> None:
    raise RuntimeError("a bug of ours")


@pytest.mark.parametrize("content", [b'{"version": 2, "runs": {}}', b'{"version": 1, "ru', b""])
async def test_a_list_of_live_runs_that_cannot_be_read_is_made_anew(content: bytes) -> None:
    async with world() as w:
        first = await w.start()
        w.live_silos("east", "north")
        run = await w.begin(quorum={"minimum": 3, "deadline": 600, "reminders": 3})
        await w.clock.advance(60)
        await first.kill()
        w.lose_queues()
        w.store.replace(names.STATE, names.live_blob(), content)
        second = await w.start()
        assert second.alive
        found = LiveDocument.model_validate_json(w.store.blobs[names.STATE, names.live_blob()].data)
        assert found.runs == {"exp": run}
        w.live_silos()
        assert (await w.ended()).outcome is RunOutcome.COMPLETED


# --- refused -----------------------------------------------------------------------------------------------------


async def initial(w: World) -> dict[str, Any]:
    """A start from given weights."""
    data = save({"w": np.zeros(4, np.float32)})
    sha256 = hashlib.sha256(data).hexdigest()
    await w.store.create(names.INITIAL, names.initial_blob(sha256), data)
    return {"experiment": "exp", "task": TASK, "rounds": 1, "initial": {"sha256": sha256}}


def left_of(w: World, run: str) -> list[str]:
    return [name for container, name in w.store.blobs if container == names.GLOBAL and name.startswith(f"{run}/")]


async def copied(w: World, trouble: Trouble) -> tuple[str, dict[str, Any]]:
    """A start whose weights are being copied, which is held just before they are there."""
    await w.start(trouble)
    for silo in w.silos.values():
        await silo.hello()
    await w.clock.advance(1)
    asked = await initial(w)
    trouble.hold_at("^create .*/00000/")
    run = await w.post(StartExperiment.model_validate(asked))
    await w.clock.until(lambda: trouble.holding)
    return run, asked


@pytest.mark.parametrize("other", ["cancel", "start", "same"])
async def test_a_start_that_is_refused_once_its_weights_were_copied_leaves_none(other: str) -> None:
    async with world() as w:
        trouble = Trouble()
        run, asked = await copied(w, trouble)
        match other:
            case "cancel":
                await w.post(CancelExperiment(experiment="exp"))
            case "start":
                await w.post(StartExperiment.model_validate(asked | {"rounds": 2}))
            case _:
                await w.post(StartExperiment.model_validate(asked))
        await w.clock.advance(1)
        assert w.phase() == ("tombstone" if other == "cancel" else "collecting")
        trouble.release()
        await w.clock.until(lambda: "delete" in " ".join(trouble.log), within=60)
        assert left_of(w, run) == []
        why = {"cancel": ["cancelled-before-start"], "start": ["experiment-is-live"], "same": []}[other]
        await rest()
        assert await w.dead_letters(names.EXPERIMENTS) == why
        w.live_silos()
        if other != "cancel":
            assert (await w.ended()).outcome is RunOutcome.COMPLETED


async def test_who_dies_before_they_are_deleted_leaves_that_to_the_next() -> None:
    async with world() as w:
        trouble = Trouble()
        run, _ = await copied(w, trouble)
        await w.post(CancelExperiment(experiment="exp"))
        await w.clock.advance(1)
        trouble.at_next("^delete", "crash-before")
        trouble.release()
        await w.clock.until(lambda: trouble.dead, within=60)
        assert left_of(w, run) != []
        await w.processes[-1].kill()
        await w.start()
        await w.clock.advance(120)
        assert left_of(w, run) == []
        assert await w.dead_letters(names.EXPERIMENTS) == ["cancelled-before-start"]


async def test_nothing_is_deleted_of_a_run_that_was_started_though_its_start_comes_again() -> None:
    """While it goes on, when it is over, and when a later run has its name and a cancel has named it meanwhile."""
    async with world() as w:
        await w.start()
        w.live_silos()
        await w.begin(rounds=1)
        await w.ended()
        asked = StartExperiment.model_validate(await initial(w))
        silos = {name: silo.doing for name, silo in w.silos.items()}
        w.silos["east"].doing = lambda asked: "ignore"
        run = await w.post(asked, message_id="again")
        await w.clock.advance(1)
        before = left_of(w, run)
        assert before
        await w.post(asked, message_id="again")
        await w.clock.advance(1)
        assert left_of(w, run) == before
        w.silos["east"].doing = silos["east"]
        await w.clock.until(lambda: over(w, run))
        later = await w.post(asked)
        await w.clock.until(lambda: over(w, later))
        before = left_of(w, run)
        await w.post(CancelExperiment(experiment="exp", run=run))
        await w.post(asked, message_id="again")
        await w.clock.advance(60)
        assert len(before) > 1
        assert left_of(w, run) == before


def over(w: World, run: str) -> bool:
    state = w.state()
    return isinstance(state, Ended) and state.run.id == run and not document(w).outbox


def document(w: World) -> ExperimentDocument:
    return ExperimentDocument.model_validate_json(w.store.blobs[names.STATE, names.experiment_blob("exp")].data)
