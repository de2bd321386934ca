"""Everything that a federation does on the wire, recorded: all of it is granted, and all that is granted is used.

The real orchestrator, two real agents and the operator's commands, over azure-servicebus, azure-storage-blob and
azure-ai-ml as they are; north trains on AzureML. What each operation needs is in `QUEUE`, `BLOB` and `WORKSPACE`, after
Azure's documentation; who may do it is asked of `messages/rights.yaml` and of the templates in `deploy/azure`.
"""

from __future__ import annotations

import asyncio
import fnmatch
import os
import re
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import pytest
from azure.storage.blob.aio import BlobServiceClient

from messages import names
from messages.rights import Right, Verb, principals
from messages.transport.azure_blob import AzureBlobStore
from tests.e2e.recorded import MIB, Done, Operation, blob_operation, signature
from tests.e2e.recorded_federation import SILOS, TRAINING, everything
from tests.fakes.azureml import AzureMLDouble
from tests.fakes.blob_server import BlobServer, Container
from tests.unit.deploy.azure import PROFILES, federation
from tests.unit.deploy.azure import SILOS as DEPLOYED

pytestmark = pytest.mark.slow

Row = tuple[str, str, str]
"""Who, where, and a right or an action."""

# --- what operations need --------------------------------------------------------------------------------------------

# "Azure Service Bus access control with shared access signatures", rights required for operations: to send to a queue,
# and to schedule, needs Send; to receive, peek, renew and settle needs Listen. "Authenticate and authorize an
# application with Microsoft Entra ID to access Azure Service Bus": messages/send/action, messages/receive/action.
QUEUE: Mapping[str, tuple[Right, str]] = {
    "link that sends": (Right.SEND, "send"),
    "link that receives": (Right.LISTEN, "receive"),
    "com.microsoft:peek-message": (Right.LISTEN, "receive"),
    "com.microsoft:renew-lock": (Right.LISTEN, "receive"),
}
# "Authorize with Microsoft Entra ID" of the Storage REST reference, permissions for Blob service operations; below
# Microsoft.Storage/storageAccounts/blobServices/containers. Where either of two will do, the narrower comes first.
BLOB: Mapping[str, tuple[Verb, tuple[str, ...]]] = {
    "Get Blob": (Verb.READ, ("blobs/read",)),
    "Get Blob Properties": (Verb.READ, ("blobs/read",)),
    "Get Block List": (Verb.READ, ("blobs/read",)),
    "List Blobs": (Verb.LIST, ("blobs/read",)),
    "Put Blob, a new one": (Verb.CREATE, ("blobs/add/action", "blobs/write")),
    "Put Blob": (Verb.WRITE, ("blobs/write",)),
    "Put Block": (Verb.WRITE, ("blobs/write",)),
    "Put Block List": (Verb.WRITE, ("blobs/write",)),
    "Delete Blob": (Verb.DELETE, ("blobs/delete",)),
}
# "Azure permissions for AI + machine learning": what the provider Microsoft.MachineLearningServices knows.
WORKSPACE: Mapping[str, str] = {
    "GET jobs": "workspaces/jobs/read",
    "PUT jobs": "workspaces/jobs/write",
    "POST jobs/cancel": "workspaces/jobs/cancel/action",
    "PUT environments/versions": "workspaces/environments/versions/write",
    "GET environments/versions": "workspaces/environments/versions/read",
    "GET history runs/details": "workspaces/experiments/runs/read",
}
ELSEWHERE = {"GET jobs/cancelled"}
"""Where the double says that a cancel is followed up. Azure's address for that is only seen in a subscription."""
ROLES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # "Azure built-in roles for AI + machine learning": actions, and those of them that it does not have.
    "AzureML Data Scientist": (
        ("workspaces/*/read", "workspaces/*/action", "workspaces/*/delete", "workspaces/*/write"),
        (
            "workspaces/delete",
            "workspaces/write",
            "workspaces/computes/*/write",
            "workspaces/computes/*/delete",
            "workspaces/computes/listKeys/action",
            "workspaces/listKeys/action",
            "workspaces/hubs/write",
            "workspaces/hubs/delete",
            "workspaces/featurestores/write",
            "workspaces/featurestores/delete",
        ),
    )
}

# --- grants that are not used here -----------------------------------------------------------------------------------

