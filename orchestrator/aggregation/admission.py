"""Whether an experiment and its strategy go together: looked at before anything is trained in vain. Pure, but for the
entry points that `named` reads.
"""

from __future__ import annotations

import math
import re
from typing import Final, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from messages import names
from messages.errors import Poison
from messages.experiments import StartExperiment
from messages.fields import ParameterName, Scalar
from messages.schemas import Role
from orchestrator.aggregation.fold import blamed, check_needs, whole_number
from orchestrator.aggregation.named import strategy_named
from orchestrator.aggregation.strategy import GREATEST_KEPT, Facts, Strategy

_ROLES: Final = frozenset(get_args(Role))
_HYPERPARAMETERS: Final = TypeAdapter(dict[ParameterName, Scalar], config=ConfigDict(allow_inf_nan=False))
"""As states and announcements have them."""


def admitted(request: StartExperiment) -> Strategy:
    """The strategy that an experiment asks for.

    Raises Poison `unknown-strategy`, `invalid-strategy-options`, `strategy-failed`; and where the rest of the request
    does not go with it, `weights-without-silos`, `hyperparameter-of-strategy`, `checks-of-weights-only`,
    `checks-that-bound-nothing`. Whether its quorums are enough for the strategy (`least_updates`) shows with its
    members.
    """
    asked = request.strategy
    strategy = strategy_named(asked.name, asked.options, asked.weights)
    with blamed(strategy):
        _check_strategy(strategy)
        _check_weights(request)
        _check_hyperparameters(request, strategy)
        _check_checks(request, strategy)
    return strategy


def least_updates(strategy: Strategy) -> int:
    """How many updates a round has to have for a strategy that is admitted, whichever role needs them."""
    return max(one.least for one in strategy.roles.values())


def admit(request: StartExperiment, facts: Facts) -> None:
    """Raises Poison for an update that the experiment's strategy could not weigh, before it counts."""
    asked = request.strategy
    for one in strategy_named(asked.name, asked.options, asked.weights).roles.values():
        with blamed(one):
            one.admit(facts)


def _check_strategy(strategy: Strategy) -> None:
    """Raises ValueError for one that could not be summed with: it need not be ours. Whatever it raises shows here too.

    What it keeps lies in files beside the roles', under its own names.
    """
    if "weights" not in strategy.roles or not strategy.roles.keys() <= _ROLES:
        raise ValueError(f"its roles are {sorted(strategy.roles)}: `weights` has to be there, and may be `control`")
    taken = set(_ROLES)
    for one in strategy.roles.values():
        _ = one.measures, one.from_zeros
        if whole_number("least", one.least) < 1:
            raise ValueError(f"it needs {one.least} updates; one at least")
        check_needs(one, one.least)
        for name, initial in one.state.items():
            if name in taken or not re.fullmatch(names.NAME_PATTERN, name):
                raise ValueError(
                    f"it keeps {name!r}: a name has lower-case letters, digits and hyphens, 40 at most; none of "
                    f"{', '.join(sorted(taken))}, which lie beside it"
                )
            if not math.isfinite(initial) or abs(initial) > GREATEST_KEPT:
                raise ValueError(f"{name} begins as {initial}, which is no finite float32")
            taken.add(name)
    for hyperparameter, value in strategy.hyperparameters.items():
        try:
            _HYPERPARAMETERS.validate_python({hyperparameter: value})
        except ValidationError as error:
            raise ValueError(
                "it has silos train with what no announcement can carry (names such as proximal_mu; true, false, a "
                f"finite int or float, or 200 characters): {str(hyperparameter)[:70]!r}, {value!r}"
            ) from error


def _check_weights(request: StartExperiment) -> None:
    weights = request.strategy.weights
    if not weights:
        return
    if request.silos is None:
        raise Poison(
            "weights-without-silos",
            "The strategy's `weights` name silos, but the experiment does not say which take part: one that joins "
            "later would have no weight. Add `silos`.",
        )
    if wrong := sorted(set(weights) ^ set(request.silos)):
        raise Poison(
            "invalid-strategy-options",
            f"The strategy's `weights` name each of the experiment's silos, and no other. Look at: {', '.join(wrong)}.",
        )


def _check_hyperparameters(request: StartExperiment, strategy: Strategy) -> None:
    named = {*request.hyperparameters, *(name for silo in request.overrides.values() for name in silo)}
    if double := sorted(named & set(strategy.hyperparameters)):
        raise Poison(
            "hyperparameter-of-strategy",
            f"{double[0]} is what strategy {strategy.name} has silos train with. Set it by the strategy's options, and "
            "leave it out of the hyperparameters.",
        )


def _check_checks(request: StartExperiment, strategy: Strategy) -> None:
    """Bounds are on the change of weights: how long an honest change of anything else is, is in no unit of theirs."""
    checks, others = request.checks, sorted(strategy.roles.keys() - {"weights"})
    if checks is None or not checks.bounds:
        return
    if not all(one.bounded for one in strategy.roles.values()):
        raise Poison(
            "checks-that-bound-nothing",
            f"{', '.join(checks.bounds)} would leave out updates that are too long or odd, and with strategy "
            f"{strategy.name} a silo makes the others' as long as it likes by what it says of itself, such as its "
            "steps. Leave the bounds out (`measure` may stay) or use another strategy.",
        )
    if others:
        raise Poison(
            "checks-of-weights-only",
            f"{', '.join(checks.bounds)} would leave updates out by their weights, and whatever a silo sends as "
            f"{others[0]} would still be summed by strategy {strategy.name}. Leave the bounds out (`measure` may stay) "
            "or use another strategy.",
        )
