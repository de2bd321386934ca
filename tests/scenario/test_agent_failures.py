"""Anything may die: the trainer, the agent, the network. No round is lost, and none is answered twice."""

import asyncio
import contextlib
import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from messages import names
from messages.errors import Forbidden, Transient
from messages.ports import Store
from messages.schemas import Purpose
from messages.transport.memory_bus import MemoryBus
from silo_agent.egress import verify
from silo_agent.home import HomeGone
from silo_agent.runners.processes import marked
from tests.scenario.agent_world import HERE, RUN, Dying, World, beats, free_locks, payload, until, vector


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def running(world: World, tries: int = 1) -> int:
    """The process of the last try, once so many have begun."""
    await until(lambda: asyncio.to_thread(lambda: len(world.ran()) >= tries), True)
    return world.ran()[-1][0]


def doing(world: World) -> set[tuple[str, str]]:
    """What the signs of life say of each run."""
    return {(sign["run"], sign["doing"]) for sign in world.heartbeats}


# --- the trainer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["warm", "per-round"])
@pytest.mark.parametrize(
    ("behaviour", "category"),
    [
        ("crash", "script-error"),
        ("memory", "out-of-memory"),
        ("killed", "killed"),
        ("leave", "no-report"),
        ("nonsense", "report-invalid"),
        ("nan", "update-not-finite"),
        ("tell", "update-invalid"),
    ],
)
async def test_a_failing_script_is_tried_again_and_then_given_up_in_one_word(
    world: World, mode: str, behaviour: str, category: str
) -> None:
    world.does(behaviour)
    async with world.agent(world.settings(tries=2, mode=mode)) as agent:
        await world.announce(1)
        said = await world.hear()
        await world.settled()
        assert agent.silo.budget.spent("bc") == 0
    assert (said["kind"], said["category"], said["tries"], said["announcement"]) == ("training-failed", category, 2, 1)
    assert len(world.ran()) == 2
    assert len({pid for pid, _ in world.ran()}) == 2, "a new try is a new process"
    assert world.committed() == {}


async def test_a_second_try_starts_from_what_the_first_did(world: World) -> None:
    world.does("train killed train")
    async with world.agent():
        for number in (1, 2):
            await world.announce(number)
            assert (await world.hear())["kind"] == "update-published"
        await world.settled()
    assert [number for _, number in world.ran()] == [1, 2, 2]
    assert world.committed() == {"00001": "1", "00002": "2"}


async def test_a_killed_trainer_is_started_again(world: World) -> None:
    world.does("hold train")
    async with world.agent():
        await world.announce(1)
        os.kill(await running(world), signal.SIGKILL)
        assert (await world.hear())["kind"] == "update-published"
    assert len(world.ran()) == 2


@pytest.mark.parametrize("mode", ["warm", "per-round"])
async def test_a_trainer_that_takes_too_long_is_ended(world: World, mode: str) -> None:
    world.does("hang")
    async with world.agent(world.settings(timeout=1, tries=1, mode=mode)):
        await world.announce(1)
        said = await world.hear()
        assert (said["kind"], said["category"]) == ("training-failed", "timeout")
        assert marked(f"CONTROL={world.control}") == []


async def test_missing_data_is_not_tried_twice(world: World) -> None:
    world.data.unlink()
    async with world.agent(world.settings(tries=5)):
        await world.announce(1)
        said = await world.hear()
    assert (said["category"], said["tries"]) == ("data-missing", 1)
    assert world.ran() == []


async def test_a_command_that_is_not_there(world: World) -> None:
    async with world.agent(world.settings(command=["/nowhere/python", "train.py"], tries=1)):
        await world.announce(1)
        assert (await world.hear())["category"] == "compute-unavailable"
    (printed,) = world.home.glob(f"rounds/{RUN}/00001/tries/1/output.txt")
    assert "cannot be started" in printed.read_text(), "the owner can see why"


async def test_another_announcement_gives_new_tries(world: World) -> None:
    world.does("crash crash train")
    async with world.agent(world.settings(tries=2)):
        await world.announce(1)
        assert (await world.hear())["announcement"] == 1
        await world.announce(1)  # the same message, come again: the tries are used up
        assert (await world.hear())["kind"] == "training-failed"
        assert len(world.ran()) == 2
        await world.announce(1, announcement=2)
        assert (await world.hear())["kind"] == "update-published"


