"""The AzureML runner over a workspace made by hand and a virtual clock: which job counts, and what is waited for."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from messages.errors import Transient
from messages.schemas import FailureCategory
from messages.transport.directory import DirectoryStore
from silo_agent.node_hours import NodeHours
from silo_agent.policy import Task
from silo_agent.runners.azureml import AzureMLRunner, Site
from silo_agent.runners.azureml_workspace import Order, Seen, State, Story, Workspace
from silo_agent.runners.port import Failed, Finished, Job, Outcome
from tests.unit.agent.making import CODE, RUN
from tests.virtual_clock import VirtualClock

UPDATE = b"an update"


class Cloud(Workspace):
    """A workspace whose jobs hand in a whole result at once, and then are what `becomes` says."""

    def __init__(self, store: Path, clock: VirtualClock) -> None:
        self.store, self.clock = store, clock
        self.becomes: Callable[[], State] = lambda: State.COMPLETED
        self.story_is = Story()
        self.jobs: list[str] = []
        self.cancelled: list[str] = []

    async def get(self, name: str) -> Seen | None:
        return self._seen(name, self.becomes()) if name in self.jobs else None

    async def submit(self, order: Order) -> Seen:
        self.jobs.append(order.name)
        result = self.store / "jobs" / order.result.split("/paths/")[1]
        (result / "ranks").mkdir(parents=True)
        (result / "update.safetensors").write_bytes(UPDATE)
        files = {"update.safetensors": hashlib.sha256(UPDATE).hexdigest()}
        (result / "ranks" / "0.json").write_text(json.dumps({"status": 0, "at": 1.0, "files": files}))
        (result / "report.json").write_text("{}")
        return self._seen(order.name, State.WAITING)

    async def cancel(self, name: str) -> None:
        self.cancelled.append(name)

    async def story(self, seen: Seen) -> Story:
        return self.story_is

    async def close(self) -> None:
        pass

    @staticmethod
    def _seen(name: str, state: State) -> Seen:
        return Seen(name=name, state=state, studio="https://ml.example", tracking="")


class Here:
    """A runner, its clock and one round's job."""

    def __init__(self, path: Path) -> None:
        self.clock = VirtualClock()
        self.cloud = Cloud(path / "own", self.clock)
        self.path = path
        (path / "in").mkdir()
        (path / "in" / "round.json").write_text("{}")
        (path / "code.py").write_text("pass")
        azureml: dict[str, Any] = {
            "subscription": "1" * 8 + "-2222-3333-4444-555555555555",
            "resource_group": "rg",
            "workspace": "hospital",
            "credential": "azure-cli",
            "compute": "cluster",
            "environment": {"image": f"registry.example/train@sha256:{'ab' * 32}"},
            "datastore": {"name": "own", "container": "jobs", "store": {"directory": str(path / "own")}},
            "node_hours": 10,
        }
        said = {
            "command": ["python", "train.py"],
            "code": {"path": path / "code.py", "sha256": CODE},
            "compute": {"azureml": azureml},
            "limits": {"rounds": 10},
            "outbound": {"tensors": ["*"], "dtypes": ["float32"], "max_bytes": 1000, "metrics": {}},
        }
        made = Task.model_validate(said)
        self.hours = NodeHours(path / "hours.jsonl")
        self.runner = AzureMLRunner(
            "north",
            tasks={"t": made},
            sites={"t": Site(self.cloud, DirectoryStore(path / "own"))},
            hours=self.hours,
            clock=self.clock,
        )
        self.job = Job(
            run=RUN,
            round=1,
            name="t",
            task=made,
            input=path / "in",
            output=path / "out",
            log=path / "log.txt",
            version=None,
        )

    async def run(self, within: float = 86400.0) -> Outcome:
        running = asyncio.create_task(self.runner.run(self.job))
        await self.clock.until(running.done, within=within)
        return running.result()


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path)


async def test_a_job_that_completed_with_a_report_counts(here: Here) -> None:
    assert await here.run() == Finished()
    assert (here.path / "out" / "update.safetensors").read_bytes() == UPDATE
    assert len(here.cloud.jobs) == 1


@pytest.mark.parametrize(
    ("state", "story", "category"),
    [
        (State.FAILED, Story(), FailureCategory.COMPUTE_UNAVAILABLE),
        (State.CANCELED, Story(), FailureCategory.KILLED),
        (State.FAILED, Story(message="Image build failed"), FailureCategory.IMAGE_FAILED),
    ],
)
async def test_the_report_of_a_job_that_did_not_complete_does_not_count(
    here: Here, state: State, story: Story, category: FailureCategory
) -> None:
    """It may have been written by a process of before, or half of a job that was preempted."""
    here.cloud.becomes, here.cloud.story_is = lambda: state, story
    assert await here.run() == Failed(category)
    assert not (here.path / "out").exists()


async def test_a_job_that_completed_without_a_report_does_not_count(here: Here) -> None:
    def completed() -> State:
        for report in here.path.glob("own/**/report.json"):
            report.unlink()
        return State.COMPLETED

    here.cloud.becomes = completed
    assert await here.run() == Failed(FailureCategory.NO_REPORT)


async def test_azureml_may_be_away_for_hours_while_a_job_runs(here: Here) -> None:
    """What it costs is spent; the round's end alone makes the agent stop waiting."""
    back = here.clock.now() + timedelta(hours=3)

    def away() -> State:
        if here.clock.now() < back:
            raise Transient("AzureML: status 503")
        return State.COMPLETED

    here.cloud.becomes = away
    assert await here.run() == Finished()
    assert here.clock.now() >= back
    assert len(here.cloud.jobs) == 1


async def test_azureml_that_is_away_before_there_is_a_job_is_not_waited_for(here: Here) -> None:
    async def away(name: str) -> Seen | None:
        raise Transient("AzureML: status 503")

    here.cloud.get = away  # type: ignore[method-assign]
    assert await here.run(within=3600) == Failed(FailureCategory.COMPUTE_UNAVAILABLE)
    assert here.cloud.jobs == []


async def test_a_lost_node_begins_again_as_often_as_allowed(here: Here) -> None:
    here.cloud.becomes, here.cloud.story_is = lambda: State.FAILED, Story(message="Nodes of this job got pre-empted.")
    assert await here.run() == Failed(FailureCategory.PREEMPTED)
    assert [name.rpartition("-")[2] for name in here.cloud.jobs] == ["1", "2", "3"]


async def test_what_a_job_took_is_charged_once_its_result_is_here(here: Here) -> None:
    """An agent that is killed before that follows the job again, and takes the result again."""
    open_while_taking = []
    files_take = here.runner._patiently

    async def looks(operation: Any, **options: Any) -> Any:
        found = await files_take(operation, **options)
        if (here.path / "out" / "report.json").exists() and not open_while_taking:
            open_while_taking.append([charge.open for charge in here.hours.open_of(RUN, 1)])
        return found

    here.runner._patiently = looks  # type: ignore[method-assign]
    assert await here.run() == Finished()
    assert open_while_taking == [[True]]
    assert list(here.hours.open_of(RUN, 1)) == []
