"""How metrics of several silos become one number."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as some

from messages.schemas import ConfusionMetric, HistogramMetric, MeanMetric, MetricReport, SumMetric
from orchestrator.experiment.metrics import PooledMetric, Tally, accuracy, auroc, improves, number_of, pool, tally

COUNTS = some.lists(some.integers(0, 6), min_size=4, max_size=4)


def pooled(*by_silo: list[MetricReport]) -> list[PooledMetric]:
    tallies: tuple[Tally, ...] = ()
    for reports in by_silo:
        tallies = tally(tallies, reports)
    return list(pool([[number_of(r) for r in reports] for reports in by_silo], tallies))


def mean(value: float, count: int, name: str = "loss") -> MeanMetric:
    return MeanMetric(name=name, phase="received", count=count, value=value)


def histogram(positive: list[int], negative: list[int]) -> HistogramMetric:
    count = sum(positive) + sum(negative)
    return HistogramMetric(name="auroc", phase="received", count=count, positive=positive, negative=negative)


def test_means_are_weighed_by_their_counts() -> None:
    (metric,) = pooled([mean(1.0, 10)], [mean(4.0, 30)])
    assert metric == PooledMetric(name="loss", phase="received", kind="mean", count=40, number=3.25, silos=2)


def test_a_mean_over_nothing_has_no_number_and_no_weight() -> None:
    (metric,) = pooled([mean(1.0, 10)], [mean(4.0, 0)])
    assert (metric.number, metric.count) == (1.0, 10)
    (nothing,) = pooled([mean(4.0, 0)])
    assert nothing.number is None


def test_sums_are_added() -> None:
    one = SumMetric(name="seen", phase="trained", count=1, value=2.5)
    (metric,) = pooled([one], [one])
    assert (metric.kind, metric.number, metric.count) == ("sum", 5.0, 2)


def test_pooled_auroc_is_that_of_the_merged_scores_and_not_the_mean_of_the_silos() -> None:
    north, south = histogram([0, 1, 0, 0], [1, 0, 0, 0]), histogram([0, 0, 0, 1], [0, 0, 1, 0])
    assert number_of(north).number == number_of(south).number == 1.0
    (metric,) = pooled([north], [south])
    assert (metric.number, metric.count, metric.silos) == (0.75, 4, 2)


@given(COUNTS, COUNTS)
def test_auroc_is_the_share_of_pairs_in_the_right_order_with_ties_counting_half(pos: list[int], neg: list[int]) -> None:
    positive = [bin_ for bin_, count in enumerate(pos) for _ in range(count)]
    negative = [bin_ for bin_, count in enumerate(neg) for _ in range(count)]
    pairs = [(p > n) + (p == n) / 2 for p, n in itertools.product(positive, negative)]
    expected = sum(pairs) / len(pairs) if pairs else None
    assert auroc(pos, neg) == (None if expected is None else pytest.approx(expected))


def test_confusion_matrices_are_added_and_give_an_accuracy() -> None:
    one = ConfusionMetric(name="cm", phase="received", count=4, matrix=[[2, 1], [1, 0]])
    two = ConfusionMetric(name="cm", phase="received", count=4, matrix=[[0, 0], [0, 4]])
    (metric,) = pooled([one], [two])
    assert (metric.number, metric.count, metric.silos) == (0.75, 8, 2)
    assert accuracy([[0, 0], [0, 0]]) is None


def test_silos_that_count_differently_are_not_mixed_and_most_items_win() -> None:
    coarse, fine = histogram([0, 9], [9, 0]), histogram([0, 0, 1], [0, 1, 0])
    (metric,) = pooled([coarse], [fine], [coarse])
    assert (metric.count, metric.number) == (36, 1.0)


def test_phases_and_names_are_kept_apart() -> None:
    trained = MeanMetric(name="loss", phase="trained", count=1, value=9.0)
    metrics = pooled([mean(1.0, 1), trained, mean(2.0, 1, name="error")])
    assert [(m.name, m.phase, m.number) for m in metrics] == [
        ("error", "received", 2.0),
        ("loss", "received", 1.0),
        ("loss", "trained", 9.0),
    ]


@given(some.permutations(range(3)), some.lists(some.tuples(COUNTS, COUNTS), min_size=3, max_size=3))
def test_the_order_of_arrival_does_not_matter(order: list[int], counts: list[tuple[list[int], list[int]]]) -> None:
    reports = [histogram(p, n) for p, n in counts]
    in_order = tally(tally(tally((), [reports[0]]), [reports[1]]), [reports[2]])
    arrived = tally(tally(tally((), [reports[order[0]]]), [reports[order[1]]]), [reports[order[2]]])
    assert in_order == arrived


@pytest.mark.parametrize(
    ("number", "best", "mode", "better"),
    [
        (0.1, None, "max", True),
        (0.6, 0.5, "max", True),
        (0.5, 0.5, "max", False),
        (0.52, 0.5, "max", False),
        (0.4, 0.5, "min", True),
        (0.5, 0.5, "min", False),
        (0.48, 0.5, "min", False),
    ],
)
def test_an_improvement_exceeds_min_delta(number: float, best: float | None, mode: str, better: bool) -> None:
    assert improves(number, best, mode=mode, min_delta=0.05) is better  # type: ignore[arg-type]