async def test_another_announcement_that_came_while_the_last_try_failed_is_answered_for_itself(world: World) -> None:
    world.does("hold crash")
    async with world.agent(world.settings(tries=1)):
        await world.announce(1)
        pid = await running(world)
        await world.announce(1, announcement=2)
        await asyncio.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
        said = [await world.hear(), await world.hear()]
        await world.settled()
    assert [(s["category"], s["announcement"]) for s in said] == [("killed", 1), ("script-error", 2)]


async def test_a_stopped_trainer_is_reported_as_stalled_by_its_agent_which_is_not(world: World) -> None:
    world.does("hold")
    async with world.agent(world.settings(heartbeat=0.05, stalled_after=2)):
        await world.announce(1)
        pid = await running(world)
        await beats(world, lambda sign: sign["steps"] > 5)
        world.heartbeats.clear()
        await beats(world, lambda _: len(world.heartbeats) >= 5)
        assert all(sign["doing"] == "training" and sign["progress_age"] < 2 for sign in world.heartbeats)
        assert {(sign["stalled"], sign["every"]) for sign in world.heartbeats} == {(False, 0.05)}
        os.kill(pid, signal.SIGSTOP)
        await beats(world, lambda sign: bool(sign["stalled"]))
        world.heartbeats.clear()
        await beats(world, lambda _: len(world.heartbeats) >= 5)
        assert {sign["stalled"] for sign in world.heartbeats} == {True}, "the agent lives, its trainer does not go on"
        assert world.heartbeats[-1]["progress_age"] > 2
        os.kill(pid, signal.SIGCONT)
        await beats(world, lambda sign: not sign["stalled"])
        (world.control / "go").touch()
        assert (await world.hear())["kind"] == "update-published"


async def test_one_round_of_a_task_trains_at_a_time(world: World) -> None:
    world.does("hold")
    weights = {"weights": payload(vector(1.0, 0.0))}
    async with world.agent(world.settings(heartbeat=0.1)):
        await world.announce(1)
        await running(world)
        blob = names.weights_blob("other_00000000", 0, weights["weights"].sha256)
        await world.store.create(names.GLOBAL, blob, vector(1.0, 0.0))
        await world.announce(1, run="other_00000000", payloads=weights)
        both = {(RUN, "training"), ("other_00000000", "waiting")}
        await beats(world, lambda _: both <= doing(world))
        world.heartbeats.clear()
        await beats(world, lambda _: both <= doing(world) and len(world.heartbeats) >= 6)
        assert doing(world) == both
        assert len(world.ran()) == 1
        (world.control / "go").touch()
        assert {(await world.hear())["run"], (await world.hear())["run"]} == {RUN, "other_00000000"}


# --- the agent --------------------------------------------------------------------------------------------------------

WEIGHTS = names.weights_blob(RUN, 1, payload(vector(2.0, 1.0)).sha256)
PUBLICATION = names.publication_blob(RUN, 1)


def creates(blob: str) -> Callable[..., bool]:
    return lambda container, name, *_: name == blob


def sends(queue: str, message: Any) -> bool:
    return bool(message.subject == "update-published")


@pytest.mark.parametrize(
    ("what", "method", "matches", "after"),
    [
        ("store", "create", creates(WEIGHTS), False),
        ("store", "create", creates(WEIGHTS), True),
        ("store", "create", creates(PUBLICATION), False),
        ("store", "create", creates(PUBLICATION), True),
        ("bus", "send", sends, False),
        ("bus", "send", sends, True),
        ("bus", "complete", lambda delivery: True, False),
    ],
)
async def test_an_agent_that_dies_while_publishing_publishes_once(
    world: World, what: str, method: str, matches: Callable[..., bool], after: bool
) -> None:
    bus = MemoryBus(world.broker)
    parts: dict[str, Any] = {"store": world.store, "bus": bus}
    with Dying(parts[what], method, matches, after=after) as dying:
        parts[what] = dying
        async with world.agent(store=parts["store"], bus=parts["bus"]) as agent:
            await world.announce(1)
            await dying.died.wait()
            await agent.kill()
    free_locks(world)
    async with world.agent() as agent:
        published = await world.hear()
        await world.settled()
        assert agent.silo.budget.spent("bc") == 1
    assert published == json.loads(await world.publication())
    assert len(world.ran()) == 1, "what was trained is not trained again"
    assert world.committed() == {"00001": "1"}
    blobs = [row.name for row in await world.store.list(names.updates_of(HERE), "")]
    assert sorted(blobs) == sorted([WEIGHTS, PUBLICATION])


