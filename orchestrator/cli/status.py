"""`silobus status` and `silobus model`: where experiments stand, and their weights. Asks the store, and no process.

Only where it seems that a silo is gone, the silo's queue is asked, too.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from messages.errors import NotFound
from messages.ports import Store
from orchestrator.cli import asked, checked
from orchestrator.cli.awaiting import waiting_for
from orchestrator.cli.federation import AnyExperiment, Config, Dir, Experiment, Federation, reach
from orchestrator.cli.keeping_up import COLUMNS, row, stragglers
from orchestrator.cli.kept import kept
from orchestrator.cli.listening import Listening
from orchestrator.cli.standing import Reader, Standing, Unreadable
from orchestrator.cli.terminal import Complaint, Json, command, console, say, say_json, shown, table
from orchestrator.cli.wording import (
    as_json,
    in_brief,
    last_answer,
    last_seen,
    latest_metrics,
    models,
    phase_of,
    reason_of,
    round_of,
    silo_state,
    status_of,
    unknown,
)
from orchestrator.store import CANNOT_BE_READ

CHUNK = 8 << 20


@command
async def status(
    experiment: AnyExperiment = None,
    directory: Dir = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """What each experiment waits for, each silo's last answer and sign of life, and how it keeps up."""
    async with reach(directory, config) as federation:
        reader = Reader(federation.store)
        if experiment is None:
            await _overview(federation, reader, json=json)
            return
        standing = await reader.read(experiment)
        if standing is None:
            raise unknown(experiment)
        [standing] = await Listening(federation).told([standing])
    if json:
        say_json(as_json(standing))
    else:
        _detail(standing)


@command
async def model(
    experiment: Experiment,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to put it; a safetensors file.")],
    best: Annotated[bool, typer.Option("--best", help="The best by the experiment's metric, not the latest.")] = False,
    directory: Dir = None,
    config: Config = None,
) -> None:
    """Writes an experiment's weights to a file."""
    async with reach(directory, config) as federation:
        standing = await Reader(federation.store).read(experiment)
        if standing is None:
            raise unknown(experiment)
        found = models(standing.run).get("best" if best else "last")
        if found is None:
            why = "has no metric, or none was measured yet" if best else "has no weights yet"
            raise Complaint(f"{experiment} {why}. `silobus status {experiment}` shows where it stands.")
        await download(federation.store, found["blob"], found["sha256"], output)
    say(f"{output}: the weights after round {found['round']} of {experiment}, {found['bytes']} bytes")


async def download(store: Store, blob: str, sha256: str, output: Path) -> None:
    """A copy of its own, whose digest is right; appears whole or not at all."""
    named, output = output, _place_of(output)
    container, _, name = blob.partition("/")
    digest = hashlib.sha256()
    part = output.with_name(f"{output.name}.part-{os.getpid()}")
    try:
        reader = await store.open(container, name)
    except NotFound:
        raise Complaint(f"{blob} is gone from the store.") from None
    try:
        with part.open("wb") as file:
            for offset in range(0, reader.size, CHUNK):
                piece = await reader.read(offset, min(CHUNK, reader.size - offset))
                digest.update(piece)
                file.write(piece)
        if digest.hexdigest() != sha256:
            raise Complaint(f"{blob} is damaged in the store: its digest is {digest.hexdigest()}.")
        part.replace(output)
    except OSError as error:
        raise Complaint(f"{named} cannot be written: {error.strerror}. Name another file, or make room.") from None
    finally:
        with suppress(OSError):
            part.unlink()
        await reader.close()


def _place_of(named: Path) -> Path:
    """Where a file appears: where a link leads, not in its place. Raises Complaint for what is there and is no file:
    in the place of a device, a file would break the whole machine."""
    place = Path(os.path.realpath(named))
    if named.exists() and not place.is_file():
        raise Complaint(f"{named} cannot be written: it is there and is no file. Name a file, or a new one.")
    return place


