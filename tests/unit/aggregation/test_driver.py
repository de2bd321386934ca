"""Streaming updates from a store into the next weights."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from messages import weights
from messages.errors import Conflict, InvalidWeights, NotFound, Poison
from messages.ports import Reader
from messages.transport.directory import DirectoryStore
from messages.transport.memory_store import MemoryStore
from orchestrator.aggregation import FedAvg, fedavg, strategy_named
from orchestrator.aggregation.driver import Contribution, aggregate
from orchestrator.aggregation.strategy import Array, Cohort, Shares, State, Wide
from tests.unit.aggregation.models import Model, publish, publish_base, random_array, same

CODES = list(weights.DTYPES)


def a_model(seed: int) -> Model:
    rng = np.random.default_rng(seed)
    model = {f"t.{code}": random_array(rng, code, (7, 11)) for code in CODES}
    return {**model, "scalar": random_array(rng, "F32", ()), "none": random_array(rng, "F32", (0, 3))}


async def test_the_result_is_the_mean_in_a_file_that_others_can_read(tmp_path: Path) -> None:
    store, models = MemoryStore(), [a_model(seed) for seed in range(3)]
    silos = zip("abc", models, [5, 1, 2], strict=True)
    updates = [await publish(store, tmp_path, silo, model, samples=count) for silo, model, count in silos]
    base = await publish_base(store, tmp_path, a_model(9))
    scan = (await aggregate(store, FedAvg(), base=base, contributions=updates, target=tmp_path / "out")).scan
    assert scan == weights.scan_file(tmp_path / "out")
    assert same(weights.read_tensors(tmp_path / "out"), fedavg(models, samples=[5, 1, 2]))
    loaded = safetensors.torch.load_file(tmp_path / "out")
    expected = sum(n * model["t.F32"].astype(np.float64) for model, n in zip(models, [5, 1, 2], strict=True)) / 8
    assert torch.allclose(loaded["t.F32"].to(torch.float64), torch.from_numpy(expected), rtol=1e-6)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=st.lists(
        st.tuples(st.sampled_from(CODES), st.lists(st.integers(0, 40), max_size=2).map(tuple)), max_size=8
    ),
    silos=st.integers(1, 4),
    seed=st.integers(0, 1000),
    budget=st.sampled_from([1, 256 << 20]),
)
async def test_streaming_gives_the_bytes_of_the_average_in_memory(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: list[tuple[str, tuple[int, ...]]],
    silos: int,
    seed: int,
    budget: int,
) -> None:
    folder, store, rng = tmp_path_factory.mktemp("x"), MemoryStore(), np.random.default_rng(seed)
    models = [
        {f"t{number}": random_array(rng, code, shape) for number, (code, shape) in enumerate(tensors)}
        for _ in range(silos)
    ]
    counts = [int(n) for n in rng.integers(1, 1000, silos)]
    updates = [
        await publish(store, folder, f"s{number}", model, samples=counts[number]) for number, model in enumerate(models)
    ]
    await aggregate(store, FedAvg(), base=None, contributions=updates, target=folder / "out", memory_budget=budget)
    assert same(weights.read_tensors(folder / "out"), fedavg(models, samples=counts))


async def test_who_came_first_does_not_change_a_byte(tmp_path: Path) -> None:
    store = MemoryStore()
    updates = [await publish(store, tmp_path, s, a_model(n), samples=10**n + 1) for n, s in enumerate("abcd")]
    base = await publish_base(store, tmp_path, a_model(9))
    digests = set()
    for number, order in enumerate(itertools.permutations(updates)):
        scan = (await aggregate(store, FedAvg(), base=base, contributions=order, target=tmp_path / f"out{number}")).scan
        digests.add(scan.sha256)
    assert len(digests) == 1


async def test_the_budget_does_not_change_a_byte(tmp_path: Path) -> None:
    store, rng = MemoryStore(), np.random.default_rng(0)
    models = [{"a": rng.normal(size=5_000).astype(np.float32), "b": rng.normal(size=3_001)} for _ in range(2)]
    updates = [await publish(store, tmp_path, f"s{number}", model) for number, model in enumerate(models)]
    scans = []
    for budget in (1, 200_000, 1 << 30):
        target = tmp_path / f"out{budget}"
        summed = await aggregate(store, FedAvg(), base=None, contributions=updates, target=target, memory_budget=budget)
        scans.append(summed.scan)
    assert scans[0] == scans[1] == scans[2]


async def test_a_delta_is_added_to_the_base(tmp_path: Path) -> None:
    store, base_model = MemoryStore(), a_model(9)
    floats = [name for name, array in base_model.items() if weights.CODES[array.dtype] in weights.FLOATING]
    delta, plain = a_model(1), a_model(2)
    updates = [
        await publish(store, tmp_path, "a", delta, form="delta", samples=1),
        await publish(store, tmp_path, "b", plain, form="delta", samples=3),
    ]
    base = await publish_base(store, tmp_path, base_model)
    await aggregate(store, FedAvg(), base=base, contributions=updates, target=tmp_path / "out")
    result = weights.read_tensors(tmp_path / "out")
    for name, array in result.items():
        one, two = delta[name].astype(np.float64), plain[name].astype(np.float64)
        if name in floats:
            mean = base_model[name].astype(np.float64) + (0.25 * one + 0.75 * two)
            assert array.tobytes() == mean.astype(array.dtype).tobytes()
        else:
            average = fedavg([{"x": delta[name]}, {"x": plain[name]}], samples=[1, 3])["x"]
            assert array.tobytes() == average.tobytes()


async def test_the_result_has_the_dtypes_of_the_base_whatever_travelled(tmp_path: Path) -> None:
    store, rng = MemoryStore(), np.random.default_rng(0)
    full = {"w": rng.normal(size=(5, 3)).astype(np.float32), "n": np.array([3])}
    half = {"w": full["w"].astype(ml_dtypes.bfloat16), "n": np.array([3])}
    update = await publish(store, tmp_path, "a", half)
    base = await publish_base(store, tmp_path, full)
    scan = (await aggregate(store, FedAvg(), base=base, contributions=[update], target=tmp_path / "out")).scan
    assert scan.layout.digest == weights.read_layout(tmp_path / "base").digest
    assert same(weights.read_tensors(tmp_path / "out"), {"w": half["w"].astype(np.float32), "n": half["n"]})


async def test_the_first_weights_are_those_of_the_silo_that_initialised(tmp_path: Path) -> None:
    store = MemoryStore()
    update = await publish(store, tmp_path, "a", a_model(1), samples=7)
    scan = (await aggregate(store, FedAvg(), base=None, contributions=[update], target=tmp_path / "out")).scan
    assert scan.sha256 == update.sha256


async def test_an_update_of_another_library_in_another_order_is_summed_right(tmp_path: Path) -> None:
    store = MemoryStore()
    model = {"a": np.arange(6, dtype=np.float32), "b": np.arange(3, dtype=np.int64), "c": np.ones(2, np.float16)}
    header = (
        b'{"c":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[6],"data_offsets":[4,28]},'
    )
    header += b'"b":{"dtype":"I64","shape":[3],"data_offsets":[28,52]}, "__metadata__":{"format":"pt"}}'
    raw = len(header).to_bytes(8, "little") + header + b"".join(model[name].tobytes() for name in "cab")
    (tmp_path / "theirs").write_bytes(raw)
    await store.create("updates-a", "x", tmp_path / "theirs")
    theirs = Contribution("a", "updates-a", "x", "", len(raw), "weights", 1, 1)
    base = await publish_base(store, tmp_path, model)
    await aggregate(store, FedAvg(), base=base, contributions=[theirs], target=tmp_path / "out")
    assert same(weights.read_tensors(tmp_path / "out"), model)


async def test_a_model_without_tensors_is_a_model(tmp_path: Path) -> None:
    store = MemoryStore()
    update = await publish(store, tmp_path, "a", {})
    scan = (await aggregate(store, FedAvg(), base=None, contributions=[update], target=tmp_path / "out")).scan
    assert (scan.layout.tensors, scan.norm) == ((), 0.0)


# --- what is refused ---------------------------------------------------------------------------------------------


async def refused(
    tmp_path: Path, base: Model | None, updates: Sequence[tuple[str, Model]], error: type[Exception], **change: object
) -> Exception:
    store = MemoryStore()
    contributions = [replace(await publish(store, tmp_path, s, m), **change) for s, m in updates]  # type: ignore[arg-type]
    source = await publish_base(store, tmp_path, base) if base is not None else None
    with pytest.raises(error) as caught:
        await aggregate(store, FedAvg(), base=source, contributions=contributions, target=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return caught.value


BASE: Model = {"w": np.ones((2, 3), np.float32), "n": np.array([1])}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"w": np.ones((3, 2), np.float32)}, "of another shape: w"),
        ({"w": np.ones(6, np.float32)}, "of another shape: w"),
        ({"n": np.array([1], np.int32)}, "of another dtype: n"),
        ({"n": np.array([1.0])}, "of another dtype: n"),
        ({"w": np.ones((2, 3), np.int32)}, "of another dtype: w"),
        ({"extra": np.ones(1)}, "not expected: extra"),
    ],
)
async def test_an_update_that_does_not_fit_names_the_silo_and_the_tensor(
    tmp_path: Path, change: Model, said: str
) -> None:
    updates = [("a", BASE), ("b", {**BASE, **change})]
    error = await refused(tmp_path, BASE, updates, InvalidWeights)
    assert isinstance(error, InvalidWeights)
    assert error.reason == "layout-mismatch"
    assert "silo b" in error.description
    assert said in error.description


async def test_an_update_without_a_tensor_does_not_fit(tmp_path: Path) -> None:
    error = await refused(tmp_path, BASE, [("a", {"n": BASE["n"]})], InvalidWeights)
    assert "missing: w" in str(error)


async def test_updates_that_initialise_must_fit_each_other(tmp_path: Path) -> None:
    error = await refused(tmp_path, None, [("a", BASE), ("b", {"w": BASE["w"]})], InvalidWeights)
    assert "silo b" in str(error)


async def test_an_update_of_another_size_than_announced_is_refused(tmp_path: Path) -> None:
    error = await refused(tmp_path, BASE, [("a", BASE)], InvalidWeights, bytes=1)
    assert isinstance(error, InvalidWeights)
    assert error.reason == "size-mismatch"


async def test_a_delta_to_nothing_is_poison(tmp_path: Path) -> None:
    error = await refused(tmp_path, None, [("a", BASE)], Poison, form="delta")
    assert isinstance(error, Poison)
    assert error.reason == "delta-without-base"


async def test_updates_without_samples_are_poison(tmp_path: Path) -> None:
    error = await refused(tmp_path, BASE, [("a", BASE), ("b", BASE)], Poison, samples=0)
    assert isinstance(error, Poison)
    assert error.reason == "no-samples"


async def test_a_sum_that_does_not_fit_the_dtype_is_refused(tmp_path: Path) -> None:
    half: Model = {"w": np.ones(3, np.float16)}
    error = await refused(tmp_path, half, [("a", {"w": np.full(3, 1e6, np.float32)})], InvalidWeights)
    assert isinstance(error, InvalidWeights)
    assert error.reason == "not-finite"
    assert "tensor w" in error.description


async def test_an_update_that_is_gone_is_not_found(tmp_path: Path) -> None:
    await refused(tmp_path, BASE, [("a", BASE)], NotFound, blob="elsewhere")


async def test_no_update_or_two_of_one_silo_is_a_mistake_of_ours(tmp_path: Path) -> None:
    await refused(tmp_path, BASE, [], ValueError)
    store = MemoryStore()
    update = await publish(store, tmp_path, "z", BASE)
    with pytest.raises(ValueError, match="at most one of each silo"):
        await aggregate(store, FedAvg(), base=None, contributions=[update, update], target=tmp_path / "out")


async def test_what_is_summed_is_what_was_verified(tmp_path: Path) -> None:
    store, model = MemoryStore(), {"w": np.ones(3, np.float32)}
    verified = await publish(store, tmp_path, "a", model)
    etag = (await store.open(verified.container, verified.blob)).etag
    honest = (await store.read(verified.container, verified.blob)).data
    await store.delete(verified.container, verified.blob)
    weights.write_file(tmp_path / "other", {"w": np.full(3, 666, np.float32)})
    await store.create(verified.container, verified.blob, tmp_path / "other")
    pinned = replace(verified, etag=etag)
    with pytest.raises(InvalidWeights) as caught:
        await aggregate(store, FedAvg(), base=None, contributions=[pinned], target=tmp_path / "out")
    assert caught.value.reason == "digest-mismatch"

    await store.delete(verified.container, verified.blob)
    await store.create(verified.container, verified.blob, honest)  # as after a restored backup: the same, written anew
    await aggregate(store, FedAvg(), base=None, contributions=[pinned], target=tmp_path / "out2")
    assert same(weights.read_tensors(tmp_path / "out2"), model)


async def test_a_blob_that_changes_while_it_is_read_is_a_conflict_and_leaves_nothing(tmp_path: Path) -> None:
    store = MemoryStore()
    update = await publish(store, tmp_path, "a", {"w": np.zeros(500_000)})

    class Meddling(MemoryStore):
        async def open(self, container: str, name: str) -> Reader:
            reader = await store.open(container, name)
            await reader.read(0, 8)
            await store.delete(container, name)
            await store.create(container, name, b"x" * reader.size)
            return reader

    with pytest.raises(Conflict):
        await aggregate(Meddling(), FedAvg(), base=None, contributions=[update], target=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- how it reads ------------------------------------------------------------------------------------------------


class Watched(MemoryStore):
    """Counts reads, and how many are under way at once."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[tuple[str, int]] = []
        self.most = self.now = 0

    async def open(self, container: str, name: str) -> Reader:
        return _WatchedReader(self, container, await super().open(container, name))


