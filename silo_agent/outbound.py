"""What may leave the silo: the owner's outbound rules, applied to what training made.

CORE: pure. Nothing is read or sent here. A tensor that may not leave refuses the whole update, since a model with holes
is no update; a metric that may not leave is only left out. What was left out or changed is said in `notes`, which are
for the silo's own eyes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

from messages.schemas import (
    ConfusionMetric,
    DeclineReason,
    HistogramMetric,
    MeanMetric,
    MetricReport,
    Purpose,
    Role,
    SumMetric,
)
from messages.share import lets_through
from silo_agent.policy import MetricRule, Outbound


@dataclass(frozen=True, slots=True)
class Tensors:
    """One payload of an update as the outbound rules see it."""

    bytes: int
    dtypes: Mapping[str, str]
    """Dtype (`float32`) by tensor name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """What leaves."""

    metrics: tuple[MetricReport, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Nothing leaves. `notes` say why, here only."""

    reason: DeclineReason
    notes: tuple[str, ...]


def apply(
    rules: Outbound, *, purpose: Purpose, update: Mapping[Role, Tensors], samples: int, metrics: list[MetricReport]
) -> Leaving | Refused:
    """The rules, applied to one result. `update` is empty when there is none (evaluation)."""
    if purpose is Purpose.TRAIN and samples < rules.min_samples:
        note = f"trained on {samples} samples; min_samples is {rules.min_samples}"
        return Refused(reason=DeclineReason.TOO_FEW_SAMPLES, notes=(note,))
    if forbidden := forbidden_tensors(rules, update):
        return Refused(reason=DeclineReason.OUTBOUND_FORBIDDEN, notes=forbidden)
    leaving: list[MetricReport] = []
    notes: list[str] = []
    seen: set[tuple[str, str]] = set()
    for metric in metrics:
        label = f"metric {metric.name} ({metric.phase})"
        rule = rules.metrics.get(metric.name)
        if rule is None:
            notes.append(f"{label}: not named by the outbound rules, left out")
        elif (metric.name, metric.phase) in seen:
            notes.append(f"{label}: reported twice, the second left out")
        else:
            seen.add((metric.name, metric.phase))
            allowed = _reduced(metric, rule, rules.min_cell)
            if isinstance(allowed, str):
                notes.append(f"{label}: {allowed}, left out")
            elif metric.count < rules.min_samples:
                notes.append(f"{label}: over {metric.count} items, min_samples is {rules.min_samples}, left out")
            else:
                leaving.append(allowed)
                if allowed != metric:
                    notes.append(f"{label}: rounded, or small cells sent as 0")
    return Leaving(metrics=tuple(leaving), notes=tuple(notes))


def forbidden_tensors(rules: Outbound, update: Mapping[Role, Tensors]) -> tuple[str, ...]:
    """Why these payloads may not leave; empty when they may. `max_bytes` is for all of them together."""
    problems = []
    size = sum(payload.bytes for payload in update.values())
    if size > rules.max_bytes:
        problems.append(f"the update has {size} bytes; max_bytes is {rules.max_bytes}")
    for role, payload in update.items():
        if role not in rules.roles:
            problems.append(f"{role}: not named by `roles` of the outbound rules")
        for name, dtype in payload.dtypes.items():
            tensor = f"tensor {name}" if role == "weights" else f"tensor {name} of {role}"
            if not lets_through(name, rules.tensors):
                problems.append(f"{tensor}: not named by the outbound rules")
            elif dtype not in rules.dtypes:
                problems.append(f"{tensor}: is {dtype}, which the outbound rules do not name")
    return tuple(problems[:20])


def _reduced(metric: MetricReport, rule: MetricRule, min_cell: int) -> MetricReport | str:
    """The metric as it may leave, or why it may not."""
    match metric:
        case MeanMetric() | SumMetric():
            low = -math.inf if rule.min is None else rule.min
            high = math.inf if rule.max is None else rule.max
            if not low <= metric.value <= high:
                return f"outside {low} to {high}"
            if rule.digits is None:
                return metric
            return metric.model_copy(update={"value": round(metric.value, rule.digits)})
        case HistogramMetric():
            positive, negative = _large(metric.positive, min_cell), _large(metric.negative, min_cell)
            left = sum(positive) + sum(negative)
            return metric.model_copy(update={"positive": positive, "negative": negative, "count": left})
        case ConfusionMetric():
            matrix = [_large(row, min_cell) for row in metric.matrix]
            return metric.model_copy(update={"matrix": matrix, "count": sum(map(sum, matrix))})
        case _:
            assert_never(metric)


def _large(cells: list[int], least: int) -> list[int]:
    return [0 if cell < least else cell for cell in cells]
