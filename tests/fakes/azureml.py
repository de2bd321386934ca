"""A double of Azure Machine Learning over HTTP: what azure-ai-ml asks of Azure Resource Manager, and of the run
history.

It takes the requests of the real MLClient, checks them (`azureml_rules`), and executes what they ask for
(`azureml_jobs`). Tests say what goes wrong: `fates` of the next jobs, `answers` to the next requests. It also hands out
tokens, as a managed identity's endpoint does, so that azure-identity itself is used.
"""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.fakes.azureml_jobs import SECRET, Job
from tests.fakes.azureml_rules import faults

SUBSCRIPTION = "11111111-2222-3333-4444-555555555555"
GROUP, WORKSPACE, COMPUTE, DATASTORE = "rg", "hospital", "gpu-cluster", "silobus"
TOKEN = "azureml-token-canary-5e5e"
_AT = rf"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.MachineLearningServices/workspaces"
VERSIONS = {
    "PUT": "2025-01-01-preview",
    "GET": "2024-01-01-preview",
    "POST": "2023-04-01-preview",
}


@dataclass(frozen=True)
class Asked:
    """A request that came, and the status it got."""

    method: str
    path: str
    status: int


class Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def forbidden(method: str, path: str) -> str:
    """In Azure Resource Manager's words, which name the action by the types of what it is on."""
    _, _, below = path.partition("/providers/")
    provider, *rest = below.split("/")
    action = "/".join([provider, *rest[::2], {"GET": "read", "PUT": "write"}.get(method, "action")])
    return (
        f"The client '{SECRET}' with object id '{SECRET}' does not have authorization to perform action '{action}' "
        f"over scope '{path}' or the scope is invalid. If access was recently granted, please refresh your credentials."
    )


