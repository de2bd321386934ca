"""FedAvg and the integer rule against direct formulas in float64 and exact fractions, on random models."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from messages.errors import Poison
from messages.safetensors_layout import DTYPES, FLOATING
from orchestrator.aggregation import Cohort, Facts, FedAvg, Shares, combine, fedavg, strategy_named, supported
from orchestrator.aggregation.fold import Sum
from orchestrator.aggregation.strategy import whole
from orchestrator.aggregation.weighing import UNIFORMLY, Weighing
from tests.unit.aggregation.models import Array, Model, random_array
from tests.unit.aggregation.reference import CASES

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
layouts = st.dictionaries(
    st.text("abc", min_size=1, max_size=3), st.tuples(st.sampled_from(list(DTYPES)), shapes), max_size=6
)
sample_counts = st.lists(st.one_of(st.integers(0, 9), st.integers(0, 10**12)), min_size=1, max_size=5).filter(any)


def rounded(fraction: Fraction) -> int:
    """Half to even: what Python's round does."""
    return round(fraction)


def expected_integers(arrays: list[Array], counts: list[int]) -> list[int]:
    columns = zip(*(array.reshape(-1).tolist() for array in arrays), strict=True)
    return [
        rounded(Fraction(sum(int(x) * n for x, n in zip(column, counts, strict=True)), sum(counts)))
        for column in columns
    ]


