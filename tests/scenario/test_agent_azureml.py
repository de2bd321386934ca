"""An agent whose task trains on AzureML: the real SDK against the double, which executes what it is asked to."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from messages.errors import SilobusError
from messages.schemas import ClosedBecause, Purpose
from silo_agent.check import check
from silo_agent.rerun import rerun
from tests.fakes.azureml import TOKEN
from tests.scenario.agent_world import HERE, RUN
from tests.scenario.azureml_world import AzureMLWorld, azureml_world, jobs

pytestmark = pytest.mark.slow


@pytest.fixture
def world(tmp_path: Path) -> Iterator[AzureMLWorld]:
    with azureml_world(tmp_path) as world:
        yield world


async def wiped(world: AzureMLWorld) -> None:
    """The silo has lost its home."""
    await asyncio.to_thread(shutil.rmtree, world.home)


# --- a round ----------------------------------------------------------------------------------------------------------


async def test_a_round_is_a_job(world: AzureMLWorld) -> None:
    async with world.agent(world.settings()):
        await world.announce(1)
        said = await world.hear()
        await world.settled()
    assert said["kind"] == "update-published", (said, world.printed())
    assert said["samples"] == 50
    (job,) = world.jobs
    assert job.name.startswith(f"{RUN}-1-{HERE}-")
    assert job.statuses == ["Starting", "Queued", "Preparing", "Running", "Finalizing", "Completed"]
    assert job.properties["limits"]["timeout"] == "PT30S"
    assert not world.cancels()
    assert world.committed() == {"00001": "1"}
    assert f"job {job.name} is completed: https://ml.azure.com" in world.printed()


async def test_rounds_go_on_from_the_committed_state(world: AzureMLWorld) -> None:
    async with world.agent(world.settings()):
        await world.announce(0, Purpose.INITIALISE)
        assert (await world.hear())["samples"] == 0
        for number in (1, 2):
            await world.announce(number)
            assert (await world.hear())["kind"] == "update-published", world.printed(number)
        await world.announce(3, Purpose.EVALUATE)
        assert (await world.hear())["payloads"] == {}
        await world.settled()
    assert world.committed()["00002"] == "3"  # counted at initialising, too
    assert len(world.jobs) == 4


async def test_the_job_sees_its_data_and_nothing_of_the_agents(world: AzureMLWorld) -> None:
    rows = world.own / "jobs" / "data" / "rows.csv"
    rows.parent.mkdir(parents=True)
    rows.write_text("1,2\n")
    data = {"train": {"path": "azureml://datastores/silobus/paths/data/rows.csv", "type": "uri_file"}}
    world.does("tell")
    async with world.agent(world.settings(azureml={"data": data}, tries=1)):
        await world.announce(1)
        await world.hear()
    printed = world.printed()
    assert "/inputs/data_train" in printed
    assert "'CONTROL'" in printed
    for secret in ("canary-of-the-agent", "IDENTITY_", TOKEN, str(world.home)):
        assert secret not in printed
    (job,) = world.jobs
    assert str(world.path / "store") not in json.dumps(job.body)
    assert not job.properties.get("identity")


@pytest.mark.parametrize(
    "azureml", [{"output": "upload"}, {"distribution": {"pytorch": {"processes_per_instance": 2}}}]
)
async def test_other_ways_to_run_it(world: AzureMLWorld, azureml: dict[str, Any]) -> None:
    async with world.agent(world.settings(azureml=azureml)):
        await world.announce(1)
        assert (await world.hear())["kind"] == "update-published", world.printed()
    assert len(world.ran()) == (2 if "distribution" in azureml else 1)
    (job,) = world.jobs
    assert job.properties["outputs"]["result"]["mode"] == ("Upload" if "output" in azureml else "ReadWriteMount")


# --- one job for one piece of work ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_an_agent_started_again_takes_over_the_job(world: AzureMLWorld, how: str) -> None:
    world.does("hold")
    async with world.agent(world.settings()) as agent:
        await world.announce(1)
        await jobs(world, 1, "Running")
        await (agent.kill() if how == "kill" else agent.stop())
    assert world.jobs[0].status == "Running"
    async with world.agent(world.settings()):
        await world.announce(1)  # as the orchestrator does when the new agent says hello
        (world.control / "go").touch()
        assert (await world.hear())["kind"] == "update-published", world.printed()
    assert len(world.puts()) == len(world.jobs) == len(world.ran()) == 1


async def test_an_agent_without_its_home_takes_over_the_job(world: AzureMLWorld) -> None:
    world.does("hold")
    async with world.agent(world.settings()) as agent:
        await world.announce(1)
        await jobs(world, 1, "Running")
        await agent.kill()
    await wiped(world)
    (world.control / "go").touch()
    await jobs(world, 1, "Completed")
    async with world.agent(world.settings()):
        await world.announce(1)
        assert (await world.hear())["kind"] == "update-published", world.printed()
    assert len(world.jobs) == len(world.ran()) == 1


async def test_a_stale_failed_name_is_stepped_over(world: AzureMLWorld) -> None:
    world.does("crash train")
    async with world.agent(world.settings(tries=1)):
        await world.announce(1)
        assert (await world.hear())["kind"] == "training-failed"
        await world.settled()
    await wiped(world)
    async with world.agent(world.settings(tries=1)):
        await world.announce(1, announcement=2)
        assert (await world.hear())["kind"] == "update-published", world.printed()
    assert [name.rpartition("-")[2] for name in world.puts()] == ["1", "2"]
    assert "stepped over" in world.printed()


@pytest.mark.parametrize("second_put", [200, 409])
async def test_an_answer_that_is_lost_makes_no_second_job(tmp_path: Path, second_put: int) -> None:
    with azureml_world(tmp_path, second_put=second_put) as world:
        async with world.agent(world.settings()):
            world.double.answers.extend([("PUT job", 0)] * 2)
            await world.announce(1)
            assert (await world.hear())["kind"] == "update-published", world.printed()
        assert len(world.jobs) == len(world.ran()) == 1


async def test_a_service_that_is_busy_is_asked_again(world: AzureMLWorld) -> None:
    async with world.agent(world.settings()):
        world.double.answers.extend([("GET", 503), ("GET", 429), ("GET", 500)])
        await world.announce(1)
        assert (await world.hear())["kind"] == "update-published", world.printed()
    assert len(world.jobs) == 1


async def test_a_run_history_that_is_busy_is_asked_again(world: AzureMLWorld) -> None:
    world.double.history_faults = 1
    world.double.fates.append("quota")
    async with world.agent(world.settings(tries=1)):
        await world.announce(1)
        assert (await world.hear())["category"] == "quota-exceeded"


async def test_a_run_history_that_cannot_be_read_fails_nothing_else(world: AzureMLWorld) -> None:
    world.double.history_faults = 99
    async with world.agent(world.settings()):
        await world.announce(1)
        assert (await world.hear())["kind"] == "update-published", world.printed()
    (charge,) = world.charges().values()
    assert 0 < charge["hours"] < 0.01


async def test_an_owner_may_allow_more_while_a_job_runs(world: AzureMLWorld) -> None:
    world.does("hold")
    async with world.agent(world.settings()) as agent:
        await world.announce(1)
        await jobs(world, 1, "Running")
        await agent.stop()
    async with world.agent(world.settings(azureml={"node_hours": 99, "poll": 0.1, "lost": 5})):
        await world.announce(1)
        (world.control / "go").touch()
        assert (await world.hear())["kind"] == "update-published", world.printed()
    assert len(world.jobs) == 1


async def test_a_changed_task_does_not_take_over_what_runs_for_the_old_one(world: AzureMLWorld) -> None:
    world.does("hold")
    async with world.agent(world.settings()) as agent:
        await world.announce(1)
        await jobs(world, 1, "Running")
        await agent.stop()
    world.does("train")
    async with world.agent(world.settings(timeout=29)):
        await world.announce(1)
        assert (await world.hear())["kind"] == "update-published", world.printed()
    old, new = world.jobs
    assert (old.status, new.status) == ("Canceled", "Completed")
    assert old.ended is not None
    assert new.started is not None
    assert old.ended < new.started


# --- when nobody waits any more ---------------------------------------------------------------------------------------


async def test_a_closed_round_cancels_its_job(world: AzureMLWorld) -> None:
    world.does("hold")
    async with world.agent(world.settings()):
        await world.announce(1)
        await jobs(world, 1, "Running")
        await world.close(1)
        await world.settled()
        await jobs(world, 1, "Canceled")
    (charge,) = world.charges().values()
    assert not charge["open"]


async def test_a_round_that_closed_while_the_agent_was_away_cancels_its_job(world: AzureMLWorld) -> None:
    world.does("hold")
    async with world.agent(world.settings()) as agent:
        await world.announce(1)
        await jobs(world, 1, "Running")
        await agent.stop()
    while (delivery := await world.bus.receive("to-north", wait=0.1)) is not None:
        await world.bus.complete(delivery)
    await world.close(1, ClosedBecause.CANCELLED)
    async with world.agent(world.settings()):
        await world.settled()
        await jobs(world, 1, "Canceled")


# --- what it may cost -------------------------------------------------------------------------------------------------


async def test_what_could_cost_too_much_is_declined(world: AzureMLWorld) -> None:
    """30 s on two nodes are a sixtieth of an hour, reserved until the job has ended; then what it took."""
    settings = world.settings(azureml={"node_hours": 0.0167, "instances": 2})
    async with world.agent(settings):
        for number in (1, 2):
            await world.announce(number)
            said = await world.hear()
        await world.settled()
    assert said["kind"] == "round-declined", world.charges()
    assert said["reason"] == "budget-spent"
    assert "not submitted" in world.printed(2)
    (job,) = world.jobs
    (charge,) = world.charges().values()
    assert charge["job"] == job.name
    assert 0 < charge["hours"] < 0.0167
    assert charge["hours"] == pytest.approx(2 * (job.ended - job.started).total_seconds() / 3600, abs=1e-5)  # type: ignore[operator]


# --- the owner's commands ---------------------------------------------------------------------------------------------


async def test_check_runs_the_task_as_jobs(world: AzureMLWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("silo_agent.check.open_bus", lambda _: world.bus)
    for _ in range(2):  # the second time their names are taken
        found = {finding.what: finding for finding in await check(world.settings())}
        assert found["task bc"].good, found["task bc"].details
    assert len(world.jobs) == 4


async def test_rerun_says_that_it_starts_no_job(world: AzureMLWorld) -> None:
    async with world.agent(world.settings()):
        await world.announce(1)
        await world.hear()
        await world.settled()
    with pytest.raises(SilobusError, match="none is started"):
        await rerun(world.settings(), RUN, 1)
    assert len(world.jobs) == 1
