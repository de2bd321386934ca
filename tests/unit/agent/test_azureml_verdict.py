"""How a job ended, in one word: by what its processes left, then by what AzureML says."""

from __future__ import annotations

import pytest

from messages.schemas import FailureCategory as Why
from silo_agent.runners.azureml_verdict import Left, category, has_lost_its_node, said_no
from silo_agent.runners.azureml_workspace import State, Story
from tests.fakes.azureml_jobs import ENDS

PREEMPTED = Story(code="UserError", message=ENDS["preempted"][1])
QUOTA = Story(code="UserError JobNodeCountExceedsCoreQuota", message="x")
TRACE = b"Traceback (most recent call last):\n"


@pytest.mark.parametrize(
    ("state", "story", "left", "found"),
    [
        (State.FAILED, PREEMPTED, [], Why.PREEMPTED),
        (State.FAILED, PREEMPTED, [Left(-15, b"")], Why.PREEMPTED),
        (State.FAILED, PREEMPTED, [Left(143, b"")], Why.PREEMPTED),
        (State.FAILED, PREEMPTED, [Left(1, TRACE)], Why.SCRIPT_ERROR),
        (State.FAILED, QUOTA, [Left(1, TRACE + b"MemoryError")], Why.OUT_OF_MEMORY),
        (State.FAILED, QUOTA, [Left(-15, b""), Left(1, TRACE)], Why.SCRIPT_ERROR),
        (State.FAILED, QUOTA, [], Why.QUOTA_EXCEEDED),
        (State.FAILED, Story(), [Left(-9, b"")], Why.KILLED),
        (State.FAILED, Story(message="container was OOMKilled"), [Left(-9, b"")], Why.OUT_OF_MEMORY),
        (State.FAILED, Story(message="container was OOMKilled"), [], Why.OUT_OF_MEMORY),
        (State.FAILED, Story(), [], Why.COMPUTE_UNAVAILABLE),
        (State.COMPLETED, Story(), [Left(0, b"")], Why.NO_REPORT),
        (State.COMPLETED, PREEMPTED, [Left(0, b"")], Why.NO_REPORT),
        (State.CANCELED, Story(), [], Why.KILLED),
    ],
)
def test_category(state: State, story: Story, left: list[Left], found: Why) -> None:
    assert category(state, story, left, seconds=5, timeout=10) is found
    assert has_lost_its_node(state, story, left) is (found is Why.PREEMPTED)


def test_a_cancelled_job_that_ran_as_long_as_it_may_has_timed_out() -> None:
    assert category(State.CANCELED, Story(), [], seconds=10, timeout=10) is Why.TIMEOUT


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ClusterMinNodesExceedCoreQuota", Why.QUOTA_EXCEEDED),
        ("Unable to pull docker image", Why.IMAGE_FAILED),
        ("Image build failed", Why.IMAGE_FAILED),
        ("Compute target gpu was not found", Why.COMPUTE_UNAVAILABLE),
        ("The Resource environments/x was not found: ResourceNotFound", Why.COMPUTE_UNAVAILABLE),
        ("Environment e was not found", Why.IMAGE_FAILED),
        ("there is no datastore silobus", Why.DATA_MISSING),
        ("something new", Why.COMPUTE_UNAVAILABLE),
    ],
)
def test_what_azureml_says_no_to(text: str, found: Why) -> None:
    assert said_no("400", text) is found


ARM_REFUSES = (
    "AuthorizationFailed: The client 'c' with object id 'o' does not have authorization to perform action "
    "'Microsoft.MachineLearningServices/workspaces/environments/versions/write' over scope '/subscriptions/s/"
    "resourceGroups/quota-team/providers/Microsoft.MachineLearningServices/workspaces/w' or the scope is invalid."
)


@pytest.mark.parametrize(
    ("code", "text"), [("403", ARM_REFUSES), ("401", "no token"), ("403", "over quota"), ("", ARM_REFUSES)]
)
def test_a_right_that_is_missing_is_no_fault_of_what_it_is_missing_on(code: str, text: str) -> None:
    """ARM's own words name what was to be written, and where."""
    assert said_no(code, text) is Why.COMPUTE_UNAVAILABLE


@pytest.mark.parametrize("name", ["quota-team", "preemptible", "node-lost_00000000-1-north-abc", "environment"])
@pytest.mark.parametrize("text", ["{} has failed.", "in '{}' it failed", "{}-1 failed", "/subscriptions/s/{}/x failed"])
def test_what_people_named_says_nothing(name: str, text: str) -> None:
    story = Story(message=text.format(name))
    assert not has_lost_its_node(State.FAILED, story, [], [name])
    assert category(State.FAILED, story, [], seconds=1, timeout=9, names=[name]) is Why.COMPUTE_UNAVAILABLE
    assert said_no("400", text.format(name), [name]) is Why.COMPUTE_UNAVAILABLE


@pytest.mark.parametrize("name", ["data", "x", "a"])
def test_names_take_nothing_away_that_azureml_says(name: str) -> None:
    assert said_no("400", "The data asset x has no version a", [name]) is Why.DATA_MISSING


def test_what_is_in_an_id_says_nothing_whoever_chose_it() -> None:
    text = "No way to /subscriptions/s/resourceGroups/quota/providers/P/environments/preempted, it says"
    assert said_no("400", text) is Why.COMPUTE_UNAVAILABLE
    assert not has_lost_its_node(State.FAILED, Story(message=text), [])
