"""Strategies that somebody else installed: what they do wrong is said with their name, at the start if it can be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from messages.errors import Poison
from orchestrator.aggregation import Strategy, admitted, combine, strategy_named, supported
from tests.unit.aggregation.test_admission import request

MODULE = """
import numpy as np
from orchestrator.aggregation import Shares, Strategy

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

class Says(Strategy):
    name = "says"  # whatever its options have it say
    reads_base = True

    @classmethod
    def from_options(cls, options):
        says = cls()
        says.part, says.what = options.choice("part", "least", *PARTS), options.choice("what", "", *WHATS)
        return says

    @property
    def state(self):
        if self.part == "beginning":
            return {"m": float(self.what)}
        return {self.what: 0.0} if self.part == "state" else {}

    @property
    def least(self):
        return number(self.what) if self.part == "least" else 1

    @property
    def roles(self):
        return {self.what: self} if self.part == "roles" else {"weights": self}

    @property
    def hyperparameters(self):
        return TRAINS[self.what] if self.part == "trains" else {}

    def rows(self, silos):
        return number(self.what) if self.part == "rows" else 1

    def integer_trim(self, silos):
        return number(self.what) if self.part == "trim" else 0

def number(what):
    return float(what) if "." in what else int(what)

PARTS = ["least", "state", "beginning", "roles", "rows", "trim", "trains"]
WHATS = ["", "-1", "0", "1", "nan", "inf", "1e39", "momentum", "exp_avg", "Momentum", "a/b", "weights", "control"]
WHATS += ["0.4", "1.0", "2.5"]
TRAINS = {
    "bad name": {"bad name!": 1.0},
    "no name": {1: 1.0},
    "an object": {"lr": object()},
    "a list": {"lr": [1, 2]},
    "no number": {"lr": float("nan")},
    "long": {"lr": "x" * 201},
    "good": {"proximal_mu": 0.1, "nesterov": True, "epochs": 3, "optimizer": "sgd"},
}
WHATS += TRAINS

class Forgetful(Strategy):
    name = "forgetful"
    state = {"momentum": 0.0}

class Dropping(Strategy):
    name = "dropping"
    state = {"momentum": 0.0}
    reads_base = True

    def step(self, change, state):
        state.pop("momentum")
        return change

class Unmeasured(Strategy):
    name = "unmeasured"

    @property
    def measures(self):
        raise KeyError("far")

class Late(Strategy):
    name = "late"

    def weigh(self, cohort):
        from messages.errors import Transient
        raise Transient("come back later")

class Narrow(Strategy):
    name = "narrow"

    def rows(self, silos):
        return 2 - silos

class Parted(Strategy):
    name = "parted"

    def weigh(self, cohort):
        return Shares((0.5, 0.5), (0.5, 0.5))

class Shrinking(Strategy):
    name = "shrinking"

    def weigh(self, cohort):
        return Shares((0.25, 0.25), (1, 1))

class Undecided(Strategy):
    name = "undecided"
    least = 1.5

class Moody(Strategy):
    name = "moody"
    said = 0

    def integer_trim(self, silos):
        self.said += 1
        return 0 if self.said == 1 else 0.4

