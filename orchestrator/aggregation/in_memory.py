"""Aggregation of models that are in memory, by any strategy, with the driver's own arithmetic.

`functions` has one for each strategy that comes with Silobus.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from messages.errors import InvalidWeights
from messages.safetensors_layout import CODES, FLOATING, Layout, WeightsFault
from orchestrator.aggregation.distances import Gram
from orchestrator.aggregation.fold import Form, Sum
from orchestrator.aggregation.strategy import Array, Cohort, Facts, Strategy

Model = dict[str, Array]
Models = Sequence[Mapping[str, Array]]
State = dict[str, Model]
"""What a strategy keeps, by its names: float32 arrays by the names of the model's floating tensors."""


@dataclass(frozen=True, slots=True)
class Combined:
    """The next global weights, and what the strategy keeps."""

    model: Model
    state: State


def combine(
    strategy: Strategy,
    models: Models,
    *,
    samples: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
    base: Mapping[str, Array] | None = None,
    state: Mapping[str, Mapping[str, Array]] | None = None,
    form: Form = "weights",
    silos: Sequence[str] | None = None,
    members: int | None = None,
) -> Combined:
    """What a strategy makes of `models` (arrays by name), one per silo; dtypes are those of `base`, or of the first.

    `samples`, `steps` and `silos` (names) are 1, 0 and 0, 1, 2 … unless they are given; `members` is how many silos
    there are, when not all were asked. With `form` `delta` floating tensors of `models` are changes to `base`. `state`
    is what the round before returned; without it (None, or empty) what the strategy keeps begins anew.
    Raises ValueError when names or shapes differ, samples or steps are no whole numbers, there is no base where one is
    needed, or `state` is not what this strategy keeps of this model; InvalidWeights, as a round does, when a number of
    a model, or of what comes of them, is not finite; Poison as the strategy does.
    """
    count = len(models)
    samples = [1] * count if samples is None else _whole(samples, "samples")
    steps = [0] * count if steps is None else _whole(steps, "steps")
    silos = [str(index) for index in range(count)] if silos is None else silos
    if not models or not len(samples) == len(steps) == len(silos) == count:
        raise ValueError(
            f"{count} models, {len(samples)} numbers of samples, {len(steps)} of steps and {len(silos)} names; there "
            "is one of each for every model, and one model at least"
        )
    layout = _layout(models, base)
    for number, given in enumerate(models):
        _check_finite(given, f"model {number}")
    if base is None and (strategy.reads_base or strategy.measures or form == "delta") and not strategy.from_zeros:
        raise ValueError(f"{strategy.name} needs `base`, the weights that silos began with")
    state = state or {}
    _check_state(state, strategy, layout)
    distances = None
    if strategy.measures:
        gram = Gram(count)
        for spec in layout.in_file_order:
            if spec.dtype in FLOATING:
                chunks = [model[spec.name].reshape(-1) for model in models]
                start = None if form == "delta" or base is None else base[spec.name].reshape(-1)
                gram.add(chunks, start)
        distances = gram.distances()
    facts = tuple(Facts(*one) for one in zip(silos, samples, steps, strict=True))
    task = Sum.of(strategy, Cohort(facts, max(members or 0, count), distances), form)
    new, kept = Model(), State({name: {} for name in strategy.state})
    for spec in layout.tensors:
        arrays = [model[spec.name].reshape(-1) for model in models]
        widest = "F64" if any(array.dtype == np.float64 for array in arrays) else "F32"
        fold = task.fold(spec.name, spec.dtype, widest, spec.elements)
        for index, values in enumerate(arrays):
            fold.add(index, values)
        before = {name: tensors[spec.name].reshape(-1) for name, tensors in state.items() if spec.dtype in FLOATING}
        numbers, keeps = fold.finish(None if base is None else base[spec.name].reshape(-1), before)
        new[spec.name] = numbers.reshape(spec.shape)
        for name, values in keeps.items():
            kept[name][spec.name] = values.reshape(spec.shape)
    for what, found in (("the result", new), *((f"the strategy's {name}", values) for name, values in kept.items())):
        _check_finite(found, what)
    return Combined(new, kept)


def _whole(numbers: Sequence[int], what: str) -> list[int]:
    """The numbers. Raises ValueError for one that is a fraction, however near to a whole number, or below 0."""
    found = []
    for index, number in enumerate(numbers):
        try:
            found.append(operator.index(number))
        except TypeError:
            found.append(-1)
        if found[-1] < 0:
            raise ValueError(
                f"{what} of model {index} are {number!r}: they are counted, so give an int of 0 or more. What else "
                "models shall count by are the `weights` of strategies that take the option `weighting`"
            )
    return found


def _check_state(state: Mapping[str, Mapping[str, Array]], strategy: Strategy, model: Layout) -> None:
    """Raises ValueError where it is not what the strategy keeps: it would begin anew, or step by another's numbers."""
    what_to_do = "Give what the round before returned, or no state to begin anew"
    if state and state.keys() != strategy.state.keys():
        keeps = ", ".join(sorted(strategy.state)) or "nothing"
        raise ValueError(
            f"`state` has {', '.join(sorted(state))}; {strategy.name} with these options keeps {keeps}. {what_to_do}"
        )
    expected = {spec.name: (np.dtype(np.float32), spec.shape) for spec in model.tensors if spec.dtype in FLOATING}
    for name, tensors in state.items():
        given = {tensor: (array.dtype, array.shape) for tensor, array in tensors.items()}
        if wrong := sorted(t for t in expected.keys() | given.keys() if expected.get(t) != given.get(t)):
            raise ValueError(
                f"{name} in `state` does not fit the model in tensor {wrong[0]}: it has one of float32 in its shape "
                f"for each floating tensor, and no other. {what_to_do}"
            )


def _check_finite(model: Mapping[str, Array], what: str) -> None:
    for name, array in model.items():
        if CODES[array.dtype] in FLOATING and not np.isfinite(array).all():
            raise InvalidWeights(
                WeightsFault.NOT_FINITE, f"Tensor {name} of {what} holds a number that is not finite in {array.dtype}."
            )


def _layout(models: Models, base: Mapping[str, Array] | None) -> Layout:
    """That of the result. Raises ValueError."""
    first = models[0] if base is None else base
    for name, array in first.items():
        if array.dtype not in CODES:
            raise ValueError(f"tensor {name} has dtype {array.dtype}; known: {', '.join(map(str, CODES))}")
    for index, model in enumerate(models):
        if model.keys() != first.keys() or any(model[name].shape != first[name].shape for name in first):
            raise ValueError(f"model {index} does not have the tensors of the first, or not in their shapes")
        for name, array in model.items():
            one, other = CODES.get(array.dtype), CODES[first[name].dtype]
            if one != other and not (one in FLOATING and other in FLOATING):
                raise ValueError(f"tensor {name} of model {index} has dtype {array.dtype}, not {first[name].dtype}")
    return Layout.of((name, CODES[array.dtype], array.shape) for name, array in first.items())
