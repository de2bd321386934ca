"""Rows of `silobus-agent check` on one task: what it needs, and then the task itself.

Every task is run twice, to initialise and to train on that, in `home/check`; nothing of it is published, committed or
charged to the budget of rounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from messages.errors import Forbidden, SilobusError
from messages.fields import Scalar
from messages.ports import Store
from messages.schemas import Purpose, RoundAnnounced
from messages.settings import Credential, SettingsError, StoreSettings
from silo_agent import given
from silo_agent.approval import measured
from silo_agent.check_credentials import FIRST
from silo_agent.check_words import KEEPS_FILES, Finding, ended, not_tried, store_setting, submits
from silo_agent.compute import AzureML
from silo_agent.home import RoundDirectory
from silo_agent.policy import Accepted, Range, Task
from silo_agent.private_state import PrivateState
from silo_agent.rerun import announcement_of, what_would_leave
from silo_agent.result import Allowed, Withheld, examine
from silo_agent.roles import given_as
from silo_agent.runners.azureml_workspace import Rejected, Workspace
from silo_agent.runners.port import Failed, Job, OverBudget
from silo_agent.silo import Silo

RUN = "check_00000000"


@dataclass(frozen=True, slots=True)
class Adapters:
    """How to reach what a task on AzureML needs. Both raise SettingsError."""

    store: Callable[[StoreSettings], Store]
    workspace: Callable[[AzureML], Workspace]
    broken: Collection[Credential]
    """Credentials that give no token."""


async def needs(silo: str, name: str, task: Task, adapters: Adapters) -> list[Finding]:
    """What the task cannot do without; none of it needs the home."""
    rows = [await asyncio.to_thread(_code, name, task)]
    match task.compute.where:
        case AzureML() as azureml:
            rows += [await _datastore(silo, name, azureml, adapters), await _workspace(name, azureml, adapters)]
        case _:
            rows += await asyncio.to_thread(_local, name, task)
    return rows


def _code(name: str, task: Task) -> Finding:
    what, path = f"task {name}: code", task.code.path
    if path is not None and not path.exists():
        return Finding("FAIL", what, f"there is no {path}; look at tasks.{name}.code.path")
    found = measured(task.code)
    if found == task.code.sha256:
        return Finding("ok", what, "is what its owner approved")
    told = f"its digest is {found}" if found else "it cannot be read"
    return Finding(
        "FAIL",
        what,
        f"the code at {path} is not the approved one: {told}; read it again, and if it is right put that digest "
        f"into tasks.{name}.code.sha256",
    )


def _local(name: str, task: Task) -> list[Finding]:
    rows = []
    if task.data:
        missing = [f"{key}: {path}" for key, path in task.data.items() if not path.exists()]
        told = f"data-missing: there is no {'; '.join(missing)}; look at tasks.{name}.data"
        what = f"task {name}: data"
        rows.append(Finding("FAIL", what, told) if missing else Finding("ok", what, "is there"))
    return [*rows, _command(name, task)]


def _command(name: str, task: Task) -> Finding:
    """As the runner finds it: in the task's directory, or on the PATH that it gives to scripts."""
    what, directory, program = f"task {name}: command", task.directory or Path(), task.command[0]
    if not directory.is_dir():
        return Finding("FAIL", what, f"there is no directory {directory}; look at tasks.{name}.directory")
    ours = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    in_directory = str(directory / program) if os.sep in program else program
    if shutil.which(in_directory, path=task.environment.get("PATH", ours)) is None:
        return Finding("FAIL", what, f"{program} is no program that can be run; look at tasks.{name}.command")
    return Finding("ok", what, "is there")


# --- on AzureML -------------------------------------------------------------------------------------------------------


async def _datastore(silo: str, name: str, azureml: AzureML, adapters: Adapters) -> Finding:
    """A blob of our own put there, read, and taken away again."""
    what, at = f"task {name}: datastore", azureml.datastore
    blob = f"{at.folder}/{silo}/check/{uuid.uuid4().hex}"
    where = f"tasks.{name}.compute.azureml.datastore"
    if at.store.credential in adapters.broken:
        return not_tried(what, FIRST)
    try:
        store = adapters.store(at.store)
        try:
            await store.create(at.container, blob, b"check")
            await store.read(at.container, blob)
            await store.list(at.container, blob)
            await store.delete(at.container, blob)
        finally:
            await store.close()
    except SettingsError as error:
        return Finding("FAIL", what, f"{where}.{error}")
    except Forbidden:
        told = (
            f"no right to read and write there: the agent's identity ({store_setting(at.store)} in {where}) needs the "
            f"role {KEEPS_FILES} on container {at.container}; a signature needs r, l, c, w and d"
        )
        return Finding("FAIL", what, told)
    except SilobusError as error:
        return Finding("FAIL", what, f"cannot be used ({error}); look at {where}")
    return Finding("ok", what, f"container {at.container} can be read and written")


