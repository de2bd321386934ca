"""What a run has come to. Two runs in which everything was done right have equal outcomes, whatever went wrong in them.

Left out is only what may differ: times, how often a round was announced, how often something was said.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import load

from messages import names
from messages.schemas import Head, Payload
from orchestrator.documents import Retained
from orchestrator.experiment.state import Ended, RoundRecord, State, Tombstone
from silo_agent import egress
from tests.crash_points.federation import EXPERIMENT, Federation
from tests.crash_points.shapes import SERVER_MOMENTUM, Shape
from tests.crash_points.trainer import Does
from tests.scenario.machine_invariants import assert_follows, head_order


@dataclass(frozen=True, slots=True)
class Kept:
    """What a silo has at home when all is over."""

    count: dict[str, str]
    """The trainer's own count of commits, by the round that committed it; the last two are kept."""
    charged: list[str]
    """Rounds charged to the budget and not given back."""
    charged_twice: list[str]
    egress: str | None
    """What is wrong with the log of what left."""
    unlogged: int
    """Messages that were sent and are not in it."""
    updates: list[str]
    """The silo's blobs in the exchange."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run has come to."""

    problem: str | None
    """It never ended, and where it stood."""
    rounds: list[dict[str, Any]]
    """Every record: purpose, outcome, who updated with how many samples, pooled metrics, weights and their digest."""
    weights: list[str]
    """Every blob of global weights."""
    documents: list[str]
    retained: str
    """What the tombstone of the run names, and how far the deleting has come."""
    head: str
    ended: str
    best: str
    """Round, number and digest of the best weights, and for how many rounds there were none better."""
    paces: dict[str, dict[str, int | None]]
    """What each silo answered, missed and came too late for, counted; not how long it took."""
    silos: dict[str, Kept]
    dead_letters: list[str]
    left: list[str]
    errors: list[str]
    history: str | None
    """The first two stored versions of the state, or of the head, of which one may not follow the other."""

    def wrong(self, shape: Shape) -> list[str]:
        """What is not as arithmetic says: models, updates, pooled counts and commits of every round; what is kept."""
        updates = {silo: _rounds(kept.updates) for silo, kept in self.silos.items()}
        facts = {
            "problem": (self.problem, None),
            "rounds": (
                [_told(r) for r in self.rounds],
                [_left_of(shape, number, told) for number, told, _ in _due(shape)],
            ),
            "weights kept": (_rounds(self.weights), _due_weights(shape)),
            "updates kept": (updates, _due_updates(shape)),
            "commits": ({silo: _commits(kept) for silo, kept in self.silos.items()}, _due_commits(shape)),
            "dead letters": (self.dead_letters, []),
            "errors": (self.errors, []),
            "history": (self.history, None),
        }
        return [f"{what}: {found!r} and not {due!r}" for what, (found, due) in facts.items() if found != due]

    def differences(self, other: Outcome) -> list[str]:
        """What is not as in `other`, in words."""
        return list(_differences("", asdict(self), asdict(other)))


Told = tuple[str, list[str], int, float | None, float | None, tuple[float, float] | None]
"""Purpose, silos of the updates, pooled scores, the model's two numbers, and their velocity where it is kept."""


def _told(record: dict[str, Any]) -> Told:
    scores = sum(count for name, _, count, _, _ in record["metrics"] if name == "auroc")
    numbers = record["numbers"] or {"w": [None], "n": [None]}
    silos = [silo for silo, *_ in record["updates"]]
    kept = record["besides"].get("momentum")
    velocity = (kept["w"][0], kept["n"][0]) if kept else None
    return record["purpose"], silos, scores, numbers["w"][0], numbers["n"][0], velocity