@settings(deadline=None, max_examples=150)
@given(layouts, sample_counts, st.integers(0, 2**32))
def test_the_mean_of_random_models_is_the_weighted_mean(
    layout: dict[str, tuple[str, tuple[int, ...]]], samples: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    models: list[Model] = [
        {name: random_array(rng, code, shape) for name, (code, shape) in layout.items()} for _ in samples
    ]
    result = fedavg(models, samples=samples)
    assert result.keys() == layout.keys()
    for name, (code, shape) in layout.items():
        arrays = [model[name] for model in models]
        assert (result[name].dtype, result[name].shape) == (DTYPES[code], shape)
        if code in FLOATING:
            mean = np.zeros(shape)
            for array, count in zip(arrays, samples, strict=True):
                mean = mean + (count / sum(samples)) * array.astype(np.float64)
            assert result[name].tobytes() == mean.astype(DTYPES[code]).tobytes()
        elif sum(whole(samples)) * integers_divisor(samples) == sum(samples):
            assert result[name].astype(object).reshape(-1).tolist() == expected_integers(arrays, samples)


def integers_divisor(samples: list[int]) -> int:
    return int(np.gcd.reduce(np.array(samples, dtype=object)))


@pytest.mark.parametrize("code", [code for code in DTYPES if code in FLOATING])
def test_one_silo_keeps_its_numbers_to_the_bit(code: str) -> None:
    array = random_array(np.random.default_rng(0), code, (100,))
    for samples in (1, 7, 10**12):
        assert fedavg([{"a": array}], samples=[samples])["a"].tobytes() == array.tobytes()


@pytest.mark.parametrize("code", [code for code in DTYPES if code not in FLOATING])
@pytest.mark.parametrize("samples", [[1, 1, 1], [3, 5, 10**12], [10**12, 10**12 - 1, 1]])
def test_integers_on_which_all_agree_are_kept_over_the_whole_range(code: str, samples: list[int]) -> None:
    limits = (0, 1) if code == "BOOL" else (int(np.iinfo(DTYPES[code]).min), int(np.iinfo(DTYPES[code]).max))
    array = np.array([limits[0], limits[1], limits[1] // 3 * 2], DTYPES[code])
    assert fedavg([{"a": array}] * 3, samples=samples)["a"].tolist() == array.tolist()


@pytest.mark.parametrize(
    ("values", "samples", "mean"),
    [
        ([2, 3], [1, 1], 2),
        ([3, 4], [1, 1], 4),
        ([-1, -2], [1, 1], -2),
        ([-2, -3], [1, 1], -2),
        ([0, 1], [1, 2], 1),
        ([0, 1], [2, 1], 0),
        ([-3, 4], [1, 1], 0),
        ([2**62, 2**62 + 1], [1, 1], 2**62),
        ([2**62 + 1, 2**62 + 2], [1, 1], 2**62 + 2),
        ([-(2**63), 2**63 - 1], [1, 1], 0),
        ([7, 100], [1, 0], 7),
    ],
)
def test_an_integer_is_the_mean_rounded_half_to_even(values: list[int], samples: list[int], mean: int) -> None:
    models = [{"a": np.array([value])} for value in values]
    assert fedavg(models, samples=samples)["a"].tolist() == [mean]


@pytest.mark.parametrize(
    ("votes", "samples", "majority"),
    [
        ([1, 1, 0], [1, 1, 1], True),
        ([1, 0, 0], [1, 1, 1], False),
        ([1, 0, 0], [3, 1, 1], True),
        ([1, 0], [1, 1], False),
    ],
)
def test_a_boolean_is_the_weighted_majority_and_a_tie_is_false(
    votes: list[int], samples: list[int], majority: bool
) -> None:
    models = [{"a": np.array([bool(vote)])} for vote in votes]
    assert fedavg(models, samples=samples)["a"].tolist() == [majority]


@given(st.lists(st.integers(0, 10**15), min_size=1, max_size=20).filter(any))
def test_integer_weights_keep_their_proportions_within_the_limit(weights: list[int]) -> None:
    reduced = whole(weights)
    assert 0 < sum(reduced) <= 1 << 30
    for weight, small in zip(weights, reduced, strict=True):
        assert abs(weight / sum(weights) - small / sum(reduced)) < 1e-7


def test_integer_weights_are_exact_when_a_common_divisor_makes_them_small() -> None:
    assert whole([2**40, 2**41, 0]) == (1, 2, 0)


@pytest.mark.parametrize("extreme", [0, 2**64 - 1])
def test_the_sums_of_integers_do_not_overflow_at_the_limit(extreme: int) -> None:
    models = [{"a": np.array([extreme], np.uint64)}] * 3
    samples = [2**29, 2**28, 2**28 - 1]
    assert sum(whole(samples)) == 2**30 - 1
    assert fedavg(models, samples=samples)["a"].tolist() == [extreme]


def left(values: list[int], name: str, options: dict[str, Any]) -> list[int] | None:
    """Of what the integer's mean is taken, each counting the same; None: of all, as they are weighed."""
    if name in {"median", "krum", "multi-krum", "geometric-median"}:
        trim = (len(values) - 1) // 2
    elif name == "trimmed-mean":
        trim = options.get("count") or int(options["fraction"] * len(values))
    else:
        return None
    return sorted(values)[trim : len(values) - trim]


@pytest.mark.parametrize(("name", "options"), [(name, options) for name, options, _, _ in CASES], ids=str)
@pytest.mark.parametrize("silos", [6, 7])
def test_integers_of_every_strategy_are_exact_over_the_whole_range(
    silos: int, name: str, options: dict[str, Any]
) -> None:
    rng = np.random.default_rng(silos)
    codes = sorted(set(DTYPES) - set(FLOATING))
    models = [{code: random_array(rng, code, (40,)) for code in [*codes, "F64"]} for _ in range(silos)]
    samples, steps = [3, 5, 7, 11, 13, 17, 19][:silos], list(range(1, silos + 1))
    uniform = name == "scaffold" or options.get("weighting") == "uniform"
    counts = [1] * silos if uniform else samples
    strategy = strategy_named(name, options)
    made = combine(strategy, models, samples=samples, steps=steps, base=models[0]).model
    found = [number for code in codes for number in made[code].tolist()]
    sent = [[number for code in codes for number in model[code].tolist()] for model in models]
    for number, *values in zip(found, *sent, strict=True):
        kept = left(values, name, options)
        if kept is None:
            expected = Fraction(sum(int(v) * n for v, n in zip(values, counts, strict=True)), sum(counts))
        else:
            expected = Fraction(sum(int(v) for v in kept), len(kept))
        assert number == rounded(expected)


def test_a_sum_is_wider_than_the_numbers() -> None:
    models = [{"a": np.array([60000.0], np.float16)}, {"a": np.array([60000.0], np.float16)}]
    assert fedavg(models, samples=[1, 1])["a"].tolist() == [60000.0]
    tiny = [{"a": np.array([1.0], np.float32)}] + [{"a": np.array([1.0 + 2**-23], np.float32)}] * 7
    assert fedavg(tiny, samples=[1] * 8)["a"].tolist() == [np.float32(1.0 + 7 / 8 * 2**-23)]


def test_a_delta_is_added_to_the_base_of_floats_and_integers_travel_as_they_are() -> None:
    cohort = Cohort((Facts("a", 1, 1), Facts("b", 3, 1)), 2)
    base = np.array([1.0, 2.0], np.float32)
    task = Sum.of(FedAvg(), cohort, "delta")
    fold = task.fold("w", "F32", "F32", 2)
    fold.add(0, np.array([0.5, 0.5], np.float32))
    fold.add(1, np.array([4.0, 4.0], np.float32))
    assert fold.finish(base, {})[0].tolist() == [1.0 + 0.25 * 0.5 + 0.75 * 4, 2.0 + 0.25 * 0.5 + 0.75 * 4]
    fold = task.fold("w", "I64", "I64", 1)
    fold.add(0, np.array([4]))
    fold.add(1, np.array([8]))
    assert fold.finish(np.array([1000]), {})[0].tolist() == [7]


def test_shares_add_up_to_what_they_are_and_parts_of_one_whole_to_exactly_one() -> None:
    """Nobody says what they add up to, so nothing can disagree; and rounding does not move the base."""
    assert Shares((0.25, 0.5), (1, 2)).total == 0.75
    plain = [Shares.of((1,) * silos) for silos in range(1, 300)]
    assert {shares.total for shares in plain} == {1.0}
    assert any(math.fsum(shares.floats) != 1.0 for shares in plain)
    assert plain[1].scaled([0.5, 0.25]).total == 0.75


# --- weighting, options, registry --------------------------------------------------------------------------------


def test_uniform_weighting_ignores_samples() -> None:
    models = [{"a": np.array([0.0])}, {"a": np.array([1.0])}]
    assert fedavg(models, samples=[1, 3])["a"].tolist() == [0.75]
    assert fedavg(models, samples=[1, 3], weighting="uniform")["a"].tolist() == [0.5]
    assert fedavg(models, samples=[0, 0], weighting="uniform")["a"].tolist() == [0.5]


def test_without_any_sample_there_is_nothing_to_weigh_by() -> None:
    with pytest.raises(Poison, match="weighting: uniform") as caught:
        fedavg([{"a": np.array([0.0])}] * 2, samples=[0, 0])
    assert caught.value.reason == "no-samples"


def test_strategies_are_found_by_name_and_options() -> None:
    assert {"fedavg", "fedadam", "krum", "scaffold"} < set(supported())
    assert strategy_named("fedavg", {}) == FedAvg(Weighing())
    assert strategy_named("fedavg", {"weighting": "uniform"}) == FedAvg(UNIFORMLY)
    assert strategy_named("fedavg", {}).name == "fedavg"


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("fedavgg", {}, "unknown-strategy"),
        ("", {}, "unknown-strategy"),
        ("fedavg", {"weighting": "by-mood"}, "invalid-strategy-options"),
        ("fedavg", {"weighting": 1}, "invalid-strategy-options"),
        ("fedavg", {"weighting": True}, "invalid-strategy-options"),
        ("fedavg", {"momentum": 0.9}, "invalid-strategy-options"),
    ],
)
def test_an_unknown_strategy_or_option_is_poison(name: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(Poison) as caught:
        strategy_named(name, options)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("models", "samples"),
    [
        ([], []),
        ([{"a": np.zeros(1)}], [1, 2]),
        ([{"a": np.zeros(1)}, {"b": np.zeros(1)}], [1, 1]),
        ([{"a": np.zeros(1)}, {"a": np.zeros(2)}], [1, 1]),
        ([{"a": np.zeros(1)}, {"a": np.zeros(1), "b": np.zeros(1)}], [1, 1]),
        ([{"a": np.zeros(1, np.complex64)}], [1]),
    ],
)
def test_models_that_cannot_be_averaged_are_refused(models: list[Model], samples: list[int]) -> None:
    with pytest.raises(ValueError, match=r"models?|dtype"):
        fedavg(models, samples=samples)
