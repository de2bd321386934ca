"""What the AzureML runner asks of a workspace, in our words: get, submit, cancel a job, and why it ended.

Here live questions and answers only; the SDK is `azureml_sdk`'s. Texts in here are AzureML's own: they go to the
owner's log of a try, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from messages.errors import SilobusError
from silo_agent.compute import AzureML


class State(StrEnum):
    """Where a job is, as far as it matters here."""

    WAITING = "waiting"
    SILENT = "silent"
    """AzureML does not hear of it, or it is being ended."""
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self in (State.COMPLETED, State.FAILED, State.CANCELED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A job, as it was just seen."""

    name: str
    state: State
    studio: str
    """Where its owner looks at it."""
    tracking: str
    """Where the workspace's run history is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What the run history says of a job that has ended; empty when it says nothing."""

    code: str = ""
    message: str = ""
    started: datetime | None = None
    ended: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A job to be submitted."""

    name: str
    azureml: AzureML
    display: str
    command: str
    environment: dict[str, str]
    folders: dict[str, str]
    """Folders on the silo's datastore that are copied to the compute, by input."""
    result: str
    """The folder on the silo's datastore that takes what the job writes."""
    timeout: int
    """Seconds."""


class Rejected(SilobusError):
    """AzureML does not take the request as it is: trying again would not help. The text is AzureML's."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"status {status}, {code}: {message}")
        self.code = code
        self.message = message


class Workspace(Protocol):
    """Jobs of one workspace. Every method raises Transient, and Rejected for what AzureML says no to."""

    async def get(self, name: str) -> Seen | None:
        """The job of this name, if there is one."""
        ...

    async def submit(self, order: Order) -> Seen:
        """The job that now is there: this one, or one of this name that was there before."""
        ...

    async def cancel(self, name: str) -> None:
        """Asks for its end. Nothing happens when it has ended, or was never there."""
        ...

    async def story(self, seen: Seen) -> Story:
        """Why it ended. Raises nothing: what cannot be had is left out."""
        ...

    async def close(self) -> None:
        """Closes connections."""
        ...