class AzureMLDouble:
    """`with AzureMLDouble({"silobus": directory}) as double:`; datastores are directories."""

    def __init__(self, datastores: Mapping[str, Path], *, queued: float = 0.05, second_put: int = 409) -> None:
        self.datastores = dict(datastores)
        self.computes = {COMPUTE}
        self.environments: set[str] = set()
        self.jobs: dict[str, Job] = {}
        self.asked: list[Asked] = []
        self.fates: deque[str | None] = deque()
        """How the next jobs end, of `azureml_jobs.ENDS`; None: as their command does."""
        self.fates_by_name: dict[str, str] = {}
        """How jobs end whose names match a pattern, if `fates` says nothing; `no-compute`: they are not taken."""
        self.answers: deque[tuple[str, int]] = deque()
        """To the next of this kind (`GET`, `PUT job`): this status; 0: done, but nothing is answered."""
        self.history_faults = 0
        """How often the run history does not answer."""
        self.held = False
        """Jobs wait in the queue for as long as this is so; see `release`."""
        self._queued, self._second_put = queued, second_put
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def _any(self) -> None:
                double._handle(self)

            do_GET = do_PUT = do_POST = _any

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        for job in self.jobs.values():
            job.cancel()
        self._server.shutdown()
        self._server.server_close()

    def release(self) -> None:
        """Lets the jobs on that waited."""
        self.held = False
        for job in list(self.jobs.values()):
            job.released.set()

    def identity(self) -> dict[str, str]:
        """The environment in which azure-identity finds its tokens here."""
        return {"IDENTITY_ENDPOINT": f"{self.url}/msi/token", "IDENTITY_HEADER": "double"}

    def settings(self, store: Path, **changes: Any) -> dict[str, Any]:
        """A `compute` section for a task whose datastore is the container `jobs` of the directory store."""
        azureml = {
            "subscription": SUBSCRIPTION,
            "resource_group": GROUP,
            "workspace": WORKSPACE,
            "credential": "managed-identity",
            "resource_manager": self.url,
            "compute": COMPUTE,
            "environment": {"image": f"registry.example/train@sha256:{'ab' * 32}"},
            "datastore": {"name": DATASTORE, "container": "jobs", "store": {"directory": str(store)}},
            "node_hours": 10,
            "poll": 0.05,
            **changes,
        }
        return {"azureml": azureml}

    # --- requests ----------------------------------------------------------------------------------------------------

    def _handle(self, http: BaseHTTPRequestHandler) -> None:
        length = int(http.headers.get("content-length") or 0)
        body = http.rfile.read(length)
        parts = urlsplit(http.path)
        headers: dict[str, str] = {}
        with self._lock:
            kinds = {http.command, f"{http.command} {'job' if '/jobs/' in parts.path else 'other'}"}
            planned = self.answers.popleft() if self.answers and self.answers[0][0] in kinds else None
        try:
            if planned and planned[1] == 403:
                raise Refused(403, "AuthorizationFailed", forbidden(http.command, parts.path))
            if planned and planned[1]:
                raise Refused(planned[1], "ServerBusy", f"as the test wants it {SECRET}")
            status, told = self._answer(http, parts.path, parse_qs(parts.query), body, headers)
        except Refused as no:
            status, told = no.status, {"error": {"code": no.code, "message": no.message}}
        self.asked.append(Asked(http.command, parts.path, status))
        if planned and not planned[1]:
            http.close_connection = True
            http.connection.close()
            return
        data = json.dumps(told).encode()
        http.send_response(status)
        for key, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(data))}.items():
            http.send_header(key, value)
        http.end_headers()
        http.wfile.write(data)

    def _answer(
        self,
        http: BaseHTTPRequestHandler,
        path: str,
        query: dict[str, list[str]],
        body: bytes,
        headers: dict[str, str],
    ) -> tuple[int, dict[str, Any]]:
        if path == "/msi/token":
            if http.headers.get("X-IDENTITY-HEADER") != "double" or query.get("resource") != [self.url]:
                raise Refused(400, "BadRequest", "not the resource manager's token")
            return 200, {
                "access_token": TOKEN,
                "expires_on": "4102444800",
                "resource": self.url,
                "token_type": "Bearer",
            }
        if http.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "AuthenticationFailed", "no token, or another's")
        if found := re.fullmatch(rf"/history/v1\.0{_AT}/{WORKSPACE}/runs/([^/]+)/details", path):
            if self.history_faults > 0:
                self.history_faults -= 1
                raise Refused(503, "ServerBusy", "the run history is away")
            return 200, self._job(found[1]).details()
        workspace = re.match(rf"{_AT}/([^/]+)/(.*)", path)
        if not workspace or workspace[1] != WORKSPACE:
            raise Refused(404, "ResourceNotFound", f"The Resource {path} was not found. {SECRET}")
        below = workspace[2]
        if found := re.fullmatch(r"environments/([^/]+)/versions/([^/]+)", below):
            return self._environment(http.command, path, body)
        if found := re.fullmatch(r"jobs/([^/]+)/cancel", below):
            self._expect(http.command, query)
            self._job(found[1]).cancel()
            headers["Location"] = f"{self.url}{path}led?api-version=1"
            return 202, {}
        if re.fullmatch(r"jobs/([^/]+)/cancelled", below):
            return 200, {}
        if found := re.fullmatch(r"jobs/([^/]+)", below):
            self._expect(http.command, query)
            return (
                self._put(found[1], path, body) if http.command == "PUT" else (200, self._job(found[1]).document(path))
            )
        raise Refused(404, "NotFound", path)

    def _expect(self, method: str, query: dict[str, list[str]]) -> None:
        if query.get("api-version") != [VERSIONS[method]]:
            raise Refused(400, "InvalidApiVersionParameter", f"{query.get('api-version')} for {method}")

    def _job(self, name: str) -> Job:
        if name not in self.jobs:
            raise Refused(404, "UserError", f"The job {name} was not found. {SECRET}")
        return self.jobs[name]

    def _environment(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if method == "PUT":
            said = json.loads(body)["properties"]
            if not re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", said["image"]):
                raise Refused(400, "UserError", "the image is not named by its digest")
            self.environments.add(path)
        elif path not in self.environments:
            raise Refused(404, "UserError", f"there is no environment {path} {SECRET}")
        name, version = path.split("/")[-3], path.rsplit("/", maxsplit=1)[-1]
        image = {"image": f"registry.example/train@sha256:{'ab' * 32}", "isAnonymous": True, "osType": "Linux"}
        return 200, {"id": path, "name": version, "type": name, "properties": image}

    def _put(self, name: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        said = json.loads(body)
        wrong = list(faults(name, said, self.datastores))
        if wrong:
            raise Refused(400, "UserError", "; ".join(wrong))
        properties = said["properties"]
        compute = str(properties.get("computeId"))
        named = next((fate for pattern, fate in self.fates_by_name.items() if re.search(pattern, name)), None)
        if compute.rpartition("/computes/")[2] not in self.computes or named == "no-compute":
            raise Refused(400, "UserError", f"Compute target {compute} was not found in the workspace. {SECRET}")
        if properties["environmentId"] not in self.environments:
            raise Refused(404, "UserError", f"Environment {properties['environmentId']} was not found. {SECRET}")
        with self._lock:
            if name in self.jobs:
                if self._second_put == 409:
                    raise Refused(409, "UserError", f"A job with this name already exists. {SECRET}")
                return 200, self.jobs[name].document(path)
            fate = self.fates.popleft() if self.fates else named
            host = f"127.0.0.1:{self._server.server_port}"
            job = self.jobs[name] = Job(name, said, fate, self.datastores, self._queued, host)
        if not self.held:
            job.released.set()
        job.start()
        return 201, job.document(path)
