"""`silobus-agent check` of a task on AzureML, one thing broken at a time, against the double and the real SDK."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from messages.transport.memory_bus import MemoryBus
from silo_agent.check import Finding, check
from tests.fakes.azureml import COMPUTE, DATASTORE, TOKEN
from tests.fakes.azureml_jobs import SECRET
from tests.fakes.blob_server import BlobServer, Container
from tests.scenario.azureml_world import AzureMLWorld, azureml_world

pytestmark = pytest.mark.slow

TASK = "task bc"
NEEDS = [f"{TASK}: code", f"{TASK}: datastore", f"{TASK}: workspace"]
SIGNATURE = "canary-of-a-signature"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AzureMLWorld]:
    with azureml_world(tmp_path) as world:
        (world.path / "store").mkdir(exist_ok=True)
        monkeypatch.setattr("silo_agent.check.open_bus", lambda _: MemoryBus(world.broker))
        yield world


async def blames(world: AzureMLWorld, azureml: dict[str, Any], red: str, *told: str) -> Mapping[str, Finding]:
    """Exactly this row is red, and says so much; the task is not run when what it needs is not there."""
    found = {row.what: row for row in await check(world.settings(azureml=azureml))}
    assert [what for what, row in found.items() if row.state == "FAIL"] == [red], found
    assert [what for what, row in found.items() if row.state == "not tried"] == ([] if red == TASK else [TASK])
    text = " ".join([found[red].found, *found[red].details])
    for words in told:
        assert words in text
    everything = str([row.as_json() for row in found.values()])
    for secret in (SECRET, TOKEN, SIGNATURE):
        assert secret not in everything
    return found


async def test_nothing_is_broken(world: AzureMLWorld) -> None:
    found = {row.what: row for row in await check(world.settings())}
    assert {row.state for row in found.values()} == {"ok"}, found
    assert [what for what in found if what.startswith(TASK)] == [*NEEDS, TASK]
    assert any("update: 1 tensors" in line for line in found[TASK].details)
    left = [path for path in (world.own / "jobs").rglob("*") if path.is_file() and "check" in path.parts]
    assert left == []


async def test_no_right_to_look_at_jobs(world: AzureMLWorld) -> None:
    world.double.answers.append(("GET job", 403))
    red = f"{TASK}: workspace"
    await blames(world, {}, red, "AzureML Data Scientist", "workspace hospital", "tasks.bc.compute.azureml.workspace")
    assert not world.jobs


@pytest.mark.parametrize("what", ["PUT other", "PUT job"])  # the environment that is the image, and the job
async def test_no_right_to_submit(world: AzureMLWorld, what: str) -> None:
    world.double.answers.append((what, 403))
    found = await blames(world, {}, TASK, "no right to submit jobs", "AzureML Data Scientist", "workspace hospital")
    assert "compute-unavailable" in found[TASK].found
    assert not world.jobs


async def test_no_such_compute(world: AzureMLWorld) -> None:
    world.double.computes.clear()
    await blames(world, {}, TASK, "compute-unavailable", f"compute.azureml.compute ({COMPUTE})")


@pytest.mark.parametrize(
    ("fate", "told"),
    [
        ("image", ["image-failed", "compute.azureml.environment (registry.example/train@sha256:", "AcrPull"]),
        ("pull", ["image-failed", "compute.azureml.environment (registry.example/train@sha256:", "AcrPull"]),
        ("data", ["data-missing", f"datastore.name ({DATASTORE})", "Storage Blob Data Contributor", "container jobs"]),
        ("quota", ["quota-exceeded", "compute.azureml.instance_type"]),
    ],
)
async def test_a_job_that_azureml_ends(world: AzureMLWorld, fate: str, told: list[str]) -> None:
    world.double.fates.append(fate)
    await blames(world, {"lost": 0}, TASK, *told)


async def test_too_few_node_hours(world: AzureMLWorld) -> None:
    await blames(world, {"node_hours": 0.001}, TASK, "tasks.bc.compute.azureml.node_hours")


def directory_is_a_file(world: AzureMLWorld) -> dict[str, Any]:
    (world.path / "a-file").write_text("")
    return {"directory": str(world.path / "a-file")}


def signature_is_missing(world: AzureMLWorld) -> dict[str, Any]:
    return {"account_url": "http://127.0.0.1:9/x", "sas_file": str(world.path / "no-sas")}


@pytest.mark.parametrize(
    ("store", "told"), [(directory_is_a_file, "cannot be used"), (signature_is_missing, "sas_file")]
)
async def test_a_datastore_that_cannot_be_reached(
    world: AzureMLWorld, store: Callable[[AzureMLWorld], dict[str, Any]], told: str
) -> None:
    datastore = {"name": DATASTORE, "container": "jobs", "store": store(world)}
    await blames(world, {"datastore": datastore}, f"{TASK}: datastore", told, "tasks.bc.compute.azureml.datastore")
    assert not world.jobs


@pytest.mark.parametrize("verbs", ["lcwd", "rcwd", "rlcw", "x"])
async def test_a_datastore_that_refuses_the_agent(
    world: AzureMLWorld, verbs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OWN_SAS", f"sv=2024-11-04&sp={verbs}&sig={SIGNATURE}")
    async with BlobServer() as server:
        server.containers["jobs"] = Container()
        store = {"account_url": server.url, "sas_env": "OWN_SAS"}
        datastore = {"name": DATASTORE, "container": "jobs", "store": store}
        await blames(
            world,
            {"datastore": datastore},
            f"{TASK}: datastore",
            "Storage Blob Data Contributor on container jobs",
            "store.sas_env (OWN_SAS)",
        )
    assert not world.jobs
