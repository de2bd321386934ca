"""Every strategy against its formula in float64, on random models; streamed against in memory; whoever came first."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from messages import names, weights
from messages.errors import InvalidWeights, Poison
from messages.transport.memory_store import MemoryStore
from orchestrator.aggregation import Strategy, combine, scaffold, strategy_named, supported
from orchestrator.aggregation.columns import Columns
from orchestrator.aggregation.driver import Source, aggregate
from orchestrator.aggregation.strategies.adaptive import FedAdam
from tests.unit.aggregation.models import Array, Model, publish, publish_base, random_array, same
from tests.unit.aggregation.reference import CASES, Given, Reference

IDS = [f"{name}-{'-'.join(options) or 'plain'}" for name, options, _, _ in CASES]
SHAPES = [(7, 5), (), (0, 3), (11,)]
FLOATS = {code: np.finfo(weights.DTYPES[code]).eps for code in ("F32", "F64", "F16")} | {
    "BF16": float(ml_dtypes.finfo(ml_dtypes.bfloat16).eps)
}


def a_model(rng: np.random.Generator, scale: float = 1.0) -> Model:
    """Every floating dtype in every shape, and integers of all kinds."""
    floats = {
        f"{code}.{number}": np.asarray(scale * rng.normal(size=shape)).astype(weights.DTYPES[code])
        for code in FLOATS
        for number, shape in enumerate(SHAPES)
    }
    whole = {code: random_array(rng, code, (3,)) for code in ("I64", "U8", "BOOL", "U64")}
    return floats | whole


def floating(model: Model) -> list[str]:
    return sorted(name for name, array in model.items() if weights.CODES[array.dtype] in weights.FLOATING)


def flat(model: Model, tensors: list[str]) -> Array:
    return np.concatenate([model[name].astype(float).reshape(-1) for name in tensors])


def least(name: str, options: dict[str, Any]) -> int:
    return max(one.least for one in strategy_named(name, options).roles.values())


@pytest.mark.parametrize("half", [Columns, FedAdam.__base__])
def test_what_leaves_a_part_to_its_subclasses_is_no_strategy_by_itself(half: type[Strategy]) -> None:
    """It would do nothing for that part, silently."""
    with pytest.raises(TypeError, match="abstract"):
        half()


# --- the formulas ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options", "reference", "tolerance"), CASES, ids=IDS)
@pytest.mark.parametrize("more", [0, 3])
def test_a_strategy_is_its_formula_round_after_round(
    name: str, options: dict[str, Any], reference: Reference, tolerance: float, more: int
) -> None:
    strategy, silos = strategy_named(name, options), least(name, options) + more
    rng = np.random.default_rng(silos)
    base, state = a_model(rng), {}
    tensors = floating(base)
    for _ in range(3):
        models = [
            {
                **a_model(rng),
                **{n: (base[n] + 0.1 * rng.normal(size=base[n].shape)).astype(base[n].dtype) for n in tensors},
            }
            for _ in range(silos)
        ]
        samples = [int(n) for n in rng.integers(1, 1000, silos)]
        steps = [int(n) for n in rng.integers(1, 50, silos)]
        made = combine(strategy, models, samples=samples, steps=steps, base=base, state=state)
        rows = np.stack([flat(model, tensors) - flat(base, tensors) for model in models])
        kept = {slot: flat(there, tensors) for slot, there in state.items()}
        step, keeps = reference(Given(rows, samples, steps, kept))
        room = tolerance * max(np.abs(rows).max(), np.abs(step).max())
        expected, position = flat(base, tensors) + step, 0
        for tensor in tensors:
            array = made.model[tensor]
            assert (array.dtype, array.shape) == (base[tensor].dtype, base[tensor].shape)
            values = expected[position : position + array.size]
            position += array.size
            rounding = FLOATS[weights.CODES[array.dtype]] * np.abs(values)
            assert (np.abs(array.astype(float).reshape(-1) - values) <= room + rounding).all(), tensor
        assert made.state.keys() == keeps.keys()
        for slot, values in keeps.items():
            np.testing.assert_allclose(flat(made.state[slot], tensors), values, rtol=3e-7, atol=1e-30)
            assert {array.dtype for array in made.state[slot].values()} == {np.dtype(np.float32)}
        base, state = made.model, made.state


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (name, options)
        for name, options, _, _ in CASES
        if least(name, options) == 1 and not {"server_lr", "beta_1", "clip", "clip_factor"} & set(options)
    ],
)
def test_one_silo_alone_keeps_its_numbers(name: str, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    base, model = a_model(rng), a_model(rng)
    made = combine(strategy_named(name, options), [model], samples=[7], steps=[3], base=base).model
    for tensor in made:
        if weights.CODES[made[tensor].dtype] in weights.FLOATING:
            np.testing.assert_allclose(made[tensor].astype(float), model[tensor].astype(float), rtol=1e-7, atol=1e-12)
        else:
            assert made[tensor].tolist() == model[tensor].tolist()


@pytest.mark.parametrize("name", ["median", "trimmed-mean", "krum", "multi-krum", "geometric-median"])
def test_integers_of_robust_strategies_have_nothing_of_a_few_liars(name: str) -> None:
    options = {"trimmed-mean": {"count": 2}, "krum": {"f": 2}, "multi-krum": {"f": 2, "m": 3}}.get(name, {})
    honest = [{"w": np.full(4, 1.0), "n": np.array([n], np.int64), "b": np.array([True])} for n in (10, 11, 12, 13, 14)]
    liar = {"w": np.full(4, 1.0), "n": np.array([2**62]), "b": np.array([False])}
    made = combine(strategy_named(name, options), [*honest, liar, liar], base=honest[0])
    assert made.model["n"].tolist() == [13]
    assert made.model["b"].tolist() == [True]


def test_the_even_median_of_integers_is_the_middles_mean_rounded_half_to_even() -> None:
    models = [{"n": np.array([n, 2**63 - n], np.uint64)} for n in (1, 4, 5, 9)]
    assert combine(strategy_named("median", {}), models).model["n"].tolist() == [4, 2**63 - 4]


STEPPING = ["fedavgm", "fedadagrad", "fedadam", "fedyogi", "fednova", "scaffold"]


@pytest.mark.parametrize("form", ["weights", "delta"])
@pytest.mark.parametrize("name", STEPPING)
def test_statistics_of_a_normalisation_take_the_silos_mean_and_no_step(name: str, form: Any) -> None:
    """A step of 0.1, a momentum, or steps that differ would make variances negative, and no model could be trained."""
    rng = np.random.default_rng(5)
    strategy = strategy_named(name, {"server_lr": 3.0} if name == "scaffold" else {})
    samples, steps = [10, 30, 60], [1, 50, 3]
    counts = np.array([1, 1, 1] if name == "scaffold" else samples)
    base: Model = {n: np.full(6, 0.5, np.float32) for n in ("bn.weight", "bn.running_var", "running_mean")}
    state: dict[str, Model] = {}
    for _ in range(4):
        models = [{n: (0.4 * rng.random(6) * values).astype(np.float32) for n, values in base.items()} for _ in samples]
        sent = models if form == "weights" else [{n: model[n] - base[n] for n in base} for model in models]
        made = combine(strategy, sent, samples=samples, steps=steps, base=base, state=state, form=form)
        for tensor in ("bn.running_var", "running_mean"):
            mean = np.average([model[tensor] for model in models], axis=0, weights=counts)
            np.testing.assert_allclose(made.model[tensor], mean, rtol=1e-5)
            assert all((kept[tensor] == kept[tensor][0]).all() for kept in made.state.values())  # as it began
        mean = np.average([model["bn.weight"] for model in models], axis=0, weights=counts)
        stepped = made.model["bn.weight"]
        base, state = {**made.model, "bn.weight": base["bn.weight"]}, made.state
    assert not np.allclose(stepped, mean, rtol=1e-3)


def test_statistics_of_updates_that_are_clipped_are_between_theirs_and_the_bases() -> None:
    base = {"bn.running_var": np.array([1.0], np.float32)}
    models = [{"bn.running_var": np.array([value], np.float32)} for value in (0.0, 11.0)]
    made = combine(strategy_named("fedadam", {"clip": 2.0}), models, samples=[1, 1], base=base).model
    np.testing.assert_allclose(made["bn.running_var"], [1 + (-1 + 2) / 2], rtol=1e-6)


async def test_statistics_take_no_step_in_a_streamed_sum_either(tmp_path: Path) -> None:
    store = MemoryStore()
    base = await publish_base(store, tmp_path, {"bn.running_var": np.full(3, 0.02, np.float32)})
    updates = [
        await publish(store, tmp_path, silo, {"bn.running_var": np.full(3, 0.01, np.float32)}) for silo in ("a", "b")
    ]
    summed = await aggregate(
        store, strategy_named("fedadam", {}), base=base, contributions=updates, target=tmp_path / "out"
    )
    np.testing.assert_allclose(weights.read_tensors(tmp_path / "out")["bn.running_var"], 0.01, rtol=1e-6)
    momentum, _ = summed.kept["momentum"]
    assert weights.read_tensors(momentum)["bn.running_var"].tolist() == [0.0, 0.0, 0.0]


def test_scaffolds_control_is_added_up_over_all_members() -> None:
    rng = np.random.default_rng(0)
    base = {"w": rng.normal(size=5), "n": np.array([3])}
    models = [{"w": rng.normal(size=5), "n": np.array([n])} for n in (3, 5)]
    changes = [{"w": rng.normal(size=5).astype(np.float32)} for _ in models]
    model, control = scaffold(models, changes, base=base, members=8)
    np.testing.assert_allclose(model["w"], (models[0]["w"] + models[1]["w"]) / 2, rtol=1e-12)
    assert model["n"].tolist() == [4]
    total = changes[0]["w"].astype(float) + changes[1]["w"]
    np.testing.assert_allclose(control["w"], total / 8, rtol=3e-7)
    _, later = scaffold(models, changes, base=model, control=control)
    np.testing.assert_allclose(later["w"], control["w"] + total / 2, rtol=3e-7)


def test_scaffold_weighs_models_by_samples_where_it_is_told_to_and_control_never() -> None:
    base, models = {"w": np.zeros(2)}, [{"w": np.full(2, 1.0)}, {"w": np.full(2, 5.0)}]
    changes = [{"w": np.full(2, value, np.float32)} for value in (1, 3)]
    model, control = scaffold(models, changes, samples=[3, 1], base=base, weighting="samples")
    assert model["w"].tolist() == [2, 2]
    assert control["w"].tolist() == [2, 2]
    assert scaffold(models, changes, samples=[3, 1], base=base)[0]["w"].tolist() == [3, 3]


def test_fednova_with_equal_steps_is_fedavg() -> None:
    rng = np.random.default_rng(0)
    base, models = a_model(rng), [a_model(rng) for _ in range(3)]
    nova = combine(strategy_named("fednova", {}), models, samples=[1, 2, 3], steps=[4, 4, 4], base=base).model
    avg = combine(strategy_named("fedavg", {}), models, samples=[1, 2, 3]).model
    np.testing.assert_allclose(nova["F64.0"], avg["F64.0"], rtol=1e-12)


def test_given_weights_count_by_silo_whatever_the_samples() -> None:
    strategy = strategy_named("fedavg", {"weighting": "given"}, {"a": 0.5, "b": 1.5})
    models = [{"w": np.array([0.0]), "n": np.array([0])}, {"w": np.array([1.0]), "n": np.array([4])}]
    made = combine(strategy, models, samples=[100, 1], silos=["a", "b"]).model
    assert (made["w"].tolist(), made["n"].tolist()) == ([0.75], [3])
    with pytest.raises(Poison) as caught:
        combine(strategy, models, silos=["a", "c"])
    assert caught.value.reason == "no-weight-given"


def test_an_update_that_is_no_change_is_not_clipped() -> None:
    base = {"w": np.zeros(3)}
    made = combine(strategy_named("fedavg", {"clip": 1.0}), [base, base], base=base).model
    assert made["w"].tolist() == [0.0, 0.0, 0.0]


# --- streamed ----------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    case=st.sampled_from(CASES),
    form=st.sampled_from(["weights", "delta"]),
    budget=st.sampled_from([1, 3_000_000, 256 << 20]),
    seed=st.integers(0, 1000),
)
async def test_streaming_gives_the_bytes_of_the_same_strategy_in_memory(
    tmp_path_factory: pytest.TempPathFactory, case: Any, form: Any, budget: int, seed: int
) -> None:
    name, options, _, _ = case
    strategy, silos = strategy_named(name, options), least(name, options) + seed % 2
    rng = np.random.default_rng(seed)
    folder, store = tmp_path_factory.mktemp("x"), MemoryStore()
    big = {"big": rng.normal(size=20_000).astype(np.float32), "half": rng.normal(size=9_001).astype(np.float16)}
    base, kept, state = a_model(rng) | big, {}, {}
    for number in range(2):
        models = [
            a_model(rng) | {k: rng.normal(size=v.shape).astype(v.dtype) for k, v in big.items()} for _ in range(silos)
        ]
        samples = [int(n) for n in rng.integers(1, 1000, silos)]
        place = folder / str(number)
        place.mkdir()
        updates = [
            await publish(store, place, f"s{n}", model, samples=samples[n], form=form) for n, model in enumerate(models)
        ]
        source = await publish_base(store, place, base)
        summed = await aggregate(
            store,
            strategy,
            base=source,
            contributions=updates,
            target=place / "out",
            kept=kept,
            memory_budget=budget,
        )
        steps = [10] * silos
        made = combine(strategy, models, samples=samples, steps=steps, base=base, state=state, form=form)
        assert same(weights.read_tensors(place / "out"), made.model)
        assert summed.kept.keys() == made.state.keys()
        for slot, (path, scan) in summed.kept.items():
            assert scan == weights.scan_file(path)
            assert same(weights.read_tensors(path), made.state[slot])
            await store.create(names.GLOBAL, f"{number}-{slot}", path)
            kept[slot] = Source(names.GLOBAL, f"{number}-{slot}", scan.sha256, scan.bytes)
        base, state = made.model, made.state


@pytest.mark.parametrize("name", supported())
async def test_who_came_first_changes_no_byte_of_any_strategy(tmp_path: Path, name: str) -> None:
    options = {"trimmed-mean": {"count": 1}, "krum": {"f": 0}, "multi-krum": {"f": 0, "m": 2}, "fedprox": {"mu": 0.1}}
    strategy, rng, store = strategy_named(name, options.get(name, {})), np.random.default_rng(3), MemoryStore()
    base = await publish_base(store, tmp_path, a_model(rng))
    updates = [await publish(store, tmp_path, s, a_model(rng), samples=7 * n + 1) for n, s in enumerate("abc")]
    found = set()
    for number, order in enumerate(itertools.permutations(updates)):
        target = tmp_path / f"out{number}"
        summed = await aggregate(store, strategy, base=base, contributions=order, target=target)
        found.add((summed.scan.sha256, *(scan.sha256 for _, scan in summed.kept.values())))
    assert len(found) == 1


async def test_a_result_or_state_that_is_not_finite_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    store = MemoryStore()
    base = await publish_base(store, tmp_path, {"w": np.zeros(3), "x": np.zeros(3, np.float32)})
    for name, what in (("fedyogi", "variance"), ("fedavgm", "momentum")):
        value = 1e30 if name == "fedyogi" else 1e200
        huge = await publish(store, tmp_path, name, {"w": np.array([0, value, 0]), "x": np.zeros(3, np.float32)})
        with pytest.raises(InvalidWeights) as caught:
            await aggregate(store, strategy_named(name, {}), base=base, contributions=[huge], target=tmp_path / "out")
        assert caught.value.reason == "not-finite"
        assert f"The strategy's {what} is not finite in tensor w" in str(caught.value)
        assert not [name for name in os.listdir(tmp_path) if name.startswith("out")]


async def test_what_was_kept_of_another_model_is_refused(tmp_path: Path) -> None:
    store = MemoryStore()
    base = await publish_base(store, tmp_path, {"w": np.zeros(3)})
    update = await publish(store, tmp_path, "a", {"w": np.ones(3)})
    scan = weights.write_file(tmp_path / "m", {"w": np.zeros(4, np.float32)})
    await store.create(names.GLOBAL, "m", tmp_path / "m")
    kept = {"momentum": Source(names.GLOBAL, "m", scan.sha256, scan.bytes)}
    with pytest.raises(InvalidWeights, match="strategy's momentum does not fit"):
        await aggregate(
            store,
            strategy_named("fedavgm", {}),
            base=base,
            contributions=[update],
            target=tmp_path / "out",
            kept=kept,
        )


async def test_without_a_base_only_what_needs_none_is_summed(tmp_path: Path) -> None:
    store = MemoryStore()
    update = await publish(store, tmp_path, "a", {"w": np.ones(3)})
    for name, options in (("fedavgm", {}), ("fedavg", {"clip": 1.0}), ("krum", {"f": 0})):
        with pytest.raises(Poison) as caught:
            await aggregate(
                store, strategy_named(name, options), base=None, contributions=[update], target=tmp_path / "out"
            )
        assert caught.value.reason == "no-base"
        with pytest.raises(ValueError, match="needs `base`"):
            combine(strategy_named(name, options), [{"w": np.ones(3)}])
    control = strategy_named("scaffold", {}).roles["control"]
    change = await publish(store, tmp_path, "b", {"w": np.ones(3, np.float32)}, form="delta")
    await aggregate(store, control, base=None, contributions=[change], members=4, target=tmp_path / "c")
    assert weights.read_tensors(tmp_path / "c")["w"].tolist() == [0.25] * 3
