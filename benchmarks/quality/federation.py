"""One run: a method over one division of the data, round by round, with the product's aggregation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from safetensors.numpy import save

from benchmarks.quality import clients
from benchmarks.quality.data import Division, Model
from messages.errors import InvalidWeights
from messages.fields import Scalar
from orchestrator.aggregation import combine, strategy_named
from orchestrator.aggregation.in_memory import State
from orchestrator.aggregation.strategies.scaffold import Scaffold
from orchestrator.experiment.membership import drawing_order

STEPS: Final = 20
"""Local steps of a round, K, in every silo: 640 images, more than four times what a silo has in the mean."""


@dataclass(frozen=True, slots=True)
class Method:
    """A strategy with its options, and the silos' learning rate."""

    strategy: str
    lr: float
    options: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Curve:
    """The test accuracy after each round, and all that silos had read and written by then, in bytes.

    A run whose weights became infinite has 0 from then on: a real one fails there (`not-finite`).
    """

    accuracy: tuple[float, ...]
    moved: tuple[int, ...]


def run(method: Method, division: Division, rounds: int, *, asked: int | None = None) -> Curve:
    """`asked` of the silos take part in each round; None: all."""
    asked = asked or len(division.silos)
    accuracies, moved = [], []
    total = 0
    with suppress(InvalidWeights):
        for number, model in enumerate(models(method, division, rounds, asked=asked), start=1):
            total += bytes_of_a_silo(method, model, number) * asked
            moved.append(total)
            accuracies.append(clients.accuracy(model, division.test_images, division.test_labels))
    accuracies += [0.0] * (rounds - len(accuracies))
    return Curve(tuple(accuracies), tuple(moved))


def bytes_of_a_silo(method: Method, model: Model, number: int) -> int:
    """What one silo reads and writes in round `number`: files of weights; SCAFFOLD's control variates, which are as
    large, from the first round to the orchestrator, and back from the second."""
    size = len(save(model))
    files = 2 if method.strategy != "scaffold" else 3 + (number > 1)
    return files * size


def models(method: Method, division: Division, rounds: int, *, asked: int, steps: int = STEPS) -> Iterator[Model]:
    """The global weights after each round. Raises InvalidWeights when a number of it is not finite."""
    strategy = strategy_named(method.strategy, method.options)
    model = division.initial()
    state: State | None = None
    common: Model | None = None
    own = {name: np.zeros((len(division.silos), *value.shape), np.float32) for name, value in model.items()}
    for number in range(1, rounds + 1):
        silos = sample(division.seed, number, len(division.silos), asked)
        rows = division.batches(number, steps)[silos]
        images, labels = division.images[rows], division.labels[rows]
        with np.errstate(over="ignore", invalid="ignore"):
            correction = None
            if isinstance(strategy, Scaffold):
                correction = {name: (0 if common is None else common[name]) - own[name][silos] for name in own}
            mu = float(method.options.get("mu", 0.0))
            trained = clients.train(model, images, labels, lr=method.lr, mu=mu, correction=correction)
            samples = [division.samples[silo] for silo in silos]
            made = combine(strategy, each(trained), samples=samples, base=model, state=state)
            if isinstance(strategy, Scaffold):
                changes = clients.changes_of_variates(model, trained, common, steps, method.lr)
                for name, change in changes.items():
                    own[name][silos] += change
                role, members = strategy.roles["control"], len(division.silos)
                common = combine(role, each(changes), base=common, form="delta", members=members).model
            model, state = made.model, made.state
        yield model


def sample(seed: int, number: int, silos: int, asked: int) -> list[int]:
    """Which silos round `number` asks: the product's way to draw them, in silo order."""
    drawn = drawing_order(seed, number, [str(silo) for silo in range(silos)])[:asked]
    return sorted(int(silo) for silo in drawn)


def each(stacked: Model) -> list[Model]:
    """The silos' own, of what is stacked."""
    count = len(next(iter(stacked.values())))
    return [{name: value[silo] for name, value in stacked.items()} for silo in range(count)]
