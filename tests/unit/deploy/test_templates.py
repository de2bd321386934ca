"""The templates' other promises: queues as everywhere, nothing with a key, nothing open where it is private."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from messages import names
from messages.fields import Seconds
from messages.health import PATH
from messages.rights import ORCHESTRATOR, Right, principals
from messages.settings import load_yaml
from orchestrator.cli.folder import LOCK_DURATION, MAX_DELIVERY_COUNT
from orchestrator.settings import OrchestratorSettings
from silo_agent.settings import SiloSettings
from tests.unit.deploy.azure import AZURE, PROFILES, SILOS, SILOS_OWN, federation
from tests.unit.deploy.bicep import Resource, Wrong, deploy, parse, walk

BICEP = sorted(AZURE.rglob("*.bicep"))
QUEUE = "Microsoft.ServiceBus/namespaces/queues"
ACCOUNT = "Microsoft.Storage/storageAccounts"
APP = "Microsoft.App/containerApps"
PRIVATE = {
    "Microsoft.ServiceBus/namespaces": {"namespace"},
    ACCOUNT: {"blob", "file"},
    "Microsoft.ContainerRegistry/registries": {"registry"},
    "Microsoft.KeyVault/vaults": {"vault"},
    "Microsoft.MachineLearningServices/workspaces": {"amlworkspace"},
}
"""What is reached over a network, and the services of a private endpoint to it."""


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
    assert not re.search(r"listKeys|connectionString|accountKey|sharedKey\b", text, re.IGNORECASE)


@pytest.mark.parametrize("profile", PROFILES)
def test_what_is_deleted_is_gone_after_the_days_that_are_said(profile: str) -> None:
    [blobs] = [r for r in federation(profile).hub if r.type == f"{ACCOUNT}/blobServices"]
    assert blobs["properties.isVersioningEnabled"] is False
    for kept in ("deleteRetentionPolicy", "containerDeleteRetentionPolicy"):
        assert blobs[f"properties.{kept}.enabled"] is True
        assert blobs[f"properties.{kept}.days"] == 7


def test_in_private_everything_has_an_endpoint_and_no_other_way_in() -> None:
    made = federation("private")
    endpoints = made.of("Microsoft.Network/privateEndpoints")
    reached: dict[str, set[str]] = {}  # from the resource group of the target; silos have endpoints of their own
    for endpoint in endpoints:
        [connection] = endpoint["properties.privateLinkServiceConnections"]
        target = connection["properties"]["privateLinkServiceId"]
        if target.startswith(f"{endpoint.scope}/"):
            reached.setdefault(target, set()).update(connection["properties"]["groupIds"])
    for kind, services in PRIVATE.items():
        for resource in made.of(kind):
            assert resource["properties.publicNetworkAccess"] == "Disabled", resource.id
            assert reached.get(resource.id, set()) & services, f"no private endpoint to {resource.id}"
    known = {resource.id for kind in PRIVATE for resource in made.of(kind)}
    assert reached.keys() <= known, reached.keys() - known
    [bus] = made.of("Microsoft.ServiceBus/namespaces")
    assert bus["sku.name"] == bus["sku.tier"] == "Premium"
    for environment in made.of("Microsoft.App/managedEnvironments"):
        assert environment["properties.vnetConfiguration.internal"] is True


def test_each_silo_reaches_the_hub_through_endpoints_of_its_own() -> None:
    made = federation("private")
    for silo in SILOS:
        targets = {
            connection["properties"]["privateLinkServiceId"].split("/")[-2]
            for endpoint in made.silos[silo]
            if endpoint.type == "Microsoft.Network/privateEndpoints"
            for connection in endpoint["properties.privateLinkServiceConnections"]
            if "/resourceGroups/hub/" in connection["properties"]["privateLinkServiceId"]
        }
        assert targets == {"namespaces", "storageAccounts"}


@pytest.mark.parametrize("profile", PROFILES)
def test_training_reaches_its_own_storage_and_nothing_else(profile: str) -> None:
    made = federation(profile)
    for workspace in made.of("Microsoft.MachineLearningServices/workspaces"):
        network = workspace["properties.managedNetwork"]
        assert network["isolationMode"] == "AllowOnlyApprovedOutbound"
        [rule] = network["outboundRules"].values()
        assert rule["destination"]["serviceResourceId"] == workspace["properties.storageAccount"]
        assert workspace["properties.systemDatastoresAuthMode"] == "identity"
    for store in made.of("Microsoft.MachineLearningServices/workspaces/datastores"):
        assert store["properties.credentials"] == {"credentialsType": "None"}


@pytest.mark.parametrize("size", ["cpu", "gpu"])
def test_sizes_are_those_of_the_file(size: str) -> None:
    sizes = json.loads((AZURE / "sizes.json").read_text(encoding="utf-8"))[size]
    made = federation("open", size=size)
    [cluster] = [r for r in made.silos["north"] if r.type == "Microsoft.MachineLearningServices/workspaces/computes"]
    assert cluster["properties.properties"]["vmSize"] == sizes["compute"]
    [environment] = [r for r in made.silos["north"] if r.type == "Microsoft.App/managedEnvironments"]
    offered = {profile["name"] for profile in environment["properties.workloadProfiles"]}
    assert apps("open", "agent", size=size)[0]["properties.workloadProfileName"] in offered


def test_storage_that_is_there_already_is_used_and_not_made() -> None:
    outputs = federation("open").outputs
    from tests.unit.deploy.azure import silo_parameters

    made, _ = deploy(AZURE / "silo.bicep", "north", silo_parameters("north", "open", outputs, existingStorage="theirs"))
    assert made.of(ACCOUNT) == []
    assert made.of(f"{ACCOUNT}/managementPolicies") == [], "an account has one set of rules: its owner's"
    [workspace] = made.of("Microsoft.MachineLearningServices/workspaces")
    assert workspace["properties.storageAccount"].endswith("/storageAccounts/theirs")


def test_only_rounds_that_are_long_over_are_deleted_from_a_silos_datastore() -> None:
    for silo, made in federation("open").silos.items():
        [policy] = [r for r in made if r.type == f"{ACCOUNT}/managementPolicies"]
        [rule] = policy["properties.policy.rules"]
        assert rule["definition"]["filters"]["prefixMatch"] == [f"training/silobus/{silo}/rounds/"]
        assert rule["definition"]["actions"] == {"baseBlob": {"delete": {"daysAfterModificationGreaterThan": 90}}}


def test_a_cluster_is_trusted_for_one_service_account_and_asks_for_approval() -> None:
    from tests.unit.deploy.azure import silo_parameters

    outputs = federation("private").outputs
    more: dict[str, Any] = {"runs": "cluster", "issuer": "https://cluster.example", "enrol": False}
    made, _ = deploy(AZURE / "silo.bicep", "north", silo_parameters("north", "private", outputs, **more))
    [trust] = made.of("Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials")
    assert trust["properties.subject"] == "system:serviceaccount:silobus:agent"
    assert made.of(APP) == []
    assert made.of(QUEUE) == []
    asked = [
        e for e in made.of("Microsoft.Network/privateEndpoints") if e["properties.manualPrivateLinkServiceConnections"]
    ]
    assert len(asked) == 2


# --- processes --------------------------------------------------------------------------------------------------------


def apps(profile: str, name: str, **more: Any) -> list[Resource]:
    return [app for app in federation(profile, **more).of(APP) if app["name"] == name]


def settings_in(app: Resource, tmp_path: Path) -> Path:
    """The file as the process finds it."""
    [secret] = app["properties.configuration.secrets"]
    [volume] = [v for v in app["properties.template.volumes"] if v["name"] == "settings"]
    file = tmp_path / volume["secrets"][0]["path"]
    file.write_text(secret["value"])
    [container] = app["properties.template.containers"]
    assert container["args"][-1] == f"/etc/silobus/{file.name}"
    return file


@pytest.mark.parametrize("profile", PROFILES)
def test_the_orchestrators_settings_are_right_and_a_message_in_any_of_its_queues_wakes_it(
    profile: str, tmp_path: Path
) -> None:
    [app] = apps(profile, "orchestrator")
    settings = load_yaml(settings_in(app, tmp_path), OrchestratorSettings)
    assert list(settings.silos) == SILOS
    assert settings.bus.credential == settings.store.credential == "managed-identity"
    assert settings.max_delivery_count == MAX_DELIVERY_COUNT

    [who] = [p for p in principals(SILOS) if p.role == ORCHESTRATOR]
    rules = app["properties.template.scale.rules"]
    assert {rule["custom"]["metadata"]["queueName"] for rule in rules} == {
        queue for queue, allowed in who.queues.items() if Right.LISTEN in allowed
    }
    assert all(rule["custom"]["identity"].endswith("-orchestrator") for rule in rules)
    assert app["properties.template.scale.minReplicas"] == 0


@pytest.mark.parametrize("profile", PROFILES)
def test_an_agents_settings_are_right_and_there_is_one_of_it(profile: str, tmp_path: Path) -> None:
    for app in apps(profile, "agent"):
        settings = load_yaml(settings_in(app, tmp_path), SiloSettings)
        assert settings.silo in SILOS
        assert settings.bus.credential == settings.store.credential == "managed-identity"
        assert app["properties.template.scale.minReplicas"] == app["properties.template.scale.maxReplicas"] == 1
        [home] = [v for v in app["properties.template.volumes"] if v["name"] == "home"]
        assert home["storageType"] == ("NfsAzureFile" if profile == "private" else "EmptyDir")


@pytest.mark.parametrize("name", ["orchestrator", "agent"])
def test_every_process_is_asked_for_its_health_and_nobody_else_can_call_it(name: str, tmp_path: Path) -> None:
    for app in apps("private", name):
        said = json.loads(settings_in(app, tmp_path).read_text())["health"]
        [container] = app["properties.template.containers"]
        assert [probe["type"] for probe in container["probes"]] == ["Startup", "Liveness"]
        for probe in container["probes"]:
            assert probe["httpGet"] == {"path": PATH, "port": said["port"]}
        assert "ingress" not in app["properties.configuration"]
        assert [variable["name"] for variable in container["env"]] == ["AZURE_CLIENT_ID"]


def test_somebody_is_told_of_dead_letters_old_messages_and_silence() -> None:
    alerts = federation("open").of("Microsoft.Insights/metricAlerts")
    watched: dict[str, set[str]] = {"DeadletteredMessages": set(), "CompleteMessage": set(), "IncomingMessages": set()}
    for alert in alerts:
        assert alert["properties.actions"]
        criteria = alert["properties.criteria"]["allOf"]
        for criterion in criteria:
            [dimension] = criterion["dimensions"]
            watched.setdefault(criterion["metricName"], set()).update(dimension["values"])
    assert watched["DeadletteredMessages"] == {"*"}
    assert watched["CompleteMessage"] == set(names.queues(SILOS))
    assert watched["IncomingMessages"] == {names.from_silo(silo) for silo in SILOS}


@pytest.mark.parametrize("profile", PROFILES)
def test_the_parameter_files_are_taken(profile: str) -> None:
    said = json.loads((AZURE / f"{profile}.json").read_text(encoding="utf-8"))["parameters"]
    values = {name: value["value"] for name, value in said.items()}
    assert values["profile"] == profile
    deploy(AZURE / "hub.bicep", "hub", {**values, "operators": ["people"], "email": "a@example.org"})


# --- the reader itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("param a string\n", "needs the parameter a"),
        ("param a string = 1\nvar b = a\noutput c string = b\n", "should be of type string"),
        ("@allowed(['x'])\nparam a string = 'y'\noutput b string = a\n", "may be"),
        ("output a string = b\n", "nothing is called b"),
        ("var a = 1\n", "nothing uses"),
        ("output a string = foo('x')\n", "no function foo"),
        ("output a string = {b: 1}.c\n", "there is no c"),
        ("resource a 'X.Y/z@1' = {\n", "not Bicep"),
        ("module a 'b.bicep' = {\n  name: 'b'\n  params: {\n    c: 1\n  }\n}\n", "has no parameter"),
    ],
)
def test_a_slip_in_a_template_is_seen(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "b.bicep").write_text("param d int = 1\noutput e int = d\n")
    (tmp_path / "a.bicep").write_text(text)
    with pytest.raises(Wrong, match=why):
        deploy(tmp_path / "a.bicep", "group", {})


def test_precedence_is_that_of_bicep(tmp_path: Path) -> None:
    (tmp_path / "a.bicep").write_text(
        "var x = { b: 'y', c: 2 }\n"
        "output a bool = x.b == 'y' && x.c != 1 || false\n"
        "output b int = !empty(x.b) && x.c == 3 ? 1 : x.b == 'z' ? 2 : 3\n"
        "output c array = filter([1, 2], n => n == x.c && x.b != '}${x.b}')\n"
    )
    _, told = deploy(tmp_path / "a.bicep", "group", {})
    assert told == {"a": True, "b": 3, "c": [2]}