class _WatchedReader(Reader):
    def __init__(self, store: Watched, container: str, reader: Reader) -> None:
        self._store, self._container, self._reader = store, container, reader

    @property
    def size(self) -> int:
        return self._reader.size

    @property
    def etag(self) -> str:
        return self._reader.etag

    async def read(self, offset: int, length: int) -> bytes:
        import asyncio

        self._store.now += 1
        self._store.most = max(self._store.most, self._store.now)
        self._store.reads.append((self._container, length))
        await asyncio.sleep(0.001)
        self._store.now -= 1
        return await self._reader.read(offset, length)

    async def close(self) -> None: ...


async def test_reads_run_ahead_and_thousands_of_small_tensors_are_few_reads(tmp_path: Path) -> None:
    store = Watched()
    model = {f"t{number}": np.ones(3, np.float32) for number in range(2_000)}
    updates = [await publish(store, tmp_path, silo, model) for silo in ("aa", "bb", "cc", "dd", "ee")]
    await aggregate(store, FedAvg(), base=None, contributions=updates, target=tmp_path / "out")
    assert len(store.reads) <= 5 * 3  # the header in one or two, the numbers in one
    assert store.most >= 3


async def test_the_base_is_read_only_when_its_numbers_are_needed(tmp_path: Path) -> None:
    store, model = Watched(), {"w": np.zeros(100_000)}
    base = await publish_base(store, tmp_path, model)
    update = await publish(store, tmp_path, "a", model)
    await aggregate(store, FedAvg(), base=base, contributions=[update], target=tmp_path / "one")
    read = sum(length for container, length in store.reads if container == "global")
    assert read <= 1 << 16
    delta = replace(update, form="delta")
    await aggregate(store, FedAvg(), base=base, contributions=[delta], target=tmp_path / "two")
    assert sum(length for container, length in store.reads if container == "global") > 800_000


