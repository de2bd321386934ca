"""The study: what is compared, in which settings, how learning rates are chosen, and what is told of the runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Final

from benchmarks.quality.data import SILOS, divided
from benchmarks.quality.federation import Curve, Method, run

ROUNDS: Final = 100
TARGET: Final = 0.90
LAST: Final = 10
"""The accuracy at the end is the mean over so many rounds: with sampling single rounds jump."""
SEEDS: Final = tuple(range(5))
TUNING_SEEDS: Final = (100, 101, 102)

RATES: Final = (0.03, 0.06, 0.1, 0.2, 0.3, 0.5, 1.0)
OPTIONS: Final[Mapping[str, Mapping[str, Sequence[float]]]] = {
    "fedavg": {},
    "fedprox": {"mu": (0.001, 0.01, 0.1, 1.0)},
    "scaffold": {},
    "fedadam": {"server_lr": (0.003, 0.01, 0.03, 0.1, 0.3)},
}
"""Strategies, and what of theirs is tuned together with the silos' learning rate; the rest is as it comes."""
BASELINE: Final = "fedavg"
T95: Final = 2.776
"""Student's t for a 95 % interval of the mean of five."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where methods are compared."""

    name: str
    asked: int
    """Silos that take part in a round."""


SETTINGS: Final = (Setting("all ten silos in each round", len(SILOS)), Setting("three of ten, drawn anew", 3))


@dataclass(frozen=True, slots=True)
class Task:
    """One run to be made."""

    method: Method
    seed: int
    asked: int
    rounds: int
    tuning: bool


@dataclass(frozen=True, slots=True)
class Result:
    """A method in a setting: what was chosen for it, and its runs over the evaluation's seeds."""

    setting: Setting
    method: Method
    tried: Sequence[tuple[Method, float]]
    """All of the grid with what it was chosen by: the validation accuracy, mean of all rounds and tuning seeds."""
    curves: Sequence[Curve]

    @property
    def at_edge(self) -> bool:
        """Whether the chosen learning rate is the grid's smallest or greatest: a better one may lie outside."""
        return self.method.lr in (min(one.lr for one, _ in self.tried), max(one.lr for one, _ in self.tried))

    @property
    def final(self) -> list[float]:
        """For each seed the test accuracy, mean of the last rounds."""
        return [fmean(curve.accuracy[-LAST:]) for curve in self.curves]

    def reached(self, target: float) -> list[int | None]:
        """For each seed the first round with that test accuracy; None: in no round."""
        return [first(curve, target) for curve in self.curves]

    def moved(self, target: float) -> list[int]:
        """The bytes until then, of the seeds that got there."""
        found = zip(self.curves, self.reached(target), strict=True)
        return [curve.moved[number - 1] for curve, number in found if number is not None]


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two methods over the same seeds, one pair per seed."""

    pairs: Sequence[float]

    @property
    def mean(self) -> float:
        return fmean(self.pairs)

    @property
    def half_width(self) -> float:
        """Of the 95 % interval of the mean, by Student's t; for five pairs."""
        return T95 * stdev(self.pairs) / math.sqrt(len(self.pairs))

    @property
    def shows(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.mean) > self.half_width


def first(curve: Curve, target: float) -> int | None:
    """The first round with at least that accuracy, counted from 1."""
    return next((number for number, value in enumerate(curve.accuracy, start=1) if value >= target), None)


def grid(strategy: str) -> Iterator[Method]:
    """All that is tried for a strategy."""
    choices: list[dict[str, float]] = [{}]
    for name, values in OPTIONS[strategy].items():
        choices = [{**one, name: value} for one in choices for value in values]
    return (Method(strategy, lr, one) for lr in RATES for one in choices)


def curve(task: Task) -> Curve:
    """Makes one run, in whichever process."""
    division = divided(task.seed, tuning=task.tuning)
    return run(task.method, division, task.rounds, asked=task.asked)


def study(workers: Executor, rounds: int, tell: Callable[[str], None]) -> list[Result]:
    """All settings and methods; `tell` is given a line for each."""
    results = []
    for setting in SETTINGS:
        for strategy in OPTIONS:
            found = compare(workers, setting, strategy, rounds)
            results.append(found)
            tell(f"{setting.name}: {strategy} lr {found.method.lr:g} {dict(found.method.options)}")
    return results


def compare(workers: Executor, setting: Setting, strategy: str, rounds: int) -> Result:
    """Tunes, then evaluates, one strategy in one setting."""
    methods = list(grid(strategy))
    tasks = [Task(method, seed, setting.asked, rounds, True) for method in methods for seed in TUNING_SEEDS]
    areas = [fmean(one.accuracy) for one in workers.map(curve, tasks, chunksize=3)]
    width = len(TUNING_SEEDS)
    tried = [(method, fmean(areas[i * width : (i + 1) * width])) for i, method in enumerate(methods)]
    chosen = max(tried, key=lambda pair: pair[1])[0]
    evaluated = list(workers.map(curve, [Task(chosen, seed, setting.asked, rounds, False) for seed in SEEDS]))
    return Result(setting, chosen, tried, evaluated)
