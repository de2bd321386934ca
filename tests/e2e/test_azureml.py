"""Three silos that train on AzureML: emulator, orchestrator and agents as processes; the real azure-ai-ml in each.

The double stands for Azure alone: it executes the jobs that the agents submit. Each silo has its own datastore.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from orchestrator.experiment.state import Ended
from tests.fakes.azureml import TOKEN, AzureMLDouble
from tests.fakes.azureml_jobs import SECRET
from tests.federation import THREE, Federation, Silo, everything_in

pytestmark = pytest.mark.slow


class AzureMLFederation(Federation):
    """Every task trains on AzureML; the agents find their tokens where the double hands them out."""

    def __init__(self, double: AzureMLDouble) -> None:
        super().__init__(THREE)
        self.double = double
        for silo in THREE:
            double.datastores[f"of_{silo.name}"] = self.own(silo.name) / "jobs"

    def own(self, silo: str) -> Path:
        """A silo's own storage."""
        return self.folder.root / "silos" / silo / "own"

    def task(self, silo: Silo, **asked: Any) -> dict[str, Any]:
        task = {**super().task(silo, **asked), "tries": 1}
        for local in ("directory", "mode"):
            task.pop(local)
        store = {"directory": str(self.own(silo.name))}
        datastore = {"name": f"of_{silo.name}", "container": "jobs", "store": store}
        return {**task, "compute": self.double.settings(Path(), datastore=datastore, poll=0.1)}

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


@pytest.mark.parametrize(
    ("fate", "category"),
    [
        ("quota", "quota-exceeded"),
        ("image", "image-failed"),
        ("data", "data-missing"),
        ("unknown", "compute-unavailable"),
    ],
)
def test_a_failure_is_a_category_in_the_rounds_record(federation: AzureMLFederation, fate: str, category: str) -> None:
    experiment = f"fails-{fate}"
    federation.double.fates_by_name[f"^{experiment}_.*-1-north-"] = fate
    run = federation.start_experiment(experiment, quorum={"minimum": "all", "reminders": 0})

    def ended() -> Ended | None:
        state = federation.status(experiment)
        return state if isinstance(state, Ended) else None

    state = federation.until(ended, f"{experiment} goes on")
    assert f"north: failed: {category}" in state.reason
    record = federation.until(lambda: federation.record(run, 1), "there is no record of the round")
    assert category in record.model_dump_json()
    assert_azureml_stays_inside(federation)
    home = federation.folder.home("north")
    assert federation.files_with(SECRET, (p for p in everything_in(home) if p.name == "output.txt"))


def assert_azureml_stays_inside(federation: AzureMLFederation) -> None:
    """Neither its texts and links nor its tokens are in queues, blobs, state or logs."""
    for text in (SECRET, TOKEN, "ml.azure.com"):
        assert federation.files_with(text, federation.shared_files()) == []
    assert federation.files_with(TOKEN) == []
