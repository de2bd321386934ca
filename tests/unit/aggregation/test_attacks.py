"""Robust strategies with as many liars among the silos as each holds against; and what FedAvg makes of the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from messages.errors import Poison
from orchestrator.aggregation import Cohort, Facts, combine, strategy_named
from orchestrator.aggregation.distances import GRAM_BLOCK, Distances, Gram
from orchestrator.aggregation.strategies.geometric_median import nearest_half, weiszfeld
from tests.unit.aggregation.models import Array, Model

NUMBERS = 400
FLOAT64 = np.dtype(np.float64)
ROBUST: dict[str, tuple[Callable[[int], int], Callable[[int, int], dict[str, Any]]]] = {
    "median": (lambda n: (n - 1) // 2, lambda n, f: {}),
    "trimmed-mean": (lambda n: (n - 1) // 2, lambda n, f: {"count": f}),
    "krum": (lambda n: (n - 3) // 2, lambda n, f: {"f": f}),
    "multi-krum": (lambda n: (n - 3) // 2, lambda n, f: {"f": f, "m": n - f}),
    "geometric-median": (lambda n: (n - 1) // 2, lambda n, f: {}),
}
"""The most liars among n that a strategy says it holds against, and its options for f of them."""
GREATEST = {
    FLOAT64: 1.7e308,
    np.dtype(np.float32): 3.4e38,
    np.dtype(np.float16): 65504.0,
    np.dtype(ml_dtypes.bfloat16): 3.3e38,
}
Attack = Callable[[Array, int, float, np.random.Generator], list[Array]]
"""What so many liars send, given the honest direction and the greatest number there is."""


def sign_flips(truth: Array, liars: int, most: float, rng: np.random.Generator) -> list[Array]:
    return [-10 * (truth + 0.1 * rng.normal(size=NUMBERS)) for _ in range(liars)]


def copies(truth: Array, liars: int, most: float, rng: np.random.Generator) -> list[Array]:
    """Near each other, far from the rest: as if they were each other's proof."""
    return [5 * rng.permutation(truth)] * liars


def greatest(truth: Array, liars: int, most: float, rng: np.random.Generator) -> list[Array]:
    """All the same: together they pull the hardest."""
    return [most * rng.choice([-1.0, 1.0], NUMBERS)] * liars


def scattered(truth: Array, liars: int, most: float, rng: np.random.Generator) -> list[Array]:
    return [most * rng.choice([-1.0, 1.0], NUMBERS) for _ in range(liars)]


def graded(truth: Array, liars: int, most: float, rng: np.random.Generator) -> list[Array]:
    """In one direction, each ten times as far as the one before: no two of them are a group."""
    direction = rng.choice([-1.0, 1.0], NUMBERS)
    return [min(most, 2.0 * 10.0**number) * direction for number in range(liars)]


ATTACKS = [sign_flips, copies, greatest, scattered, graded]


def given(attack: Attack, silos: int, liars: int, dtype: np.dtype[Any] = FLOAT64) -> tuple[Model, list[Model], Array]:
    """The base, what silos sent, and the direction that the honest ones went in, give or take a tenth."""
    rng = np.random.default_rng(1)
    truth = rng.normal(size=NUMBERS)
    base = rng.normal(size=NUMBERS)
    honest = [base + truth + 0.1 * rng.normal(size=NUMBERS) for _ in range(silos - liars)]
    most = GREATEST[dtype]
    lies = [np.clip(base + lie, -most, most) for lie in attack(truth, liars, most, rng)]
    rows = [lies[0], *honest[:3], *lies[1:], *honest[3:]]
    models: list[Model] = [{"w": row.astype(dtype)} for row in rows]
    return {"w": base.astype(dtype)}, models, truth


