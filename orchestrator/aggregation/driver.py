"""Streams updates through a strategy: ranges of blobs in, new weights files out. The only I/O of aggregation.

What is in memory is bounded by a budget, whatever the size of the model or the number of silos: one batch of numbers,
the rows that the strategy holds for each of them, and a few ranges read ahead. Batches are cut to what there is room
for. Updates are summed in silo order, so the bytes never depend on who came first. A strategy that measures has them
read twice: once for the distances between them, once for the sum.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from messages.errors import InvalidWeights, Poison
from messages.ports import Store
from messages.weights import FLOATING, Layout, Scan, WeightsFault, Writer
from orchestrator.aggregation.aside import one_aside, to_its_end
from orchestrator.aggregation.distances import Distances, Gram, gram_block, gram_bytes
from orchestrator.aggregation.fold import Sum
from orchestrator.aggregation.plan import Piece, batches
from orchestrator.aggregation.reading import (
    READS_AHEAD,
    Contribution,
    Memory,
    Opened,
    Read,
    Source,
    ahead,
    open_all,
    open_kept,
)
from orchestrator.aggregation.strategy import Array, Cohort, Facts, Strategy

__all__ = ["Contribution", "Source", "Summed", "aggregate", "measure"]

_ROWS_BESIDES: Final = 9 + READS_AHEAD
"""Numbers held for each number of a batch besides the strategy's, as measured: base, result, one in use, what is read
ahead, integers' second half, and what the allocator of each thread keeps of them for the next. 8 bytes at most each."""
_ROWS_KEPT: Final = 5
"""The same, for each thing that a strategy keeps."""
_BESIDES_ALL: Final = 10 << 20
"""Bytes that any sum takes, as measured: threads, their allocators, what a writer gathers."""
_BESIDES_KEPT: Final = 3 << 20
"""The same, for each thing that a strategy keeps: a writer more."""
_MOST_NUMBERS: Final = 1 << 19
_ADDED_AT_ONCE: Final = 3
"""Updates for which it takes a thread once."""
_LEAST_NUMBERS: Final = 1 << 10
_LEAST_BUDGET: Final = 32 << 20
"""What settings allow at least: whoever gives less gets short chunks, and no refusal."""


@dataclass(frozen=True, slots=True)
class Summed:
    """What was written."""

    scan: Scan
    """Of the new weights."""
    kept: Mapping[str, tuple[Path, Scan]]
    """What the strategy keeps: by its names, a file beside the weights."""


@dataclass(frozen=True, slots=True)
class _Round:
    """Everything that is open."""

    strategy: Strategy
    layout: Layout
    """Of the new weights."""
    base: Opened | None
    updates: Sequence[Opened]
    kept: Mapping[str, Opened]
    layouts: Sequence[Layout]
    """The updates', each once."""

    def widest(self, tensor: str) -> str:
        """The dtype that holds every update's numbers: F32 or F64 (of floating tensors)."""
        return "F64" if any(layout.by_name[tensor].dtype == "F64" for layout in self.layouts) else "F32"


async def aggregate(
    store: Store,
    strategy: Strategy,
    *,
    base: Source | None,
    contributions: Sequence[Contribution],
    target: Path,
    kept: Mapping[str, Source] | None = None,
    members: int = 0,
    memory_budget: int = 256 << 20,
) -> Summed:
    """Writes the next global weights to the new file `target`, and what the strategy keeps beside it; what is in them.

    `kept` is what the strategy kept in the round before, `members` how many silos take part in the run. The result has
    the layout of `base`; with no base (the round that initialises) that of the first silo's update.
    Raises InvalidWeights (an update that does not fit the model, a result that is not finite), Poison (nothing to
    weigh by, a delta to nothing), and what the store raises. Files are removed when they are not complete.
    """
    ordered = sorted(contributions, key=lambda c: c.silo)
    if not ordered or len({c.silo for c in ordered}) != len(ordered) or len({c.form for c in ordered}) != 1:
        raise ValueError("a round is summed from at least one update, at most one of each silo, all of one form")
    _check_base(strategy, base, ordered)
    opened: list[Opened] = []
    try:
        await open_all(store, [base, *ordered] if base else ordered, opened)
        layout = await asyncio.to_thread(_layout_of, opened[0])
        before = {}
        for name in strategy.state:
            if name in (kept or {}):
                opened.append(await open_kept(store, name, (kept or {})[name], layout))
                before[name] = opened[-1]
        first = 1 if base else 0
        updates = opened[first : first + len(ordered)]
        layouts = list({id(update.layout): update.layout for update in updates}.values())
        round_ = _Round(strategy, layout, opened[0] if base else None, updates, before, layouts)
        cohort = await _cohort(round_, ordered, members, memory_budget)
        task = await asyncio.to_thread(Sum.of, strategy, cohort, ordered[0].form)
        with ExitStack() as files:
            writers = await asyncio.to_thread(_writers, round_, target, files)
            await _sum(round_, task, writers, memory_budget)
            return await to_its_end(_finish, round_, writers, target)
    finally:
        for one in opened:
            await one.reader.close()


