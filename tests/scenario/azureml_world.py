"""The agent's world with tasks that train on the AzureML double: the real azure-ai-ml, azure-identity and launcher."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from silo_agent.settings import SiloSettings
from tests.fakes.azureml import DATASTORE, AzureMLDouble
from tests.fakes.azureml_jobs import Job
from tests.scenario.agent_world import HERE, RUN, World, until


class AzureMLWorld(World):
    """`does`, `ran` and the rest work as with a local trainer: the double executes the same script."""

    double: AzureMLDouble

    @property
    def own(self) -> Path:
        """The silo's own storage."""
        return self.path / "own"

    def settings(self, *, azureml: dict[str, Any] | None = None, **changes: Any) -> SiloSettings:
        settings = super().settings(**changes)
        said = settings.model_dump(mode="json", exclude_unset=True)
        task = said["tasks"]["bc"]
        for local in ("directory", "data"):
            task.pop(local)
        task["compute"] = self.double.settings(self.own, **(azureml or {}))
        return SiloSettings.model_validate(said)

    @property
    def jobs(self) -> list[Job]:
        """In the order they were submitted."""
        return list(self.double.jobs.values())

    def puts(self) -> list[str]:
        """Names that were put for jobs."""
        return [a.path.rsplit("/", 1)[1] for a in self.double.asked if a.method == "PUT" and "/jobs/" in a.path]

    def cancels(self) -> list[str]:
        """Paths of what was asked to be cancelled."""
        return [asked.path for asked in self.double.asked if asked.method == "POST"]

    def printed(self, number: int = 1) -> str:
        """The owner's log of the tries of a round."""
        tries = self.home / "rounds" / RUN / f"{number:05d}" / "tries"
        return "".join(path.read_text() for path in sorted(tries.glob("*/output.txt")))

    def charges(self) -> dict[str, dict[str, Any]]:
        """The ledger of node hours, by job."""
        lines = (self.home / "node-hours.jsonl").read_text().splitlines()
        return {entry["job"]: entry for entry in map(json.loads, lines)}

    def shared(self) -> str:
        """Everything that has left the silo: messages sent, and what is in the exchange."""
        files = (p for p in (self.path / "store").rglob("*") if p.is_file())
        return b"".join([*self.sent, *(p.read_bytes() for p in files)]).decode(errors="replace")


async def jobs(world: AzureMLWorld, count: int, status: str) -> None:
    """Returns when there are so many jobs, and the last of them is as wanted."""

    async def last() -> tuple[int, str]:
        return len(world.jobs), world.jobs[-1].status if world.jobs else ""

    await until(last, (count, status))


@contextlib.contextmanager
def azureml_world(path: Path, **options: Any) -> Iterator[AzureMLWorld]:
    """A world with a double that runs; the agent's environment has what azure-identity needs, and a canary."""
    world = AzureMLWorld(path)
    with AzureMLDouble({DATASTORE: world.own / "jobs"}, **options) as double:
        world.double = double
        with mock.patch.dict(os.environ, {**double.identity(), "AGENTS_OWN": "canary-of-the-agent"}):
            yield world


__all__ = ["HERE", "RUN", "AzureMLWorld", "azureml_world", "jobs"]
