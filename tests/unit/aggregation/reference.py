"""Every strategy once more, straight from its paper: one float64 array per silo, all in memory, nothing in chunks.

`given` is what a reference sees: changes dᵢ = wᵢ − w flattened to one row per silo (n × numbers), samples, steps, and
what was kept. It returns the step from w, and what is kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Kept = dict[str, Array]


@dataclass(frozen=True)
class Given:
    rows: Array
    samples: list[int]
    steps: list[int]
    kept: Mapping[str, Array] = field(default_factory=dict)

    @property
    def p(self) -> Array:
        return np.array(self.samples, float) / sum(self.samples)

    @property
    def mean(self) -> Array:
        return self.p @ self.rows

    def before(self, name: str, initial: float) -> Array:
        return self.kept[name].astype(float) if name in self.kept else np.full(self.rows.shape[1], initial)


Reference = Callable[[Given], tuple[Array, Kept]]


def fedavg(given: Given) -> tuple[Array, Kept]:
    return given.mean, {}


def uniform(given: Given) -> tuple[Array, Kept]:
    return given.rows.mean(axis=0), {}


def clipped(bound: float) -> Reference:
    def reference(given: Given) -> tuple[Array, Kept]:
        norms = np.linalg.norm(given.rows, axis=1)
        factors = np.array([min(1.0, bound / norm) if norm else 1.0 for norm in norms])
        return given.p @ (factors[:, None] * given.rows), {}

    return reference


def clipped_by_median(factor: float) -> Reference:
    def reference(given: Given) -> tuple[Array, Kept]:
        return clipped(factor * float(np.median(np.linalg.norm(given.rows, axis=1))))(given)

    return reference


def fednova(given: Given) -> tuple[Array, Kept]:
    tau = np.array(given.steps, float)
    return (given.p @ tau) * (given.p @ (given.rows / tau[:, None])), {}


def fedavgm(lr: float, beta: float) -> Reference:
    def reference(given: Given) -> tuple[Array, Kept]:
        m = beta * given.before("momentum", 0.0) + given.mean
        return lr * m, {"momentum": m}

    return reference


def adaptive(kind: str, lr: float, b1: float, b2: float, tau: float) -> Reference:
    def reference(given: Given) -> tuple[Array, Kept]:
        d = given.mean
        m = b1 * given.before("momentum", 0.0) + (1 - b1) * d
        v = given.before("variance", tau**2)
        if kind == "adagrad":
            v = v + d**2
        elif kind == "yogi":
            v = v - (1 - b2) * d**2 * np.sign(v - d**2)
        else:
            v = b2 * v + (1 - b2) * d**2
        kept = {"variance": v, "momentum": m} if b1 else {"variance": v}
        return lr * m / (np.sqrt(v) + tau), kept

    return reference


def scaffold(lr: float) -> Reference:
    def reference(given: Given) -> tuple[Array, Kept]:
        return lr * given.rows.mean(axis=0), {}

    return reference


def median(given: Given) -> tuple[Array, Kept]:
    return np.median(given.rows, axis=0), {}


def trimmed(count: Callable[[int], int]) -> Reference:
    def reference(given: Given) -> tuple[Array, Kept]:
        k, n = count(len(given.rows)), len(given.rows)
        return np.sort(given.rows, axis=0)[k : n - k].mean(axis=0), {}

    return reference


def krum(f: int, m: int) -> Reference:
    def reference(given: Given) -> tuple[Array, Kept]:
        n = len(given.rows)
        scores = []
        for i in range(n):
            distances = sorted(float(((given.rows[i] - given.rows[j]) ** 2).sum()) for j in range(n) if j != i)
            scores.append(sum(distances[: n - f - 2]))
        chosen = sorted(range(n), key=lambda i: (scores[i], i))[:m]
        return given.rows[chosen].mean(axis=0), {}

    return reference


def geometric_median(given: Given) -> tuple[Array, Kept]:
    """The same iteration, on whole vectors."""
    p = np.full(len(given.rows), 1 / len(given.rows))
    z = p @ given.rows
    for _ in itertools.repeat(None, 1000):
        beta = p / np.maximum(1e-6, np.linalg.norm(given.rows - z, axis=1))
        before, z = z, (beta @ given.rows) / beta.sum()
        if np.abs(z - before).max(initial=0.0) <= 1e-14 * np.abs(z).max(initial=0.0):
            break
    return z, {}


CASES: list[tuple[str, dict[str, Any], Reference, float]] = [
    ("fedavg", {}, fedavg, 1e-12),
    ("fedavg", {"weighting": "uniform"}, uniform, 1e-12),
    ("fedavg", {"clip": 0.7}, clipped(0.7), 1e-7),
    ("fedavg", {"clip_factor": 0.9}, clipped_by_median(0.9), 1e-7),
    ("fedprox", {"mu": 0.1}, fedavg, 1e-12),
    ("fednova", {}, fednova, 1e-12),
    ("fedavgm", {"server_lr": 0.5, "momentum": 0.8}, fedavgm(0.5, 0.8), 1e-6),
    ("fedadagrad", {"server_lr": 0.3}, adaptive("adagrad", 0.3, 0.0, 0.0, 1e-3), 1e-6),
    ("fedadagrad", {"beta_1": 0.5}, adaptive("adagrad", 0.1, 0.5, 0.0, 1e-3), 1e-6),
    ("fedadam", {"beta_1": 0.8, "beta_2": 0.9, "tau": 0.01}, adaptive("adam", 0.1, 0.8, 0.9, 0.01), 1e-6),
    ("fedyogi", {"server_lr": 0.2}, adaptive("yogi", 0.2, 0.9, 0.99, 1e-3), 1e-6),
    ("scaffold", {"server_lr": 0.7}, scaffold(0.7), 1e-12),
    ("median", {}, median, 1e-12),
    ("trimmed-mean", {"count": 1}, trimmed(lambda _: 1), 1e-12),
    ("trimmed-mean", {"fraction": 0.3}, trimmed(lambda n: int(0.3 * n)), 1e-12),
    ("krum", {"f": 1}, krum(1, 1), 1e-12),
    ("multi-krum", {"f": 1, "m": 3}, krum(1, 3), 1e-12),
    ("geometric-median", {}, geometric_median, 1e-6),
]
"""Strategy, options, reference, and how far they may be apart, relative to the largest number of an update or a step.

1e-12 is the rounding of float64 sums; 1e-7 and more that of shares with 24 bits, or of what is kept as float32.
"""
