"""Strategies as functions on arrays: what they are given, and what they refuse to make a model of."""

from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from messages.errors import InvalidWeights, Poison
from orchestrator import aggregation
from orchestrator.aggregation import (
    combine,
    fedadam,
    fedavg,
    fedavgm,
    fednova,
    krum,
    median,
    scaffold,
    strategy_named,
    supported,
    trimmed_mean,
)

NEEDED: dict[str, dict[str, Any]] = {
    "fedprox": {"mu": 0.1},
    "trimmed-mean": {"count": 1},
    "krum": {"f": 0},
    "multi-krum": {"f": 0, "m": 1},
}
"""Options that have no default."""
TWO = [{"w": np.array([0.0, 8.0])}, {"w": np.array([4.0, 0.0])}]
BASE = {"w": np.zeros(2)}


@pytest.mark.parametrize("name", supported())
def test_each_strategy_is_a_function_with_a_name_and_a_page_of_its_own(name: str) -> None:
    exported = name.replace("-", "_")
    function: Callable[..., Any] = getattr(aggregation, exported)
    assert (function.__name__, function.__qualname__) == (exported, exported)
    assert function.__module__ == "orchestrator.aggregation.functions"
    assert pickle.loads(pickle.dumps(function)) is function  # noqa: S301  # made here
    page = inspect.getdoc(function) or ""
    assert all(word in page for word in ("Returns the next weights", "shapes and dtypes", "Raises ValueError"))
    with pytest.raises(Poison) as caught:
        strategy_named(name, {**NEEDED.get(name, {}), "nonsense": 1})
    known = caught.value.description.removesuffix(".").rpartition("it has: ")[2]
    strategy = strategy_named(name, NEEDED.get(name, {}))
    for option in known.split(", ") if known != "none" else []:
        assert f"`{option}`" in page
        default = getattr(strategy, option, None)
        if default is not None and option not in NEEDED.get(name, {}) and name != "trimmed-mean":
            shown = re.search(rf"`{option}` \(([\d.e-]+)\)", page)
            assert shown
            assert float(shown[1]) == default
    takes_weights = "weighting" in known
    assert takes_weights != ("no `weights`" in page.lower())


def test_samples_may_be_an_array() -> None:
    assert fedavg(TWO, samples=np.array([3, 1]))["w"].tolist() == [1.0, 6.0]  # type: ignore[arg-type]


def test_weights_are_given_one_for_each_model() -> None:
    assert fedavg(TWO, samples=[5, 5], weights=[0.75, 0.25])["w"].tolist() == [1.0, 6.0]
    assert fedavgm(TWO, base=BASE, weights=[3, 1], momentum=0.0)[0]["w"].tolist() == [1.0, 6.0]
    assert fednova(TWO, steps=[2, 2], base=BASE, weights=[3, 1])["w"].tolist() == [1.0, 6.0]
    change = [{"w": np.ones(2, np.float32)}] * 2
    assert scaffold(TWO, change, base=BASE, weights=[3, 1])[0]["w"].tolist() == [1.0, 6.0]


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, 1e13]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights for 2 models; there is one for each, above 0 and 1e12 at most"):
        fedavg(TWO, weights=weights)


def test_weights_that_would_not_count_are_refused() -> None:
    with pytest.raises(Poison, match="count with the option `weighting: given` only"):
        fedavg(TWO, weights=[1.0, 1.0], weighting="samples")
    with pytest.raises(Poison, match="there is no option 'weighting'"):
        median([*TWO, *TWO], weights=[1.0] * 4)
    with pytest.raises(Poison, match="needs `weights`"):
        fedavg(TWO, weighting="given")


def test_fednova_does_not_make_steps_up() -> None:
    with pytest.raises(Poison) as caught:
        fednova(TWO, base=BASE)
    assert caught.value.reason == "no-steps"


def test_there_is_one_of_each_for_every_model() -> None:
    for given in ({"samples": [1]}, {"steps": [1, 2, 3]}):
        with pytest.raises(ValueError, match="there is one of each for every model"):
            fedavg(TWO, **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one model at least"):
        fedavg([])


@pytest.mark.parametrize("number", [1.5, 0.25, -1, float("nan"), "3", np.float32(2)])
def test_samples_and_steps_are_whole_numbers(number: Any) -> None:
    for what in ("samples", "steps"):
        with pytest.raises(ValueError, match=f"{what} of model 1 are .*give an int of 0 or more"):
            fednova(TWO, base=BASE, **{"steps": [2, 2], what: [2, number]})


@pytest.mark.parametrize(
    ("state", "what"),
    [
        ({"velocity": {"w": np.zeros(2, np.float32)}}, "`state` has velocity; fedavgm .* keeps momentum"),
        ({"momentum": {}}, "momentum in `state` does not fit the model in tensor w"),
        ({"momentum": {"v": np.zeros(2, np.float32)}}, "momentum in `state` does not fit the model in tensor v"),
        ({"momentum": {"w": np.zeros(4, np.float32)}}, "momentum in `state` does not fit the model in tensor w"),
        ({"momentum": {"w": np.zeros(2)}}, "one of float32 in its shape for each floating tensor"),
        ({"momentum": {"w": np.zeros(2, np.float32), "n": np.zeros(1, np.float32)}}, "in tensor n"),
    ],
    ids=["another strategy's", "no tensor", "another model's", "another shape", "another dtype", "an integer's"],
)
def test_state_that_is_not_of_this_strategy_and_this_model_is_refused(state: Any, what: str) -> None:
    base, models = {**BASE, "n": np.zeros(1, int)}, [{**model, "n": np.ones(1, int)} for model in TWO]
    with pytest.raises(ValueError, match=what + ".*no state to begin anew"):
        fedavgm(models, base=base, state=state)


def test_state_has_everything_that_the_strategy_keeps() -> None:
    _, state = fedadam(TWO, base=BASE)
    with pytest.raises(ValueError, match="`state` has momentum; fedadam with these options keeps momentum, variance"):
        fedadam(TWO, base=BASE, state={"momentum": state["momentum"]})
    with pytest.raises(ValueError, match="fedavg with these options keeps nothing"):
        combine(strategy_named("fedavg", {}), TWO, state=state)
    goes_on, anew = (fedadam(TWO, base=BASE, state=given)[1]["momentum"]["w"] for given in (state, {}))
    assert (anew == state["momentum"]["w"]).all()
    assert (goes_on > anew).all()


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_number_that_is_not_finite_is_refused_as_a_round_refuses_it(dtype: Any, number: float) -> None:
    """One silo of five: the robust ones would take it for a number, and Krum for the best."""
    spoilt = [{"w": np.array([number, 1.0]).astype(dtype)}, *({"w": np.ones(2, dtype)} for _ in range(4))]
    base = {"w": np.zeros(2, dtype)}
    for make in (
        lambda: fedavg(spoilt),
        lambda: median(spoilt),
        lambda: trimmed_mean(spoilt, count=1),
        lambda: krum(spoilt, base=base, f=1),
        lambda: fedadam(spoilt, base=base),
    ):
        with pytest.raises(InvalidWeights, match="Tensor w of model 0 holds a number that is not finite"):
            make()


def test_what_does_not_fit_into_the_result_is_refused() -> None:
    with pytest.raises(InvalidWeights, match="Tensor w of the result holds a number that is not finite in float16"):
        fedavg([{"w": np.full(2, 1e6, np.float32)}], base={"w": np.zeros(2, np.float16)})
    with pytest.raises(InvalidWeights, match="Tensor w of the strategy's momentum holds a number that is not finite"):
        fedavgm([{"w": np.array([1e200, 0])}], base=BASE)
