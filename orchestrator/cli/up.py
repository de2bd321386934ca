"""`silobus up`: a federation on this machine that stays up until it is stopped. Here lives only the command."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from messages.names import NAME_PATTERN
from orchestrator.cli import hospitals
from orchestrator.cli.federation import DEFAULT_FOLDER, Dir
from orchestrator.cli.folder import Folder, make, write_silo
from orchestrator.cli.local import running
from orchestrator.cli.processes import die_with_parent, ends_on_signals, terminate
from orchestrator.cli.terminal import Complaint, command, say, warn


@command
async def up(
    silos: Annotated[int | None, typer.Option("--silos", min=1, max=50, help="So many demo hospitals; 3.")] = None,
    silos_dir: Annotated[
        Path | None,
        typer.Option(
            "--silos-dir",
            help="A folder with each owner's file: SILO.yaml or SILO/silo.yaml, without bus, store and home.",
        ),
    ] = None,
    task: Annotated[str, typer.Option("--task", help="What the demo hospitals train.")] = "breast-cancer",
    directory: Dir = None,
) -> None:
    """Runs a federation on this machine until Ctrl-C: bus, orchestrator and an agent per silo."""
    if silos is not None and silos_dir is not None:
        raise Complaint("Either --silos or --silos-dir: with a folder of owners' files, those are the silos.")
    folder = Folder((directory or DEFAULT_FOLDER).absolute())
    owners = None if silos_dir is None else read_owners(silos_dir)
    names = hospitals.silo_names(silos or 3) if owners is None else sorted(owners)
    with ends_on_signals() as signals:
        try:
            if silos_dir is not None:
                await check(files_in(silos_dir))
            await _stay_up(folder, names, owners, hospitals.task_named(task))
        except asyncio.CancelledError:
            if not signals:
                raise
    say("Stopped.")


async def _stay_up(
    folder: Folder, names: list[str], owners: Mapping[str, Mapping[str, Any]] | None, task: hospitals.Task
) -> None:
    make(folder)
    async with running(folder, names, warn) as local:
        if owners is None:
            await hospitals.admit(task, folder, names, seed=0)
            owners = {silo: hospitals.policy(task, folder, silo, len(names)) for silo in names}
        for silo, policy in owners.items():
            write_silo(folder, silo, policy)
        await local.start_agents()
        await local.ready()
        say(f"Silos: {', '.join(names)}. Everything is in {folder.root}. For an operator the queues are at")
        say(local.connection.get_secret_value())
        say("Ready. Ctrl-C stops everything.")
        await asyncio.Event().wait()


def files_in(directory: Path) -> list[Path]:
    """Owners' files: SILO.yaml, or SILO/silo.yaml."""
    return sorted([*directory.glob("*.yaml"), *directory.glob("*/silo.yaml")])


async def check(files: Sequence[Path]) -> None:
    """Raises Complaint with what an agent would not accept in them: file, line and field, as the agent itself says."""
    arguments = [sys.executable, "-m", "silo_agent", "check-files", "--", *map(str, files)]
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    try:
        said, _ = await process.communicate()
    finally:
        await asyncio.shield(terminate(process))
    if process.returncode != 0:
        raise Complaint(said.decode("utf-8", "replace").strip())


def read_owners(directory: Path) -> dict[str, dict[str, Any]]:
    """Each owner's file by silo, its paths made absolute; bus, store and home are left to `up`."""
    owners: dict[str, dict[str, Any]] = {}
    for file in files_in(directory):
        try:
            said = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise Complaint(f"{file} is not readable YAML: {error}") from None
        if not isinstance(said, dict) or not isinstance(said.get("tasks"), dict):
            raise Complaint(f"{file} has no tasks: an owner's file names at least one.")
        silo = str(said.get("silo") or (file.parent.name if file.name == "silo.yaml" else file.stem))
        if not re.match(NAME_PATTERN, silo):
            raise Complaint(f"{file}: {silo!r} is no silo's name; small letters, digits and hyphens are.")
        if silo in owners:
            raise Complaint(f"{file}: there are two files for {silo}.")
        kept = {key: value for key, value in said.items() if key not in ("silo", "bus", "store", "home")}
        kept["tasks"] = {name: _absolute(task, file.absolute().parent) for name, task in said["tasks"].items()}
        owners[silo] = kept
    if not owners:
        raise Complaint(f"{directory} has no owner's file: SILO.yaml, or SILO/silo.yaml.")
    return owners


def _absolute(task: Any, base: Path) -> Any:
    """The task with its paths as they are meant: relative to the file they stand in."""
    if not isinstance(task, dict):
        return task
    made = dict(task)
    if "directory" in made:
        made["directory"] = str(base / str(made["directory"]))
    if isinstance(made.get("code"), dict) and "path" in made["code"]:
        made["code"] = made["code"] | {"path": str(base / str(made["code"]["path"]))}
    if isinstance(made.get("data"), dict):
        made["data"] = {name: str(base / str(path)) for name, path in made["data"].items()}
    return made
