"""What silos do in a round, all of them at once: steps of plain SGD on cross-entropy, on stacked arrays.

The first axis is the silo. The formulas are those of `silobus.drift`: FedProx's gradient μ (w − wᵗ), SCAFFOLD's
correction c − cᵢ and, after K steps at η, Δcᵢ = (x − yᵢ)/(Kη) − c.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.quality.data import Array, Model


def train(
    base: Mapping[str, Array],
    images: Array,
    labels: Array,
    *,
    lr: float,
    mu: float = 0.0,
    correction: Mapping[str, Array] | None = None,
) -> Model:
    """The silos' models, stacked: (silos, …), float32. `images` are (silos, steps, batch, 64), `labels` (silos, steps,
    batch); `correction`, stacked too, is added to every gradient."""
    silos, steps, batch = labels.shape
    model = {name: np.repeat(value[None], silos, axis=0) for name, value in base.items()}
    rate = np.float32(lr)
    one_hot = np.eye(10, dtype=np.float32)[labels]
    for step in range(steps):
        gradients = _gradients(model, images[:, step], one_hot[:, step], batch)
        for name, gradient in gradients.items():
            near = np.float32(mu) * (model[name] - base[name]) if mu else 0
            model[name] -= rate * (gradient + near + (0 if correction is None else correction[name]))
    return model


def _gradients(model: Model, x: Array, truth: Array, batch: int) -> Model:
    hidden = np.maximum(x @ model["0.weight"].transpose(0, 2, 1) + model["0.bias"][:, None], 0)
    error = (_softmax(hidden @ model["2.weight"].transpose(0, 2, 1) + model["2.bias"][:, None]) - truth) / batch
    back = (error @ model["2.weight"]) * (hidden > 0)
    return {
        "0.weight": back.transpose(0, 2, 1) @ x,
        "0.bias": back.sum(1),
        "2.weight": error.transpose(0, 2, 1) @ hidden,
        "2.bias": error.sum(1),
    }


def _softmax(logits: Array) -> Array:
    powers: Array = np.exp(logits - logits.max(-1, keepdims=True))
    powers /= powers.sum(-1, keepdims=True)
    return powers


def changes_of_variates(base: Model, trained: Model, common: Model | None, steps: int, lr: float) -> Model:
    """Δcᵢ, stacked: (x − yᵢ)/(Kη) − c. Without `common` c is 0."""
    moved = {name: (base[name] - trained[name]) / np.float32(steps * lr) for name in trained}
    return moved if common is None else {name: moved[name] - common[name] for name in moved}


def accuracy(model: Mapping[str, Array], images: Array, labels: Array) -> float:
    """The share of images that get their digit."""
    hidden = np.maximum(images @ model["0.weight"].T + model["0.bias"], 0)
    guesses = (hidden @ model["2.weight"].T + model["2.bias"]).argmax(-1)
    return float((guesses == labels).mean())