def _layout_of(model: Opened) -> Layout:
    """As we write it: the tensors in an order that only their names and dtypes decide."""
    return Layout.of((s.name, s.dtype, s.shape) for s in model.layout.tensors)


def _check_base(strategy: Strategy, base: Source | None, ordered: Sequence[Contribution]) -> None:
    if base is not None or strategy.from_zeros:
        return
    if ordered[0].form == "delta":
        silo = ordered[0].silo
        raise Poison("delta-without-base", f"Silo {silo} sent a delta, but the round started from no weights.")
    if strategy.reads_base or strategy.measures:
        raise Poison("no-base", f"Strategy {strategy.name} needs weights that the round started from; there are none.")


async def _cohort(round_: _Round, ordered: Sequence[Contribution], members: int, memory_budget: int) -> Cohort:
    facts = tuple(Facts(c.silo, c.samples, c.steps) for c in ordered)
    distances = None
    if round_.strategy.measures:
        base = None if ordered[0].form == "delta" else round_.base
        distances = await _measured(round_.layout, base, round_.updates, memory_budget)
    return Cohort(facts, max(members, len(facts)), distances)


async def measure(
    store: Store, *, base: Source, contributions: Sequence[Contribution], memory_budget: int = 256 << 20
) -> Distances:
    """How far updates are from the base and from each other, in the order in which they are summed.

    Raises InvalidWeights for an update that does not fit the model, and what the store raises.
    """
    ordered = sorted(contributions, key=lambda c: c.silo)
    opened: list[Opened] = []
    try:
        await open_all(store, [base, *ordered], opened)
        needed = None if ordered[0].form == "delta" else opened[0]
        return await _measured(opened[0].layout, needed, opened[1:], memory_budget)
    finally:
        for one in opened:
            await one.reader.close()


async def _measured(layout: Layout, base: Opened | None, updates: Sequence[Opened], memory_budget: int) -> Distances:
    """One pass over the floating tensors of all updates, which are deltas where there is no base."""
    silos = len(updates)
    room = memory_budget - gram_bytes(silos) - _BESIDES_ALL
    needed = memory_budget - room + 8 * (silos + _ROWS_BESIDES) * gram_block(silos)
    if needed > max(memory_budget, _LEAST_BUDGET):
        raise Poison(
            "memory-budget-too-small",
            f"To compare {silos} updates with each other takes {needed >> 20} MiB, more than the "
            f"orchestrator's memory_budget of {memory_budget >> 20}. Give it more (silobus orchestrator "
            "--memory-budget), ask fewer silos (sampling), or use a strategy and checks that compare none.",
        )
    gram, memory = Gram(silos), Memory()
    floating = [spec for spec in layout.in_file_order if spec.dtype in FLOATING]
    numbers = _numbers(silos, room, gram.block)
    plan = await asyncio.to_thread(list, batches(floating, numbers, gram.block))
    sources = [*([base] if base else []), *updates]
    jobs = (source.reading(batch, memory) for batch in plan for source in sources)

    def add(batch: Sequence[Piece], reads: list[Read]) -> None:
        arrays = [source.arrays(batch, read) for source, read in zip(sources, reads, strict=True)]
        for piece in range(len(batch)):
            gram.add([update[piece] for update in arrays[-silos:]], arrays[0][piece] if base else None)

    async with aclosing(ahead(jobs, READS_AHEAD)) as reads:
        for batch in plan:
            there = [await anext(reads) for _ in sources]
            await asyncio.to_thread(add, batch, there)
            memory.give(*there)
    return await asyncio.to_thread(gram.distances)


async def _sum(round_: _Round, task: Sum, writers: Mapping[str | None, Writer], memory_budget: int) -> None:
    strategy, memory = round_.strategy, Memory()
    rows = 2 * strategy.rows(len(round_.updates)) + _ROWS_KEPT * len(strategy.state)  # of this batch and the last
    numbers = _numbers(rows, memory_budget - _BESIDES_ALL - _BESIDES_KEPT * len(strategy.state))
    plan = await asyncio.to_thread(list, batches(round_.layout.in_file_order, numbers))
    base = round_.base if task.reads_base else None
    plain, floating = [*([base] if base else []), *round_.updates], list(round_.kept.values())
    jobs = (
        source.reading(part, memory) for batch in plan for source, part in _parts(round_.layout, batch, plain, floating)
    )
    async with aclosing(ahead(jobs, READS_AHEAD)) as reads, one_aside() as aside:
        written: list[Read] = []
        for batch in plan:
            folds = _Folds(round_, task, batch)  # not in a thread: each keeps for itself what was freed in it
            writing: list[Read] = []
            if base:
                writing.append(await anext(reads))
                await asyncio.to_thread(folds.start_from, base, writing[0])
            for first in range(0, len(round_.updates), _ADDED_AT_ONCE):
                some = [await anext(reads) for _ in round_.updates[first : first + _ADDED_AT_ONCE]]
                await asyncio.to_thread(folds.add, first, some)
                memory.give(*some)
            kept = {name: await anext(reads) for name in round_.kept}
            await aside(folds.write, kept, writers)  # hashed and written while the next batch is read and added
            memory.give(*written)  # now that the batch before is through
            written = [*writing, *kept.values()]