class Doubling(FedAvg):
    """A strategy that looks at the base: what a server optimizer needs."""

    @property
    def reads_base(self) -> bool:
        return True

    def weigh(self, cohort: Cohort) -> Shares:
        silos = [facts.silo for facts in cohort.facts]
        assert silos == sorted(silos)
        return super().weigh(cohort)

    def step(self, change: Wide, state: State) -> Wide:
        return 2 * change


class Hoarding(FedAvg):
    """A strategy that keeps what it is lent."""

    def init(self, silos: int, elements: int, dtype: np.dtype[Any]) -> list[Array]:
        return []

    def accumulate(self, total: list[Array], index: int, values: Array, share: float) -> None:
        total.append(values)

    def mean(self, total: list[Array], part: slice) -> Wide:
        return np.mean([values[part] for values in total], axis=0, dtype=np.float64)


async def test_memory_that_a_strategy_still_looks_at_is_not_read_into_again(tmp_path: Path) -> None:
    store, numbers = MemoryStore(), np.arange(50_000.0)
    updates = [await publish(store, tmp_path, s, {"w": numbers + n}) for n, s in enumerate(("a", "b", "c"))]
    target = tmp_path / "out"
    await aggregate(store, Hoarding(), base=None, contributions=updates, target=target, memory_budget=1)
    assert np.array_equal(weights.read_tensors(target)["w"], numbers + 1)


