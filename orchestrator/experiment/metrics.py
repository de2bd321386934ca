"""Pooling what silos measured: pure arithmetic over counts, nothing about rounds, messages or time.

Averages of averages mean nothing, so every kind has its own rule: means are weighed by their counts, sums are added,
score histograms and confusion matrices are merged and give one AUROC, one accuracy. Merged counts are integers and
means are added in the silos' order, so the result never depends on who arrived first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, assert_never

from pydantic import BaseModel, ConfigDict, Field

from messages.fields import Count, MetricName
from messages.schemas import ConfusionMetric, HistogramMetric, MeanMetric, MetricReport, SumMetric

Phase = Literal["received", "trained"]
Kind = Literal["mean", "sum", "histogram", "confusion"]
Tally = Annotated[HistogramMetric | ConfusionMetric, Field(discriminator="kind")]
"""Counts of several silos added up."""


class MetricNumber(BaseModel):
    """One metric as one number: a silo's, or the pooled one."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    name: MetricName
    phase: Phase
    kind: Kind
    count: Count
    """Items it was measured on."""
    number: float | None
    """The mean, the sum, the AUROC or the accuracy; null where it is not defined (no items, or one class only)."""


class PooledMetric(MetricNumber):
    """One metric over all silos that reported it."""

    silos: int


def number_of(report: MetricReport) -> MetricNumber:
    """What a silo's metric amounts to on its own."""
    return MetricNumber(
        name=report.name, phase=report.phase, kind=report.kind, count=report.count, number=_number(report)
    )


def tally(tallies: Sequence[Tally], reports: Iterable[MetricReport]) -> tuple[Tally, ...]:
    """`tallies` with the counts of one more silo; those of another number of bins or classes are kept apart."""
    merged: dict[tuple[str, str, str, int], Tally] = {_shape(t): t for t in tallies}
    for report in reports:
        if isinstance(report, HistogramMetric | ConfusionMetric):
            key = _shape(report)
            merged[key] = _add(merged[key], report) if key in merged else report
    return tuple(merged[key] for key in sorted(merged))


def pool(by_silo: Sequence[Sequence[MetricNumber]], tallies: Sequence[Tally]) -> tuple[PooledMetric, ...]:
    """Every metric pooled, by name and phase; `by_silo` is in the silos' order.

    Where silos disagree about the kind of a metric, or about its bins, the one measured on most items counts.
    """
    candidates = [*_pooled_numbers(by_silo), *_pooled_tallies(by_silo, tallies)]
    chosen: dict[tuple[str, str], PooledMetric] = {}
    for metric in candidates:
        key = (metric.name, metric.phase)
        if key not in chosen or metric.count > chosen[key].count:
            chosen[key] = metric
    return tuple(chosen[key] for key in sorted(chosen))


def auroc(positive: Sequence[int], negative: Sequence[int]) -> float | None:
    """The area under the ROC curve of binned scores: ties inside a bin count half. None without both classes."""
    positives, negatives = sum(positive), sum(negative)
    if positives == 0 or negatives == 0:
        return None
    doubled = below = 0
    for p, n in zip(positive, negative, strict=True):
        doubled += p * (2 * below + n)
        below += n
    return doubled / (2 * positives * negatives)


def accuracy(matrix: Sequence[Sequence[int]]) -> float | None:
    """The share on the diagonal; None of nothing."""
    total = sum(map(sum, matrix))
    return sum(row[i] for i, row in enumerate(matrix)) / total if total else None


def improves(number: float, best: float | None, *, mode: Literal["max", "min"], min_delta: float) -> bool:
    """Whether `number` beats `best` by more than `min_delta`; the first number always does."""
    if best is None:
        return True
    return number > best + min_delta if mode == "max" else number < best - min_delta


def _number(report: MetricReport) -> float | None:
    match report:
        case MeanMetric():
            return report.value if report.count else None
        case SumMetric():
            return report.value
        case HistogramMetric():
            return auroc(report.positive, report.negative)
        case ConfusionMetric():
            return accuracy(report.matrix)
        case _:
            assert_never(report)


def _shape(report: Tally) -> tuple[str, str, str, int]:
    size = len(report.positive) if isinstance(report, HistogramMetric) else len(report.matrix)
    return (report.name, report.phase, report.kind, size)


def _add(a: Tally, b: Tally) -> Tally:
    if isinstance(a, HistogramMetric) and isinstance(b, HistogramMetric):
        return HistogramMetric.model_construct(
            name=a.name,
            phase=a.phase,
            count=a.count + b.count,
            positive=_sums(a.positive, b.positive),
            negative=_sums(a.negative, b.negative),
        )
    if isinstance(a, ConfusionMetric) and isinstance(b, ConfusionMetric):
        return ConfusionMetric.model_construct(
            name=a.name,
            phase=a.phase,
            count=a.count + b.count,
            matrix=[_sums(x, y) for x, y in zip(a.matrix, b.matrix, strict=True)],
        )
    raise TypeError("only counts of one kind can be added")


def _sums(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _pooled_numbers(by_silo: Sequence[Sequence[MetricNumber]]) -> list[PooledMetric]:
    groups: dict[tuple[str, Phase, Literal["mean", "sum"]], list[MetricNumber]] = {}
    for metric in (m for metrics in by_silo for m in metrics):
        if metric.kind in {"mean", "sum"}:
            groups.setdefault((metric.name, metric.phase, metric.kind), []).append(metric)
    pooled = []
    for (name, phase, kind), members in sorted(groups.items()):
        count = sum(m.count for m in members)
        known = [m for m in members if m.number is not None]
        number: float | None = None
        if kind == "sum":
            number = math.fsum(m.number or 0.0 for m in known)
        elif count:
            number = math.fsum((m.number or 0.0) * (m.count / count) for m in known)
        pooled.append(
            PooledMetric(name=name, phase=phase, kind=kind, count=count, silos=len(members), number=_finite(number))
        )
    return pooled


def _pooled_tallies(by_silo: Sequence[Sequence[MetricNumber]], tallies: Sequence[Tally]) -> list[PooledMetric]:
    pooled = []
    for merged in tallies:
        one = number_of(merged)
        silos = sum(
            any((m.name, m.phase, m.kind) == (one.name, one.phase, one.kind) for m in metrics) for metrics in by_silo
        )
        pooled.append(PooledMetric(**one.model_dump(), silos=silos))
    return pooled


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
