"""The templates' other promises: queues as everywhere, nothing with a key, what is deleted, sizes, options."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from messages import names
from messages.fields import Seconds
from messages.settings import load_yaml
from orchestrator.cli.folder import LOCK_DURATION, MAX_DELIVERY_COUNT
from orchestrator.settings import OrchestratorSettings
from tests.unit.deploy.azure import AZURE, AZUREML, PROFILES, SILOS, SILOS_OWN, federation, silo_parameters
from tests.unit.deploy.bicep import deploy
from tests.unit.deploy.bicep_syntax import parse, walk

BICEP = sorted(AZURE.rglob("*.bicep"))
QUEUE = "Microsoft.ServiceBus/namespaces/queues"
ACCOUNT = "Microsoft.Storage/storageAccounts"
WORKSPACE = "Microsoft.MachineLearningServices/workspaces"


@pytest.mark.parametrize("file", BICEP, ids=lambda file: file.name)
def test_each_file_is_bicep_and_says_what_it_is_for(file: Path) -> None:
    parse(file)
    assert file.read_text(encoding="utf-8").startswith("// ")


def test_a_type_has_one_version_everywhere() -> None:
    found: dict[str, set[str]] = {}
    for file in BICEP:
        for node in walk(parse(file)):
            if node.type == "resource_declaration":
                kind, _, version = (node.named_children[1].text or b"").decode().strip("'").partition("@")
                found.setdefault(kind, set()).add(version)
    assert {kind: versions for kind, versions in found.items() if len(versions) > 1} == {}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_queue_and_container_is_there_once(profile: str) -> None:
    queues = [queue.name.partition("/")[2] for queue in federation(profile).of(QUEUE)]
    containers = [c.name.split("/")[2] for c in federation(profile).of(f"{ACCOUNT}/blobServices/containers")]

    assert sorted(queues) == sorted(names.queues(SILOS))
    assert sorted(c for c in containers if c not in SILOS_OWN) == sorted(names.containers(SILOS))


@pytest.mark.parametrize("profile", PROFILES)
def test_queues_are_as_in_a_local_federation(profile: str) -> None:
    for queue in federation(profile).of(QUEUE):
        assert queue["properties.lockDuration"] == LOCK_DURATION
        assert queue["properties.maxDeliveryCount"] == MAX_DELIVERY_COUNT
        assert queue["properties.requiresDuplicateDetection"] is False
        assert queue["properties.requiresSession"] is False
        assert queue["properties.enablePartitioning"] is False  # which would break their order


@pytest.mark.parametrize("profile", PROFILES)
def test_what_expires_is_set_aside_but_for_announcements(profile: str) -> None:
    announcements = {names.to_silo(silo) for silo in SILOS}
    for queue in federation(profile).of(QUEUE):
        expired_is_kept = queue["properties.deadLetteringOnMessageExpiration"]
        assert expired_is_kept == (queue["name"] not in announcements)
        days = int(queue["properties.defaultMessageTimeToLive"].removeprefix("P").removesuffix("D"))
        with pytest.raises(ValidationError):
            TypeAdapter(Seconds).validate_python(days * 86400.0)  # no round has so much time


@pytest.mark.parametrize("profile", PROFILES)
def test_nothing_lets_anybody_in_with_a_key(profile: str) -> None:
    made = federation(profile)
    for account in made.of(ACCOUNT):
        assert account["properties.allowSharedKeyAccess"] is False
        assert account["properties.allowBlobPublicAccess"] is False
        assert account["properties.minimumTlsVersion"] == "TLS1_2"
    for bus in made.of("Microsoft.ServiceBus/namespaces"):
        assert bus["properties.disableLocalAuth"] is True
        assert bus["properties.minimumTlsVersion"] == "1.2"
    for registry in made.of("Microsoft.ContainerRegistry/registries"):
        assert registry["properties.adminUserEnabled"] is False
    for compute in made.of("Microsoft.MachineLearningServices/workspaces/computes"):
        assert compute["properties.disableLocalAuth"] is True
    text = "".join(file.read_text(encoding="utf-8") for file in BICEP)
    assert not re.search(r"listKeys\(|connectionString|accountKey|sharedKey\b", text, re.IGNORECASE)


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_deleted_is_gone_after_the_days_that_are_said(profile: str) -> None:
    [blobs] = [r for r in federation(profile).hub if r.type == f"{ACCOUNT}/blobServices"]
    assert blobs["properties.isVersioningEnabled"] is False
    for kept in ("deleteRetentionPolicy", "containerDeleteRetentionPolicy"):
        assert blobs[f"properties.{kept}.enabled"] is True
        assert blobs[f"properties.{kept}.days"] == 7
    rules = f"{ACCOUNT}/managementPolicies"
    assert [r for r in federation(profile).hub if r.type == rules] == [], "a rule of Azure's knows of no hold"


def test_only_rounds_that_are_long_over_are_deleted_from_a_silos_datastore() -> None:
    for silo, made in federation("open").silos.items():
        [policy] = [r for r in made if r.type == f"{ACCOUNT}/managementPolicies"]
        [rule] = policy["properties.policy.rules"]
        assert rule["definition"]["filters"]["prefixMatch"] == [f"training/silobus/{silo}/rounds/"]
        assert rule["definition"]["actions"] == {"baseBlob": {"delete": {"daysAfterModificationGreaterThan": 90}}}


@pytest.mark.parametrize("size", ["cpu", "gpu"])
def test_sizes_are_those_of_the_file(size: str) -> None:
    sizes = json.loads((AZURE / "sizes.json").read_text(encoding="utf-8"))[size]
    made = federation("open", size=size)
    [cluster] = [r for r in made.silos["north"] if r.type == "Microsoft.MachineLearningServices/workspaces/computes"]
    assert cluster["properties.properties"]["vmSize"] == sizes["compute"]
    [environment] = [r for r in made.silos["north"] if r.type == "Microsoft.App/managedEnvironments"]
    offered = {profile["name"] for profile in environment["properties.workloadProfiles"]}
    [agent] = [r for r in made.silos["north"] if r.type == "Microsoft.App/containerApps"]
    assert agent["properties.workloadProfileName"] in offered


def test_storage_that_is_there_already_is_used_and_not_made() -> None:
    outputs = federation("open").outputs
    made, _ = deploy(
        AZURE / "silo.bicep", "north", silo_parameters("north", "open", outputs, **AZUREML, existingStorage="theirs")
    )
    assert made.of(ACCOUNT) == []
    assert made.of(f"{ACCOUNT}/managementPolicies") == [], "an account has one set of rules: its owner's"
    [workspace] = made.of("Microsoft.MachineLearningServices/workspaces")
    assert workspace["properties.storageAccount"].endswith("/storageAccounts/theirs")


def test_data_has_a_datastore_and_tasks_may_ask_for_as_many_nodes_as_there_are() -> None:
    more = {**AZUREML, "dataContainer": "the-records", "maxNodes": 4}
    made, told = deploy(
        AZURE / "silo.bicep", "north", silo_parameters("north", "open", federation("open").outputs, **more)
    )
    stores = {r.name.rpartition("/")[2]: r["properties.containerName"] for r in made.of(f"{WORKSPACE}/datastores")}
    assert stores == {"training": "training", "the_records": "the-records"}
    [cluster] = made.of(f"{WORKSPACE}/computes")
    assert cluster["properties.properties"]["scaleSettings"]["maxNodeCount"] == 4
    assert told["vault"] == made.of("Microsoft.KeyVault/vaults")[0].name


def test_the_home_of_an_agent_is_told_where_there_is_one() -> None:
    for profile in PROFILES:
        made, told = deploy(
            AZURE / "silo.bicep", "north", silo_parameters("north", profile, federation(profile).outputs)
        )
        homes = [r.name for r in made.of(ACCOUNT) if r["kind"] == "FileStorage"]
        assert told["homeAccount"] == (homes[0] if profile == "private" else "")


def test_retention_is_what_the_hubs_owner_says(tmp_path: Path) -> None:
    said = json.loads((AZURE / "open.json").read_text(encoding="utf-8"))["parameters"]
    values = {name: value["value"] for name, value in said.items()}
    more = {"silos": SILOS, "operators": [], "email": "a@example.org", "image": "o:1", "retention": {"days": 7}}
    made, _ = deploy(AZURE / "hub.bicep", "hub", {**values, **more})
    [app] = made.of("Microsoft.App/containerApps")
    (tmp_path / "orchestrator.yaml").write_text(app["properties.configuration.secrets"][0]["value"])
    assert load_yaml(tmp_path / "orchestrator.yaml", OrchestratorSettings).retention.days == 7


@pytest.mark.parametrize("profile", PROFILES)
def test_the_parameter_files_are_taken(profile: str) -> None:
    said = json.loads((AZURE / f"{profile}.json").read_text(encoding="utf-8"))["parameters"]
    values = {name: value["value"] for name, value in said.items()}
    assert values["profile"] == profile
    deploy(AZURE / "hub.bicep", "hub", {**values, "silos": SILOS, "operators": ["people"], "email": "a@example.org"})
