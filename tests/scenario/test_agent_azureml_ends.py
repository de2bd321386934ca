"""How jobs on AzureML go and end, as others hear of it: the real SDK against the double, which executes them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from silo_agent.runners import azureml_files
from tests.fakes.azureml import TOKEN
from tests.fakes.azureml_jobs import SECRET
from tests.scenario.agent_world import RUN, beats, until
from tests.scenario.azureml_world import AzureMLWorld, azureml_world, jobs

pytestmark = pytest.mark.slow


@pytest.fixture
def world(tmp_path: Path) -> Iterator[AzureMLWorld]:
    with azureml_world(tmp_path) as world:
        yield world


# --- how a job can end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fate", "behaviour", "category"),
    [
        ("quota", "train", "quota-exceeded"),
        ("image", "train", "image-failed"),
        ("pull", "train", "image-failed"),
        ("preempted", "hold", "preempted"),
        ("node-lost", "hold", "preempted"),
        ("data", "train", "data-missing"),
        ("unknown", "train", "compute-unavailable"),
        (None, "crash", "script-error"),
        (None, "memory", "out-of-memory"),
        (None, "killed", "killed"),
        (None, "leave", "no-report"),
        (None, "nan", "update-not-finite"),
    ],
)
async def test_each_end_gives_its_category_and_its_text_stays_with_the_owner(
    world: AzureMLWorld, fate: str | None, behaviour: str, category: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    world.does(behaviour)
    world.double.fates.append(fate)
    async with world.agent(world.settings(azureml={"lost": 0}, tries=1)):
        await world.announce(1)
        said = await world.hear()
        await world.settled()
    assert (said["kind"], said.get("category")) == ("training-failed", category), world.printed()
    assert SECRET in world.printed()
    assert SECRET not in world.shared()
    assert not [r for r in caplog.records if SECRET in r.getMessage() or TOKEN in r.getMessage()]
    (charge,) = world.charges().values()
    assert not charge["open"]
    assert charge["hours"] < 0.01


@pytest.mark.parametrize(
    ("changes", "category"),
    [
        ({"compute": "no-such-cluster"}, "compute-unavailable"),
        ({"workspace": "elsewhere"}, "compute-unavailable"),
        ({"environment": {"id": "/subscriptions/s/resourceGroups/r/providers/Microsoft.MachineLearningServices"
                          "/workspaces/hospital/environments/gone/versions/1"}}, "image-failed"),
    ],
)  # fmt: skip
async def test_what_azureml_does_not_take(
    world: AzureMLWorld,
    changes: dict[str, Any],
    category: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with world.agent(world.settings(azureml=changes, tries=1)):
        await world.announce(1)
        said = await world.hear()
        await world.settled()
    assert said["category"] == category, world.printed()
    assert SECRET in world.printed()
    assert SECRET not in world.shared()
    assert [charge["hours"] for charge in world.charges().values()] in ([], [0.0])
    assert not world.cancels()
    assert SECRET not in caplog.text
    assert SECRET not in "".join(capfd.readouterr())


async def test_a_job_that_takes_too_long(world: AzureMLWorld) -> None:
    world.does("hang")
    async with world.agent(world.settings(timeout=1, tries=1)):
        await world.announce(1)
        assert (await world.hear())["category"] == "timeout", world.printed()
    assert world.jobs[0].status == "Canceled"


async def test_a_job_that_a_person_cancels(world: AzureMLWorld) -> None:
    world.does("hang")
    async with world.agent(world.settings(tries=1)):
        await world.announce(1)
        await jobs(world, 1, "Running")
        world.jobs[0].cancel()
        assert (await world.hear())["category"] == "killed", world.printed()


async def test_a_lost_node_begins_again_under_another_name_and_in_another_directory(world: AzureMLWorld) -> None:
    world.double.fates.extend(["preempted", "node-lost"])
    world.does("hold")
    async with world.agent(world.settings(tries=1)):
        await world.announce(1)
        await jobs(world, 3, "Running")
        (world.control / "go").touch()
        assert (await world.hear())["kind"] == "update-published", world.printed()
    first, second, third = world.jobs
    assert [job.name.rpartition("-")[2] for job in (first, second, third)] == ["1", "2", "3"]
    assert len({job.properties["outputs"]["result"]["uri"] for job in world.jobs}) == 3


async def test_nodes_are_not_lost_for_ever(world: AzureMLWorld) -> None:
    world.double.fates.extend(["preempted"] * 9)
    world.does("hold")
    async with world.agent(world.settings(tries=1, azureml={"lost": 1})):
        await world.announce(1)
        assert (await world.hear())["category"] == "preempted"
    assert len(world.jobs) == 2


async def test_a_script_that_fails_is_tried_again_in_a_job_of_its_own(world: AzureMLWorld) -> None:
    world.does("crash train")
    async with world.agent(world.settings(tries=2)):
        await world.announce(1)
        assert (await world.hear())["kind"] == "update-published", world.printed()
    assert len(world.puts()) == 2


async def test_a_result_that_is_not_whole_is_another_try(world: AzureMLWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    real, wrong = azureml_files._digest, ["0" * 64]

    def digest(path: Path) -> str:
        return wrong.pop() if wrong and path.name == "update.safetensors" else real(path)

    monkeypatch.setattr(azureml_files, "_digest", digest)
    async with world.agent(world.settings(tries=2)):
        await world.announce(1)
        assert (await world.hear())["kind"] == "update-published", world.printed()
    assert len(world.jobs) == 2
    failed = json.loads((world.home / "rounds" / RUN / "00001" / "tries" / "1" / "failed.json").read_text())
    assert failed["category"] == "no-report"


# --- signs of life ----------------------------------------------------------------------------------------------------


async def test_a_job_in_the_queue_is_waiting_and_one_that_gets_on_is_training(world: AzureMLWorld) -> None:
    world.does("hold")
    world.double.held = True
    async with world.agent(world.settings(heartbeat=0.1, stalled_after=2)):
        await world.announce(1)
        await jobs(world, 1, "Starting")
        await beats(world, lambda beat: beat["progress_age"] > 2.5)
        world.heartbeats.clear()
        await beats(world, lambda _: len(world.heartbeats) >= 3)
        assert {beat["doing"] for beat in world.heartbeats} == {"waiting"}
        world.double.release()
        await jobs(world, 1, "Running")
        await beats(world, lambda beat: beat["doing"] == "training" and beat["steps"] > 1)
        (world.control / "go").touch()
        await world.hear()


async def test_a_job_that_gets_stuck_is_reported_as_stalled(world: AzureMLWorld) -> None:
    """It has shown progress once, so that its running alone says nothing any more."""
    world.does("hold")
    async with world.agent(world.settings(heartbeat=0.1, stalled_after=0.5)):
        await world.announce(1)
        await jobs(world, 1, "Running")
        progress = world.home / "rounds" / RUN / "00001" / "tries" / "1" / "out" / "progress.json"
        await until(lambda: asyncio.to_thread(progress.exists), True)
        await until(lambda: asyncio.to_thread(lambda: '"steps": 1}' not in progress.read_text()), True)
        world.double.jobs[world.jobs[0].name].stop()
        await beats(world, lambda beat: bool(beat["stalled"]))
        world.heartbeats.clear()
        await beats(world, lambda _: len(world.heartbeats) >= 3)
        assert {beat["stalled"] for beat in world.heartbeats} == {True}


async def test_a_job_without_progress_is_alive_for_as_long_as_azureml_says_so(world: AzureMLWorld) -> None:
    world.does("hang")
    async with world.agent(world.settings(heartbeat=0.1, stalled_after=0.5)):
        await world.announce(1)
        await jobs(world, 1, "Running")
        doing = ("training", False)
        await beats(world, lambda beat: (beat["progress_age"] or 0) > 0.7 and (beat["doing"], beat["stalled"]) == doing)
        world.jobs[0].status = "NotResponding"
        await beats(world, lambda beat: bool(beat["stalled"]))
        world.heartbeats.clear()
        await beats(world, lambda _: len(world.heartbeats) >= 3)
        assert {beat["stalled"] for beat in world.heartbeats} == {True}
