"""What is measured of an update in the pass that verifies it, against the formula."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from messages.transport.memory_store import MemoryStore
from messages.weights import DTYPES, layout_of, scan_blob, write_file
from orchestrator.aggregation.distances import GRAM_BLOCK, Distances
from orchestrator.aggregation.reading import Opened
from orchestrator.measuring import _Changed, _scan

Model = dict[str, np.ndarray[Any, Any]]
SHAPES = {"a": (3, 5), "b": (), "c": (0,), "d": (GRAM_BLOCK * 20 + 7,), "e": (11,)}


def model(seed: int, dtype: str = "F32", scale: float = 1.0) -> Model:
    """Tensors of several shapes, one long enough to be cut, and one of integers, which does not count."""
    rng = np.random.default_rng(seed)
    floating = {n: (scale * rng.normal(size=s)).astype(DTYPES[dtype]) for n, s in SHAPES.items()}
    return {**floating, "n": np.array([seed], np.int64)}


async def placed(folder: Path, **models: Model) -> dict[str, Opened]:
    store, found = MemoryStore(), {}
    for name, tensors in models.items():
        write_file(folder / name, tensors)
        await store.create("global", name, folder / name)
        reader = await store.open("global", name)
        found[name] = Opened(reader, await layout_of(reader))
    return found


def change(update: Model, base: Model | None) -> np.ndarray[Any, Any]:
    parts = [update[n].astype(np.float64) - (base[n].astype(np.float64) if base else 0.0) for n in SHAPES]
    return np.concatenate([part.ravel() for part in parts])


def cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64"])
async def test_a_change_is_measured_to_the_base_and_to_the_change_before(tmp_path: Path, dtype: str) -> None:
    base, update, before, last = model(1), model(2, dtype), model(3), model(4, dtype)
    there = await placed(tmp_path, base=base, update=update, before=before, last=last)
    new, old = _Changed(there["update"], there["base"]), _Changed(there["last"], there["before"])
    scan, found = await _scan(new, old)
    assert found is not None
    assert found.norm == pytest.approx(float(np.linalg.norm(change(update, base))), rel=1e-12)
    assert found.cosine_last == pytest.approx(cosine(change(update, base), change(last, before)), rel=1e-9)
    assert found.cosine is None
    assert scan == await scan_blob(there["update"].reader)


async def test_a_delta_is_its_own_change(tmp_path: Path) -> None:
    update, last = model(2), model(3)
    there = await placed(tmp_path, update=update, last=last)
    _, found = await _scan(_Changed(there["update"], None), _Changed(there["last"], None))
    assert found is not None
    assert found.norm == pytest.approx(float(np.linalg.norm(change(update, None))), rel=1e-12)
    assert found.cosine_last == pytest.approx(cosine(change(update, None), change(last, None)), rel=1e-9)


async def test_no_change_has_no_direction_and_a_huge_one_a_finite_norm(tmp_path: Path) -> None:
    huge, base = model(2, "F64", 1e300), model(1)
    there = await placed(tmp_path, base=base, same=base, huge=huge)
    _, still = await _scan(_Changed(there["same"], there["base"]), _Changed(there["huge"], there["base"]))
    assert still is not None
    assert (still.norm, still.cosine_last) == (0.0, None)
    _, far = await _scan(_Changed(there["huge"], there["base"]), None)
    assert far is not None
    assert far.norm is not None
    assert 1e140 < far.norm < math.inf


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F64"])
async def test_what_is_not_finite_has_no_change_and_is_said_to_be_so(tmp_path: Path, dtype: str, number: float) -> None:
    """Whether it lies beside a base, beside the silo's last update, or is a delta."""
    base, update = model(1, dtype), model(2, dtype)
    update["e"][3] = number
    there = await placed(tmp_path, base=base, update=update, last=base)
    for origin in (there["base"], None):
        for last in (None, _Changed(there["last"], origin)):
            scan, found = await _scan(_Changed(there["update"], origin), last)
            assert found is None
            assert scan == await scan_blob(there["update"].reader)
            assert (scan.finite, scan.first_not_finite) == (False, "e")


def of(*changes: list[float]) -> Distances:
    rows = np.array(changes)
    return Distances(rows @ rows.T)


def test_a_cosine_is_to_the_mean_direction_of_the_others() -> None:
    rows = np.random.default_rng(5).normal(size=(6, 40)) * np.array([[1], [2], [1e6], [1e-6], [1], [3]])
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = [cosine(rows[i], np.delete(units, i, 0).mean(0)) for i in range(6)]
    assert of(*rows.tolist()).to_others == pytest.approx(expected, rel=1e-9)


def test_one_that_is_huge_does_not_lead_the_others() -> None:
    """With a plain mean all honest ones would point against it, and the attacker with it."""
    found = of([1.0, 0.1], [1.0, -0.1], [1.0, 0.0], [-1e9, 0.0]).to_others
    assert [cosine is not None and cosine > 0 for cosine in found] == [True, True, True, False]


def test_where_the_others_cancel_out_or_nothing_changed_there_is_no_cosine() -> None:
    assert of([1.0, 0.0], [0.0, 1.0], [0.0, -1.0]).to_others[0] is None
    assert of([0.0, 0.0], [1.0, 1.0], [1.0, 1.0]).to_others == (None, pytest.approx(1.0), pytest.approx(1.0))
    assert of([2.0]).to_others == (None,)
