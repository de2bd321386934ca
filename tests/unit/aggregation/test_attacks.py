"""Robust strategies with as many liars among the silos as each holds against; and what FedAvg makes of the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from orchestrator.aggregation import combine, strategy_named
from orchestrator.aggregation.distances import GRAM_BLOCK, Distances, Gram
from orchestrator.aggregation.strategies.geometric_median import weiszfeld
from tests.unit.aggregation.models import Array, Model

SILOS, LIARS, NUMBERS = 11, 3, 400
ROBUST: list[tuple[str, dict[str, Any]]] = [
    ("median", {}),
    ("trimmed-mean", {"count": LIARS}),
    ("krum", {"f": LIARS}),
    ("multi-krum", {"f": LIARS, "m": 5}),
    ("geometric-median", {}),
]
Attack = Callable[[Array, np.random.Generator], list[Array]]
"""What the liars send, given the honest direction."""


def sign_flips(truth: Array, rng: np.random.Generator) -> list[Array]:
    return [-10 * (truth + 0.1 * rng.normal(size=NUMBERS)) for _ in range(LIARS)]


def huge(size: float) -> Attack:
    def attack(truth: Array, rng: np.random.Generator) -> list[Array]:
        return [size * rng.choice([-1.0, 1.0], NUMBERS) for _ in range(LIARS)]

    return attack


def copies(truth: Array, rng: np.random.Generator) -> list[Array]:
    """Near each other, far from the rest: as if they were each other's proof."""
    return [5 * rng.permutation(truth)] * LIARS


ATTACKS = {
    "sign flips": sign_flips,
    "huge": huge(1e30),
    "greatest float64": huge(1.7e308),
    "copies": copies,
}


def given(attack: Attack, dtype: type = np.float64) -> tuple[Model, list[Model], Array]:
    """The base, what silos sent, and the direction that the honest ones went in, give or take a tenth."""
    rng = np.random.default_rng(1)
    truth = rng.normal(size=NUMBERS)
    base = rng.normal(size=NUMBERS)
    honest = [truth + 0.1 * rng.normal(size=NUMBERS) for _ in range(SILOS - LIARS)]
    lies = attack(truth, rng)
    rows = [lies[0], *honest[:3], *lies[1:], *honest[3:]]
    models: list[Model] = [{"w": (base + row).astype(dtype)} for row in rows]
    return {"w": base.astype(dtype)}, models, truth


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=list(ATTACKS))
@pytest.mark.parametrize(("name", "options"), ROBUST, ids=[name for name, _ in ROBUST])
def test_robust_strategies_stay_with_the_honest(name: str, options: dict[str, Any], attack: Attack) -> None:
    base, models, truth = given(attack)
    made = combine(strategy_named(name, options), models, base=base).model["w"]
    assert np.isfinite(made).all()
    off = float(np.linalg.norm(made - base["w"] - truth) / np.linalg.norm(truth))
    assert off < 0.2, f"{off:.3f} off"


@pytest.mark.parametrize("attack", [sign_flips, huge(1e30), copies], ids=["sign flips", "huge", "copies"])
def test_fedavg_does_not(attack: Attack) -> None:
    base, models, truth = given(attack)
    made = combine(strategy_named("fedavg", {}), models).model["w"]
    assert np.linalg.norm(made - base["w"] - truth) > 0.9 * np.linalg.norm(truth)


@pytest.mark.parametrize("size", [1e30, 1.7e308])
def test_clipping_bounds_what_liars_can_do(size: float) -> None:
    base, models, truth = given(huge(size))
    made = combine(strategy_named("fedavg", {"clip_factor": 1.0}), models, base=base).model["w"]
    length = np.linalg.norm(truth)
    assert np.linalg.norm(made - base["w"] - truth) < (2 * LIARS / SILOS + 0.1) * length


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


def test_the_geometric_median_of_points_on_a_line_is_the_one_in_the_middle() -> None:
    found = weiszfeld(distances(np.array([[0.0], [1.0], [10.0]])), np.full(3, 1 / 3), 1e-9, 10_000)
    assert float(found @ [0.0, 1.0, 10.0]) == pytest.approx(1.0, abs=1e-3)
