"""`silobus-agent check` where a credential gives no token: its own row is red, and what needs it is not tried.

Azure is an endpoint that answers as a machine's managed identity does, or says no.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from messages.transport import credentials
from tests.e2e.check.broken_silo import BUS_ROWS, STORE_ROWS, Silo
from tests.fakes.azureml import SUBSCRIPTION
from tests.federation import TASK

pytestmark = pytest.mark.slow

ACCOUNT, BUS = "https://nowhere.invalid", "nowhere.invalid"
WITHOUT = ("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "IDENTITY_ENDPOINT", "IDENTITY_HEADER")


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine says nothing of who it is."""
    for name in WITHOUT:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def imds() -> Iterator[str]:
    """A metadata endpoint that answers with what makes azure-identity wait and ask again."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_error(500)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def on_store(silo: Silo, credential: str) -> None:
    silo.said["store"] = {"account_url": ACCOUNT, "credential": credential}


def on_bus(silo: Silo, credential: str) -> None:
    silo.said["bus"] = {"namespace": BUS, "credential": credential}


def test_the_stores_credential_without_its_variables(silo: Silo) -> None:
    on_store(silo, "environment")
    untried = ["store", *STORE_ROWS]
    silo.checks().blames("credential environment", "store.credential", "AZURE_CLIENT_SECRET", untried=untried)


def test_the_buss_credential_without_its_variables(silo: Silo) -> None:
    on_bus(silo, "environment")
    checked = silo.checks()
    checked.blames("credential environment", "bus.credential", "AZURE_CLIENT_SECRET", untried=["bus", *BUS_ROWS])
    assert checked.rows["home"]["good"]


def test_one_credential_for_both_is_one_red_row(silo: Silo) -> None:
    on_bus(silo, "workload-identity")
    on_store(silo, "workload-identity")
    told = ["AZURE_FEDERATED_TOKEN_FILE", "bus.credential, store.credential"]
    silo.checks().blames("credential workload-identity", *told, untried=["bus", *BUS_ROWS, "store", *STORE_ROWS])


def test_a_machine_without_a_managed_identity_says_so_soon_and_once(
    silo: Silo, imds: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(credentials, "_PATIENCE", 0.3)
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", imds)
    on_bus(silo, "managed-identity")
    began = time.monotonic()
    checked = silo.checks()
    assert time.monotonic() - began < 18
    checked.blames("credential managed-identity", "bus.credential", "AZURE_CLIENT_ID", untried=["bus", *BUS_ROWS])
    assert "ManagedIdentityCredential" not in checked.output + "".join(capfd.readouterr())


def test_a_datastores_credential(silo: Silo) -> None:
    azureml = {
        "subscription": SUBSCRIPTION,
        "resource_group": "rg",
        "workspace": "hospital",
        "credential": "environment",
        "compute": "cluster",
        "environment": {"image": f"registry.example/train@sha256:{'ab' * 32}"},
        "datastore": {
            "name": "own",
            "container": "jobs",
            "store": {"account_url": ACCOUNT, "credential": "environment"},
        },
        "node_hours": 1,
    }
    for local in ("directory", "data", "mode"):
        silo.task.pop(local)
    silo.task["compute"] = {"azureml": azureml}
    at = f"tasks.{TASK}.compute.azureml"
    silo.checks().blames(
        "credential environment",
        f"{at}.credential, {at}.datastore.store.credential",
        untried=[f"task {TASK}: datastore", f"task {TASK}: workspace", f"task {TASK}"],
    )