async def test_a_strategy_that_reads_the_base_is_shown_it(tmp_path: Path) -> None:
    store = MemoryStore()
    base = await publish_base(store, tmp_path, {"w": np.full(2_000, 10.0), "v": np.zeros(3, np.float32)})
    updates = [
        await publish(store, tmp_path, silo, {"w": np.full(2_000, value), "v": np.ones(3, np.float32)})
        for silo, value in (("b", 12.0), ("a", 14.0))
    ]
    await aggregate(store, Doubling(), base=base, contributions=updates, target=tmp_path / "out", memory_budget=1)
    result = weights.read_tensors(tmp_path / "out")
    assert set(result["w"].tolist()) == {16.0}
    assert set(result["v"].tolist()) == {2.0}


STATUS = Path("/proc/self/status")
MEMORY = r"""
import asyncio, re, sys
from pathlib import Path
import numpy as np
from messages.transport.directory import DirectoryStore
from orchestrator.aggregation import strategy_named
from orchestrator.aggregation.driver import Contribution, aggregate

strategy, budget = strategy_named(sys.argv[5], {"f": 1} if sys.argv[5] == "krum" else {}), int(sys.argv[6])
folder, size, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
updates = [Contribution(f"s{n:03d}", "updates-all", "blob", "", size, sys.argv[4], 1, 1) for n in range(count)]
from orchestrator.aggregation.driver import Source
base = Source("updates-all", "blob", "", size)
def peak():  # not ru_maxrss, which begins at the peak of the process that started this one
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
before = peak()
asyncio.run(aggregate(DirectoryStore(folder), strategy, base=base, contributions=updates, target=folder / "out",
                      memory_budget=budget << 20))
print(peak() - before)
"""


