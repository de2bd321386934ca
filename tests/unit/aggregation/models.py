"""Random models and their updates in a store, for the tests beside this file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from messages import names, weights
from messages.ports import Store
from orchestrator.aggregation.driver import Contribution, Source

Array = np.ndarray[Any, Any]
Model = dict[str, Array]
RUN = "test_00000000"


async def publish(
    store: Store,
    folder: Path,
    silo: str,
    model: Mapping[str, Array],
    *,
    form: Literal["weights", "delta"] = "weights",
    samples: int = 1,
) -> Contribution:
    """Uploads a silo's update as an agent does."""
    path = folder / f"update-{silo}"
    scan = weights.write_file(path, model)
    container, blob = names.updates_of(silo), names.weights_blob(RUN, 1, scan.sha256)
    await store.create(container, blob, path)
    return Contribution(silo, container, blob, scan.sha256, scan.bytes, form, samples, 10)


async def publish_base(store: Store, folder: Path, model: Mapping[str, Array]) -> Source:
    """Uploads the weights that a round starts from."""
    scan = weights.write_file(folder / "base", model)
    blob = names.weights_blob(RUN, 0, scan.sha256)
    await store.create(names.GLOBAL, blob, folder / "base")
    return Source(names.GLOBAL, blob, scan.sha256, scan.bytes)


def random_array(rng: np.random.Generator, code: str, shape: tuple[int, ...]) -> Array:
    """Numbers that are typical for a dtype, over its whole range when it is an integer."""
    dtype = weights.DTYPES[code]
    if code in weights.FLOATING:
        return np.asarray(rng.normal(size=shape) * rng.choice([1e-3, 1.0, 1e3])).astype(dtype)
    if code == "BOOL":
        return np.asarray(rng.random(shape) < 0.5)
    limits = np.iinfo(dtype)
    small = bool(rng.random() < 0.5)
    low, high = (0, 100) if small else (int(limits.min), int(limits.max))
    return np.asarray(rng.integers(low, high, size=shape, dtype=dtype, endpoint=True))


def same(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    """Whether two models are equal to the bit."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )
