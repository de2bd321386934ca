"""Aggregation: how the updates of a round become the next global weights.

One file per strategy (or family), all of the shape in `strategy`; `integers` has the rule for tensors that are not
floating point, `distances` what one pass over the updates tells of them. None of these does I/O. `driver` streams blobs
through them and is imported by name, by the shell only. docs/strategies.md is the users' page.
"""

from __future__ import annotations

from orchestrator.aggregation.admission import admit, admitted, least_updates
from orchestrator.aggregation.distances import Distances
from orchestrator.aggregation.functions import (
    fedadagrad,
    fedadam,
    fedavg,
    fedavgm,
    fednova,
    fedprox,
    fedyogi,
    geometric_median,
    krum,
    median,
    multi_krum,
    scaffold,
    trimmed_mean,
)
from orchestrator.aggregation.in_memory import Combined, combine
from orchestrator.aggregation.named import strategy_named, supported
from orchestrator.aggregation.options import Options
from orchestrator.aggregation.strategies.fedavg import FedAvg
from orchestrator.aggregation.strategy import Cohort, Facts, Shares, Strategy

__all__ = [
    "Cohort",
    "Combined",
    "Distances",
    "Facts",
    "FedAvg",
    "Options",
    "Shares",
    "Strategy",
    "admit",
    "admitted",
    "combine",
    "fedadagrad",
    "fedadam",
    "fedavg",
    "fedavgm",
    "fednova",
    "fedprox",
    "fedyogi",
    "geometric_median",
    "krum",
    "least_updates",
    "median",
    "multi_krum",
    "scaffold",
    "strategy_named",
    "supported",
    "trimmed_mean",
]
