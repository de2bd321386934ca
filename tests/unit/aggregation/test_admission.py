"""What is refused when an experiment is started, and why; options of every strategy. Others': `test_installed`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from messages.errors import InvalidWeights, Poison
from messages.experiments import StartExperiment
from orchestrator.aggregation import (
    Facts,
    admit,
    admitted,
    combine,
    least_updates,
    strategy_named,
    supported,
)
from orchestrator.aggregation.strategies.trimmed_mean import TrimmedMean


def request(name: str, options: dict[str, Any] | None = None, **changes: Any) -> StartExperiment:
    strategy = {"name": name, "options": options or {}, "weights": changes.pop("weights", {})}
    silos = [f"s{n}" for n in range(changes.pop("count", 7))]
    return StartExperiment.model_validate(
        {"experiment": "e", "task": "t", "rounds": 1, "silos": silos, "strategy": strategy, **changes}
    )


ALL: list[tuple[str, dict[str, Any]]] = [
    ("fedavg", {}),
    ("fedprox", {"mu": 0.1}),
    ("fedavgm", {"server_lr": 1, "momentum": 0.5}),
    ("fedadagrad", {"server_lr": 0.1, "beta_1": 0.9, "tau": 0.1, "variance": 0}),
    ("fedadam", {"beta_2": 0.9, "clip": 3}),
    ("fedyogi", {"clip_factor": 1.5}),
    ("fednova", {"weighting": "uniform"}),
    ("scaffold", {"server_lr": 0.5, "weighting": "samples"}),
    ("median", {}),
    ("trimmed-mean", {"fraction": 0.2}),
    ("krum", {"f": 2}),
    ("multi-krum", {"f": 2, "m": 5}),
    ("geometric-median", {"smoothing": 0.001, "iterations": 10}),
]


@pytest.mark.parametrize(("name", "options"), ALL)
def test_what_makes_sense_is_admitted(name: str, options: dict[str, Any]) -> None:
    assert admitted(request(name, options)).name == name


def test_every_strategy_is_tried_here() -> None:
    assert {name for name, _ in ALL} == set(supported())


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("fedavg", {"momentum": 0.9}, "there is no option 'momentum'; it has: clip, clip_factor, weighting."),
        ("fedavg", {"clip": 0}, "clip is a number above 0, not 0."),
        ("fedavg", {"clip": 1.0, "clip_factor": 1.0}, "give one of them"),
        ("fedavg", {"weighting": "given"}, "needs `weights`"),
        ("fedprox", {}, "it needs the option mu, a number 0 or more."),
        ("fedprox", {"mu": -1}, "mu is a number 0 or more, not -1."),
        ("fedprox", {"mu": True}, "mu is a number 0 or more, not True."),
        ("fedavgm", {"momentum": 1.0}, "momentum is a number 0 or more and below 1, not 1.0."),
        ("fedavgm", {"server_lr": "fast"}, "server_lr is a number above 0, not 'fast'."),
        ("fedadam", {"beta_1": 1}, "beta_1 is"),
        ("fedadam", {"tau": 0}, "tau is a number above 0"),
        ("fedadagrad", {"beta_2": 0.9}, "there is no option 'beta_2'"),
        ("fedadam", {"tau": 1e20}, "tau is a number above 0 and 1.8e+19 at most, not 1e+20."),
        ("fedadagrad", {"tau": 1e200}, "tau is a number above 0 and 1.8e+19 at most, not 1e+200."),
        ("fedyogi", {"variance": -1}, "variance is"),
        ("fedyogi", {"variance": 1e39}, "variance is a number 0 or more and 3.4e+38 at most, not 1e+39."),
        ("fednova", {"clip": 1.0}, "there is no option 'clip'; it has: weighting."),
        ("scaffold", {"server_lr": 0}, "server_lr is"),
        ("scaffold", {"clip": 1.0}, "there is no option 'clip'"),
        ("median", {"weighting": "samples"}, "there is no option 'weighting'; it has: none."),
        ("trimmed-mean", {}, "Give either fraction"),
        ("trimmed-mean", {"fraction": 0.1, "count": 1}, "Give either fraction"),
        ("trimmed-mean", {"fraction": 0.5}, "fraction is a number 0.0001 or more and below 0.5, not 0.5."),
        ("trimmed-mean", {"count": 0}, "count is a whole number, 1 or more and 10000 at most, not 0."),
        ("krum", {}, "it needs the option f, a whole number, 0 or more and 10000 at most."),
        ("krum", {"f": 1.0}, "f is a whole number"),
        ("krum", {"f": 1, "m": 2}, "there is no option 'm'"),
        ("multi-krum", {"f": 1}, "it needs the option m"),
        ("multi-krum", {"f": 1, "m": 0}, "m is a whole number, 1 or more"),
        ("geometric-median", {"smoothing": 0}, "smoothing is"),
        ("geometric-median", {"iterations": 0}, "iterations is"),
        ("geometric-median", {"iterations": 100_001}, "iterations is a whole number, 1 or more and 100000 at most"),
        ("krum", {"f": 10**400}, "10000 at most, not one of so many digits."),
        ("fedavgm", {"server_lr": 10**400}, "server_lr is a number above 0, not one of so many digits."),
        ("fedavg", {"weighting": 10**5000}, "weighting is one of: samples, uniform, given; not one of so many digits."),
    ],
)
def test_options_that_make_no_sense_are_refused_with_what_to_write(
    name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(Poison) as caught:
        admitted(request(name, options))
    assert caught.value.reason == "invalid-strategy-options"
    assert said in caught.value.description


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_refused(number: float) -> None:
    with pytest.raises(Poison):
        strategy_named("fedavgm", {"server_lr": number})


@pytest.mark.parametrize("value", [5e-324, 1e-320, 1e-200, 1e-9, 1.0, 1.8e19, 2e19, 3.4e38, 1e39, 1e200, 1.7e308])
@pytest.mark.parametrize(
    ("name", "option"),
    [
        *[("fedprox", "mu"), ("fedavg", "clip"), ("fedavg", "clip_factor"), ("scaffold", "server_lr")],
        *[("fedavgm", option) for option in ("server_lr", "momentum")],
        *[("fedadagrad", option) for option in ("server_lr", "beta_1", "tau", "variance")],
        *[(name, o) for name in ("fedadam", "fedyogi") for o in ("server_lr", "beta_1", "beta_2", "tau", "variance")],
        *[("trimmed-mean", "fraction"), ("geometric-median", "smoothing")],
    ],
)
def test_no_number_whatever_its_size_is_our_bug(name: str, option: str, value: float) -> None:
    """Refused at the start, or admitted and summed, or refused by the name of what is wrong when it is summed."""
    models, base = [{"w": np.full(2, float(n))} for n in range(5)], {"w": np.ones(2)}
    try:
        strategy = admitted(request(name, {option: value}))
        for one in strategy.roles.values():
            assert combine(one, models, base=base).model.keys() == {"w"}
    except (Poison, InvalidWeights) as refused:
        if refused.reason not in ("invalid-strategy-options", "too-few-updates", "not-finite"):
            raise


NEEDS: list[tuple[str, dict[str, Any], int]] = [
    ("fedavg", {}, 1),
    ("fedavg", {"clip": 1.0}, 1),
    ("fedadam", {"clip_factor": 2.0}, 3),
    ("scaffold", {}, 1),
    ("median", {}, 3),
    ("geometric-median", {}, 3),
    ("trimmed-mean", {"count": 2}, 5),
    ("trimmed-mean", {"fraction": 0.1}, 10),
    ("trimmed-mean", {"fraction": 0.2}, 5),
    ("trimmed-mean", {"fraction": 0.3}, 4),
    ("trimmed-mean", {"fraction": 0.4999999999999999}, 3),
    ("krum", {"f": 1}, 5),
    ("multi-krum", {"f": 1, "m": 3}, 5),
    ("multi-krum", {"f": 1, "m": 5}, 6),
]


@pytest.mark.parametrize(("name", "options", "least"), NEEDS)
def test_a_strategy_says_how_many_updates_it_needs(name: str, options: dict[str, Any], least: int) -> None:
    assert least_updates(admitted(request(name, options))) == least


@pytest.mark.parametrize(("name", "options", "least"), NEEDS)
def test_too_few_updates_are_refused_when_they_are_summed_too(name: str, options: dict[str, Any], least: int) -> None:
    base, strategy = {"w": np.ones(2)}, strategy_named(name, options)
    assert combine(strategy, [base] * least, base=base).model["w"].tolist() == [1.0, 1.0]
    if least > 1:
        with pytest.raises(Poison) as caught:
            combine(strategy, [base] * (least - 1), base=base)
        assert caught.value.reason == "too-few-updates"
        assert f"needs {least} updates, and there are {least - 1}. Ask for a quorum of {least}." in str(caught.value)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.2, 0.3, 1 / 3, 0.49, 0.4999999999999999])
def test_a_trimmed_mean_leaves_somebody_out_and_somebody_in(fraction: float) -> None:
    strategy = strategy_named("trimmed-mean", {"fraction": fraction})
    assert isinstance(strategy, TrimmedMean)
    for silos in range(strategy.least, 60):
        assert 1 <= strategy.trim(silos) <= (silos - 1) // 2
        assert strategy.trim(silos) <= fraction * silos + 1e-6


def test_given_weights_name_every_silo_of_the_experiment() -> None:
    weights = {f"s{n}": 1.5 for n in range(7)}
    given = {"weighting": "given"}
    assert admitted(request("fedavg", given, weights=weights))
    for wrong, changes in ((weights | {"x": 1.0}, {}), ({"s0": 1.0}, {})):
        with pytest.raises(Poison) as caught:
            admitted(request("fedavg", given, weights=wrong, **changes))
        assert caught.value.reason == "invalid-strategy-options"
        assert "Look at: " in caught.value.description
    with pytest.raises(Poison) as caught:
        admitted(request("fedavg", given, weights=weights, silos=None))
    assert caught.value.reason == "weights-without-silos"
    for name, options, said in (("fedavg", {}, "with the option"), ("krum", {"f": 1}, "takes no `weights`")):
        with pytest.raises(Poison, match=said):
            admitted(request(name, options, weights=weights))


def test_what_the_strategy_sets_is_not_set_twice() -> None:
    for changes in ({"hyperparameters": {"proximal_mu": 1.0}}, {"overrides": {"s0": {"proximal_mu": 1.0}}}):
        with pytest.raises(Poison) as caught:
            admitted(request("fedprox", {"mu": 0.1}, **changes))
        assert caught.value.reason == "hyperparameter-of-strategy"
        assert admitted(request("fedavg", **changes)).hyperparameters == {}
    assert admitted(request("fedprox", {"mu": 0.1})).hyperparameters == {"proximal_mu": 0.1}


BOUNDS: list[dict[str, float]] = [{"max_norm": 1.0}, {"max_norm_ratio": 5.0}, {"min_cosine": 0.0}]


@pytest.mark.parametrize("bound", BOUNDS)
def test_bounds_that_would_let_a_second_role_through_are_refused(bound: dict[str, float]) -> None:
    """Weights within them, and a control variate of 3e38 for everybody."""
    with pytest.raises(Poison) as caught:
        admitted(request("scaffold", checks={"measure": True, **bound}))
    assert caught.value.reason == "checks-of-weights-only"
    assert caught.value.description.startswith(f"{next(iter(bound))} would leave updates out by their weights")
    assert admitted(request("scaffold", checks={"measure": True})).name == "scaffold"
    assert admitted(request("fedavg", checks=bound)).name == "fedavg"


@pytest.mark.parametrize("bound", BOUNDS)
def test_bounds_that_a_claim_gets_past_are_refused(bound: dict[str, float]) -> None:
    """FedNova multiplies what others send by the mean number of steps, and steps are a silo's word."""
    with pytest.raises(Poison) as caught:
        admitted(request("fednova", checks={"measure": True, **bound}))
    assert caught.value.reason == "checks-that-bound-nothing"
    assert caught.value.description.startswith(f"{next(iter(bound))} would leave out updates that are too long or odd")
    assert admitted(request("fednova", checks={"measure": True})).name == "fednova"


