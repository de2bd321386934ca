"""Each outbound rule: what leaves, what is left out, what refuses everything."""

from typing import Any

import pytest

from messages.schemas import (
    ConfusionMetric,
    DeclineReason,
    HistogramMetric,
    MeanMetric,
    MetricReport,
    Purpose,
    SumMetric,
)
from silo_agent.outbound import Leaving, Refused, Tensors, apply
from silo_agent.policy import Outbound

RULES = Outbound.model_validate(
    {
        "tensors": ["*", "!head.*"],
        "dtypes": ["float32", "int64"],
        "max_bytes": 100,
        "metrics": {"loss": {"min": 0, "max": 10, "digits": 2}, "auroc": {}, "matrix": {}, "rows": {}},
        "min_samples": 20,
        "min_cell": 5,
    }
)
MODEL = Tensors(100, {"body.weight": "float32", "steps": "int64"})


def apply_to(
    *metrics: MetricReport,
    tensors: Tensors | None = MODEL,
    samples: int = 20,
    purpose: Purpose = Purpose.TRAIN,
    **changes: Any,
) -> Leaving | Refused:
    rules = RULES.model_copy(update=changes)
    update = {"weights": tensors} if tensors else {}
    return apply(rules, purpose=purpose, update=update, samples=samples, metrics=list(metrics))


def loss(value: float, count: int = 30, name: str = "loss") -> MeanMetric:
    return MeanMetric(name=name, phase="received", count=count, value=value)


def leaving(result: Leaving | Refused) -> list[MetricReport]:
    assert isinstance(result, Leaving)
    return list(result.metrics)


def reason(result: Leaving | Refused) -> DeclineReason | None:
    return result.reason if isinstance(result, Refused) else None


def test_an_update_inside_every_rule_leaves() -> None:
    assert apply_to() == Leaving(metrics=())


@pytest.mark.parametrize(
    "tensors",
    [
        Tensors(101, {"body.weight": "float32"}),
        Tensors(10, {"body.weight": "float32", "head.weight": "float32"}),
        Tensors(10, {"body.weight": "float64"}),
    ],
)
def test_one_tensor_too_large_or_not_named_or_of_another_dtype_refuses_the_whole_update(tensors: Tensors) -> None:
    assert reason(apply_to(tensors=tensors)) is DeclineReason.OUTBOUND_FORBIDDEN


def test_without_rules_nothing_leaves() -> None:
    tensors = Tensors(1, {"a": "float32"})
    nothing = apply(Outbound(), purpose=Purpose.TRAIN, update={"weights": tensors}, samples=50, metrics=[])
    assert reason(nothing) is DeclineReason.OUTBOUND_FORBIDDEN


@pytest.mark.parametrize(
    ("purpose", "samples", "expected"),
    [
        (Purpose.TRAIN, 20, None),
        (Purpose.TRAIN, 19, DeclineReason.TOO_FEW_SAMPLES),
        (Purpose.INITIALISE, 0, None),
        (Purpose.EVALUATE, 0, None),
    ],
)
def test_an_update_of_too_few_samples_stays(purpose: Purpose, samples: int, expected: DeclineReason | None) -> None:
    assert reason(apply_to(purpose=purpose, samples=samples)) is expected


def test_a_metric_over_too_few_items_stays() -> None:
    assert leaving(apply_to(loss(1.0, count=20))) == [loss(1.0, count=20)]
    assert leaving(apply_to(loss(1.0, count=19))) == []


def test_a_metric_that_is_not_named_is_left_out_and_noted_and_fails_nothing() -> None:
    result = apply_to(loss(1.0), loss(1.0, name="patients"))
    assert leaving(result) == [loss(1.0)]
    assert any("patients" in note for note in result.notes)


@pytest.mark.parametrize(("value", "leaves"), [(0, [0.0]), (10, [10.0]), (10.5, []), (-0.5, [])])
def test_a_value_outside_its_range_stays(value: float, leaves: list[float]) -> None:
    assert [m.value for m in leaving(apply_to(loss(value))) if isinstance(m, MeanMetric)] == leaves


def test_values_are_rounded() -> None:
    assert leaving(apply_to(loss(1.23456))) == [loss(1.23)]
    rows = SumMetric(name="rows", phase="trained", count=40, value=40.123456)
    assert leaving(apply_to(rows)) == [rows]


def test_small_cells_of_a_histogram_are_sent_as_nothing_and_the_count_follows() -> None:
    sent = leaving(
        apply_to(
            HistogramMetric(name="auroc", phase="received", count=33, positive=[4, 5, 0], negative=[20, 1, 3]),
        )
    )
    assert sent == [HistogramMetric(name="auroc", phase="received", count=25, positive=[0, 5, 0], negative=[20, 0, 0])]


def test_small_cells_of_a_confusion_matrix_are_sent_as_nothing_and_the_count_follows() -> None:
    sent = leaving(apply_to(ConfusionMetric(name="matrix", phase="received", count=30, matrix=[[20, 1], [4, 5]])))
    assert sent == [ConfusionMetric(name="matrix", phase="received", count=25, matrix=[[20, 0], [0, 5]])]


def test_a_metric_reported_twice_leaves_once() -> None:
    assert leaving(apply_to(loss(1.0), loss(2.0))) == [loss(1.0)]
