"""The `compute` section of a task: what the owner's file may say, and what it is told when it says something else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from messages.settings import SettingsError, load_yaml
from messages.transport.clock import SystemClock
from messages.transport.directory import DirectoryStore
from messages.transport.memory_bus import MemoryBroker, MemoryBus
from silo_agent.app import opened
from silo_agent.approval import cleared, measured
from silo_agent.compute import AzureML, Local
from silo_agent.policy import Policy
from silo_agent.settings import SiloSettings

DOCS = Path(__file__).parents[3] / "docs" / "azureml.md"
IMAGE = "ab" * 32


def example() -> dict[str, Any]:
    """The file of docs/azureml.md."""
    found = re.search(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert found
    said: dict[str, Any] = yaml.safe_load(found[1])
    return said


def load(tmp_path: Path, said: dict[str, Any]) -> SiloSettings:
    file = tmp_path / "silo.yaml"
    file.write_text(yaml.safe_dump(said, sort_keys=False))
    return load_yaml(file, SiloSettings)


def changed(path: str, value: Any) -> dict[str, Any]:
    """The example with one field replaced, or removed if the value is None; the path begins in the task."""
    said = example()
    at = said["tasks"]["breast-cancer"]
    *above, last = path.split(".")
    for step in above:
        at = at[step]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return said


def test_the_example_of_the_documentation_loads(tmp_path: Path) -> None:
    task = load(tmp_path, example()).tasks["breast-cancer"]
    where = task.compute.where
    assert isinstance(where, AzureML)
    assert where.distribution is not None
    assert (where.instances, where.node_hours, where.lost, where.output) == (2, 200, 2, "mount")
    assert set(where.data) == {"train", "test"}


def test_a_task_without_the_section_trains_here(tmp_path: Path) -> None:
    said = changed("compute", None)
    said["tasks"]["breast-cancer"]["directory"] = "."
    assert load(tmp_path, said).tasks["breast-cancer"].compute.where == Local()


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("compute.azureml.node_hours", None, "tasks.breast-cancer.compute.azureml.node_hours: is missing; add it"),
        ("compute.azureml.node_hour", 3, "compute.azureml.node_hour: there is no such field"),
        ("compute.azureml.subscription", "mine", "compute.azureml.subscription: String should match"),
        ("compute.azureml.environment", {"image": "train:latest"}, "environment.image: String should match"),
        ("compute.azureml.environment", {}, "give either `image`"),
        (
            "compute.azureml.data.train.path",
            "https://x.blob.core.windows.net/c",
            "data.train.path: String should match",
        ),
        ("compute.azureml.datastore.container", "global", "is one that silos exchange through"),
        ("compute.azureml.datastore.container", "updates-north", "is one that silos exchange through"),
        (
            "compute.azureml.datastore.store",
            {"account_url": "https://Exchange.blob.core.windows.net/", "credential": "managed-identity"},
            "is the storage that silos exchange through",
        ),
        ("compute.azureml.resource_manager", "http://elsewhere.example", "in the clear"),
        ("compute.azureml.lost", -1, "lost: Input should be greater than or equal to 0"),
        ("compute.azureml.distribution", {"mpi": {}}, "distribution.pytorch: is missing"),
        ("compute.kubernetes", {}, "compute.kubernetes: there is no such field"),
        ("directory", ".", "directory: is for tasks on the agent's machine"),
        ("data", {"train": "rows.csv"}, "data: is for tasks on the agent's machine"),
        ("mode", "warm", "mode: is for tasks on the agent's machine"),
        ("code.path", None, "code: has no path, so it is in the image"),
        ("compute", None, "directory: is missing"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, path: str, value: Any, told: str) -> None:
    with pytest.raises(SettingsError) as error:
        load(tmp_path, changed(path, value))
    assert told in str(error.value)
    assert re.search(r"line \d+: ", str(error.value))


def test_code_in_the_image_is_vouched_for_by_its_digest(tmp_path: Path) -> None:
    task = load(tmp_path, changed("code", {"sha256": IMAGE})).tasks["breast-cancer"]
    assert measured(task.code) == cleared(task.code) == IMAGE


def test_code_in_the_image_needs_an_image_with_a_digest(tmp_path: Path) -> None:
    arm = "/subscriptions/s/resourceGroups/r/providers/Microsoft.MachineLearningServices/workspaces/w"
    said = changed("compute.azureml.environment", {"id": f"{arm}/environments/e/versions/1"})
    load(tmp_path, said)
    said["tasks"]["breast-cancer"]["code"] = {"sha256": IMAGE}
    with pytest.raises(SettingsError, match="in the image"):
        load(tmp_path, said)


def test_code_on_the_agents_machine_has_a_path(tmp_path: Path) -> None:
    said = changed("compute", None)
    said["tasks"]["breast-cancer"] |= {"directory": ".", "code": {"sha256": IMAGE}}
    with pytest.raises(SettingsError, match=re.escape("code.path: is missing")):
        load(tmp_path, said)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("compute.azureml.compute", "other-cluster"),
        ("compute.azureml.node_hours", 201),
        ("compute.azureml.environment.image", f"hospital.azurecr.io/train@sha256:{'cd' * 32}"),
        ("compute.azureml.data.train.path", "azureml://datastores/records/paths/2027/train/"),
    ],
)
def test_the_policys_digest_covers_where_it_trains(tmp_path: Path, path: str, value: Any) -> None:
    def digest(said: dict[str, Any]) -> str:
        policy: Policy = load(tmp_path, said).policy()
        return policy.digest()

    assert digest(changed(path, value)) != digest(example()) == digest(example())


async def test_an_agent_without_the_sdk_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("silo_agent.runners.azureml_sdk.find_spec", lambda _: None)
    settings = load(tmp_path, example() | {"home": str(tmp_path / "home")})
    with pytest.raises(SettingsError, match="azureml"):
        async with opened(settings, MemoryBus(MemoryBroker(SystemClock(), [])), DirectoryStore(tmp_path)):
            pass
