"""What a silo says about a model: numbers that can be pooled over silos without the rows behind them.

Every metric carries the count it stands for. An AUROC cannot be averaged, so `roc` carries histograms of the
scores, and the pooled AUROC comes from their sums. Nothing here keeps a label or a score. No library is needed:
labels and scores may be lists, numpy arrays or torch tensors.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsFloat, SupportsIndex


@dataclass(frozen=True)
class Metric:
    """One metric, as `silobus.mean`, `sum`, `roc` and `confusion` make it."""

    kind: str
    count: int
    body: dict[str, Any] = field(repr=False)
    summary: float
    """One number for a person who runs the script alone: the value, the AUROC, the accuracy."""

    def report(self, name: str, phase: str) -> dict[str, Any]:
        return {"name": name, "phase": phase, "kind": self.kind, "count": self.count, **self.body}


def mean(total: SupportsFloat, n: SupportsIndex) -> Metric:
    """A mean over n items, given their sum: losses pool correctly only when their counts are known."""
    count = _count(n)
    value = _finite(total, "the total") / count
    return Metric("mean", count, {"value": value}, value)


def sum(value: SupportsFloat, n: SupportsIndex) -> Metric:
    """A number that adds up over silos, such as how many rows were seen."""
    total = _finite(value, "the value")
    return Metric("sum", _count(n), {"value": total}, total)


def roc(labels: Iterable[Any], scores: Iterable[Any], *, bins: int = 256) -> Metric:
    """Histograms of scores in [0, 1], for label 1 and label 0 apart: an AUROC that can be pooled."""
    if not 2 <= operator.index(bins) <= 1000:
        raise ValueError(f"roc takes 2 to 1000 bins, not {bins}")
    counts = ([0] * bins, [0] * bins)
    truths, values = _paired(labels, scores, "scores")
    for label, score in zip(truths, values, strict=True):
        if label not in (0, 1):
            raise ValueError(f"roc is for two classes: labels are 0 or 1, not {label!r}")
        if not 0.0 <= score <= 1.0:  # false for NaN as well
            raise ValueError(f"roc needs scores from 0 to 1, such as probabilities, not {score!r}")
        counts[int(label)][min(int(score * bins), bins - 1)] += 1
    negative, positive = counts
    return Metric("histogram", len(truths), {"positive": positive, "negative": negative}, _auroc(positive, negative))


def confusion(labels: Iterable[Any], predictions: Iterable[Any], classes: int) -> Metric:
    """A confusion matrix over the classes 0 … classes-1: rows are truth, columns prediction."""
    size = operator.index(classes)
    if not 2 <= size <= 200:
        raise ValueError(f"confusion takes 2 to 200 classes, not {size}")
    matrix = [[0] * size for _ in range(size)]
    truths, predicted = _paired(labels, predictions, "predictions")
    for truth, prediction in zip(truths, predicted, strict=True):
        for one in (truth, prediction):
            if not (0 <= one < size and one == int(one)):
                raise ValueError(f"confusion over {size} classes: {one!r} is none of them")
        matrix[int(truth)][int(prediction)] += 1
    right = math.fsum(matrix[one][one] for one in range(size))
    return Metric("confusion", len(truths), {"matrix": matrix}, right / len(truths))


def _finite(value: SupportsFloat, what: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{what} of a metric is {number}: a number that is not finite cannot be pooled")
    return number


def _count(n: SupportsIndex) -> int:
    count = operator.index(n)
    if count < 1:
        raise ValueError(f"a metric stands for at least one item, not {count}: leave out what was not measured")
    return count


def _paired(labels: Iterable[Any], others: Iterable[Any], what: str) -> tuple[list[Any], list[Any]]:
    left, right = _flat(labels), _flat(others)
    if len(left) != len(right):
        raise ValueError(f"{len(left)} labels but {len(right)} {what}")
    _count(len(left))
    return left, right


def _flat(values: Any) -> list[Any]:
    """Numbers out of a tensor or array of one value per row, or out of any other iterable."""
    if hasattr(values, "tolist"):
        return list(values.reshape(-1).tolist())
    return [one.item() if hasattr(one, "item") else one for one in values]


def _auroc(positive: Sequence[int], negative: Sequence[int]) -> float:
    """The chance that a positive scores above a negative; scores in one bin count half."""
    wins, below = 0.0, 0
    for up, down in zip(positive, negative, strict=True):
        wins += up * (below + down / 2)
        below += down
    pairs = math.fsum(positive) * below
    return wins / pairs if pairs else math.nan