def _due(shape: Shape) -> Iterator[tuple[int, Told, list[str]]]:
    """What every round must come to, by its number, and who published in it. One silo initialises: the first.

    Updates that are left out have their scores pooled: those are of the weights that the round was given.
    """
    members = dict(sorted(shape.silos.items()))
    counted = {silo: member for silo, member in members.items() if member.counts}
    published = [silo for silo, member in members.items() if member.publishes]
    answering = [silo for silo, member in members.items() if member.does is not Does.DECLINE]
    w, n, commits = 1.0, 0.0, dict.fromkeys(members, 0)
    velocity = (0.0, 0.0)
    if not shape.initial:
        first = next(iter(members))
        w, commits[first] = members[first].constant, 1
        yield 0, ("initialise", [first], 0, w, 0.0, None), [first]
    samples = sum(member.samples for member in counted.values())
    for number in range(1, shape.rounds + 1):
        mean = w + sum(member.constant * member.samples for member in counted.values()) / samples
        commit = sum(commits[silo] * member.samples for silo, member in counted.items()) / samples
        commits = {silo: count + (silo in published) for silo, count in commits.items()}
        if _keeps(shape):
            velocity = (SERVER_MOMENTUM * velocity[0] + mean - w, SERVER_MOMENTUM * velocity[1] + commit - n)
            w, n = w + velocity[0], n + velocity[1]
        else:
            w, n = mean, commit
        told: Told = ("train", list(counted), 8 * len(published), w, n, velocity if _keeps(shape) else None)
        yield number, told, published
    yield shape.rounds + 1, ("evaluate", answering, 8 * len(answering), None, None, None), answering


def _keeps(shape: Shape) -> bool:
    return shape.strategy.name == "fedavgm"


def _left_of(shape: Shape, number: int, told: Told) -> Told:
    """What can still be read of a round: not its model, when that was deleted."""
    return told if number in _due_weights(shape) else (*told[:3], None, None, None)


def _due_weights(shape: Shape) -> list[int]:
    """Rounds whose weights must be there; nothing is left of any other's."""
    return list(range(shape.rounds + 1)) if shape.kept is None else list(shape.kept)


def _due_updates(shape: Shape) -> dict[str, list[int]]:
    """Rounds of which each silo's updates must be there."""
    if shape.kept is not None:
        return {silo: [] for silo in shape.silos}
    return {silo: [number for number, _, published in _due(shape) if silo in published] for silo in shape.silos}


def _rounds(blobs: list[str]) -> list[int]:
    found = {names.round_of_blob(name) for name in blobs}
    return sorted(number for number in found if number is not None)


def _commits(kept: Kept) -> int:
    return max(map(int, kept.count.values()), default=0)


def _due_commits(shape: Shape) -> dict[str, int]:
    """One per round that a silo published in."""
    return {silo: sum(silo in published for _, _, published in _due(shape)) for silo in shape.silos}


def _differences(where: str, mine: Any, its: Any) -> Iterator[str]:
    if isinstance(mine, dict) and isinstance(its, dict) and mine.keys() == its.keys():
        for key in mine:
            yield from _differences(f"{where}.{key}" if where else str(key), mine[key], its[key])
    elif mine != its:
        yield f"{where}: {mine!r} and not {its!r}"


def outcome_of(federation: Federation, problem: str | None, bugs: list[str]) -> Outcome:
    """What there is to be seen when a run is over."""
    store, run = federation.store, federation.run
    blobs = store.blobs
    records = [
        RoundRecord.model_validate_json(blob.data)
        for (container, name), blob in sorted(blobs.items())
        if container == names.STATE and name.startswith("rounds/")
    ]
    head = blobs.get((names.GLOBAL, names.head_blob(run))) if run else None
    state = store.history[-1][1].state if store.history else None
    return Outcome(
        problem=problem,
        rounds=[_round(federation, record) for record in records],
        weights=[name for container, name in sorted(blobs) if container == names.GLOBAL and "/head" not in name],
        documents=[name for container, name in sorted(blobs) if container == names.STATE],
        retained=_retained(federation),
        head=_head(Head.model_validate_json(head.data)) if head else "none",
        ended=f"{state.outcome} after {state.round}" if isinstance(state, Ended) else "not",
        best=_best(state),
        paces=_paces(state),
        silos={silo: _kept(federation, silo) for silo in federation.shape.silos},
        dead_letters=federation.dead_letters(),
        left=federation.left(),
        errors=[*federation.errors, *bugs],
        history=_history(federation),
    )


