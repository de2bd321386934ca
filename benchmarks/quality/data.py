"""The digits of scikit-learn: who holds which, and what every silo does with them in a round.

360 images are for tests, the same ones always. For tuning, a fifth of the others takes their place, so that no choice
was made by looking at what it is judged by. What is left is divided among silos: for each digit the silos' shares are
drawn from a Dirichlet distribution. A seed means one division, one initial model and one sequence of batches; methods
that are compared get the same.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Model = dict[str, Array]

SILOS: Final = tuple(f"silo-{number}" for number in range(10))
ALPHA: Final = 0.1
FEWEST: Final = 10
"""Images that every silo has at least; a division with a smaller silo is drawn again."""
TESTS: Final = 360
HIDDEN: Final = 32
BATCH: Final = 32


@dataclass(frozen=True, slots=True)
class Division:
    """What one seed makes of the data. Images are (n, 64) in float32, from 0 to 1; labels (n) in int64."""

    seed: int
    images: Array
    labels: Array
    silos: tuple[Array, ...]
    """Each silo's rows of the two."""
    test_images: Array
    test_labels: Array

    @property
    def samples(self) -> list[int]:
        """How many images each silo has."""
        return [len(rows) for rows in self.silos]

    def batches(self, number: int, steps: int) -> Array:
        """Rows (silos, steps, BATCH) that each silo steps on in that round: drawn from its own, with replacement."""
        shape = (len(self.silos), steps, BATCH)
        drawn = np.random.default_rng([self.seed, 2, number]).random(shape)
        return np.stack([rows[(one * len(rows)).astype(np.int64)] for rows, one in zip(self.silos, drawn, strict=True)])

    def initial(self) -> Model:
        """A multilayer perceptron, 64 → HIDDEN → 10, by the names and shapes of torch's `Sequential(Linear, ReLU,
        Linear)`, drawn as torch does it: uniformly within 1/√(inputs)."""
        rng = np.random.default_rng([self.seed, 1])
        model = Model()
        for name, inputs, outputs in (("0", 64, HIDDEN), ("2", HIDDEN, 10)):
            bound = inputs**-0.5
            model[f"{name}.weight"] = rng.uniform(-bound, bound, (outputs, inputs)).astype(np.float32)
            model[f"{name}.bias"] = rng.uniform(-bound, bound, outputs).astype(np.float32)
        return model


def divided(seed: int, *, tuning: bool = False, silos: Sequence[str] = SILOS) -> Division:
    """The division of that seed; with `tuning`, the test images take no part."""
    images, labels = _digits()
    order = np.random.default_rng(0).permutation(len(labels))
    test, rows = order[:TESTS], order[TESTS:]
    rng = np.random.default_rng([seed, 0])
    if tuning:
        rows = rng.permutation(rows)
        test, rows = np.split(rows, [len(rows) // 5])
    parts = _parts(rows, labels, len(silos), rng)
    while min(map(len, parts)) < FEWEST:
        parts = _parts(rows, labels, len(silos), rng)
    return Division(seed, images, labels, tuple(parts), images[test], labels[test])


def _parts(rows: Array, labels: Array, silos: int, rng: np.random.Generator) -> list[Array]:
    pieces = []
    for digit in range(10):
        own = rows[labels[rows] == digit]
        cuts = (np.cumsum(rng.dirichlet([ALPHA] * silos))[:-1] * len(own)).astype(int)
        pieces.append(np.split(own, cuts))
    return [np.concatenate([piece[silo] for piece in pieces]) for silo in range(silos)]


@functools.cache
def _digits() -> tuple[Array, Array]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)