async def _workspace(name: str, azureml: AzureML, adapters: Adapters) -> Finding:
    """A job that is not there, asked for."""
    what, at = f"task {name}: workspace", f"tasks.{name}.compute.azureml"
    if azureml.credential in adapters.broken:
        return not_tried(what, FIRST)
    try:
        workspace = adapters.workspace(azureml)
        try:
            await workspace.get("silobus-check-is-not-there")
        finally:
            await workspace.close()
    except SettingsError as error:
        return Finding("FAIL", what, f"{at}.{error}")
    except Rejected as no:
        if no.code in ("401", "403"):
            return Finding("FAIL", what, f"no right to look at jobs: {submits(azureml)} ({at}.workspace)")
        return Finding("FAIL", what, f"AzureML says no (status {no.code}); look at {at}.workspace")
    except SilobusError as error:
        return Finding("FAIL", what, f"cannot be reached ({error}); look at {at}.credential, and at the firewall")
    return Finding("ok", what, f"{azureml.workspace} answers")


# --- the task itself --------------------------------------------------------------------------------------------------


async def once(silo: Silo, name: str, task: Task) -> Finding:
    """The task, run; with what would leave."""
    what = f"task {name}"
    lines: list[str] = []
    try:
        wrong = await _rounds(silo, name, task, lines)
    finally:
        await silo.runner.end(RUN)
    if wrong is None:
        return Finding("ok", what, "runs; this would leave:", lines)
    return Finding("FAIL", what, f"does not get through: {wrong}", lines)


async def _rounds(silo: Silo, name: str, task: Task, lines: list[str]) -> str | None:
    """What went wrong, if anything did; `lines` are what is told below."""
    top = silo.home.path / "check" / name
    await asyncio.to_thread(shutil.rmtree, top, ignore_errors=True)
    azureml = task.compute.azureml
    previous: Allowed | None = None
    for number, purpose in enumerate((Purpose.INITIALISE, Purpose.TRAIN)):
        announced = _announcement(name, number, purpose, previous)
        directory, state = RoundDirectory(top / str(number)), PrivateState(top / "state")
        asked = given.round_json(announced, _accepted(task), silo.name)
        top = await asyncio.to_thread(given.begin, directory)
        if previous is not None:
            await asyncio.to_thread(shutil.copyfile, previous.update["weights"].path, top / given_as("weights"))
        await asyncio.to_thread(given.finish, directory, asked, state, RUN, number)
        attempt = directory.attempt(1)
        await asyncio.to_thread(attempt.start)
        job = Job(
            run=RUN,
            round=number,
            name=name,
            task=task,
            input=directory.input,
            output=attempt.output,
            log=attempt.log,
            version=None,
        )
        outcome = await silo.runner.run(job)
        if isinstance(outcome, Failed):
            lines.append(f"what it printed is in {attempt.log}")
            told = ended(outcome.category, azureml, await asyncio.to_thread(_read, attempt.log))
            return f"{purpose}: {outcome.category}: {told}"
        if isinstance(outcome, OverBudget):
            lines.append(f"{attempt.log} counts them")
            return f"{purpose}: would cost more node hours than tasks.{name}.compute.azureml.node_hours allows"
        received = previous.update["weights"].scan.layout if previous else None
        result = await asyncio.to_thread(examine, attempt, announced, received, task.outbound)
        if isinstance(result, Withheld):
            lines += result.notes
            return f"{purpose}: {result.reason}: may not leave; tasks.{name}.outbound decides"
        if not isinstance(result, Allowed):
            lines += [*result.notes, f"what it printed is in {attempt.log}"]
            return f"{purpose}: {result.category}: {ended(result.category, azureml, '')}"
        silo.runner.committed(RUN, None)
        lines += [f"{purpose}:", *(f"  {line}" for line in what_would_leave(result))]
        previous = result
    return None


def _read(log: Path) -> str:
    with contextlib.suppress(OSError):
        return log.read_text(errors="replace")
    return ""


def _announcement(task: str, number: int, purpose: Purpose, previous: Allowed | None) -> RoundAnnounced:
    update = previous.update["weights"].scan if previous else None
    return announcement_of(
        {
            "experiment": "check",
            "run": RUN,
            "round": number,
            "purpose": purpose,
            "task": task,
            "transfer": {},
            "weights": None if update is None else {"sha256": update.sha256, "bytes": update.bytes},
        }
    )


def _accepted(task: Task) -> Accepted:
    """The cheapest that the owner allows."""
    limits = task.limits.hyperparameters
    least: dict[str, Scalar] = {
        name: limit.min if isinstance(limit, Range) else limit.one_of[0] for name, limit in limits.items()
    }
    return Accepted(task=task, hyperparameters={**least, **task.limits.fixed}, charged=False)