def _parts(
    layout: Layout, batch: Sequence[Piece], plain: Sequence[Opened], floating: Sequence[Opened]
) -> list[tuple[Opened, Sequence[Piece]]]:
    """What is read of each for a batch: of what strategies keep, which has no integers, the floating pieces."""
    return [*((one, batch) for one in plain), *((one, _floating(layout, batch)) for one in floating)]


def _floating(layout: Layout, batch: Sequence[Piece]) -> list[Piece]:
    return [piece for piece in batch if layout.by_name[piece.tensor].dtype in FLOATING]


def _numbers(rows: int, room: int, least: int = _LEAST_NUMBERS) -> int:
    """How many numbers a batch may have in so many bytes, when so many more are held for each of them."""
    return max(least, min(_MOST_NUMBERS, room // (8 * (rows + _ROWS_BESIDES))))


def _writers(round_: _Round, target: Path, files: ExitStack) -> dict[str | None, Writer]:
    """One for the weights (None) and one for each thing that the strategy keeps."""
    made: dict[str | None, Writer] = {None: files.enter_context(Writer(target, round_.layout))}
    for name in round_.strategy.state:
        made[name] = files.enter_context(Writer(_beside(target, name), round_.layout.floating()))
    return made


def _beside(target: Path, name: str) -> Path:
    return target.with_name(f"{target.name}-{name}")


def _finish(round_: _Round, writers: Mapping[str | None, Writer], target: Path) -> Summed:
    for name, writer in writers.items():
        scan = writer.scan()
        if scan.first_not_finite is not None:
            tensor = scan.first_not_finite
            what = f"The sum of {len(round_.updates)} updates" if name is None else f"The strategy's {name}"
            raise InvalidWeights(
                WeightsFault.NOT_FINITE,
                f"{what} is not finite in tensor {tensor}: a number does not fit into "
                f"{writer.layout.by_name[tensor].dtype}.",
            )
    scans: dict[str | None, Scan] = {}
    try:
        for name, writer in writers.items():
            scans[name] = writer.finish()
    except BaseException:
        for name in scans:  # each removes its own file, unless it was finished
            (target if name is None else _beside(target, name)).unlink(missing_ok=True)
        raise
    kept = {name: (_beside(target, name), scan) for name, scan in scans.items() if name is not None}
    return Summed(scans[None], kept)


class _Folds:
    """The folds of one batch. Blocks: its methods run in threads."""

    def __init__(self, round_: _Round, task: Sum, batch: Sequence[Piece]) -> None:
        self._round, self._batch = round_, batch
        self._base: list[Array] | None = None
        specs = [round_.layout.by_name[piece.tensor] for piece in batch]
        self._folds = [
            task.fold(spec.name, spec.dtype, round_.widest(spec.name), piece.stop - piece.start)
            for spec, piece in zip(specs, batch, strict=True)
        ]

    def start_from(self, base: Opened, read: Read) -> None:
        self._base = base.arrays(self._batch, read)

    def add(self, first: int, reads: Sequence[Read]) -> None:
        """What was read of the updates from the one at `first` on."""
        for index, read in enumerate(reads, first):
            arrays = self._round.updates[index].arrays(self._batch, read)
            for fold, values in zip(self._folds, arrays, strict=True):
                fold.add(index, values)

    def write(self, kept: Mapping[str, Read], writers: Mapping[str | None, Writer]) -> None:
        floating = _floating(self._round.layout, self._batch)
        there = {name: iter(self._round.kept[name].arrays(floating, read)) for name, read in kept.items()}
        for number, (fold, piece) in enumerate(zip(self._folds, self._batch, strict=True)):
            is_floating = self._round.layout.by_name[piece.tensor].dtype in FLOATING
            before = {name: next(arrays) for name, arrays in there.items()} if is_floating else {}
            new, keeps = fold.finish(self._base[number] if self._base else None, before)
            writers[None].write(new.view(np.uint8).data)
            for name, values in keeps.items():
                writers[name].write(values.view(np.uint8).data)
        self._folds.clear()  # whoever still knows of this batch holds nothing large any more
        self._base = None
