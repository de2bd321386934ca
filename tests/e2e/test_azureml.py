"""Three silos that train on AzureML: emulator, orchestrator and agents as processes; the real azure-ai-ml in each.

The double stands for Azure alone: it executes the jobs that the agents submit. Each silo has its own datastore.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from messages import names
from tests.fakes.azureml import TOKEN, AzureMLDouble
from tests.fakes.azureml_jobs import SECRET
from tests.federation import TASK, THREE, TRAINERS, Federation, Silo, safetensors

pytestmark = pytest.mark.slow


BROKEN = "broken"
"""A task of north's whose script has a mistake."""
LOST = 1
"""How often a job begins again that has lost its node."""


def also_broken(silo: Silo) -> Silo:
    return replace(silo, tasks={BROKEN: {"script": TRAINERS / "broken.py"}})


class AzureMLFederation(Federation):
    """Every task trains on AzureML; the agents find their tokens where the double hands them out."""

    def __init__(self, double: AzureMLDouble) -> None:
        super().__init__([*map(also_broken, THREE[:1]), *THREE[1:]])
        self.double = double
        for silo in THREE:
            double.datastores[f"of_{silo.name}"] = self.own(silo.name) / "jobs"

    def lay_out(self) -> None:
        super().lay_out()
        for silo in self.silos:  # tests look into what a round left, and many fail here
            with self.folder.silo(silo).open("a") as file:
                file.write("keep_rounds: 99\n")

    def own(self, silo: str) -> Path:
        """A silo's own storage."""
        return self.folder.root / "silos" / silo / "own"

    def task(self, silo: Silo, **asked: Any) -> dict[str, Any]:
        task = {**super().task(silo, **asked), "tries": 1, "at_once": len(FAILURES)}
        for local in ("directory", "mode"):
            task.pop(local)
        store = {"directory": str(self.own(silo.name))}
        datastore = {"name": f"of_{silo.name}", "container": "jobs", "store": store}
        return {**task, "compute": self.double.settings(Path(), datastore=datastore, poll=0.1, lost=LOST)}

    def first_weights(self) -> str:
        """Weights to begin with, which spare a round; their digest."""
        weights = safetensors({"layer.weight": np.zeros((4, 3), np.float32), "layer.bias": np.zeros(3, np.float32)})
        digest = hashlib.sha256(weights).hexdigest()
        if self.document(names.INITIAL, names.initial_blob(digest)) is None:
            self.create(names.INITIAL, names.initial_blob(digest), weights)
        return digest

    def jobs(self, run: str) -> Counter[str]:
        """How many jobs each silo had in each round of a run."""
        found = (re.match(rf"{run}-(\d+)-([a-z]+)-", name) for name in self.double.jobs)
        return Counter(f"{match[1]} {match[2]}" for match in found if match)


@pytest.fixture(scope="module")
def federation() -> Iterator[AzureMLFederation]:
    with (
        AzureMLDouble({}) as double,
        mock.patch.dict(os.environ, double.identity()),
        AzureMLFederation(double) as running,
    ):
        yield running


def test_a_federation_on_azureml_completes_though_an_agent_is_killed_in_mid_job(federation: AzureMLFederation) -> None:
    with federation.held():
        run = federation.start_experiment("cloud", rounds=2)
        federation.training("north", "cloud", 1)
        federation.restart("agent-north")
        federation.until(lambda: federation.jobs(run)["1 east"], "east does not train")
    federation.wait_for("cloud")
    once = {f"{number} {silo.name}": 1 for number in (1, 2, 3) for silo in THREE}
    assert federation.jobs(run) == {"0 east": 1, **once}
    for number in (1, 2):
        bias = federation.weights(run, number)["layer.bias"]
        np.testing.assert_array_equal(bias, np.full(3, 3.0 * number, np.float32))
    assert {job.status for job in federation.double.jobs.values()} == {"Completed"}
    put = [asked for asked in federation.double.asked if asked.method == "PUT" and "/jobs/" in asked.path]
    assert len(put) == len(federation.double.jobs)
    assert_azureml_stays_inside(federation)


FAILURES = {
    "quota": "quota-exceeded",
    "image": "image-failed",
    "pull": "image-failed",
    "data": "data-missing",
    "unknown": "compute-unavailable",
    "no-compute": "compute-unavailable",
    "preempted": "preempted",
    "node-lost": "preempted",
    BROKEN: "script-error",
}
"""What becomes of north's jobs, and what others hear of it."""


@pytest.fixture(scope="module")
def failing(federation: AzureMLFederation) -> dict[str, str]:
    """An experiment for each, in north alone, all of them at once; their runs."""
    first = {"initial": {"sha256": federation.first_weights()}}
    runs = {}
    for fate in FAILURES:
        federation.double.fates_by_name[f"^fails-{fate}_"] = fate
        task = BROKEN if fate == BROKEN else TASK
        only = {"silos": ["north"], "quorum": {"minimum": "all", "reminders": 0}}
        runs[fate] = federation.start_experiment(f"fails-{fate}", task=task, **first, **only)
    return runs


@pytest.mark.parametrize(("fate", "category"), FAILURES.items())
def test_a_failure_is_a_category_in_the_rounds_record(
    federation: AzureMLFederation, failing: dict[str, str], fate: str, category: str
) -> None:
    ended = federation.wait_for(f"fails-{fate}", "failed")
    assert f"north: failed: {category}" in ended.reason
    record = federation.until(lambda: federation.record(failing[fate], 1), "there is no record of the round")
    assert category in record.model_dump_json()
    assert_azureml_stays_inside(federation)
    log = federation.folder.home("north") / "rounds" / failing[fate] / "00001" / "tries" / "1" / "output.txt"
    assert SECRET in log.read_text()
    jobs = 0 if fate == "no-compute" else 1 + LOST if category == "preempted" else 1
    assert federation.jobs(failing[fate])["1 north"] == jobs


def test_a_stale_failed_name_is_stepped_over(federation: AzureMLFederation) -> None:
    """North is killed in mid-job, its job fails meanwhile, and its ledger of jobs is lost: a fresh home."""
    double = federation.double
    double.fates_by_name["^stale_.*-1-north-[0-9a-f]+-1$"] = "quota"
    double.held = True
    first = {"initial": {"sha256": federation.first_weights()}}
    run = federation.start_experiment("stale", silos=["north"], quorum={"minimum": "all"}, **first)
    federation.until(lambda: federation.jobs(run)["1 north"], "north does not train")
    federation.kill("agent-north")
    double.release()
    (name,) = (name for name in double.jobs if name.startswith(run))
    federation.until(lambda: double.jobs[name].status == "Failed", "the job goes on")
    shutil.rmtree(federation.folder.home("north"))
    federation.start("agent-north")
    federation.wait_for("stale")
    assert [name for name in double.jobs if name.startswith(f"{run}-1-")] == [name, f"{name.removesuffix('1')}2"]
    (log,) = (federation.folder.home("north") / "rounds" / run / "00001").glob("tries/*/output.txt")
    assert "has failed before this agent knew of it: stepped over" in log.read_text()


def assert_azureml_stays_inside(federation: AzureMLFederation) -> None:
    """Neither its texts and links nor its tokens are in queues, blobs, state or logs."""
    for text in (SECRET, TOKEN, "ml.azure.com"):
        found = federation.files_with(text, federation.shared_files())
        lines = [line for file in found for line in file.read_bytes().splitlines() if text.encode() in line]
        assert not found, f"{found}: {lines[:2]}"
    assert federation.files_with(TOKEN) == []