async def _overview(federation: Federation, reader: Reader, *, json: bool) -> None:
    found = await reader.overview()
    live = [s for s in found if isinstance(s, Standing) and not s.is_over]
    told = {s.experiment: s for s in await Listening(federation).told(live)}
    presence, unreadable = await reader.presence(federation.silos)
    seen: dict[str, datetime | None] = {}
    for silo in federation.silos:
        signs = [sign for s in told.values() if (sign := last_seen(s, silo)) is not None]
        seen[silo] = max([*signs, *([presence[silo].seen_at] if silo in presence else [])], default=None)
    if json:
        silos = {silo: {"last_sign_of_life": sign} for silo, sign in seen.items()}
        experiments = [as_json(told[s.experiment]) if s.experiment in told else _in_brief(s) for s in found]
        say_json({"experiments": experiments, "silos": silos, "unreadable": unreadable})
        return
    columns = ("experiment", "status", "round", "of", "waits for, or why it ended")
    rows = [_row(told.get(s.experiment, s)) for s in found]
    if rows:
        console().print(table(columns, rows, numbers=("round", "of")))
    else:
        say("No experiments yet. `silobus start FILE` starts one.")
    rows_seen = [(silo, sign or "never") for silo, sign in seen.items()]
    console().print(table(("silo", "last sign of life"), rows_seen))
    for name in unreadable:
        say(f"{name} {CANNOT_BE_READ}")


def _in_brief(found: Standing | Unreadable) -> dict[str, Any]:
    if isinstance(found, Unreadable):
        return {"experiment": found.experiment, "status": "unreadable", "reason": found.words}
    return in_brief(found)


def _row(found: Standing | Unreadable) -> tuple[Any, ...]:
    if isinstance(found, Unreadable):
        return found.experiment, "unreadable", None, None, found.words
    rounds = found.run.request.rounds if found.run else None
    return found.experiment, status_of(found), round_of(found), rounds, waiting_for(found) or reason_of(found)


def _detail(standing: Standing) -> None:
    run = standing.run
    say(f"experiment   {standing.experiment}")
    say(f"status       {status_of(standing)}")
    if reason := reason_of(standing):
        say(f"because      {reason}")
    if run is None:
        return
    say(f"run          {run.id}")
    say(f"task         {run.request.task}")
    for label, words in asked.lines(run):
        say(f"{label:<12} {words}")
    say(f"round        {round_of(standing)} of {run.request.rounds}; {phase_of(standing)}")
    if waits := waiting_for(standing):
        say(f"waiting for  {waits}")
    if found_kept := kept(standing.retained):
        say(f"kept         {found_kept}")
    for name in standing.unreadable:
        say(f"left out     {name} {CANNOT_BE_READ}")
    for name, value in latest_metrics(standing).items():
        say(f"{name:<12} {shown(value)}")
    for name, found in models(run).items():
        say(f"{name + ' model':<12} round {found['round']}, {found['blob']}")
    rows = []
    for silo in standing.silos:
        answer = last_answer(standing, silo)
        told = f"round {answer['round']}, {answer['seconds']:.1f} s" if answer else None
        does = silo_state(standing, silo) + ("" if silo in run.silos else "; takes part no longer")
        rows.append((silo, does, told, last_seen(standing, silo) or "never"))
    console().print(table(("silo", "does", "last answer", "last sign of life"), rows))
    if run.paces:
        slow = stragglers(run.paces)
        paces = [row(silo, run.paces, slow.get(silo)) for silo in standing.silos if silo in run.paces]
        console().print(table(COLUMNS, paces, numbers=COLUMNS[1:-1]))
    if closed := checked.newest(standing):
        say(f"changes of round {closed.round}, from the weights it began with")
        console().print(table(checked.COLUMNS, checked.rows(closed), numbers=checked.COLUMNS[1:-1]))
