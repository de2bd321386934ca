"""Metrics that can be pooled: each carries its count, and nothing of the rows."""

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

import silobus
from messages.schemas import MetricReport


def test_mean_divides_once_and_carries_its_count() -> None:
    report = silobus.mean(torch.tensor(6.0), 4).report("loss", "received")
    assert report == {"name": "loss", "phase": "received", "kind": "mean", "count": 4, "value": 1.5}


def test_sum_carries_what_adds_up() -> None:
    report = silobus.sum(np.float32(3), np.int64(5)).report("seen", "trained")
    assert report == {"name": "seen", "phase": "trained", "kind": "sum", "count": 5, "value": 3.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, torch.tensor(math.nan)])
@pytest.mark.parametrize("make", [silobus.mean, silobus.sum])
def test_a_value_that_is_not_finite_is_refused(make: Any, value: Any) -> None:
    with pytest.raises(ValueError, match="not finite"):
        make(value, 3)


@pytest.mark.parametrize("n", [0, -1])
def test_a_metric_of_nothing_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match="at least one item"):
        silobus.mean(0.0, n)


def test_a_count_is_a_whole_number() -> None:
    with pytest.raises(TypeError):
        silobus.mean(1.0, 2.5)  # type: ignore[arg-type]


def test_roc_counts_scores_in_equal_bins_by_class() -> None:
    metric = silobus.roc([0, 0, 1, 1, 1], [0.0, 0.26, 0.25, 0.999, 1.0], bins=4)
    assert (metric.count, metric.body) == (5, {"positive": [0, 1, 0, 2], "negative": [1, 1, 0, 0]})


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_roc_is_the_auroc_whatever_the_rows_come_in(kind: Any) -> None:
    from sklearn.metrics import roc_auc_score  # here, since every worker would have to import it for two seconds

    rng = random.Random(1)
    labels = [rng.randrange(2) for _ in range(400)]
    scores = [min(1.0, max(0.0, rng.gauss(0.4 + 0.2 * label, 0.2))) for label in labels]
    metric = silobus.roc(kind(labels), kind(scores), bins=1000)
    assert metric.summary == pytest.approx(roc_auc_score(labels, scores), abs=2e-3)


def test_scores_that_cannot_be_told_apart_are_worth_a_half() -> None:
    assert silobus.roc([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5]).summary == 0.5
    assert silobus.roc([0, 1, 1], [0.1, 0.1, 0.9], bins=4).summary == 0.75


def test_roc_of_one_class_has_no_auroc_but_can_be_pooled() -> None:
    metric = silobus.roc([1, 1], [0.2, 0.9], bins=2)
    assert math.isnan(metric.summary)
    assert metric.body == {"positive": [1, 1], "negative": [0, 0]}


@pytest.mark.parametrize("score", [-0.1, 1.1, math.nan, math.inf])
def test_roc_refuses_scores_that_are_no_probabilities(score: float) -> None:
    with pytest.raises(ValueError, match="scores from 0 to 1"):
        silobus.roc([0, 1], [0.5, score])


@pytest.mark.parametrize("label", [2, -1, 0.5, math.nan])
def test_roc_refuses_labels_of_more_than_two_classes(label: float) -> None:
    with pytest.raises(ValueError, match="labels are 0 or 1"):
        silobus.roc([0, label], [0.5, 0.5])


def test_rows_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="3 labels but 2 scores"):
        silobus.roc([0, 1, 1], [0.5, 0.5])


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_confusion_has_truth_in_rows_and_prediction_in_columns(kind: Any) -> None:
    metric = silobus.confusion(kind([0, 0, 1, 2, 2, 2]), kind([0, 1, 1, 2, 2, 0]), classes=3)
    assert metric.body == {"matrix": [[1, 1, 0], [0, 1, 0], [1, 0, 2]]}
    assert metric.summary == pytest.approx(4 / 6)


@pytest.mark.parametrize("stranger", [3, -1, 0.5])
def test_confusion_refuses_a_class_it_does_not_have(stranger: float) -> None:
    with pytest.raises(ValueError, match="none of them"):
        silobus.confusion([0, 1], [0, stranger], classes=3)


@pytest.mark.parametrize(
    "metric",
    [silobus.mean(1, 2), silobus.sum(1, 2), silobus.roc([0, 1], [0.1, 0.2]), silobus.confusion([0], [1], classes=2)],
    ids=lambda metric: metric.kind,
)
def test_every_metric_is_one_that_the_messages_take(metric: silobus.Metric) -> None:
    parsed = TypeAdapter(MetricReport).validate_python(metric.report("m", "received"))
    assert (parsed.kind, parsed.count) == (metric.kind, metric.count)
