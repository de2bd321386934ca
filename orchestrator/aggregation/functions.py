"""Each strategy as a function on models in memory, with its options as keywords: for notebooks, tests, and comparing.

from orchestrator.aggregation import fedavg, fedadam, krum
fedavg([{"w": a}, {"w": b}], samples=[10, 30])
fedavg([{"w": a}, {"w": b}], weights=[0.5, 2])
model, state = fedadam(models, samples=samples, base=base, state=state, server_lr=0.05)
krum(models, base=base, f=1)

Those that return a model alone are called alike, so that one can stand for another: `samples`, `steps` and `base` may
be given where they do not count, too. Models are weights: changes to a base (deltas), names of silos, and silos that
were not asked are for `in_memory.combine`, which all of them call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from messages.fields import Scalar
from orchestrator.aggregation.in_memory import Model, Models, State, combine
from orchestrator.aggregation.named import strategy_named
from orchestrator.aggregation.strategy import Array, Strategy

Counts = Sequence[int] | None
"""A whole number of 0 or more for each model."""
Base = Mapping[str, Array]
"""The weights that silos began with."""
Kept = Mapping[str, Mapping[str, Array]] | None
"""What the round before returned as state; None, or empty: begin anew."""
Weights = Sequence[float] | None
"""What each model counts by: a number for each, above 0 and 1e12 at most."""


def fedavg(
    models: Models,
    *,
    samples: Counts = None,
    steps: Counts = None,
    base: Base | None = None,
    weights: Weights = None,
    **options: Scalar,
) -> Model:
    """FedAvg: the mean of the models, each counting by its samples, or by `weights`.

    Options: `weighting` ("samples", or "uniform"); `clip`, or `clip_factor` times the median length: no change of a
    model to `base`, which is needed then, counts as longer.
    Returns the next weights: arrays by name, in the shapes and dtypes of `base`, or without one of the first model.
    Raises ValueError, InvalidWeights and Poison as `combine` does, Poison `invalid-strategy-options` for the options.
    """
    strategy = _weighing("fedavg", options, weights, len(models))
    return combine(strategy, models, samples=samples, steps=steps, base=base).model


def fedprox(
    models: Models,
    *,
    samples: Counts = None,
    steps: Counts = None,
    base: Base | None = None,
    weights: Weights = None,
    **options: Scalar,
) -> Model:
    """FedProx: FedAvg of models that were trained with a proximal term; the server does the same.

    Options: `mu` (has to be given, and changes nothing here); `weighting`, `clip` and `clip_factor` as in `fedavg`.
    Returns the next weights: arrays by name, in the shapes and dtypes of `base`, or without one of the first model.
    Raises ValueError, InvalidWeights and Poison as `combine` does, Poison `invalid-strategy-options` for the options.
    """
    strategy = _weighing("fedprox", options, weights, len(models))
    return combine(strategy, models, samples=samples, steps=steps, base=base).model


def fednova(
    models: Models,
    *,
    samples: Counts = None,
    steps: Counts = None,
    base: Base | None = None,
    weights: Weights = None,
    **options: Scalar,
) -> Model:
    """FedNova: `base` and the mean change per step, times the mean number of steps. Needs `steps` and `base`.

    Options: `weighting` ("samples", or "uniform"; by `weights` where they are given).
    Returns the next weights: arrays by name, in the shapes and dtypes of `base`, or without one of the first model.
    Raises ValueError, InvalidWeights and Poison as `combine` does, Poison `invalid-strategy-options` for the options.
    """
    strategy = _weighing("fednova", options, weights, len(models))
    return combine(strategy, models, samples=samples, steps=steps, base=base).model


def median(
    models: Models,
    *,
    samples: Counts = None,
    steps: Counts = None,
    base: Base | None = None,
    weights: Weights = None,
    **options: Scalar,
) -> Model:
    """The median of each number over the models; each counts the same. 3 models at least.

    It has no options, and takes no `weights`.
    Returns the next weights: arrays by name, in the shapes and dtypes of `base`, or without one of the first model.
    Raises ValueError, InvalidWeights and Poison as `combine` does, Poison `invalid-strategy-options` for the options.
    """
    strategy = _weighing("median", options, weights, len(models))
    return combine(strategy, models, samples=samples, steps=steps, base=base).model


def trimmed_mean(
    models: Models,
    *,
    samples: Counts = None,
    steps: Counts = None,
    base: Base | None = None,
    weights: Weights = None,
    **options: Scalar,
) -> Model:
    """The mean of each number over the models, without the smallest and the greatest few; each counts the same.

    Options, one of them: `fraction` of the models (below 0.5), or `count`, left out on each side. No `weights`.
    Returns the next weights: arrays by name, in the shapes and dtypes of `base`, or without one of the first model.
    Raises ValueError, InvalidWeights and Poison as `combine` does, Poison `invalid-strategy-options` for the options.
    """
    strategy = _weighing("trimmed-mean", options, weights, len(models))
    return combine(strategy, models, samples=samples, steps=steps, base=base).model


def krum(
    models: Models,
    *,
    samples: Counts = None,
    steps: Counts = None,
    base: Base | None = None,
    weights: Weights = None,
    **options: Scalar,
) -> Model:
    """Krum: the model whose nearest neighbours are the nearest. 2f + 3 models at least; needs `base`.

    Options: `f`, how many may lie (has to be given). No `weights`.
    Returns the next weights: arrays by name, in the shapes and dtypes of `base`, or without one of the first model.
    Raises ValueError, InvalidWeights and Poison as `combine` does, Poison `invalid-strategy-options` for the options.
    """
    strategy = _weighing("krum", options, weights, len(models))
    return combine(strategy, models, samples=samples, steps=steps, base=base).model


def multi_krum(
    models: Models,
    *,
    samples: Counts = None,
    steps: Counts = None,
    base: Base | None = None,
    weights: Weights = None,
    **options: Scalar,
) -> Model:
    """Multi-Krum: the mean of the `m` models whose nearest neighbours are the nearest; needs `base`.

    Options, both to be given: `f`, how many may lie, and `m`. 2f + 3 models at least, and f + m. No `weights`.
    Returns the next weights: arrays by name, in the shapes and dtypes of `base`, or without one of the first model.
    Raises ValueError, InvalidWeights and Poison as `combine` does, Poison `invalid-strategy-options` for the options.
    """
    strategy = _weighing("multi-krum", options, weights, len(models))
    return combine(strategy, models, samples=samples, steps=steps, base=base).model


def geometric_median(
    models: Models,
    *,
    samples: Counts = None,
    steps: Counts = None,
    base: Base | None = None,
    weights: Weights = None,
    **options: Scalar,
) -> Model:
    """The geometric median (RFA): the point whose distances to the models add up to the least; needs `base`.

    Options: `smoothing` (1e-6), `iterations` (1000), `weighting` ("uniform", or "samples": what a liar says of itself;
    by `weights` where they are given). 3 models at least. Raises Poison `not-converged` after too few iterations.
    Returns the next weights: arrays by name, in the shapes and dtypes of `base`, or without one of the first model.
    Raises ValueError, InvalidWeights and Poison as `combine` does, Poison `invalid-strategy-options` for the options.
    """
    strategy = _weighing("geometric-median", options, weights, len(models))
    return combine(strategy, models, samples=samples, steps=steps, base=base).model


def fedavgm(
    models: Models,
    *,
    samples: Counts = None,
    base: Base,
    state: Kept = None,
    weights: Weights = None,
    **options: Scalar,
) -> tuple[Model, State]:
    """FedAvgM: FedAvg with momentum at the server.

    Options: `server_lr` (1), `momentum` (0.9); `weighting`, `clip` and `clip_factor` as in `fedavg`.
    Returns the next weights, arrays by name in the shapes and dtypes of `base`, and the `state` for the next round:
    `momentum`, each with a float32 array for every floating tensor, in its shape.
    Raises ValueError, InvalidWeights and Poison as `combine` does, Poison `invalid-strategy-options` for the options.
    """
    made = combine(_weighing("fedavgm", options, weights, len(models)), models, samples=samples, base=base, state=state)
    return made.model, made.state


def fedadagrad(
    models: Models,
    *,
    samples: Counts = None,
    base: Base,
    state: Kept = None,
    weights: Weights = None,
    **options: Scalar,
) -> tuple[Model, State]:
    """FedAdagrad: a step of Adagrad at the server, for which FedAvg's change is the gradient.

    Options: `server_lr` (0.1), `beta_1` (0), `tau` (0.001), `variance` (what it begins as; tau²); `weighting`, `clip`
    and `clip_factor` as in `fedavg`.
    Returns the next weights, arrays by name in the shapes and dtypes of `base`, and the `state` for the next round:
    `variance` and, unless `beta_1` is 0, `momentum`, each with a float32 array for every floating tensor, in its shape.
    Raises ValueError, InvalidWeights and Poison as `combine` does, Poison `invalid-strategy-options` for the options.
    """
    made = combine(
        _weighing("fedadagrad", options, weights, len(models)), models, samples=samples, base=base, state=state
    )
    return made.model, made.state


def fedadam(
    models: Models,
    *,
    samples: Counts = None,
    base: Base,
    state: Kept = None,
    weights: Weights = None,
    **options: Scalar,
) -> tuple[Model, State]:
    """FedAdam: a step of Adam at the server, for which FedAvg's change is the gradient.

    Options: `server_lr` (0.1), `beta_1` (0.9), `beta_2` (0.99), `tau` (0.001), `variance` (what it begins as; tau²);
    `weighting`, `clip` and `clip_factor` as in `fedavg`.
    Returns the next weights, arrays by name in the shapes and dtypes of `base`, and the `state` for the next round:
    `variance` and, unless `beta_1` is 0, `momentum`, each with a float32 array for every floating tensor, in its shape.
    Raises ValueError, InvalidWeights and Poison as `combine` does, Poison `invalid-strategy-options` for the options.
    """
    made = combine(_weighing("fedadam", options, weights, len(models)), models, samples=samples, base=base, state=state)
    return made.model, made.state


def fedyogi(
    models: Models,
    *,
    samples: Counts = None,
    base: Base,
    state: Kept = None,
    weights: Weights = None,
    **options: Scalar,
) -> tuple[Model, State]:
    """FedYogi: a step of Yogi at the server, for which FedAvg's change is the gradient.

    Options: `server_lr` (0.1), `beta_1` (0.9), `beta_2` (0.99), `tau` (0.001), `variance` (what it begins as; tau²);
    `weighting`, `clip` and `clip_factor` as in `fedavg`.
    Returns the next weights, arrays by name in the shapes and dtypes of `base`, and the `state` for the next round:
    `variance` and, unless `beta_1` is 0, `momentum`, each with a float32 array for every floating tensor, in its shape.
    Raises ValueError, InvalidWeights and Poison as `combine` does, Poison `invalid-strategy-options` for the options.
    """
    made = combine(_weighing("fedyogi", options, weights, len(models)), models, samples=samples, base=base, state=state)
    return made.model, made.state


def scaffold(
    models: Models,
    changes: Models,
    *,
    samples: Counts = None,
    base: Base,
    control: Base | None = None,
    members: int | None = None,
    weights: Weights = None,
    **options: Scalar,
) -> tuple[Model, Model]:
    """SCAFFOLD's server: a step from `base` towards the mean of the models, and the mean change of control variates.

    `changes` are the silos' Δcᵢ, `control` is the server's (None: 0), `members` N when not all silos were asked.
    Options: `server_lr` (1), `weighting` ("uniform", or "samples"; by `weights` where they are given).
    Returns the next weights, arrays by name in the shapes and dtypes of `base`, and the next control variate, in those
    of `control`, or without one of the first silo's change. Without `samples` each silo counts 1.
    Raises ValueError, InvalidWeights and Poison as `combine` does, Poison `invalid-strategy-options` for the options.
    """
    roles = _weighing("scaffold", options, weights, len(models)).roles
    made = combine(roles["weights"], models, samples=samples, base=base)
    controls = combine(roles["control"], changes, samples=samples, base=control, form="delta", members=members)
    return made.model, controls.model


def _weighing(name: str, options: Mapping[str, Scalar], weights: Weights, count: int) -> Strategy:
    """The strategy; where `weights` are given, with the option that has them count. Raises Poison, ValueError."""
    if weights is None:
        return strategy_named(name, options)
    given = [float(weight) for weight in weights]
    if len(given) != count or not all(0 < weight <= 1e12 for weight in given):
        raise ValueError(f"{len(given)} weights for {count} models; there is one for each, above 0 and 1e12 at most")
    by_silo = {str(index): weight for index, weight in enumerate(given)}
    return strategy_named(name, {"weighting": "given", **options}, by_silo)
