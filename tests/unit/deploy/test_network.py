"""Who can reach what: private endpoints, and what AzureML may reach."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.deploy.azure import AZURE, AZUREML, PROFILES, SILOS, federation, silo_parameters
from tests.unit.deploy.bicep import deploy

QUEUE = "Microsoft.ServiceBus/namespaces/queues"
ACCOUNT = "Microsoft.Storage/storageAccounts"
APP = "Microsoft.App/containerApps"
WORKSPACE = "Microsoft.MachineLearningServices/workspaces"
PRIVATE = {
    "Microsoft.ServiceBus/namespaces": {"namespace"},
    ACCOUNT: {"blob", "file"},
    "Microsoft.ContainerRegistry/registries": {"registry"},
    "Microsoft.KeyVault/vaults": {"vault"},
    WORKSPACE: {"amlworkspace"},
}
"""What is reached over a network, and the services of a private endpoint to it."""
OVER_THE_INTERNET = {
    "Microsoft.OperationalInsights/workspaces": "its private way is a scope of Azure Monitor's, one per network",
    "Microsoft.Insights/components": "the same",
}
"""What stays public in `private`, and why. Neither takes a key; nothing but logs and numbers goes there."""
NOT_REACHED = {
    "Microsoft.App/containerApps": "has no ingress",
    "Microsoft.App/managedEnvironments": "is internal",
    "Microsoft.ManagedIdentity/userAssignedIdentities": "is a name",
}
PLUMBING = (
    "Microsoft.Network/",
    "Microsoft.Authorization/",
    "Microsoft.Insights/a",
    "Microsoft.Insights/d",
    "Microsoft.Insights/m",
)
"""Networks themselves, roles, alerts and where logs go."""


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
            if "networkAcls" in resource["properties"]:
                assert resource["properties.networkAcls.defaultAction"] == "Deny", resource.id
    known = {resource.id for kind in PRIVATE for resource in made.of(kind)}
    assert reached.keys() <= known, reached.keys() - known
    [bus] = made.of("Microsoft.ServiceBus/namespaces")
    assert bus["sku.name"] == bus["sku.tier"] == "Premium"
    for environment in made.of("Microsoft.App/managedEnvironments"):
        assert environment["properties.vnetConfiguration.internal"] is True


def test_what_has_no_endpoint_in_private_stands_here_with_its_reason() -> None:
    kinds = {resource.type for profile in PROFILES for resource in federation(profile).made}
    reached = {kind for kind in kinds if kind.count("/") == 1 and not kind.startswith(PLUMBING)}
    assert reached == {*PRIVATE, *OVER_THE_INTERNET, *NOT_REACHED}
    page = (AZURE / "README.md").read_text(encoding="utf-8")
    assert "Logs and metrics go to Azure Monitor over its public endpoints" in page


def test_nodes_have_no_address_of_their_own_and_nobody_logs_in() -> None:
    for profile in PROFILES:
        for cluster in federation(profile).of(f"{WORKSPACE}/computes"):
            said = cluster["properties.properties"]
            assert said["enableNodePublicIp"] is False
            assert said["remoteLoginPortPublicAccess"] == "Disabled"
            assert said["scaleSettings"]["minNodeCount"] == 0


@pytest.mark.parametrize(
    ("profile", "azureml", "sku"),
    [("open", False, "Basic"), ("open", True, "Premium"), ("private", False, "Premium"), ("private", True, "Premium")],
)
def test_a_registry_that_endpoints_lead_to_is_premium(profile: str, azureml: bool, sku: str) -> None:
    made = federation(profile, azureml=azureml)
    [registry] = [r for r in made.silos["north"] if r.type == "Microsoft.ContainerRegistry/registries"]
    assert registry["sku.name"] == sku
    workspaces = [r for r in made.silos["north"] if r.type == WORKSPACE]
    assert [r["properties.containerRegistry"] for r in workspaces] == [registry.id] * azureml


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
    for workspace in made.of(WORKSPACE):
        network = workspace["properties.managedNetwork"]
        assert network["isolationMode"] == "AllowOnlyApprovedOutbound"
        assert "outboundRules" not in network, "the required ones are Azure's own"
        assert workspace["properties.systemDatastoresAuthMode"] == "identity"
    for store in made.of(f"{WORKSPACE}/datastores"):
        assert store["properties.credentials"] == {"credentialsType": "None"}


def test_an_agent_on_a_cluster_of_another_owners_asks_for_approval() -> None:
    outputs = federation("private").outputs
    more: dict[str, Any] = {**AZUREML, "runs": "cluster", "issuer": "https://cluster.example", "enrol": False}
    made, _ = deploy(AZURE / "silo.bicep", "north", silo_parameters("north", "private", outputs, **more))
    assert made.of(APP) == []
    assert made.of(QUEUE) == []
    asked = [
        e for e in made.of("Microsoft.Network/privateEndpoints") if e["properties.manualPrivateLinkServiceConnections"]
    ]
    targets = {
        connection["properties"]["privateLinkServiceId"].split("/")[-2]
        for endpoint in asked
        for connection in endpoint["properties.manualPrivateLinkServiceConnections"]
    }
    assert targets == {"namespaces", "storageAccounts"}
    assert len(asked) == 2
