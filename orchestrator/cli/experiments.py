"""`silobus start|cancel|pause|resume`: operator messages, checked before they are sent.

Each is the message that any queue tool can post to `experiments`; `start --print` shows it. What happens next is seen
with `status` and `watch`.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import Annotated

import typer

from messages import experiments as posted
from messages import names
from messages.errors import NotFound
from messages.fields import Operator
from messages.ports import Bus, Outgoing, Store
from orchestrator.cli import initial, watch
from orchestrator.cli.federation import Config, Dir, Experiment, Federation, reach
from orchestrator.cli.queues import walk
from orchestrator.cli.standing import Reader
from orchestrator.cli.start_file import read_start
from orchestrator.cli.terminal import Complaint, command, say, warn

PATIENCE = 15.0
"""Seconds without an answer to a start after which that is said."""


@command
async def start(
    *,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The start-experiment message: YAML, JSON, or - for stdin.")
    ],
    init: Annotated[
        Path | None,
        typer.Option("--init", resolve_path=True, help="A training script whose model as first made is the start."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when it has ended; exit status 1 unless completed.")
    ] = False,
    prints: Annotated[bool, typer.Option("--print", help="Send nothing; print what to post to `experiments`.")] = False,
    directory: Dir = None,
    config: Config = None,
) -> None:
    """Starts an experiment."""
    message = read_start(file)
    if prints and init is None:
        say(body_of(message).decode())
        return
    async with reach(directory, config) as federation:
        if init is not None:
            message = await _with_initial(federation.store, message, init)
        if prints:
            say(body_of(message).decode())
            return
        sent = await send(federation.bus, message)
        if not wait:
            say(f"Sent. `silobus watch {message.experiment}` shows how it goes.")
            return
        await accepted(federation, message, sent)
        await watch.follow(federation, message.experiment)


@command
async def cancel(experiment: Experiment, directory: Dir = None, config: Config = None) -> None:
    """Ends an experiment now; its last model is kept."""
    async with reach(directory, config) as federation:
        known = await _is_known(federation, experiment)
        await send(federation.bus, posted.CancelExperiment(experiment=experiment))
    if known:
        say(f"Sent. `silobus status {experiment}` shows when it has ended.")
    else:
        say(f"Sent. No experiment {experiment} is known yet: the next start under this name will be refused.")


@command
async def pause(experiment: Experiment, directory: Dir = None, config: Config = None) -> None:
    """Finishes the round in progress, then waits."""
    await _send_to_known(posted.PauseExperiment, experiment, directory, config)


@command
async def resume(experiment: Experiment, directory: Dir = None, config: Config = None) -> None:
    """Goes on after a pause."""
    await _send_to_known(posted.ResumeExperiment, experiment, directory, config)


def body_of(message: Operator) -> bytes:
    """What a person would have written: no defaults."""
    said = {"kind": getattr(message, "kind", ""), **message.model_dump(mode="json", exclude_unset=True)}
    return json.dumps(said, ensure_ascii=False).encode()


async def send(bus: Bus, message: Operator, *, message_id: str | None = None) -> Outgoing:
    """Posts it, under an id of its own: the same file started again is a new run once the old one is over."""
    kind = str(getattr(message, "kind", ""))
    outgoing = Outgoing(body=body_of(message), message_id=message_id or f"{kind}-{uuid.uuid4().hex}", subject=kind)
    await bus.send(names.EXPERIMENTS, outgoing)
    return outgoing


async def accepted(federation: Federation, message: posted.StartExperiment, sent: Outgoing) -> str:
    """Returns the run that it became. Raises Complaint when the orchestrator set the message aside instead."""
    run = names.run_id(message.experiment, sent.message_id, sent.body)
    reader = Reader(federation.store)
    loop = asyncio.get_running_loop()
    patience: float | None = loop.time() + PATIENCE
    while True:
        standing = await reader.read(message.experiment)
        if standing is not None and standing.run is not None and standing.run.id == run:
            return run
        async for letter in walk(federation.bus, names.dead_letters_of(names.EXPERIMENTS)):
            if letter.message_id == sent.message_id:
                raise Complaint(
                    f"{message.experiment} was not started: {letter.dead_letter_description} "
                    f"({letter.dead_letter_reason})\n"
                    f"The message is dead letter {letter.sequence_number} of {names.EXPERIMENTS}."
                )
        if patience is not None and loop.time() > patience:
            warn("No orchestrator has taken the start yet. It waits in `experiments`, and nothing is lost.")
            patience = None
        await asyncio.sleep(federation.watch_interval)


async def _with_initial(store: Store, message: posted.StartExperiment, script: Path) -> posted.StartExperiment:
    parameters = {
        name: value.at(1) if isinstance(value, posted.Schedule) else value
        for name, value in message.hyperparameters.items()
    }
    digest = await initial.upload(store, script, message.task, message.experiment, parameters)
    return message.model_copy(update={"initial": posted.FromDigest(sha256=digest)})


async def _send_to_known(
    kind: type[posted.PauseExperiment | posted.ResumeExperiment],
    experiment: str,
    directory: Path | None,
    config: Path | None,
) -> None:
    async with reach(directory, config) as federation:
        if not await _is_known(federation, experiment):
            raise Complaint(f"There is no experiment {experiment}. `silobus status` lists those there are.")
        await send(federation.bus, kind(experiment=experiment))
    say(f"Sent. `silobus status {experiment}` shows what it does.")


async def _is_known(federation: Federation, experiment: str) -> bool:
    try:
        await federation.store.read(names.STATE, names.experiment_blob(experiment))
    except NotFound:
        return False
    return True