def off(made: Array, base: Array, truth: Array) -> float:
    """How far from the honest direction, by its length."""
    return float(np.linalg.norm(made.astype(float) - base.astype(float) - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize("dtype", GREATEST, ids=str)
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("silos", [11, 31])
@pytest.mark.parametrize("name", ROBUST)
def test_robust_strategies_stay_with_the_honest(name: str, silos: int, attack: Attack, dtype: np.dtype[Any]) -> None:
    """With as many liars as they say, every one of them in on it."""
    most, options = ROBUST[name]
    liars = most(silos)
    base, models, truth = given(attack, silos, liars, dtype)
    made = combine(strategy_named(name, options(silos, liars)), models, base=base).model["w"]
    assert np.isfinite(made.astype(float)).all()
    assert off(made, base["w"], truth) < 0.35


@pytest.mark.parametrize("attack", ATTACKS)
def test_fedavg_does_not(attack: Attack) -> None:
    base, models, truth = given(attack, 11, 3)
    with np.errstate(over="ignore"):
        made = combine(strategy_named("fedavg", {}), models).model["w"]
        assert off(made, base["w"], truth) > 0.9


@pytest.mark.parametrize("attack", [greatest, scattered])
@pytest.mark.parametrize("silos", [11, 31])
def test_clipping_bounds_what_liars_can_do(silos: int, attack: Attack) -> None:
    liars = (silos - 1) // 2
    base, models, truth = given(attack, silos, liars)
    made = combine(strategy_named("fedavg", {"clip_factor": 1.0}), models, base=base).model["w"]
    assert off(made, base["w"], truth) < 2 * liars / silos + 0.1


def test_of_equal_scores_krum_takes_the_first_in_silo_order() -> None:
    base = {"w": np.zeros(2)}
    models = [{"w": np.array(row)} for row in ([9.0, 9.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0])]
    models[2]["w"] = np.array([1.0, 1e-9])
    made = combine(strategy_named("krum", {"f": 0}), [models[1], models[0], models[1]], base=base).model["w"]
    assert made.tolist() == [1.0, 0.0]


# --- distances ---------------------------------------------------------------------------------------------------


def distances(rows: Array) -> Distances:
    gram = Gram(len(rows))
    gram.add(list(rows), None)
    return gram.distances()


def test_distances_are_those_between_vectors() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 20_000))
    found = distances(rows)
    np.testing.assert_allclose(found.norms, np.linalg.norm(rows, axis=1), rtol=1e-12)
    pairs = ((rows[:, None] - rows[None, :]) ** 2).sum(axis=2)
    np.testing.assert_allclose(found.squared, pairs, rtol=1e-9)
    assert (found.inner == found.inner.T).all()
    cosines = rows @ rows.T / np.linalg.norm(rows, axis=1)[:, None] / np.linalg.norm(rows, axis=1)[None, :]
    np.testing.assert_allclose(found.cosines, cosines, atol=1e-12)
    shares = np.array([0.1, 0.2, 0.3, 0.4, 0.0])
    np.testing.assert_allclose(found.to_mean(shares), np.linalg.norm(rows - shares @ rows, axis=1), rtol=1e-9)


def test_where_chunks_are_cut_changes_no_bit_of_the_products() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 3 * GRAM_BLOCK + 5))
    gram = Gram(3)
    for start, stop in ((0, GRAM_BLOCK), (GRAM_BLOCK, 3 * GRAM_BLOCK), (3 * GRAM_BLOCK, None)):
        gram.add([row[start:stop] for row in rows], None)
    assert (gram.distances().inner == distances(rows).inner).all()


def test_no_change_at_all_has_no_direction() -> None:
    found = distances(np.array([[0.0, 0.0], [1.0, 0.0]]))
    assert found.cosines.tolist() == [[0.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("name", "options"),
    [("fedavg", {"clip": 20.0}), ("fedavg", {"clip_factor": 0.9}), ("geometric-median", {})],
    ids=["clip", "clip_factor", "geometric median"],
)
def test_what_processors_multiply_differently_reaches_no_share(name: str, options: dict[str, Any]) -> None:
    """The last bits of products are BLAS's: of another processor, and of another order in which it adds up."""
    rng = np.random.default_rng(4)
    rows = rng.integers(-9, 10, size=(7, 40))
    inner = (rows @ rows.T).astype(np.float64)
    facts = tuple(Facts(str(index), 1 + index, 1) for index in range(7))
    strategy, shares = strategy_named(name, options), set()
    for _ in range(20):
        upper = np.triu(rng.choice([-1e-15, 0.0, 1e-15], inner.shape))
        moved = Distances(inner * (1 + upper + np.triu(upper, 1).T))
        shares.add(strategy.weigh(Cohort(facts, 7, moved)).floats)
    assert len(shares) == 1


# --- the geometric median ----------------------------------------------------------------------------------------


def even(count: int) -> Array:
    return np.full(count, 1 / count)


def test_the_geometric_median_of_points_on_a_line_is_the_one_in_the_middle() -> None:
    found = weiszfeld(distances(np.array([[0.0], [1.0], [10.0]])), even(3), 1e-9, 10_000)
    assert float(found @ [0.0, 1.0, 10.0]) == pytest.approx(1.0, abs=1e-3)


def test_it_begins_with_those_nearest_to_the_medoid_that_count_half() -> None:
    near = distances(np.array([[0.0], [1.0], [1.5], [10.0], [11.0]]))
    assert nearest_half(near, even(5)) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0])
    assert nearest_half(near, np.array([0.1, 0.1, 0.1, 0.1, 0.6])) == pytest.approx([0, 0, 0, 0, 1])


def test_where_it_begins_does_not_change_where_it_ends() -> None:
    """The same as straight from the paper, from the mean."""
    rows = np.random.default_rng(2).normal(size=(9, 40))
    point = rows.mean(axis=0)
    for _ in range(500):
        pulls = 1 / np.linalg.norm(rows - point, axis=1)
        point = pulls @ rows / pulls.sum()
    np.testing.assert_allclose(weiszfeld(distances(rows), even(9), 1e-6, 1000) @ rows, point, atol=1e-9)


def test_who_claims_the_most_samples_is_the_geometric_median_only_where_samples_count() -> None:
    base, models, truth = given(copies, 7, 1)
    samples = [1_000_000, *[10] * 6]
    for options, is_held in (({}, True), ({"weighting": "samples"}, False)):
        strategy = strategy_named("geometric-median", options)
        made = combine(strategy, models, samples=samples, base=base).model["w"]
        assert (off(made, base["w"], truth) < 0.35) is is_held


def test_what_is_not_found_in_time_is_refused_and_not_published() -> None:
    base, models, _ = given(sign_flips, 11, 5)
    for iterations, is_enough in ((1, False), (5, False), (100, True)):
        strategy = strategy_named("geometric-median", {"iterations": iterations})
        if is_enough:
            assert combine(strategy, models, base=base)
            continue
        with pytest.raises(Poison) as caught:
            combine(strategy, models, base=base)
        assert caught.value.reason == "not-converged"
        assert "Start again with a greater option `iterations`." in caught.value.description


@pytest.mark.parametrize(
    "rows",
    [
        np.ones((7, 50)),
        np.zeros((3, 2)),
        1e3 + 1e-6 * np.random.default_rng(0).normal(size=(7, 2000)),
        np.array([[0.0, 0.0], [1.0, 0.0], [-0.5, 0.75**0.5]]),
    ],
    ids=["all the same", "no change at all", "apart by rounding", "at the angle where it is slowest"],
)
def test_what_takes_for_ever_and_changes_nothing_is_no_reason_to_refuse(rows: Array) -> None:
    found = weiszfeld(distances(rows), even(len(rows)), 1e-6, 1000) @ rows
    np.testing.assert_allclose(found, rows[0], atol=2e-3)


def test_silos_that_agree_to_the_last_bits_are_not_refused_for_what_rounding_moves() -> None:
    """Products of large numbers tell distances no better than this: between such points the steps never end."""
    for seed in range(40):
        base = 3e5 * np.random.default_rng(seed).normal(size=500)
        rows = [base, base, base, *(base + 1e-9 * np.random.default_rng(seed).normal(size=(2, 500)))]
        found = weiszfeld(distances(np.array(rows)), even(5), 1e-6, 100)
        assert float(found.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ROBUST)
def test_robust_strategies_stay_with_the_honest_in_statistics(name: str) -> None:
    """Their shares add up to nearly 1: a hair above it they are no reason to count everybody the same."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        base: Model = {"w": np.zeros(8, np.float32), "bn.running_var": np.ones(2, np.float32)}
        honest = [
            {"w": rng.normal(1, 0.1, 8).astype(np.float32), "bn.running_var": rng.uniform(0.5, 0.7, 2).astype("f4")}
            for _ in range(6)
        ]
        liar: Model = {"w": np.full(8, 1000, np.float32), "bn.running_var": np.full(2, 1e6, np.float32)}
        made = combine(strategy_named(name, ROBUST[name][1](7, 1)), [*honest, liar], base=base).model
        assert (made["bn.running_var"] < 2).all(), seed