@pytest.mark.parametrize(
    ("sent", "strategy", "dtype", "floats", "budget"),
    [
        ("2 weights", "fedavg", "float32", 24_000_000, 32),
        ("60 weights", "fedavg", "float32", 4_000_000, 32),
        ("2 delta", "fedavg", "float32", 24_000_000, 32),
        ("100 weights", "median", "float64", 100_000, 16),
        ("200 weights", "median", "float64", 160_000, 64),
        ("400 weights", "krum", "float32", 20_000, 32),
        ("3 weights", "fedadam", "float64", 2_000_000, 16),
        ("3 weights", "fedadam", "float64", 2_000_000, 32),
        ("3 weights", "fedavgm", "float32", 4_000_000, 16),
    ],
)
@pytest.mark.skipif(not STATUS.exists(), reason="a process's peak is read from /proc")
async def test_memory_keeps_to_the_budget_whatever_the_model_and_the_number_of_silos(
    tmp_path: Path, sent: str, strategy: str, *, dtype: str, floats: int, budget: int
) -> None:
    scan = weights.write_file(tmp_path / "source", {f"t{number}": np.zeros(floats // 4, dtype) for number in range(4)})
    await DirectoryStore(tmp_path).create("updates-all", "blob", tmp_path / "source")
    told = [str(tmp_path), str(scan.bytes), *sent.split(), strategy, str(budget)]
    command = [sys.executable, "-c", textwrap.dedent(MEMORY), *told]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])  # noqa: ASYNC221 - nothing else runs
    assert 1 < float(done.stdout) < 1.1 * budget
    assert weights.scan_file(tmp_path / "out").sha256 == scan.sha256


KEEPS = r"""
import re
from pathlib import Path
import numpy as np
from orchestrator.aggregation.columns import rows_of

def resident():
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
rows_of(200, 17_000, np.dtype("float64")).fill(1)  # an allocator has learned its size now
rows = rows_of(200, 17_000, np.dtype("float64"))
rows.fill(1)
above = [np.ones(10_000) for _ in range(10)]
before = resident()
del rows
print(before - resident())
"""


@pytest.mark.skipif(not STATUS.exists(), reason="a process's memory is read from /proc")
async def test_rows_of_a_batch_are_given_back_whatever_was_allocated_since() -> None:
    """Seen in one sum of ten: a third batch, which the allocator could neither use again nor give back."""
    done = subprocess.run(  # noqa: ASYNC221 - nothing else runs
        [sys.executable, "-c", KEEPS], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]
    )
    assert float(done.stdout) > 25


async def test_comparing_more_updates_than_there_is_memory_for_is_refused_with_what_it_takes(tmp_path: Path) -> None:
    store = MemoryStore()
    one = await publish(store, tmp_path, "s", {"w": np.zeros(4, np.float32)})
    base = await publish_base(store, tmp_path, {"w": np.ones(4, np.float32)})
    many = [replace(one, silo=f"s{number:04d}") for number in range(700)]
    krum = strategy_named("krum", {"f": 1})
    with pytest.raises(Poison, match=r"takes 35 MiB.* memory_budget of 34") as refused:
        await aggregate(store, krum, base=base, contributions=many, target=tmp_path / "out", memory_budget=34 << 20)
    assert refused.value.reason == "memory-budget-too-small"
    assert not (tmp_path / "out").exists()
    await aggregate(store, krum, base=base, contributions=many, target=tmp_path / "out", memory_budget=36 << 20)
