"""Ours against what Flower's own strategies gave of the same updates, as it is kept in `flower/`.

`benchmarks.peers.cases` has the updates, the options and the tolerances. `python -m benchmarks.peers.equality` compares
with Flower itself, by the same; with `--write` it replaces what is kept.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import recorded
from benchmarks.peers.cases import CASES, NOT_IN_FLOWER, Case, Model, ours, updates, worst
from messages import names, weights
from messages.fields import Scalar
from messages.transport.memory_store import MemoryStore
from orchestrator.aggregation import strategy_named, supported
from orchestrator.aggregation.driver import Source, aggregate
from tests.unit.aggregation.models import publish, publish_base

FLOWER = recorded.read()


def compare(case: Case, models: list[Model]) -> None:
    assert {array.dtype for model in models for array in model.values()} == {np.dtype(case.dtype)}
    found = worst(zip(models, FLOWER.outputs[case.label], strict=True))
    assert case.passes(found), f"{case.name} in {case.dtype} is {found} from what Flower {FLOWER.pins[0]} gave"


@pytest.mark.parametrize("case", recorded.KEPT, ids=lambda case: case.label)
def test_ours_is_what_flower_gave(case: Case) -> None:
    compare(case, list(ours(case)))


@pytest.mark.parametrize("case", recorded.KEPT, ids=lambda case: case.label)
async def test_ours_streamed_is_what_flower_gave(tmp_path: Path, case: Case) -> None:
    compare(case, [model async for model in streamed(case, tmp_path)])


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("fedavg", {"weighting": "uniform"}),
        ("fedavgm", {"momentum": 0.90001}),
        ("fedavgm", {"server_lr": 0.70001}),
        *((name, {"tau": 1.01e-3}) for name in ("fedadagrad", "fedadam", "fedyogi")),
        *((name, {"variance": 1e-7}) for name in ("fedadagrad", "fedadam", "fedyogi")),
        *((name, {beta: 0.90001}) for name in ("fedadam", "fedyogi") for beta in ("beta_1", "beta_2")),
        ("trimmed-mean", {"fraction": 0.3}),
        ("krum", {"f": 1}),
        ("multi-krum", {"f": 1}),
        ("multi-krum", {"m": 3}),
    ],
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_with_another_option_it_is_not_what_flower_gave(name: str, other: Mapping[str, Scalar], dtype: str) -> None:
    """So that the updates can tell: with some, Krum would choose the same whatever it counts."""
    case = next(case for case in recorded.KEPT if case.label == f"{name}-{dtype}")
    models = ours(replace(case, our_options=lambda number: {**case.our_options(number), **other}))
    assert not case.passes(worst(zip(models, FLOWER.outputs[case.label], strict=True)))


async def streamed(case: Case, folder: Path) -> AsyncIterator[Model]:
    """Our model after each round, of updates in a store."""
    store, kept = MemoryStore(), dict[str, Source]()
    base, rounds = updates(case)
    for number, models in enumerate(rounds, 1):
        place = folder / str(number)
        place.mkdir()
        start = await publish_base(store, place, base)
        published = [
            await publish(store, place, f"silo{silo}", model, samples=case.samples[silo])
            for silo, model in enumerate(models)
        ]
        strategy = strategy_named(case.ours, case.our_options(number))
        summed = await aggregate(store, strategy, base=start, contributions=published, target=place / "out", kept=kept)
        for slot, (path, scan) in summed.kept.items():
            blob = f"{number}-{slot}"
            await store.create(names.GLOBAL, blob, path)
            kept[slot] = Source(names.GLOBAL, blob, scan.sha256, scan.bytes)
        base = weights.read_tensors(place / "out")
        yield base


def test_what_flower_gave_is_of_these_updates_and_options_and_of_the_pinned_version() -> None:
    found = recorded.outdated(FLOWER)
    assert not found, f"{'; '.join(found)}: run {recorded.WRITE}"


def test_every_strategy_is_compared_in_both_widths_or_is_known_not_to_be_in_flower() -> None:
    for dtype in ("float64", "float32"):
        compared = {case.ours for case in recorded.KEPT if case.dtype == dtype}
        assert compared == set(supported()) - NOT_IN_FLOWER
    assert len({case.label for case in CASES}) == len(CASES)