UNUSED: Mapping[Row, str] = {}
"""Rows of the table: who, place and right, and why it is granted all the same."""
UNUSED_ROLES: Mapping[Row, str] = {
    ("agent", TRAINING, "blobs/write"): "code or inputs of more than 32 MiB travel in blocks; part of a built-in role",
    ("compute", TRAINING, "blobs/read"): "the mount is AzureML's own; the double reads files. Part of smoke.sh",
    ("compute", TRAINING, "blobs/write"): "the same, for what a job writes",
    ("compute", TRAINING, "blobs/add/action"): "the same; comes with the built-in role",
    ("compute", TRAINING, "blobs/delete"): "the same: renaming a file on a mount deletes the old one",
    ("compute", "records", "blobs/read"): "the silo's data, of which the trainers here need none",
    ("orchestrator", "registry", "AcrPull"): "the Container App pulls the image before anything of ours runs",
    ("agent", "registry", "AcrPull"): "the same",
    ("compute", "registry", "AcrPull"): "the cluster pulls the image of a job",
}
"""What the templates grant, in the same way; places of every silo without its name."""


# --- both ways -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """What everybody did."""
    with AzureMLDouble({}) as double, mock.patch.dict(os.environ, double.identity()):
        return asyncio.run(everything(double, tmp_path_factory.mktemp("files")))


def test_every_operation_is_known_by_what_it_needs(done: Done) -> None:
    needs = {"queue": QUEUE.keys(), "container": BLOB.keys(), "workspace": WORKSPACE.keys() | ELSEWHERE}
    assert [operation for operation in sorted(done) if operation.what not in needs[operation.kind]] == []


def test_the_table_grants_what_is_done_and_what_it_grants_is_used(done: Done) -> None:
    granted = {
        (who.name, place, what)
        for who in principals(SILOS)
        for places in (who.queues, who.containers)
        for place, allowed in places.items()
        for what in allowed
    }
    used = set()
    for operation in done:
        if operation.kind == "workspace" or operation.place == TRAINING:
            continue  # no part of the exchange
        need = (QUEUE if operation.kind == "queue" else BLOB)[operation.what][0]
        row, wider = (operation.who, operation.place, need), (operation.who, operation.place, Verb.WRITE)
        if need is Verb.CREATE and row not in granted and wider in granted:  # to write is to create or to replace
            row = wider
        used.add(row)

    assert used - granted == set(), "done, and not granted"
    assert {(who, place, str(what)) for who, place, what in granted - used} == UNUSED.keys(), "granted, not used"


@pytest.mark.parametrize("profile", PROFILES)
def test_the_templates_grant_what_is_done_and_what_they_grant_is_used(done: Done, profile: str) -> None:
    """Each action of a role on its own; a role for something else than messages and blobs as a whole."""
    granted = {
        (grant.who, grant.place if grant.kind in ("queue", "container") else grant.kind, what)
        for grant in federation(profile).grants()
        for what in grant.actions or {grant.role}
    }
    used, refused = set(), set()
    for operation in done:
        for row in _any_of(operation):
            if row in granted:
                used.add(row)
                break
        else:
            if operation.what not in ELSEWHERE:
                refused.add(operation)

    assert refused == set(), "done, and not granted"
    assert {_of_any_silo(row) for row in granted} - {_of_any_silo(row) for row in used} == UNUSED_ROLES.keys()


def _any_of(operation: Operation) -> list[Row]:
    """What would do for an operation, the narrowest first."""
    match operation.kind:
        case "queue":
            return [(operation.who, operation.place, QUEUE[operation.what][1])]
        case "container":
            return [(operation.who, operation.place, action) for action in BLOB[operation.what][1]]
        case _:
            action = WORKSPACE.get(operation.what, "")
            return [(operation.who, operation.kind, role) for role in ROLES if _holds(role, action)]


def _holds(role: str, action: str) -> bool:
    has, has_not = ([fnmatch.fnmatchcase(action, pattern) for pattern in patterns] for patterns in ROLES[role])
    return any(has) and not any(has_not)


def _of_any_silo(row: Row) -> Row:
    who, place, what = row
    for silo in DEPLOYED:
        place = re.sub(rf"-{silo}$", "-{silo}", place)
    return who.partition("-")[0], place, what


async def test_what_travels_in_blocks_needs_the_right_that_comes_with_large_models(tmp_path: Path) -> None:
    """An update of more than 32 MiB, here of more than one: an agent may send it where the templates say so."""
    update = tmp_path / "update"
    update.write_bytes(bytes(3 * MIB))
    async with BlobServer() as server:
        updates = server.containers[names.updates_of("north")] = Container()
        service = BlobServiceClient(server.url, credential=signature("agent-north"))
        store = AzureBlobStore(service, whole=MIB, block=MIB)
        await store.create(names.updates_of("north"), "update", update)
        await store.close()
        assert len(updates.blobs["update"].data) == 3 * MIB
        done = {operation for operation in map(blob_operation, server.asked) if operation is not None}

    def missing(large: bool) -> set[str]:
        granted = federation("open", large_models=large).grants()
        has = {action for g in granted if (g.who, g.place) == ("agent-north", "updates-north") for action in g.actions}
        return {operation.what for operation in done if not has.intersection(BLOB[operation.what][1])}

    assert missing(large=False) == {"Put Block", "Put Block List"}
    assert missing(large=True) == set()
