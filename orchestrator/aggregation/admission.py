"""Whether an experiment and its strategy go together: looked at before anything is trained in vain. Pure, but for the
entry points that `named` reads.
"""

from __future__ import annotations

from messages.errors import Poison
from messages.experiments import StartExperiment
from orchestrator.aggregation.fold import blamed
from orchestrator.aggregation.named import strategy_named
from orchestrator.aggregation.strategy import Facts, Strategy


def admitted(request: StartExperiment) -> Strategy:
    """The strategy that an experiment asks for.

    Raises Poison `unknown-strategy`, `invalid-strategy-options`, `strategy-failed`; and where the rest of the request
    does not go with it, `quorum-too-small-for-strategy`, `weights-without-silos`, `hyperparameter-of-strategy`.
    """
    asked = request.strategy
    strategy = strategy_named(asked.name, asked.options, asked.weights)
    with blamed(strategy):
        _check_weights(request)
        for one in strategy.roles.values():
            _check_quorum(request, one)
        _check_hyperparameters(request, strategy)
    return strategy


def admit(request: StartExperiment, facts: Facts) -> None:
    """Raises Poison for an update that the experiment's strategy could not weigh, before it counts."""
    asked = request.strategy
    for one in strategy_named(asked.name, asked.options, asked.weights).roles.values():
        with blamed(one):
            one.admit(facts)


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


def _check_quorum(request: StartExperiment, strategy: Strategy) -> None:
    """As far as it is known now: a share of silos that are not listed shows when they are asked."""
    quorum, least = request.quorum, strategy.least
    if request.silos is not None:
        needed = quorum.needed(request.asked(len(request.silos)))
    elif isinstance(quorum.minimum, int):
        needed = quorum.minimum
    else:
        return
    if needed < least:
        raise Poison(
            "quorum-too-small-for-strategy",
            f"Strategy {strategy.name} with these options needs {least} updates, and a quorum of {needed} would close "
            f"a round. Set quorum.minimum to {least} or more.",
        )


def _check_hyperparameters(request: StartExperiment, strategy: Strategy) -> None:
    named = {*request.hyperparameters, *(name for silo in request.overrides.values() for name in silo)}
    if double := sorted(named & set(strategy.hyperparameters)):
        raise Poison(
            "hyperparameter-of-strategy",
            f"{double[0]} is what strategy {strategy.name} has silos train with. Set it by the strategy's options, and "
            "leave it out of the hyperparameters.",
        )
