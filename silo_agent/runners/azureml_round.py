"""One round, ready to be a job on AzureML: what its jobs are called, what they are given, and what is ordered.

Here lives how a round becomes an order. Nothing is sent or kept here; when a job is submitted is `azureml`'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from messages.ports import Store
from silo_agent.compute import AzureML
from silo_agent.runners.azureml_files import Files, Folder, brought_along, folder
from silo_agent.runners.azureml_workspace import Order
from silo_agent.runners.port import Job

Given = Mapping[str, tuple[str, Folder]]
"""Directories for a job, by the name of the input: where each lies on the datastore, and what is in it."""


async def ready(job: Job, silo: str, store: Store) -> Ready:
    """The round with a digest of all that makes its result: another input or another command is another job.

    How the agent reaches things, how often it looks and how far it goes are left out: an owner may change those while
    a job runs.
    """
    azureml = job.task.compute.azureml
    assert azureml is not None  # noqa: S101  # the dispatcher asked
    content = await asyncio.to_thread(folder, job.input)
    task = job.task.model_dump_json(include={"command", "environment", "code", "timeout"})
    unimportant = {"credential": True, "node_hours": True, "lost": True, "poll": True, "datastore": {"store"}}
    where = azureml.model_dump_json(exclude=unimportant)  # type: ignore[arg-type]
    digest = hashlib.sha256(f"{content.digest}\n{job.name}\n{task}\n{where}".encode()).hexdigest()
    return Ready(job, azureml, silo, Files(store, azureml.datastore, silo), content, digest)


@dataclass(frozen=True, slots=True)
class Ready:
    """A round that a job could do."""

    job: Job
    azureml: AzureML
    silo: str
    files: Files
    content: Folder
    digest: str

    def name(self, number: int) -> str:
        """What the n-th job on it is called: the same, whoever asks and when."""
        return f"{self.job.run}-{self.job.round}-{self.silo}-{self.digest[:12]}-{number}"

    def place(self, *parts: str) -> str:
        """Its directory on the datastore, or one below."""
        return self.files.place("rounds", self.job.run, str(self.job.round), self.digest[:16], *parts)

    def result(self, number: int) -> str:
        """Where the n-th job writes; no other does."""
        return self.place("out", str(number))

    @property
    def names(self) -> list[str]:
        """What AzureML's texts may repeat that people chose."""
        azureml = self.azureml
        found = [self.name(0)[:-2], azureml.resource_group, azureml.workspace, azureml.compute, azureml.datastore.name]
        return [*found, str(azureml.environment.image or azureml.environment.id)]

    @property
    def most_hours(self) -> float:
        """Node hours that one job can cost."""
        return math.ceil(self.job.task.timeout) / 3600 * self.azureml.instances

    async def given(self) -> Given:
        """What has to be on the datastore before a job is submitted."""
        ours = await asyncio.to_thread(brought_along)
        given = {"lib": (self.files.place("lib", ours.digest[:16]), ours), "round": (self.place("in"), self.content)}
        code = self.job.task.code
        if code.path is not None:
            given["code"] = (self.files.place("code", code.sha256), await asyncio.to_thread(folder, code.path))
        return given

    def order(self, number: int, given: Given) -> Order:
        """The n-th job."""
        options = [f"--{name} ${{{{inputs.{name}}}}}" for name in given]
        options += [f"--data {name}=${{{{inputs.data_{name}}}}}" for name in self.azureml.data]
        launch = f"python ${{{{inputs.lib}}}}/azureml_job.py --result ${{{{outputs.result}}}} {' '.join(options)}"
        return Order(
            name=self.name(number),
            azureml=self.azureml,
            display=f"{self.silo} {self.job.run} {self.job.round}",
            command=f"{launch} -- {shlex.join(self.job.task.command)}",
            environment=dict(self.job.task.environment),
            folders={name: self.files.uri(place) for name, (place, _) in given.items()},
            result=self.files.uri(self.result(number)),
            timeout=math.ceil(self.job.task.timeout),
        )
