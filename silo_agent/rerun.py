"""Running a round again from its directory, for its owner's eyes: nothing is published, committed or charged."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from pathlib import Path
from typing import assert_never

from messages.errors import SilobusError
from messages.experiments import Transfer
from messages.schemas import (
    ConfusionMetric,
    HistogramMetric,
    MeanMetric,
    MetricReport,
    Payload,
    Purpose,
    RoundAnnounced,
    SumMetric,
)
from messages.weights import read_layout
from silo_agent.compute import AzureML
from silo_agent.home import Home, TryDirectory
from silo_agent.result import Allowed, Unsound, Withheld, examine
from silo_agent.runners.local import LocalRunner
from silo_agent.runners.port import Failed, Job
from silo_agent.settings import SiloSettings


async def rerun(settings: SiloSettings, run: str, round_number: int) -> tuple[bool, list[str]]:
    """Whether it went well, and what to tell. Raises SilobusError when there is nothing to run."""
    directory = Home(settings.home).round(run, round_number)
    asked_file = directory.input / "round.json"
    if not asked_file.is_file():
        raise SilobusError(f"{directory.path} has no input any more; `silobus-agent rounds` lists what is there.")
    asked = json.loads(await asyncio.to_thread(asked_file.read_bytes))
    name = str(asked["task"])
    if name not in settings.tasks:
        raise SilobusError(f"the task {name} is not in the silo's file any more.")
    task = settings.tasks[name]
    if isinstance(task.compute.where, AzureML):
        raise SilobusError(
            f"the task {name} trains on AzureML, where a rerun is a job that costs node hours; none is started. "
            f"{directory.path}/tries/*/output.txt names the round's jobs with their studio links: resubmit one there. "
            "`silobus-agent check` runs the task as jobs of its own, charged to its node hours."
        )
    attempt = TryDirectory(directory.path / "rerun")
    await asyncio.to_thread(attempt.start)
    job = Job(
        run=run,
        round=round_number,
        name=name,
        task=task.model_copy(update={"mode": "per-round"}),
        input=directory.input,
        output=attempt.output,
        log=attempt.log,
        version=None,
    )
    outcome = await run_alone(job)
    where = [f"output: {attempt.output}", f"printed: {attempt.log}"]
    if isinstance(outcome, Failed):
        return False, [f"failed: {outcome.category}", *where]
    weights = directory.input / "weights.safetensors"
    received = await asyncio.to_thread(read_layout, weights) if weights.is_file() else None
    found = await asyncio.to_thread(examine, attempt, announcement_of(asked), received, task.outbound)
    match found:
        case Allowed():
            return True, [*what_would_leave(found), *where]
        case Withheld(reason, notes):
            return False, [f"would be declined: {reason}", *notes, *where]
        case Unsound(category, notes):
            return False, [f"failed: {category}", *notes, *where]


async def run_alone(job: Job) -> object:
    """Runs a job with runtime files of its own, apart from those of an agent that may be running."""
    runtime = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="silobus-"))
    runner = LocalRunner(runtime)
    try:
        await runner.prepare()
        return await runner.run(job)
    finally:
        await runner.close()
        await asyncio.to_thread(shutil.rmtree, runtime, ignore_errors=True)


def announcement_of(asked: dict[str, object]) -> RoundAnnounced:
    """An announcement that asks for what a `round.json` says, as far as judging its result needs it."""
    payloads = {
        role: Payload(sha256=file["sha256"], bytes=file["bytes"], layout="0" * 64)
        for role in ("weights", "control")
        if isinstance(file := asked.get(role), dict)
    }
    return RoundAnnounced.model_validate(
        {
            "experiment": asked["experiment"],
            "run": asked["run"],
            "round": asked["round"],
            "purpose": Purpose(str(asked["purpose"])),
            "announcement": 1,
            "task": asked["task"],
            "payloads": payloads,
            "roles": asked.get("roles") or ["weights"],
            "transfer": Transfer.model_validate(asked["transfer"]),
            "silos": 1,
            "quorum": 1,
            "deadline": "2000-01-01T00:00:00Z",
        }
    )


def what_would_leave(found: Allowed) -> list[str]:
    """A result as it would leave, for a person."""
    lines = []
    for role, made in found.update.items():
        word = "update" if role == "weights" else role
        lines.append(f"{word}: {len(made.scan.layout.tensors)} tensors, {made.scan.bytes} bytes")
    lines.append(f"samples: {found.samples}, steps: {found.steps}, seconds: {found.seconds}")
    lines += [f"metric {m.name} ({m.phase}): {_said(m)}" for m in found.metrics]
    return [*lines, *(f"stays here: {note}" for note in found.notes)]


def _said(metric: MetricReport) -> str:
    match metric:
        case MeanMetric() | SumMetric():
            return f"{metric.kind} {metric.value} over {metric.count} items"
        case HistogramMetric():
            cells = [cell for cell in (*metric.positive, *metric.negative) if cell]
        case ConfusionMetric():
            cells = [cell for row in metric.matrix for cell in row if cell]
        case _:
            assert_never(metric)
    return f"{metric.kind} over {metric.count} items in {len(cells)} cells, the smallest {min(cells, default=0)}"
