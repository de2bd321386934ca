"""Aggregation: how the updates of a round become the next global weights.

One file per strategy, all of the shape in `strategy`; `integers` has the rule for tensors that are not floating point.
None of these does I/O. `driver` streams blobs through them and is imported by name, by the shell only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from messages.errors import Poison
from orchestrator.aggregation.fedavg import FedAvg
from orchestrator.aggregation.in_memory import federated_average
from orchestrator.aggregation.strategy import Facts, Options, Strategy

__all__ = ["Facts", "FedAvg", "Strategy", "federated_average", "strategy_named", "supported"]

_STRATEGIES: Final[Mapping[str, Callable[[Options], Strategy]]] = {
    "fedavg": FedAvg.from_options,
}


def supported() -> tuple[str, ...]:
    """The names of all strategies."""
    return tuple(sorted(_STRATEGIES))


def strategy_named(name: str, options: Options) -> Strategy:
    """The strategy an experiment asks for. Raises Poison: `unknown-strategy`, `invalid-strategy-options`."""
    if name not in _STRATEGIES:
        raise Poison("unknown-strategy", f"There is no strategy {name[:80]!r}; there is: {', '.join(supported())}.")
    return _STRATEGIES[name](options)
