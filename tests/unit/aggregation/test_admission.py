"""What is refused when an experiment is started, and why; options of every strategy; strategies of others."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from messages.errors import Poison
from messages.experiments import StartExperiment
from orchestrator.aggregation import Facts, Strategy, admit, admitted, combine, strategy_named, supported


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
        ("fedyogi", {"variance": -1}, "variance is"),
        ("fednova", {"clip": 1.0}, "there is no option 'clip'; it has: weighting."),
        ("scaffold", {"server_lr": 0}, "server_lr is"),
        ("scaffold", {"clip": 1.0}, "there is no option 'clip'"),
        ("median", {"weighting": "samples"}, "there is no option 'weighting'; it has: none."),
        ("trimmed-mean", {}, "Give either fraction"),
        ("trimmed-mean", {"fraction": 0.1, "count": 1}, "Give either fraction"),
        ("trimmed-mean", {"fraction": 0.5}, "fraction is a number above 0 and below 0.5, not 0.5."),
        ("trimmed-mean", {"count": 0}, "count is a whole number, 1 or more, not 0."),
        ("krum", {}, "it needs the option f, a whole number, 0 or more."),
        ("krum", {"f": 1.0}, "f is a whole number"),
        ("krum", {"f": 1, "m": 2}, "there is no option 'm'"),
        ("multi-krum", {"f": 1}, "it needs the option m"),
        ("multi-krum", {"f": 1, "m": 0}, "m is a whole number, 1 or more"),
        ("geometric-median", {"smoothing": 0}, "smoothing is"),
        ("geometric-median", {"iterations": 0}, "iterations is"),
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


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("median", {}, 3),
        ("geometric-median", {}, 3),
        ("trimmed-mean", {"count": 2}, 5),
        ("trimmed-mean", {"fraction": 0.2}, 5),
        ("trimmed-mean", {"fraction": 0.3}, 4),
        ("krum", {"f": 1}, 5),
        ("multi-krum", {"f": 1, "m": 3}, 5),
        ("multi-krum", {"f": 1, "m": 5}, 6),
    ],
)
def test_a_quorum_too_small_for_the_strategy_is_refused(name: str, options: dict[str, Any], least: int) -> None:
    admitted(request(name, options, quorum={"minimum": least}))
    admitted(request(name, options, count=least))
    for changes in (
        {"quorum": {"minimum": least - 1}},
        {"count": least - 1},
        {"quorum": {"minimum": 0.1}},
        {"sample": {"share": 0.1}},
        {"silos": None, "quorum": {"minimum": least - 1}},
    ):
        with pytest.raises(Poison) as caught:
            admitted(request(name, options, **changes))
        assert caught.value.reason == "quorum-too-small-for-strategy"
        assert f"Set quorum.minimum to {least} or more." in caught.value.description
    admitted(request(name, options, silos=None))  # who takes part shows later


@pytest.mark.parametrize("name", ["krum", "multi-krum", "trimmed-mean"])
def test_too_few_updates_are_refused_when_they_are_summed_too(name: str) -> None:
    options = {"krum": {"f": 1}, "multi-krum": {"f": 0, "m": 5}, "trimmed-mean": {"count": 2}}[name]
    with pytest.raises(Poison) as caught:
        combine(strategy_named(name, options), [{"w": np.ones(2)}] * 4, base={"w": np.ones(2)})
    assert caught.value.reason == "too-few-updates"
    assert "Ask for a quorum of 5." in caught.value.description


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


# --- somebody else's ---------------------------------------------------------------------------------------------

MODULE = """
import numpy as np
from orchestrator.aggregation import Strategy

class Broken(Strategy):
    name = "broken"

    def weigh(self, cohort):
        raise KeyError("north")

class Lopsided(Strategy):
    name = "lopsided"

    def mean(self, total, part):
        return total[:1]

class Cheating(Strategy):
    name = "cheating"

    def weigh(self, cohort):
        return super().weigh(cohort).scaled([float("nan")] * len(cohort))

class Unmade(Strategy):
    name = "unmade"

    @classmethod
    def from_options(cls, options):
        raise RuntimeError("no licence")

NoStrategy = dict
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package with strategies, as pip would put it there."""
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    names = ["Broken", "Lopsided", "Cheating", "Unmade", "NoStrategy", "Missing"]
    lines = [f"{name.lower()} = their_strategies:{name}" for name in names] + ["fedavg = their_strategies:Broken"]
    (info / "entry_points.txt").write_text("[silobus.strategies]\n" + "\n".join(lines) + "\n")
    (tmp_path / "their_strategies.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("their_strategies", None)


@pytest.mark.usefixtures("installed")
def test_a_strategy_that_fails_is_named_with_what_it_did() -> None:
    assert {"broken", "lopsided"} < set(supported())
    models = [{"w": np.ones(4)}] * 2
    for name, said in (
        ("broken", "their_strategies.Broken failed: KeyError: 'north'"),
        ("lopsided", "their_strategies.Lopsided failed: ValueError"),
        ("cheating", "their_strategies.Cheating failed: ValueError: a share is not finite"),
    ):
        strategy = admitted(request(name))
        with pytest.raises(Poison) as caught:
            combine(strategy, models)
        assert caught.value.reason == "strategy-failed"
        assert said in caught.value.description


@pytest.mark.usefixtures("installed")
def test_a_strategy_that_cannot_be_had_is_refused_at_the_start() -> None:
    for name, said in (
        ("unmade", "RuntimeError: no licence"),
        ("nostrategy", "no subclass of orchestrator.aggregation.Strategy"),
        ("missing", "cannot be imported"),
    ):
        with pytest.raises(Poison) as caught:
            admitted(request(name))
        assert caught.value.reason == "strategy-failed"
        assert said in caught.value.description


@pytest.mark.usefixtures("installed")
def test_nobody_takes_the_name_of_one_of_ours() -> None:
    assert type(strategy_named("fedavg", {})).__module__.startswith("orchestrator.")


def test_what_one_of_ours_does_wrong_is_a_bug_and_no_message() -> None:
    class Wrong(Strategy):
        name = "wrong"

        def weigh(self, cohort: Any) -> Any:
            raise KeyError("x")

    Wrong.__module__ = "orchestrator.aggregation.strategies.wrong"
    with pytest.raises(KeyError):
        combine(Wrong(), [{"w": np.ones(1)}])
