"""What an experiment asked for, in words: how its model is made. Nothing is read here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from messages.experiments import Schedule, StartExperiment, Transfer
from messages.fields import Scalar
from orchestrator.cli import checked
from orchestrator.experiment.state import Run

_MOST: Final = 10
"""Silos that are named in a line."""
_ALL: Final = StartExperiment.model_fields["share"].default


def lines(run: Run) -> Iterator[tuple[str, str]]:
    """The lines of `status`, each with its label: the strategy, and what else is not as it is when nothing is said."""
    request = run.request
    strategy = request.strategy
    weights = _some(f"{silo} {weight:g}" for silo, weight in strategy.weights.items())
    parts = [strategy.name, _named(strategy.options), *([f"weights {weights}"] if weights else [])]
    yield "strategy", ", ".join(filter(None, parts))
    common = _named({**run.hyperparameters, **request.hyperparameters})
    overrides = (f"{silo}: {_named(values)}" for silo, values in request.overrides.items() if values)
    if trains := "; ".join(filter(None, (common, _some(overrides, "; ")))):
        yield "trains with", trains
    if request.transfer != Transfer():
        yield "transfer", ", ".join(filter(None, (request.transfer.form, request.transfer.dtype)))
    if request.share != _ALL:
        yield "share", " ".join(request.share)
    if run.seed is not None:
        yield "sample", f"{request.asked(len(run.silos))} of {len(run.silos)} silos a round, seed {run.seed}"
    if request.checks is not None:
        yield "checks", checked.bounds(request.checks)


def _named(values: Mapping[str, Scalar | Schedule]) -> str:
    return ", ".join(f"{name} {_said(value)}" for name, value in values.items())


def _said(value: Scalar | Schedule) -> str:
    """As the start has it."""
    match value:
        case Schedule(by_round=by_round):
            first, *later = sorted(by_round.items())
            return _said(first[1]) + "".join(f" (from round {number} {_said(then)})" for number, then in later)
        case str():
            return value
        case _:
            return json.dumps(value)


def _some(parts: Iterable[str], between: str = ", ") -> str:
    found = list(parts)
    more = [f"and {len(found) - _MOST} more"] if len(found) > _MOST else []
    return between.join((*found[:_MOST], *more))
