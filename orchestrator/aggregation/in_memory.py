"""Aggregation of models that are in memory: for notebooks, tests and a first look. The driver's own arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from messages.safetensors_layout import CODES
from orchestrator.aggregation.fedavg import FedAvg
from orchestrator.aggregation.fold import Fold, Weights
from orchestrator.aggregation.strategy import Array, Facts, Strategy


def federated_average(
    models: Sequence[Mapping[str, Array]], samples: Sequence[int], *, strategy: Strategy | None = None
) -> dict[str, Array]:
    """The mean of `models` (arrays by name), each counting by its samples; dtypes are those of the first.

    Raises ValueError when names or shapes differ, Poison when there is nothing to weigh by.
    """
    strategy = strategy or FedAvg()
    if not models or len(models) != len(samples):
        raise ValueError(f"{len(models)} models and {len(samples)} numbers of samples; need one of each, at least")
    weights = Weights.of(strategy, [Facts(str(i), count, 0) for i, count in enumerate(samples)])
    result: dict[str, Array] = {}
    for name, first in models[0].items():
        if first.dtype not in CODES:
            raise ValueError(f"tensor {name} has dtype {first.dtype}; known: {', '.join(map(str, CODES))}")
        fold = Fold(strategy, weights, CODES[first.dtype], first.size)
        for index, model in enumerate(models):
            if model.keys() != models[0].keys() or model[name].shape != first.shape:
                raise ValueError(f"model {index} does not have the tensors of model 0, or not in their shapes")
            fold.add(index, model[name].reshape(-1), None)
        result[name] = fold.finish(None).reshape(first.shape)
    return result
