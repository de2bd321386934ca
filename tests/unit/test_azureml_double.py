"""The AzureML double says no to what Azure would not take: a test over it means something."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.azureml_rules import faults

ARM = "/subscriptions/s/resourceGroups/r/providers/Microsoft.MachineLearningServices/workspaces/w"
FOLDER = {"uri": "azureml://datastores/own/paths/a/b/", "mode": "Download", "jobInputType": "uri_folder"}
GOOD: dict[str, Any] = {
    "properties": {
        "jobType": "Command",
        "command": "python ${{inputs.lib}}/x.py --result ${{outputs.result}}",
        "environmentId": f"{ARM}/environments/e/versions/1",
        "computeId": f"{ARM}/computes/gpu",
        "inputs": {"lib": FOLDER},
        "outputs": {
            "result": {
                "uri": "azureml://datastores/own/paths/out/",
                "mode": "ReadWriteMount",
                "jobOutputType": "uri_folder",
            }
        },
        "limits": {"jobLimitsType": "Command", "timeout": "PT1H"},
        "resources": {"instanceCount": 1},
        "distribution": {"distributionType": "PyTorch", "processCountPerInstance": 2},
        "environmentVariables": {"A": "b"},
    }
}


def said(change: Callable[[dict[str, Any]], Any], name: str = "bc_00000000-1-north-1") -> list[str]:
    body = copy.deepcopy(GOOD)
    change(body["properties"])
    return list(faults(name, body, {"own": None}))


def test_a_good_job_is_taken() -> None:
    assert said(lambda job: None) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda job: job.update(colour="red"), "properties.colour is unknown"),
        (lambda job: job.update(status="Running"), "properties.status is read-only"),
        (lambda job: job.update(jobType="Pipeline"), "is no command"),
        (lambda job: job.pop("environmentId"), "environmentId is required"),
        (lambda job: job.update(command=" "), "command is required"),
        (lambda job: job["limits"].update(timeout="3600"), "no ISO 8601 duration"),
        (lambda job: job["limits"].update(timeout="PT"), "no ISO 8601 duration"),
        (lambda job: job["resources"].update(instanceCount=0), "instanceCount is at least 1"),
        (lambda job: job["distribution"].update(distributionType="Mpi"), "distributionType is not PyTorch"),
        (lambda job: job["inputs"]["lib"].update(mode="download"), "inputs.lib.mode 'download' is unknown"),
        (
            lambda job: job["inputs"]["lib"].update(uri="azureml://datastores/other/paths/a"),
            "there is no datastore other",
        ),
        (lambda job: job["inputs"]["lib"].update(uri="azureml:/subscriptions/x"), "neither a path"),
        (lambda job: job["outputs"]["result"].update(mode="Download"), "outputs.result.mode"),
        (lambda job: job.update(command="x ${{inputs.round}}"), "there is no inputs.round"),
        (lambda job: job["environmentVariables"].update(N=3), "environmentVariables.N is no text"),
    ],
)
def test_what_is_wrong_is_refused(change: Callable[[dict[str, Any]], Any], told: str) -> None:
    assert any(told in fault for fault in said(change))


def test_a_name_is_of_letters_digits_and_two_signs() -> None:
    assert said(lambda job: None, name="a" * 256)
    assert said(lambda job: None, name="bc.1")
