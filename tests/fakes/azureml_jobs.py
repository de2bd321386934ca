"""A job of the AzureML double: it executes the command, with inputs and outputs where AzureML would put them.

Here lives one job's life, in a thread of its own: the states it walks through, its processes, how it ends. A datastore
is a container of a directory store. What AzureML would say when things go wrong is quoted from reports of people whom
it did.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.fakes.azureml_rules import BINDING, DATASTORE

SECRET = "azureml-said-this-canary-77aa"
"""In every message of AzureML's, so that tests can look for where it goes."""

ENDS: dict[str, tuple[str, str]] = {
    "quota": (
        "UserError JobNodeCountExceedsCoreQuota",
        "Job submission to AzureML Compute encountered an Exception with status code JobNodeCountExceedsCoreQuota. The "
        "specified subscription has a Standard NCv3 family vCPU quota of 2.",
    ),
    "image": ("UserError ImageBuildFailure", "Image build failed. For more details, check the build log."),
    "pull": (
        "UserError FailedPullingImage",
        "AzureMLCompute job failed. FailedPullingImage: Unable to pull docker image.",
    ),
    "preempted": (
        "UserError PreemptionError",
        "AzureMLCompute job failed. PreemptionError: Nodes of this job got pre-empted. Reason: Received pre-emption "
        "warning signal",
    ),
    "node-lost": ("SystemError NodeLost", "AzureMLCompute job failed. The node was lost while the job was running."),
    "data": ("UserError DataAccessError", "Data access failed: the path on the datastore cannot be read."),
    "unknown": ("SystemError", "An internal error has occurred."),
}
"""How a job can be made to end before (quota, image, pull, data, unknown) or while (preempted, node-lost) it runs."""
WHILE_RUNNING = ("preempted", "node-lost")


