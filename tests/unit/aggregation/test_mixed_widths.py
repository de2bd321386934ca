"""Silos whose updates are float32 and float64, of one model: no number is made narrower than its silo sent it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from messages import weights
from messages.transport.memory_store import MemoryStore
from orchestrator.aggregation import combine, strategy_named
from orchestrator.aggregation.driver import aggregate
from tests.unit.aggregation.models import publish, publish_base

FINE = 1.0 + 2.0**-40
"""No float32."""
DTYPES = ("float32", "float32", "float64")


@pytest.mark.parametrize("dtypes", sorted(set(itertools.permutations(DTYPES))), ids="-".join)
async def test_the_widest_of_all_updates_is_what_they_are_held_in(dtypes: tuple[str, ...], tmp_path: Path) -> None:
    """The median holds what silos sent until all are there; the one in the middle is the one in float64."""
    narrow = iter((0.0, 2.0))
    values = [FINE if dtype == "float64" else next(narrow) for dtype in dtypes]
    models = [{"w": np.full(5, value, dtype)} for value, dtype in zip(values, dtypes, strict=True)]
    base, median, store = {"w": np.zeros(5)}, strategy_named("median", {}), MemoryStore()
    assert combine(median, models, base=base).model["w"].tolist() == [FINE] * 5
    updates = [await publish(store, tmp_path, silo, model) for silo, model in zip("abc", models, strict=True)]
    source = await publish_base(store, tmp_path, base)
    await aggregate(store, median, base=source, contributions=updates, target=tmp_path / "out")
    assert weights.read_tensors(tmp_path / "out")["w"].tolist() == [FINE] * 5