NoStrategy = dict
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package with strategies, as pip would put it there."""
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    names = [
        "Broken",
        "Lopsided",
        "Cheating",
        "Unmade",
        "Says",
        "Forgetful",
        "Unmeasured",
        "Late",
        "Narrow",
        "Dropping",
        "Parted",
        "Shrinking",
        "Undecided",
        "Moody",
        "NoStrategy",
    ]
    names += ["Missing"]
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
        ("broken", "their_strategies.Broken failed: KeyError: 'north' (their_strategies.py, line "),
        ("lopsided", "their_strategies.Lopsided failed: ValueError"),
        ("cheating", "their_strategies.Cheating failed: ValueError: a share is not finite"),
        ("late", "their_strategies.Late failed: Transient: come back later"),
        ("narrow", "their_strategies.Narrow failed: ValueError: it holds 0 rows for 2 updates; one at least. Mend"),
        ("parted", "their_strategies.Parted failed: ValueError: `integers` is 0.5, which is no `int`"),
        ("shrinking", "their_strategies.Shrinking failed: ValueError: its shares add up to 0.5, not 1"),
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
@pytest.mark.parametrize(
    ("part", "what", "said"),
    [
        ("least", "0", "it needs 0 updates; one at least"),
        ("rows", "0", "it holds 0 rows for 1 updates; one at least"),
        ("trim", "1", "of 1 integers, 1 on each side cannot be left out"),
        ("trim", "-1", "of 1 integers, -1 on each side cannot be left out"),
        ("least", "2.5", "`least` is 2.5, which is no `int`"),
        ("rows", "1.0", "`rows` is 1.0, which is no `int`"),
        ("trim", "0.4", "`integer_trim` is 0.4, which is no `int`"),
        ("trains", "bad name", "finite int or float, or 200 characters): 'bad name!', 1.0"),
        ("trains", "no name", "it has silos train with what no announcement can carry"),
        ("trains", "an object", "'lr', <object object at"),
        ("trains", "a list", "'lr', [1, 2]"),
        ("trains", "no number", "'lr', nan"),
        ("trains", "long", "'lr', 'xx"),
        ("roles", "control", "its roles are ['control']: `weights` has to be there, and may be `control`"),
        ("roles", "momentum", "its roles are ['momentum']: `weights` has to be there"),
        ("state", "exp_avg", "it keeps 'exp_avg': a name has lower-case letters, digits and hyphens, 40 at most"),
        ("state", "Momentum", "it keeps 'Momentum'"),
        ("state", "a/b", "it keeps 'a/b'"),
        ("state", "", "it keeps ''"),
        (
            "state",
            "weights",
            "it keeps 'weights': a name has lower-case letters, digits and hyphens, 40 at most; none of ",
        ),
        ("state", "control", "none of control, weights, which lie beside it"),
        ("beginning", "nan", "m begins as nan, which is no finite float32"),
        ("beginning", "inf", "m begins as inf"),
        ("beginning", "1e39", "m begins as 1e+39"),
    ],
)
def test_a_strategy_that_could_not_be_summed_with_is_refused_at_the_start(part: str, what: str, said: str) -> None:
    with pytest.raises(Poison) as caught:
        admitted(request("says", {"part": part, "what": what}))
    assert caught.value.reason == "strategy-failed"
    assert "their_strategies.Says failed: ValueError" in caught.value.description
    assert said in caught.value.description
    for good in ({"part": "state", "what": "momentum"}, {"part": "trains", "what": "good"}):
        assert admitted(request("says", good)).name == "says"


@pytest.mark.usefixtures("installed")
def test_what_keeps_numbers_and_never_steps_is_refused_before_anything_is_kept() -> None:
    """There was no place where they would be made: they were whatever stood in the orchestrator's memory."""
    with pytest.raises(Poison, match="what keeps `state` says that it `reads_base`") as caught:
        admitted(request("forgetful"))
    assert caught.value.reason == "strategy-failed"
    with pytest.raises(Poison, match="what keeps `state` says that it `reads_base`"):
        combine(strategy_named("forgetful", {}), [{"w": np.ones(4)}], base={"w": np.ones(4)})


@pytest.mark.usefixtures("installed")
def test_what_is_no_number_of_updates_is_refused_when_they_are_summed_too() -> None:
    with pytest.raises(Poison, match=r"their_strategies\.Undecided failed: ValueError: `least` is 1\.5") as caught:
        combine(strategy_named("undecided", {}), [{"w": np.ones(4)}] * 2)
    assert caught.value.reason == "strategy-failed"


@pytest.mark.usefixtures("installed")
def test_integers_are_summed_by_what_the_strategy_said_first() -> None:
    """They are summed without it, and what fails there would be taken for our bug."""
    models = [{"n": np.array([number])} for number in (3, 5)]
    assert combine(strategy_named("moody", {}), models).model["n"].tolist() == [4]


@pytest.mark.usefixtures("installed")
def test_what_a_step_does_not_hand_on_is_missed() -> None:
    with pytest.raises(Poison, match=r"their_strategies\.Dropping failed: KeyError: 'momentum'") as caught:
        combine(admitted(request("dropping")), [{"w": np.ones(4)}], base={"w": np.ones(4)})
    assert caught.value.reason == "strategy-failed"


@pytest.mark.usefixtures("installed")
def test_a_property_that_raises_is_named_at_the_start() -> None:
    with pytest.raises(Poison, match=r"their_strategies\.Unmeasured failed: KeyError: 'far'") as caught:
        admitted(request("unmeasured"))
    assert caught.value.reason == "strategy-failed"


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
