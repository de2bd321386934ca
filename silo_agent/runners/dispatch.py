"""Hands each task's rounds to the runner that its owner's file names. Here lives the choice; nothing is run here."""

from __future__ import annotations

from typing import assert_never, final

from silo_agent.compute import AzureML, Local
from silo_agent.runners.port import Job, Outcome, Runner


@final
class Dispatcher(Runner):
    """The local runner, and one for AzureML where a task asks for it."""

    def __init__(self, local: Runner, azureml: Runner | None) -> None:
        self._local = local
        self._azureml = azureml
        self._all = [runner for runner in (local, azureml) if runner is not None]

    async def run(self, job: Job) -> Outcome:
        """Runs it where its task trains."""
        match job.task.compute.where:
            case Local():
                return await self._local.run(job)
            case AzureML():
                assert self._azureml is not None  # noqa: S101  # there is one when a task asks for it
                return await self._azureml.run(job)
            case _ as never:
                assert_never(never)

    async def abandon(self, run: str, round_number: int) -> None:
        """Only a runner that has something of the round does anything."""
        for runner in self._all:
            await runner.abandon(run, round_number)

    def committed(self, run: str, version: int | None) -> None:
        """Only a runner that remembers the run does anything."""
        for runner in self._all:
            runner.committed(run, version)

    async def end(self, run: str) -> None:
        """Only a runner that remembers the run does anything."""
        for runner in self._all:
            await runner.end(run)

    async def close(self) -> None:
        """Ends everything on this machine."""
        for runner in self._all:
            await runner.close()
