"""Every way in that the templates make, as closed lists: roles, rules with keys, tokens that are trusted, identities.

What confers access and is not in a list here makes a test fail, and so does a kind of resource that nobody has judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from deploy.azure import rights
from messages import names
from messages.rights import principals
from tests.unit.deploy.azure import ABROAD, ASSIGNMENT, PROFILES, SILOS, Federation, federation
from tests.unit.deploy.bicep_values import SUBSCRIPTION, Resource

DEFINITION = "Microsoft.Authorization/roleDefinitions"
RULE = "Microsoft.ServiceBus/namespaces/queues/authorizationRules"
TRUST = "Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials"
CONFERS = {ASSIGNMENT, DEFINITION, RULE, TRUST}
"""Kinds of resources that let somebody in. Each has a test that knows all of its kind."""
CONFERS_NOTHING = {
    "Microsoft.App/containerApps",
    "Microsoft.App/managedEnvironments",
    "Microsoft.App/managedEnvironments/storages",
    "Microsoft.ContainerRegistry/registries",
    "Microsoft.Insights/actionGroups",
    "Microsoft.Insights/activityLogAlerts",
    "Microsoft.Insights/components",
    "Microsoft.Insights/diagnosticSettings",
    "Microsoft.Insights/metricAlerts",
    "Microsoft.KeyVault/vaults",
    "Microsoft.MachineLearningServices/workspaces",
    "Microsoft.MachineLearningServices/workspaces/computes",
    "Microsoft.MachineLearningServices/workspaces/datastores",
    "Microsoft.ManagedIdentity/userAssignedIdentities",
    "Microsoft.Network/privateDnsZones",
    "Microsoft.Network/privateDnsZones/virtualNetworkLinks",
    "Microsoft.Network/privateEndpoints",
    "Microsoft.Network/privateEndpoints/privateDnsZoneGroups",
    "Microsoft.Network/virtualNetworks",
    "Microsoft.OperationalInsights/workspaces",
    "Microsoft.ServiceBus/namespaces",
    "Microsoft.ServiceBus/namespaces/queues",
    "Microsoft.Storage/storageAccounts",
    "Microsoft.Storage/storageAccounts/blobServices",
    "Microsoft.Storage/storageAccounts/blobServices/containers",
    "Microsoft.Storage/storageAccounts/fileServices",
    "Microsoft.Storage/storageAccounts/fileServices/shares",
    "Microsoft.Storage/storageAccounts/managementPolicies",
}
OPENS = {
    "accessPolicies": [],
    "adminUserEnabled": False,
    "anonymousPullEnabled": False,
    "credentialsType": "None",
    "enableRbacAuthorization": True,
    "isLocalUserEnabled": False,
    "isSftpEnabled": False,
    "publicAccess": "None",
    "ingress": None,
    "adminUserName": None,
    "userAccountCredentials": None,
}
"""Properties by which a resource lets somebody in by itself, and what they have to be where they are said."""
ISSUER = "https://issuer.example/cluster"
VARIANTS = [(profile, keys, issuer) for profile in PROFILES for keys in (False, True) for issuer in ("", ISSUER)]
HUB = f"{SUBSCRIPTION}/resourceGroups/hub"


@pytest.fixture(params=VARIANTS, ids=lambda v: f"{v[0]}{'-keys' * v[1]}{'-issuer' * bool(v[2])}")
def variant(request: pytest.FixtureRequest) -> tuple[Federation, bool, str]:
    profile, keys, issuer = request.param
    return federation(profile, keys=keys, issuer=issuer), keys, issuer


Variant = tuple[Federation, bool, str]


def test_every_kind_of_resource_has_been_judged(variant: Variant) -> None:
    made, _, _ = variant
    assert {resource.type for resource in made.made} <= CONFERS | CONFERS_NOTHING


def test_a_key_is_there_for_a_silo_without_an_identity_and_for_nobody_else(variant: Variant) -> None:
    made, keys, _ = variant
    [agent] = [who for who in principals([ABROAD]) if who.silo]
    expected = {
        (f"{queue}/{agent.name}", frozenset(right.value for right in allowed))
        for queue, allowed in agent.queues.items()
        if keys
    }

    rules = [resource for resource in made.made if resource.type.lower().endswith("authorizationrules")]
    found = [(rule.name.partition("/")[2], frozenset(rule["properties.rights"])) for rule in rules]
    assert sorted(found, key=str) == sorted(expected, key=str)
    [bus] = made.of("Microsoft.ServiceBus/namespaces")
    assert bus["properties.disableLocalAuth"] is not keys


def test_one_issuer_is_trusted_for_one_service_account_where_a_silo_names_it(variant: Variant) -> None:
    made, _, issuer = variant
    expected = [
        {
            "issuer": issuer,
            "subject": "system:serviceaccount:silobus:agent",
            "audiences": ["api://AzureADTokenExchange"],
        }
    ] * (len(SILOS) if issuer else 0)

    trusts = made.of(TRUST)
    assert [trust["properties"] for trust in trusts] == expected
    assert len({trust.name.partition("/")[0] for trust in trusts}) == len(trusts)


def test_roles_of_our_own_are_those_of_the_table_and_can_be_assigned_in_the_hub_alone(variant: Variant) -> None:
    made, _, _ = variant
    definitions = made.of(DEFINITION)
    ours = {role.called for role in rights.ROLES.values() if not role.is_built_in}
    assert {d["properties.roleName"].partition(" (")[0] for d in definitions} == ours
    assert len(definitions) == len(ours)
    for definition in definitions:
        assert definition["properties.assignableScopes"] == [HUB]
        [permissions] = definition["properties.permissions"]
        assert permissions["actions"] == permissions["notActions"] == permissions["notDataActions"] == []


def test_nobody_may_sign_for_blobs_but_the_one_person_of_a_silo_with_a_key(variant: Variant) -> None:
    made, keys, _ = variant
    delegators = [(g.who, g.kind) for g in made.grants() if g.role == "Storage Blob Delegator"]
    assert delegators == ([(f"agent-{ABROAD}", "account")] if keys else [])


def test_no_resource_lets_anybody_in_by_itself(variant: Variant) -> None:
    made, _, _ = variant
    wrong = [
        (resource.id, key, value)
        for resource in made.made
        for key, value in properties(dict(resource.body))
        if key in OPENS and value != OPENS[key]
    ]
    assert wrong == []
    assert all(vault["properties.enableRbacAuthorization"] for vault in made.of("Microsoft.KeyVault/vaults"))


def test_a_process_and_a_node_are_one_identity_each_and_no_two_are_the_same(variant: Variant) -> None:
    made, _, _ = variant
    who = [
        next(iter(resource["identity.userAssignedIdentities"]))
        for kind in ("Microsoft.App/containerApps", "Microsoft.MachineLearningServices/workspaces/computes")
        for resource in made.of(kind)
        if len(resource["identity.userAssignedIdentities"]) == 1 and resource["identity.type"] == "UserAssigned"
    ]
    assert len(who) == len(set(who)) == 1 + 2 * len(SILOS)
    known = {identity.id for identity in made.of("Microsoft.ManagedIdentity/userAssignedIdentities")}
    assert set(who) == known


def test_somebody_is_told_when_a_key_is_read_renewed_or_made() -> None:
    [alert] = federation("open").of("Microsoft.Insights/activityLogAlerts")
    [bus] = federation("open").of("Microsoft.ServiceBus/namespaces")
    assert alert["properties.enabled"] is True
    assert alert["properties.scopes"] == [bus.id]
    assert alert["properties.actions"]["actionGroups"]
    [category, operations] = alert["properties.condition"]["allOf"]
    assert category == {"field": "category", "equals": "Administrative"}
    told = {one["equals"].lower().removeprefix("microsoft.servicebus/namespaces/") for one in operations["anyOf"]}
    what = ("listkeys/action", "regeneratekeys/action", "write")
    assert told == {f"{of}authorizationrules/{does}" for of in ("", "queues/") for does in what}


def test_a_silo_with_a_key_is_enrolled_like_any_other_in_the_hub() -> None:
    queues = {queue.name.partition("/")[2] for queue in federation("open", keys=True).of(f"{RULE.rpartition('/')[0]}")}
    assert queues == set(names.queues([*SILOS, ABROAD]))


def properties(of: Any) -> Iterator[tuple[str, Any]]:
    """Every property at any depth, and what it is."""
    match of:
        case dict():
            for key, value in of.items():
                yield key, value
                yield from properties(value)
        case list():
            for value in of:
                yield from properties(value)
        case Resource():
            raise AssertionError("a resource within another's properties")