@pytest.mark.parametrize(("name", "options"), ALL)
def test_what_goes_with_bounds_does_not_go_further_whatever_a_silo_says_of_itself(
    name: str, options: dict[str, Any]
) -> None:
    """Seven changes of length 1, one by a silo that claims as many samples and steps as there can be."""
    try:
        strategy = admitted(request(name, options, checks=BOUNDS[0]))
    except Poison as refused:
        if refused.reason not in ("checks-of-weights-only", "checks-that-bound-nothing"):
            raise
        return
    base, claims = {"w": np.zeros(2)}, (1, 1, 1, 1, 1, 1, 10**12)
    models = [{"w": np.array([0.6, 0.8]) * sign} for sign in (1, 1, 1, 1, 1, 1, -1)]
    made = combine(strategy, models, samples=claims, steps=claims, base=base)
    own = getattr(strategy, "server_lr", 1.0)  # what the experiment itself makes of a change of length 1, or 1 / τ
    assert np.linalg.norm(made.model["w"]) <= 1 + own / getattr(strategy, "tau", 1.0)


def test_what_updates_bring_is_said_by_roles() -> None:
    assert list(admitted(request("scaffold")).roles) == ["weights", "control"]
    assert list(admitted(request("fedavg")).roles) == ["weights"]


def test_an_update_without_steps_is_refused_for_fednova() -> None:
    with pytest.raises(Poison) as caught:
        admit(request("fednova"), Facts("s1", 10, 0))
    assert caught.value.reason == "no-steps"
    assert "s1" in caught.value.description
    admit(request("fednova"), Facts("s1", 10, 1))
    admit(request("fedavg"), Facts("s1", 10, 0))
    with pytest.raises(Poison):
        combine(strategy_named("fednova", {}), [{"w": np.ones(2)}], steps=[0], base={"w": np.ones(2)})
