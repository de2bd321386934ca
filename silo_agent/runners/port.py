"""What a runner is: the one thing that differs between a process here and a job on a cluster.

Here live the questions and answers only. A runner gets two directories (docs/training-contract.md) and makes the script
fill the second; whether what is in it is any good is not its business. It raises nothing of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from messages.schemas import FailureCategory
from silo_agent.policy import Task


@dataclass(frozen=True, slots=True)
class Queued:
    """A job was just seen to wait for its compute."""


@dataclass(frozen=True, slots=True)
class Running:
    """A job was just seen to run. Whether training gets on in it, only its `progress.json` tells."""


Sign = Queued | Running


def _unheard(_: Sign) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One try of one round."""

    run: str
    round: int
    name: str
    """The task's."""
    task: Task
    input: Path
    output: Path
    log: Path
    """Where all goes that the script prints."""
    version: int | None
    """The version of the private state in the input: which round committed it."""
    seen: Callable[[Sign], None] = _unheard
    """Told of what goes on elsewhere, each time that it was looked at."""


@dataclass(frozen=True, slots=True)
class Finished:
    """There is a report."""


@dataclass(frozen=True, slots=True)
class Failed:
    """There is none, and this is why."""

    category: FailureCategory


@dataclass(frozen=True, slots=True)
class OverBudget:
    """It was not run: it could cost more than the owner allows."""


Outcome = Finished | Failed | OverBudget


class Runner(Protocol):
    """Runs scripts. Cancelling `run` ends everything the script has started on this machine.

    What runs elsewhere goes on: the next `run` of the same round, by this agent or one started later, follows it.
    """

    async def run(self, job: Job) -> Outcome:
        """Returns when the script is done with the round, or has failed."""
        ...

    async def abandon(self, run: str, round_number: int) -> None:
        """The round has ended here: what still runs of it elsewhere is cancelled, and nobody waits for it."""
        ...

    def committed(self, run: str, version: int | None) -> None:
        """The round just run was published, and its state is now this version: a process kept warm may go on from it.

        Until this is said, what a process has in memory was never committed, and the next round must not see it.
        """
        ...

    async def end(self, run: str) -> None:
        """The run is over: nothing of it is needed any more."""
        ...

    async def close(self) -> None:
        """Ends everything."""
        ...
