"""A whole federation as the templates make it: a hub and three silos, in one profile or the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.unit.deploy.bicep import deploy
from tests.unit.deploy.bicep_values import SUBSCRIPTION, Resource

ROOT = Path(__file__).resolve().parents[3]
AZURE = ROOT / "deploy" / "azure"
SILOS = ["north", "south", "island"]
PROFILES = ["open", "private"]
PEOPLE = "people"
ABROAD, SIGNER = "abroad", "signer"
"""A silo that comes with a key, and who signs for its blobs."""
AZUREML = {"azureml": True, "dataContainer": "records"}
SILOS_OWN = {"training", "records"}
"""Containers that are no part of the exchange."""
ASSIGNMENT = "Microsoft.Authorization/roleAssignments"
BUILT_IN: Mapping[str, tuple[str, frozenset[str]]] = {
    "69a216fc-b8fb-44d8-bc22-1f3c2cd27a39": ("Azure Service Bus Data Sender", frozenset({"send"})),
    "4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0": ("Azure Service Bus Data Receiver", frozenset({"receive"})),
    "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1": ("Storage Blob Data Reader", frozenset({"blobs/read"})),
    "ba92f5b4-2d11-453d-a403-e96b0029c9fe": (
        "Storage Blob Data Contributor",
        frozenset({"blobs/read", "blobs/write", "blobs/add/action", "blobs/delete"}),
    ),
    "db58b8e5-c6ad-4a2a-8342-4190687cbf4a": ("Storage Blob Delegator", frozenset()),
    "7f951dda-4ed3-4680-a7ca-43fe172d538d": ("AcrPull", frozenset()),
    "f6c7c914-8db3-469d-8ca1-694a8f32e121": ("AzureML Data Scientist", frozenset()),
}
"""Azure's own roles that may be assigned at all, and what they allow on messages and blobs."""


KINDS = {
    "Microsoft.ServiceBus/namespaces/queues": "queue",
    "Microsoft.Storage/storageAccounts/blobServices/containers": "container",
    "Microsoft.Storage/storageAccounts": "account",
    "Microsoft.ContainerRegistry/registries": "registry",
    "Microsoft.MachineLearningServices/workspaces": "workspace",
}
"""What roles are assigned on, in our words."""


@dataclass(frozen=True)
class Grant:
    """A role assignment, in our words."""

    who: str
    """`orchestrator`, `operator`, `agent-north`, `compute-north`."""
    kind: str
    """queue, container, registry, workspace, account."""
    place: str
    role: str
    actions: frozenset[str]
    principal_type: str


@dataclass(frozen=True)
class Federation:
    hub: list[Resource]
    silos: Mapping[str, list[Resource]]
    outputs: Mapping[str, Any]

    @property
    def made(self) -> list[Resource]:
        return [*self.hub, *(resource for made in self.silos.values() for resource in made)]

    def of(self, kind: str) -> list[Resource]:
        return [resource for resource in self.made if resource.type == kind]

    def grants(self) -> list[Grant]:
        return [self._grant(resource) for resource in self.of(ASSIGNMENT)]

    def _grant(self, assignment: Resource) -> Grant:
        role, actions = self._role(assignment["properties.roleDefinitionId"])
        provider, *parts = assignment.scope.rpartition("/providers/")[2].split("/")
        return Grant(
            who=self._who(assignment["properties.principalId"]),
            kind=KINDS.get("/".join([provider, *parts[::2]]), assignment.scope),
            place=parts[-1],
            role=role,
            actions=actions,
            principal_type=assignment["properties.principalType"],
        )

    def _who(self, principal: str) -> str:
        if principal in (PEOPLE, SIGNER):
            return "operator" if principal == PEOPLE else f"agent-{ABROAD}"
        group, name = principal.removesuffix(".properties.principalId").split("/")[4::4][:2]
        if name.endswith("-orchestrator"):
            return "orchestrator"
        return f"compute-{group}" if name.endswith("-compute") else name

    def _role(self, definition: str) -> tuple[str, frozenset[str]]:
        known = definition.rpartition("/")[2]
        if known in BUILT_IN:
            return BUILT_IN[known]
        prefix = "Microsoft.Storage/storageAccounts/blobServices/containers/"
        for custom in self.of("Microsoft.Authorization/roleDefinitions"):
            if custom.name == known:
                [permissions] = custom["properties.permissions"]
                assert permissions["actions"] == permissions["notActions"] == permissions["notDataActions"] == []
                called = custom["properties.roleName"].partition(" (")[0]
                return called, frozenset(a.removeprefix(prefix) for a in permissions["dataActions"])
        raise AssertionError(f"nobody knows the role {definition}")


@cache
def federation(
    profile: str,
    *,
    large_models: bool = False,
    size: str = "cpu",
    runs: str = "container-app",
    keys: bool = False,
    issuer: str = "",
    azureml: bool = True,
) -> Federation:
    """A hub, and in resource groups of their own three silos, each with AzureML.

    With `keys`, a fourth comes with a key, and with a person who signs for its blobs.
    """
    enrolled = [*SILOS, ABROAD] if keys else SILOS
    hub, outputs = deploy(
        AZURE / "hub.bicep",
        "hub",
        {
            "profile": profile,
            "name": "silobus",
            "silos": enrolled,
            "operators": [PEOPLE],
            "email": "operators@example.org",
            "image": "orchestrator:1",
            "largeModels": large_models,
            "keys": keys,
        },
    )
    more = {"size": size, "runs": runs, "issuer": issuer, **(AZUREML if azureml else {})}
    silos = {}
    for silo in SILOS:
        made, _ = deploy(AZURE / "silo.bicep", silo, silo_parameters(silo, profile, outputs, **more))
        silos[silo] = made.made
    if keys:
        silos[ABROAD] = with_a_key(outputs)
    return Federation(hub.made, silos, outputs)


def with_a_key(outputs: Mapping[str, Any]) -> list[Resource]:
    """A silo without an identity, as the hub's owner enrols it."""
    hub = {name: outputs[name] for name in ("namespace", "storageAccount", "orchestrator")}
    made, _ = deploy(
        AZURE / "enrol.bicep", "hub", {**hub, "silo": ABROAD, "operators": [PEOPLE], "agent": "", "signer": SIGNER}
    )
    return made.made


def silo_parameters(silo: str, profile: str, outputs: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What a silo's owner gives."""
    hub = {
        "subscription": SUBSCRIPTION.rpartition("/")[2],
        "resourceGroup": "hub",
        "namespace": outputs["namespace"],
        "storageAccount": outputs["storageAccount"],
        "orchestrator": outputs["orchestrator"],
        "operators": [PEOPLE],
        "operatorType": "Group",
    }
    return {"silo": silo, "profile": profile, "hub": hub, "policy": {}, "image": "agent:1", **more}