async def test_a_round_that_closes_while_its_update_is_on_the_way_is_published_whole(world: World) -> None:
    with Dying(world.store, "create", creates(PUBLICATION), after=True) as slow:
        async with world.agent(store=cast(Store, slow)):
            await world.announce(1)
            await slow.died.wait()
            await world.close(1)
            await asyncio.sleep(0.2)
            slow.go.set()
            said = await world.hear()
            await world.settled()
    assert said == json.loads(await world.publication())
    assert world.committed() == {"00001": "1"}


async def test_an_agent_that_dies_while_training_trains_again_and_that_is_no_failed_try(world: World) -> None:
    world.does("hold train")
    async with world.agent(world.settings(tries=1)) as agent:
        await world.announce(1)
        await running(world)
        await agent.kill()
    free_locks(world)
    async with world.agent(world.settings(tries=1)) as agent:
        assert (await world.hear())["kind"] == "update-published"
        assert agent.silo.budget.spent("bc") == 1
    assert world.committed() == {"00001": "1"}


async def test_an_agent_told_to_stop_gives_its_messages_back_and_ends_its_trainers(world: World) -> None:
    world.does("hold train")
    async with world.agent():
        await world.announce(1)
        pid = await running(world)
    assert not world.lives(pid)
    async with world.agent():
        assert (await world.hear())["kind"] == "update-published"


async def test_an_agent_without_its_home_sends_again_what_it_published(world: World) -> None:
    async with world.agent():
        await world.announce(1)
        first = await world.hear()
        await world.settled()
    world.home = world.path / "another machine"
    async with world.agent(world.settings()):
        await world.announce(1, announcement=2)
        assert await world.hear() == first
    assert len(world.ran()) == 1


