"""`silobus replay`: sums rounds of the past again and compares the bytes. Changes nothing.

It reads updates, which operators may not: like `reconcile` it works with the orchestrator's rights.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from messages.rights import ORCHESTRATOR
from orchestrator.cli.federation import Config, Dir, Experiment, reach, settings
from orchestrator.cli.hold import RunId
from orchestrator.cli.terminal import Complaint, Json, command, say, say_json
from orchestrator.cli.wording import unknown
from orchestrator.experiment.state import Run, Tombstone
from orchestrator.store import Documents

if TYPE_CHECKING:
    from orchestrator.replay import Replayed


@command
async def replay(
    *,
    experiment: Experiment,
    number: Annotated[int | None, typer.Option("--round", min=0, max=99_999, help="Only this round.")] = None,
    run: RunId = None,
    directory: Dir = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Sums stored updates again and compares the bytes with the stored weights; exit status 1 if any differ."""
    from orchestrator.blobs import Weights  # here, since no other command needs numpy, which takes as long as all else
    from orchestrator.replay import Replay, Verdict

    chosen = settings(directory, config, role=ORCHESTRATOR)
    async with reach(directory, config, role=ORCHESTRATOR) as federation:
        documents = Documents(federation.store)
        meant = await _run(documents, experiment, run)
        weights = Weights(federation.store, chosen.scratch, memory_budget=chosen.memory_budget << 20)
        replays = Replay(federation.store, documents, weights, meant)
        over = await replays.rounds()
        if number is not None and number not in over:
            raise Complaint(f"Round {number} of {meant.id} is not over. Its rounds that are: {_span(over)}.")
        found = []
        async for replayed in replays.replay(over if number is None else [number]):
            found.append(replayed)
            if not json:
                say(_line(replayed))
    counts = {verdict.value: sum(r.verdict is verdict for r in found) for verdict in Verdict}
    if json:
        say_json({"experiment": experiment, "run": meant.id, **counts, "rounds": [asdict(r) for r in found]})
    else:
        say(f"{meant.id}: " + ", ".join(f"{count} {what}" for what, count in counts.items() if count))
    if counts[Verdict.DIFFERENT]:
        raise typer.Exit(1)


async def _run(documents: Documents, experiment: str, run: str | None) -> Run:
    document = (await documents.load(experiment)).document
    if document is None:
        raise unknown(experiment)
    state = document.state
    if not isinstance(state, Tombstone) and run in {None, state.run.id}:
        return state.run
    ended = await documents.run_record(run) if run is not None else None
    if ended is None or ended.run.request.experiment != experiment:
        raise Complaint(f"{experiment} has no run {run or 'yet'}. `silobus status {experiment}` shows where it stands.")
    return ended.run


def _line(replayed: Replayed) -> str:
    from orchestrator.replay import Verdict

    match replayed.verdict:
        case Verdict.SAME:
            told = f"same: {replayed.updates} updates make {replayed.recorded}"
        case Verdict.DIFFERENT:
            told = f"DIFFERENT: {replayed.why}; recorded are {replayed.recorded}"
            if replayed.tensor is not None:
                told += f"; the first tensor that differs is {replayed.tensor}"
        case Verdict.DELETED | Verdict.NOT_SUMMED:
            told = f"not replayed: {replayed.why}"
    return f"round {replayed.round}: {told}"


def _span(rounds: list[int]) -> str:
    return f"{rounds[0]} to {rounds[-1]}" if rounds else "none"