def _round(federation: Federation, record: RoundRecord) -> dict[str, Any]:
    return {
        "round": record.round,
        "purpose": str(record.purpose),
        "outcome": str(record.outcome),
        "others": dict(record.others),
        "updates": [(u.silo, u.samples, u.steps, u.payload.sha256 if u.payload else None) for u in record.updates],
        "metrics": [(m.name, m.phase, m.count, m.silos, m.number) for m in record.metrics],
        "weights": record.model.sha256 if record.model else None,
        "numbers": _numbers(federation, record, record.model),
        "besides": {name: _numbers(federation, record, payload) for name, payload in record.besides.items()},
    }


def _numbers(federation: Federation, record: RoundRecord, payload: Payload | None) -> dict[str, list[float]] | None:
    """Those of a blob that the round made; None when there is none."""
    made = payload and names.weights_blob(record.run, record.round, payload.sha256)
    blob = federation.store.blobs.get((names.GLOBAL, made)) if made else None
    return {name: tensor.tolist() for name, tensor in load(blob.data).items()} if blob else None


def _best(state: State | Tombstone | None) -> str:
    if state is None or isinstance(state, Tombstone):
        return "no run"
    best, stagnant = state.run.best, state.run.stagnant
    return f"{best.number} in {best.round}, {best.payload.sha256}, {stagnant} since" if best else f"none, {stagnant}"


def _paces(state: State | Tombstone | None) -> dict[str, dict[str, int | None]]:
    if state is None or isinstance(state, Tombstone):
        return {}
    return {silo: pace.model_dump(exclude={"training", "answering"}) for silo, pace in state.run.paces.items()}


def _retained(federation: Federation) -> str:
    blob = federation.store.blobs.get((names.STATE, names.retained_blob(federation.run))) if federation.run else None
    return Retained.model_validate_json(blob.data).model_dump_json() if blob else "nothing"


def _head(head: Head) -> str:
    return f"{head.phase} in {head.round}"


def _kept(federation: Federation, silo: str) -> Kept:
    home = federation.home(silo)
    ledger = _lines(home / "budget.jsonl")
    charges: dict[str, int] = {}
    twice = []
    for line in ledger:
        key = f"{line['run']}/{line['round']}"
        charges[key] = charges.get(key, 0) + (1 if line["charged"] else -1)
        if charges[key] > 1:
            twice.append(key)
    log = home / "egress.jsonl"
    logged = {line["sha256"] for line in _lines(log)}
    blobs = federation.store.blobs
    return Kept(
        count={path.parent.name: path.read_text() for path in sorted((home / "state").glob("*/*/count"))},
        charged=sorted(key for key, times in charges.items() if times),
        charged_twice=twice,
        egress=egress.verify(log),
        unlogged=sum(hashlib.sha256(body).hexdigest() not in logged for body in federation.said[silo]),
        updates=[name for container, name in sorted(blobs) if container == names.updates_of(silo)],
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in whole]


def _history(federation: Federation) -> str | None:
    """What no event may do to the state, and nobody to the head."""
    for (_, before), (at, after) in itertools.pairwise(federation.store.history):
        try:
            assert_follows(before, after, at)
        except AssertionError as error:
            return f"version {after.sequence} of {EXPERIMENT} does not follow {before.sequence}: {error}"
    for one, other in itertools.pairwise(federation.store.heads):
        if head_order(one) >= head_order(other):
            return f"the head went from {_head(one)} to {_head(other)}"
    return None