@pytest.mark.parametrize("mode", ["warm", "per-round"])
async def test_an_agent_whose_home_is_deleted_says_so_and_ends_and_its_round_is_answered_after_a_restart(
    world: World, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.agent(world.settings(mode=mode)) as agent:
        await world.announce(1)
        await world.hear()
        await world.settled()
        shutil.rmtree(world.home)
        await world.announce(2)
        with pytest.raises(HomeGone, match="start the agent again"):
            await asyncio.wait_for(agent._task, 60)
        assert [record.getMessage() for record in caplog.records].count("home.gone") == 1
    assert len(world.ran()) == 1
    async with world.agent(world.settings(mode=mode)):
        published = await world.hear()
        assert (published["kind"], published["round"]) == ("update-published", 2)
        await world.settled()


async def test_nothing_leaves_that_was_trained_while_the_home_was_deleted(world: World) -> None:
    world.does("hold train")
    async with world.agent() as agent:
        await world.announce(1)
        pid = await running(world)
        await asyncio.to_thread(shutil.rmtree, world.home, ignore_errors=True)
        (world.home / "rounds" / RUN / "00001").mkdir(parents=True, exist_ok=True)  # as whoever writes next may do
        (world.control / "go").touch()
        with pytest.raises(HomeGone):
            await asyncio.wait_for(agent._task, 60)
    assert not world.lives(pid)
    assert await world.store.list(names.updates_of(HERE), "") == []
    async with world.agent():
        assert (await world.hear())["kind"] == "update-published"
    assert verify(world.home / "egress.jsonl") is None


async def test_of_two_agents_that_publish_one_is_first_and_both_say_the_same(world: World) -> None:
    """The home was copied, or a partition healed: another agent of this silo was quicker."""
    others = b'{"schema_version":1,"kind":"update-published","of":"the other"}'
    world.does("hold train")
    async with world.agent():
        await world.announce(1)
        await running(world)
        await world.store.create(names.updates_of(HERE), PUBLICATION, others)
        (world.control / "go").touch()
        assert await world.hear() == json.loads(others)
        await world.settled()
        assert world.committed() == {}, "its private state is not here"
        await world.announce(2)
        await world.hear()
        await world.settled()
    assert world.committed() == {"00002": "1"}, "and what the loser had in memory is forgotten"


async def test_of_two_agents_that_create_at_the_same_time_the_loser_sends_what_the_winner_said(world: World) -> None:
    others = b'{"schema_version":1,"kind":"update-published","of":"the other"}'
    with Dying(world.store, "create", creates(PUBLICATION)) as slow:
        async with world.agent(store=cast(Store, slow)):
            await world.announce(1)
            await slow.died.wait()
            await world.store.create(names.updates_of(HERE), PUBLICATION, others)
            slow.go.set()
            assert await world.hear() == json.loads(others)
            await world.settled()
    assert world.committed() == {}


async def test_code_that_changes_while_a_round_waits_does_not_run(world: World) -> None:
    world.does("hold")
    weights = {"weights": payload(vector(1.0, 0.0))}
    async with world.agent():
        await world.announce(1)
        await running(world)
        blob = names.weights_blob("other_00000000", 0, weights["weights"].sha256)
        await world.store.create(names.GLOBAL, blob, vector(1.0, 0.0))
        await world.announce(1, run="other_00000000", payloads=weights)
        await until(lambda: asyncio.to_thread((world.home / "budget.jsonl").read_bytes().count, b"other_"), 1)
        world.code.write_text(world.code.read_text() + "\n")
        (world.control / "go").touch()
        said = {message["run"]: message for message in (await world.hear(), await world.hear())}
        await world.settled()
    assert said[RUN]["kind"] == "update-published"
    assert said["other_00000000"]["reason"] == "code-not-approved"
    assert len(world.ran()) == 1


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Transient("down"), Forbidden("not yet")])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_what_was_trained_waits_until_it_can_be_said(world: World, error: Exception, when: str) -> None:
    left = {"send": 3}

    def faults(moment: str, operation: str, queue: str) -> None:
        if moment == when and left.get(operation, 0):
            left[operation] -= 1
            raise error

    async with world.agent(bus=MemoryBus(world.broker, faults=faults)):
        await world.announce(1)
        said = await world.hear()
        assert said["kind"] == "update-published"
        await world.settled()
        again = []
        with contextlib.suppress(AssertionError):  # then it says nothing more
            while True:
                again.append(await world.hear(wait=0.2))
        assert all(one == said for one in again), "said twice perhaps, but never otherwise"
    assert left["send"] == 0
    assert len(world.ran()) == 1


async def test_an_evaluation_is_published_once_too(world: World) -> None:
    async with world.agent():
        await world.announce(3, Purpose.EVALUATE)
        first = await world.hear()
        await world.settled()
        await world.announce(3, Purpose.EVALUATE, announcement=2)
        assert await world.hear() == first
    assert len(world.ran()) == 1


async def test_a_round_that_failed_and_is_announced_again_counts_as_ended_no_more(world: World) -> None:
    """Else what is being trained could be cleared away, as the oldest of those that failed."""
    world.does("crash hold")
    async with world.agent(world.settings(tries=1)) as agent:
        await world.announce(1)
        assert (await world.hear())["kind"] == "training-failed"
        await world.settled()
        directory = agent.silo.home.round(RUN, 1)
        assert directory.ended is not None
        await world.announce(1, announcement=2)
        await running(world, tries=2)
        assert directory.ended is None


# --- a full disk ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["budget.charge", "egress.append", "state.commit", "home.forget_ended"])
async def test_a_full_disk_is_waited_for_and_costs_no_round(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], what: str
) -> None:
    """Twice there is no room; nothing is declined, and no word of where the home is gets into the log."""
    full = iter([OSError(errno.ENOSPC, "No space left on device", str(world.path))] * 2)

    async with world.agent() as agent:
        part, method = what.split(".")
        owner = type(getattr(agent.silo, part))
        original = getattr(owner, method)

        def without_room(*arguments: Any, **named: Any) -> Any:
            for error in full:
                raise error
            return original(*arguments, **named)

        monkeypatch.setattr(owner, method, without_room)
        await world.announce(1)
        assert (await world.hear())["kind"] == "update-published"
        await world.settled()
    assert world.committed() == {"00001": "1"}
    assert next(full, None) is None
    assert not list(world.home.glob("faults/*"))
