"""Which strategies there are: ours, and those that somebody installed beside them.

A package offers its own under the entry point group `silobus.strategies`, by a name that experiments then use:

    [project.entry-points."silobus.strategies"]
    my-mean = "my_package:MyMean"

Whoever installs it lets its code run in the orchestrator.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from messages.errors import Poison
from messages.fields import Scalar
from orchestrator.aggregation.options import Options
from orchestrator.aggregation.strategies.adaptive import FedAdagrad, FedAdam, FedYogi
from orchestrator.aggregation.strategies.fedavg import FedAvg
from orchestrator.aggregation.strategies.fedavgm import FedAvgM
from orchestrator.aggregation.strategies.fednova import FedNova
from orchestrator.aggregation.strategies.fedprox import FedProx
from orchestrator.aggregation.strategies.geometric_median import GeometricMedian
from orchestrator.aggregation.strategies.krum import Krum, MultiKrum
from orchestrator.aggregation.strategies.median import Median
from orchestrator.aggregation.strategies.scaffold import Scaffold
from orchestrator.aggregation.strategies.trimmed_mean import TrimmedMean
from orchestrator.aggregation.strategy import Strategy

GROUP: Final = "silobus.strategies"
_OURS: Final[Mapping[str, type[Strategy]]] = {
    kind.name: kind
    for kind in (
        FedAdagrad,
        FedAdam,
        FedAvg,
        FedAvgM,
        FedNova,
        FedProx,
        FedYogi,
        GeometricMedian,
        Krum,
        Median,
        MultiKrum,
        Scaffold,
        TrimmedMean,
    )
}


def supported() -> tuple[str, ...]:
    """The names of all strategies."""
    return tuple(sorted({*_OURS, *entry_points(group=GROUP).names}))


def strategy_named(name: str, options: Mapping[str, Scalar], weights: Mapping[str, float] | None = None) -> Strategy:
    """The strategy an experiment asks for; `weights` are what each silo counts by, where that is given.

    Raises Poison: `unknown-strategy`, `invalid-strategy-options`, `strategy-failed` (one that is not ours).
    """
    kind = _OURS.get(name) or _installed(name)
    try:
        return kind.from_options(Options(name, options, weights))
    except Poison:
        raise
    except Exception as error:
        if name in _OURS:
            raise
        raise Poison(
            "strategy-failed", f"Strategy {name} could not be made: {type(error).__name__}: {error}"
        ) from error


def _installed(name: str) -> type[Strategy]:
    found: tuple[EntryPoint, ...] = tuple(entry_points(group=GROUP, name=name))
    if not found:
        raise Poison(
            "unknown-strategy",
            f"There is no strategy {name[:80]!r}; there is: {', '.join(supported())}. One of your own has to be "
            "installed where orchestrators run.",
        )
    where = found[0].value
    if len({one.value for one in found}) > 1:
        raise Poison(
            "strategy-failed", f"Two packages offer a strategy {name}: {where} and {found[1].value}. Remove one."
        )
    try:
        kind = found[0].load()
    except Exception as error:
        raise Poison("strategy-failed", f"Strategy {name} ({where}) cannot be imported: {error!r}"[:500]) from error
    if not (isinstance(kind, type) and issubclass(kind, Strategy)):
        raise Poison(
            "strategy-failed", f"Strategy {name} ({where}) is no subclass of orchestrator.aggregation.Strategy."
        )
    return kind