@dataclass
class Job:
    """A job as it was put, and what has become of it."""

    name: str
    body: dict[str, Any]
    fate: str | None
    datastores: Mapping[str, Path]
    queued: float
    endpoint: str
    status: str = "NotStarted"
    statuses: list[str] = field(default_factory=list)
    error: tuple[str, str] | None = None
    started: datetime | None = None
    ended: datetime | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    environment: dict[str, str] = field(default_factory=dict)
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def properties(self) -> dict[str, Any]:
        return dict(self.body["properties"])

    @property
    def is_over(self) -> bool:
        return self.status in ("Completed", "Failed", "Canceled")

    def start(self) -> None:
        threading.Thread(target=self._live, name=self.name, daemon=True).start()

    def cancel(self) -> None:
        if not self.is_over:
            self._become("CancelRequested")
            self.cancelled.set()

    def stop(self) -> None:
        """Its processes stand still, as if they hung."""
        for process in self._processes:
            os.killpg(process.pid, signal.SIGSTOP)

    def _become(self, status: str) -> None:
        self.status = status
        self.statuses.append(status)

    def _live(self) -> None:
        try:
            self._run()
        except Exception as error:
            self._end("Failed", ("SystemError", f"the double failed: {error!r}"))
            raise

    def _run(self) -> None:
        for status in ("Starting", "Queued", "Preparing"):
            if not self.cancelled.is_set():
                self._become(status)
            self.released.wait()
            self.cancelled.wait(self.queued / 3)
        if self.cancelled.is_set():
            self._end("Canceled")
        elif self.fate in ENDS and self.fate not in WHILE_RUNNING:
            self._end("Failed", ENDS[str(self.fate)])
        else:
            self.started = datetime.now(UTC)
            self._become("Running")
            with tempfile.TemporaryDirectory(prefix="azureml-") as node:
                self._execute(Path(node))

    def _execute(self, node: Path) -> None:
        paths, uploads = self._materialise(node)
        command = BINDING.sub(lambda found: str(paths[found[2]]), self.properties["command"])
        for rank, world in self._ranks():
            self._processes.append(self._process(command, node, rank, world))
        limit = time.monotonic() + _seconds(self.properties["limits"]["timeout"])
        lost = time.monotonic() + 0.3 if self.fate in WHILE_RUNNING else float("inf")
        grace = float("inf")
        while any(process.poll() is None for process in self._processes):
            now = time.monotonic()
            if self.cancelled.is_set() and grace == float("inf"):
                grace = now + 1
                self._kill(signal.SIGTERM)
            if any(process.poll() for process in self._processes) or now > min(limit, lost, grace):
                self._kill(signal.SIGKILL)
            if now > limit:
                self.cancelled.set()
            time.sleep(0.02)
        for source, target in uploads:
            shutil.copytree(source, target, dirs_exist_ok=True)
        codes = [process.wait() for process in self._processes]
        if self.cancelled.is_set():
            self._end("Canceled")
        elif self.fate in WHILE_RUNNING:
            self._end("Failed", ENDS[str(self.fate)])
        elif any(codes):
            text = f"Execution failed. User process 'python' exited with status code {max(codes)}."
            self._end("Failed", ("UserError ExecutionFailed", text))
        else:
            self._become("Finalizing")
            self._end("Completed")

    def _ranks(self) -> list[tuple[int, int]]:
        spread = self.properties.get("distribution") or {}
        world = self.properties["resources"]["instanceCount"] * spread.get("processCountPerInstance", 1)
        return [(rank, world) for rank in range(world if spread else 1)]

    def _process(self, command: str, node: Path, rank: int, world: int) -> subprocess.Popen[bytes]:
        """Nothing of the agent's environment is there: it runs on another machine."""
        spread = {"RANK": str(rank), "WORLD_SIZE": str(world)} if self.properties.get("distribution") else {}
        self.environment = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.defpath]),
            "AZUREML_RUN_ID": self.name,
            "MLFLOW_TRACKING_URI": "azureml://double",
            "PYTHONDONTWRITEBYTECODE": "1",
            **(self.properties.get("environmentVariables") or {}),
            **spread,
        }
        log = (node / f"std_log_{rank}.txt").open("wb")
        return subprocess.Popen(
            ["bash", "-c", command],
            cwd=node,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _materialise(self, node: Path) -> tuple[dict[str, Path], list[tuple[Path, Path]]]:
        paths, uploads = {}, []
        for key, one in (self.properties.get("inputs") or {}).items():
            source = self._on_datastore(one["uri"])
            paths[key] = node / "inputs" / key
            if source.is_dir():
                shutil.copytree(source, paths[key], symlinks=True)
            else:
                paths[key].parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, paths[key])
        for key, one in (self.properties.get("outputs") or {}).items():
            target = self._on_datastore(one["uri"])
            target.mkdir(parents=True, exist_ok=True)
            paths[key] = target
            if one["mode"] == "Upload":
                paths[key] = node / "outputs" / key
                paths[key].mkdir(parents=True)
                uploads.append((paths[key], target))
        return paths, uploads

    def _on_datastore(self, uri: str) -> Path:
        found = DATASTORE.fullmatch(uri)
        assert found, f"the double has no asset {uri}"
        return self.datastores[found[1]] / found[2]

    def _kill(self, number: signal.Signals) -> None:
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, number)

    def _end(self, status: str, error: tuple[str, str] | None = None) -> None:
        self.ended = datetime.now(UTC)
        self.error = error and (error[0], f"{error[1]} {SECRET}")
        self._become(status)

    def document(self, path: str) -> dict[str, Any]:
        """The job, as a GET shows it."""
        services = {
            "Studio": {"jobServiceType": "Studio", "endpoint": f"https://ml.azure.com/runs/{self.name}?wsid={SECRET}"},
            "Tracking": {"jobServiceType": "Tracking", "endpoint": f"azureml://{self.endpoint}/mlflow/v1.0{path}?"},
        }
        return {
            "id": path,
            "name": self.name,
            "type": "Microsoft.MachineLearningServices/workspaces/jobs",
            "systemData": {"createdAt": "2026-01-01T00:00:00Z", "createdByType": "Application"},
            "properties": {**self.properties, "status": self.status, "services": services},
        }

    def details(self) -> dict[str, Any]:
        """The job, as the run history tells it."""
        told: dict[str, Any] = {"runId": self.name, "status": self.status}
        if self.started:
            told["startTimeUtc"] = self.started.isoformat().replace("+00:00", "Z")
        if self.ended:
            told["endTimeUtc"] = self.ended.isoformat().replace("+00:00", "Z")
        if self.error:
            outer, _, inner = self.error[0].partition(" ")
            told["error"] = {"error": {"code": outer, "message": self.error[1], "innerError": {"code": inner}}}
        return told


Fate = Callable[[str], str | None]


def _seconds(duration: str) -> float:
    """Of an ISO 8601 duration."""
    total, number = 0.0, ""
    units = {"D": 86400, "H": 3600, "M": 60, "S": 1}
    for letter in duration:
        if letter in units:
            total += float(number) * units[letter]
            number = ""
        elif letter.isdigit() or letter == ".":
            number += letter
    return total
