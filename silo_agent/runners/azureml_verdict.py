"""How a job on AzureML ended, in one word of the closed list, and whether it only lost its node and may begin again.

CORE: pure. What the script's own processes left comes first, then what AzureML says: its texts can quote the script,
the script cannot speak for its exit status. Words are looked for in AzureML's texts, without what its owner named
there: a cluster may be called `preemptible`. None of them goes into the verdict.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from messages.schemas import FailureCategory
from silo_agent.runners.azureml_workspace import State, Story
from silo_agent.runners.verdict import verdict

_LOST: Final = ("preempt", "pre-empt", "nodelost", "node lost", "lost node", "node was lost", "nodeunusable", "evicted")
_SAID: Final = (
    (FailureCategory.COMPUTE_UNAVAILABLE, ("resourcenotfound", "resourcegroupnotfound", "subscriptionnotfound")),
    (FailureCategory.QUOTA_EXCEEDED, ("quota", "skunotavailable", "outofcapacity", "out of capacity")),
    (
        FailureCategory.IMAGE_FAILED,
        ("imagebuild", "image build", "imagepull", "pullingimage", "pull image", "pull docker", "pull the docker",
         "building the environment", "environment build", "container registry", "manifest unknown"),
    ),
    (
        FailureCategory.COMPUTE_UNAVAILABLE,
        ("compute target", "computenotfound", "compute not found", "compute resource", "not ready for runs"),
    ),
    (
        FailureCategory.DATA_MISSING,
        ("dataaccess", "datastore", "data asset", "streamaccess", "datacapability", "uriresolution", "blobnotfound"),
    ),
    (FailureCategory.OUT_OF_MEMORY, ("outofmemory", "out of memory", "oomkilled")),
    (FailureCategory.IMAGE_FAILED, ("environment",)),
    (FailureCategory.TIMEOUT, ("max run duration", "timed out after", "exceeded the timeout")),
)  # fmt: skip
_WORDS: Final = (*_LOST, *(word for _, words in _SAID for word in words))
_ID: Final = re.compile(r"/subscriptions/[^\s'\",;)]*", re.IGNORECASE)
"""Of a resource: what it is called, and what it is in."""


@dataclass(frozen=True, slots=True)
class Left:
    """What one process of a job left: its exit status, and the end of what it printed."""

    status: int
    printed: bytes


def forbids(code: str, message: str) -> bool:
    """Whether AzureML says that the agent may not; whatever it names in saying so is not what is wrong."""
    return code in ("401", "403") or "authorizationfailed" in message.lower()


def said_no(code: str, message: str, names: Collection[str] = ()) -> FailureCategory:
    """The category of what AzureML did not take, or ended without the script's doing. `names`: as `words_of`."""
    if forbids(code, message):
        return FailureCategory.COMPUTE_UNAVAILABLE
    text = words_of(code, message, names)
    found = (category for category, words in _SAID if any(word in text for word in words))
    return next(found, FailureCategory.COMPUTE_UNAVAILABLE)


def words_of(code: str, message: str, names: Collection[str]) -> str:
    """What AzureML says, in lower case, without the ids in it and without `names`, which owners and operators gave."""
    text = _ID.sub("", f"{code} {message}")
    for name in names:
        if any(word in name.lower() for word in _WORDS):  # one called `data` says nothing wrong
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![A-Za-z0-9])\S*", "", text, flags=re.IGNORECASE)
    return text.lower()


def has_lost_its_node(state: State, story: Story, left: Sequence[Left], names: Collection[str] = ()) -> bool:
    """Whether it ended for no fault of script, image or owner: the same job may well run through elsewhere."""
    text = words_of(story.code, story.message, names)
    ended_by_itself = any(0 < one.status <= 128 for one in left)
    return state is not State.COMPLETED and not ended_by_itself and any(word in text for word in _LOST)


def category(
    state: State,
    story: Story,
    left: Sequence[Left],
    *,
    seconds: float,
    timeout: float,
    names: Collection[str] = (),
) -> FailureCategory:
    """Why there is no report. `seconds` is how long it ran, of `timeout`."""
    failed = [one for one in left if one.status != 0]
    by_itself = [one for one in failed if 0 < one.status <= 128]
    if by_itself:
        return verdict(by_itself[0].status, by_itself[0].printed, kernel_killed=False)
    if has_lost_its_node(state, story, left, names):
        return FailureCategory.PREEMPTED
    if state is State.CANCELED:
        return FailureCategory.TIMEOUT if seconds >= timeout else FailureCategory.KILLED
    told = said_no(story.code, story.message, names)
    if failed:  # by a signal
        killed = failed[0].status in (-signal.SIGKILL, 128 + signal.SIGKILL)
        memory = killed and told is FailureCategory.OUT_OF_MEMORY
        return verdict(failed[0].status, failed[0].printed, kernel_killed=memory)
    if state is State.COMPLETED:
        return FailureCategory.NO_REPORT
    return told
