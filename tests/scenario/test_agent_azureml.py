"""An agent whose task trains on AzureML: the real SDK against the double, which executes what it is asked to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from messages.schemas import Purpose
from tests.fakes.azureml_jobs import SECRET
from tests.scenario.agent_world import HERE, RUN, until, vector
from tests.scenario.azureml_world import AzureMLWorld, azureml_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[AzureMLWorld]:
    with azureml_world(tmp_path) as world:
        yield world


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
    assert world.committed() == {"00001": "1"}
    assert f"job {job.name} is completed: https://ml.azure.com" in world.printed()
