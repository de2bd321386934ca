"""`silobus hold|release`: keeping all of a run that is still there, and letting retention have it again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from messages import experiments as posted
from messages import names
from messages.errors import NotFound
from orchestrator.cli.experiments import send
from orchestrator.cli.federation import Config, Dir, Experiment, reach, run_id
from orchestrator.cli.terminal import Complaint, command, say

RunId = Annotated[
    str | None, typer.Option("--run", callback=run_id, help="This run, not the one that is live or was the last.")
]


@command
async def hold(experiment: Experiment, run: RunId = None, directory: Dir = None, config: Config = None) -> None:
    """Deletes nothing more of a run, whatever retention says, until it is released."""
    await _send(posted.HoldExperiment(experiment=experiment, run=run), directory, config)


@command
async def release(experiment: Experiment, run: RunId = None, directory: Dir = None, config: Config = None) -> None:
    """Takes a hold back: retention deletes what it would have."""
    await _send(posted.ReleaseExperiment(experiment=experiment, run=run), directory, config)


async def _send(
    message: posted.HoldExperiment | posted.ReleaseExperiment, directory: Path | None, config: Path | None
) -> None:
    experiment = message.experiment
    if message.run is not None and names.experiment_of(message.run) != experiment:
        raise Complaint(f"{message.run} is no run of {experiment}.")
    async with reach(directory, config) as federation:
        try:
            await federation.store.read(names.STATE, names.experiment_blob(experiment))
        except NotFound:
            raise Complaint(f"There is no experiment {experiment}. `silobus status` lists those there are.") from None
        said = message if message.run is not None else type(message)(experiment=experiment)
        await send(federation.bus, said)
    say(f"Sent. `silobus status {experiment}` shows what is held and what is gone.")
