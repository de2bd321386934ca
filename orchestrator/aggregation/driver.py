"""Streams updates through a strategy: ranges of blobs in, one new weights file out. The only I/O of aggregation.

What is in memory is bounded by a budget, whatever the size of the model or the number of silos: one batch of numbers,
its accumulators, and a few ranges read ahead. Updates are summed in silo order, so the bytes never depend on who came
first. They were verified when they arrived and are never overwritten, so they are not hashed again here; each read is
pinned to the blob that was opened, and size and layout are checked.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

import numpy as np

from messages.errors import InvalidWeights, Poison
from messages.ports import Reader, Store
from messages.weights import DTYPES, FLOATING, Layout, Scan, WeightsFault, Writer, layout_of, scan_blob, verify
from orchestrator.aggregation.fold import Fold, Weights
from orchestrator.aggregation.plan import Piece, Range, batches, ranges
from orchestrator.aggregation.strategy import Array, Facts, Strategy

T = TypeVar("T")

_READS_AHEAD: Final = 3
_OPENS_AHEAD: Final = 8
_BYTES_PER_NUMBER: Final = 8 * (6 + _READS_AHEAD)
"""Accumulator, base, base widened, trained, result, what is worked on, and what is read ahead; 8 bytes at most each."""
_MOST_NUMBERS: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """A weights blob: the one a round started from."""

    container: str
    blob: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Contribution:
    """A silo's update in a frozen set."""

    silo: str
    container: str
    blob: str
    sha256: str
    bytes: int
    form: Literal["weights", "delta"]
    samples: int
    steps: int
    etag: str | None = None
    """That of the blob when it was verified; if it has another now, it is verified again before it is summed."""


@dataclass(frozen=True, slots=True)
class _Opened:
    reader: Reader
    layout: Layout


@dataclass(frozen=True, slots=True)
class _Round:
    strategy: Strategy
    weights: Weights
    layout: Layout
    base: _Opened | None
    """The weights the round started from, when their numbers are needed."""
    updates: Sequence[_Opened]
    forms: Sequence[Literal["weights", "delta"]]


async def aggregate(
    store: Store,
    strategy: Strategy,
    *,
    base: Source | None,
    contributions: Sequence[Contribution],
    target: Path,
    memory_budget: int = 256 << 20,
) -> Scan:
    """Writes the next global weights to the new file `target` and says what is in them.

    The result has the layout of `base`; with no base (the round that initialises) that of the first silo's update.
    Raises InvalidWeights (an update that does not fit the model, a result that is not finite), Poison (nothing to
    weigh by, a delta to nothing), and what the store raises. `target` is removed when it is not complete.
    """
    ordered = sorted(contributions, key=lambda c: c.silo)
    if not ordered or len({c.silo for c in ordered}) != len(ordered):
        raise ValueError("a round is summed from at least one update, and at most one of each silo")
    forms = [c.form for c in ordered]
    if base is None and "delta" in forms:
        silo = ordered[forms.index("delta")].silo
        raise Poison("delta-without-base", f"Silo {silo} sent a delta, but the round started from no weights.")
    weights = Weights.of(strategy, [Facts(c.silo, c.samples, c.steps) for c in ordered])
    opened: list[_Opened] = []
    try:
        await _open_all(store, [base, *ordered] if base else ordered, opened)
        needs_base = base and ("delta" in forms or strategy.reads_base)
        updates = opened[1:] if base else opened
        round_ = _Round(strategy, weights, opened[0].layout, opened[0] if needs_base else None, updates, forms)
        numbers = max(1024, min(_MOST_NUMBERS, memory_budget // _BYTES_PER_NUMBER))
        with await asyncio.to_thread(Writer, target, round_.layout) as writer:
            await _sum(round_, writer, numbers)
            return await _to_its_end(_finish, round_, writer)
    finally:
        for one in opened:
            await one.reader.close()


async def _sum(round_: _Round, writer: Writer, numbers: int) -> None:
    plan = list(batches(writer.layout.in_file_order, numbers))
    sources = [round_.base, *round_.updates] if round_.base else round_.updates
    jobs = (_reading(source, batch) for batch in plan for source in sources)
    async with aclosing(_ahead(jobs, _READS_AHEAD)) as reads:
        for batch in plan:
            folds = _Folds(round_, batch)
            if round_.base:
                await asyncio.to_thread(folds.start_from, round_.base.layout, await anext(reads))
            for index in range(len(round_.updates)):
                await asyncio.to_thread(folds.add, index, await anext(reads))
            await _to_its_end(folds.write, writer)


def _finish(round_: _Round, writer: Writer) -> Scan:
    scan = writer.scan()
    if scan.first_not_finite is not None:
        dtype = round_.layout.by_name[scan.first_not_finite].dtype
        raise InvalidWeights(
            WeightsFault.NOT_FINITE,
            f"The sum of {len(round_.updates)} updates is not finite in tensor {scan.first_not_finite}: "
            f"a number does not fit into {dtype}.",
        )
    return writer.finish()


class _Folds:
    """The folds of one batch. Blocks: its methods run in threads."""

    def __init__(self, round_: _Round, batch: Sequence[Piece]) -> None:
        self._round, self._batch = round_, batch
        self._base: list[Array] | None = None
        specs = [round_.layout.by_name[piece.tensor] for piece in batch]
        self._folds = [
            Fold(round_.strategy, round_.weights, spec.dtype, piece.stop - piece.start)
            for spec, piece in zip(specs, batch, strict=True)
        ]

    def start_from(self, layout: Layout, data: list[tuple[Range, bytes]]) -> None:
        self._base = _arrays(self._batch, layout, data)

    def add(self, index: int, data: list[tuple[Range, bytes]]) -> None:
        arrays = _arrays(self._batch, self._round.updates[index].layout, data)
        base = self._base if self._round.forms[index] == "delta" else None
        for number, (fold, values) in enumerate(zip(self._folds, arrays, strict=True)):
            fold.add(index, values, base[number] if base else None)

    def write(self, writer: Writer) -> None:
        for number, fold in enumerate(self._folds):
            writer.write(fold.finish(self._base[number] if self._base else None).view(np.uint8).data)


def _arrays(batch: Sequence[Piece], layout: Layout, data: Iterable[tuple[Range, bytes]]) -> list[Array]:
    found: dict[int, Array] = {}
    for span, raw in data:
        for index, offset in span.pieces:
            piece = batch[index]
            dtype = DTYPES[layout.by_name[piece.tensor].dtype]
            found[index] = np.frombuffer(raw, dtype, piece.stop - piece.start, offset)
    return [found[index] for index in range(len(batch))]


async def _open_all(store: Store, sources: Sequence[Source | Contribution], opened: list[_Opened]) -> None:
    model: Layout | None = None
    known: dict[Layout, Layout] = {}  # thousands of silos, one layout
    jobs = (_opening(store, source) for source in sources)
    async with aclosing(_ahead(jobs, _OPENS_AHEAD)) as results:
        async for one in results:
            source = sources[len(opened)]
            layout = known.get(one.layout)
            if layout is None:
                layout = known[one.layout] = one.layout
                model = model or layout
                if difference := _unfit(model, layout):
                    whose = f"silo {source.silo}" if isinstance(source, Contribution) else "the base"
                    raise InvalidWeights(
                        WeightsFault.LAYOUT_MISMATCH, f"The update of {whose} does not fit: {difference}"
                    )
            opened.append(_Opened(one.reader, layout))


def _opening(store: Store, source: Source | Contribution) -> Callable[[], Awaitable[_Opened]]:
    async def run() -> _Opened:
        reader = await store.open(source.container, source.blob)
        if reader.size != source.bytes:
            raise InvalidWeights(
                WeightsFault.SIZE_MISMATCH,
                f"{source.container}/{source.blob} has {reader.size} bytes; {source.bytes} were announced.",
            )
        if isinstance(source, Contribution) and source.etag not in (None, reader.etag):
            verify(await scan_blob(reader), sha256=source.sha256, bytes=source.bytes, layout=None)
        return _Opened(reader, await layout_of(reader))

    return run


def _reading(source: _Opened, batch: Sequence[Piece]) -> Callable[[], Awaitable[list[tuple[Range, bytes]]]]:
    async def run() -> list[tuple[Range, bytes]]:
        return [(r, await source.reader.read(r.offset, r.length)) for r in ranges(batch, source.layout)]

    return run


def _unfit(model: Layout, update: Layout) -> str | None:
    """Why an update cannot be summed into the model: only the width of its floating tensors may differ."""
    widths = {s.name: s.dtype for s in update.tensors if s.dtype in FLOATING}
    fitting = (
        (s.name, widths.get(s.name, s.dtype) if s.dtype in FLOATING else s.dtype, s.shape) for s in model.tensors
    )
    return Layout.of(fitting).difference(update)


async def _to_its_end(call: Callable[..., T], *arguments: object) -> T:
    """Runs it in a thread. Cancelling waits for it: nobody may close a file under a thread that writes to it."""
    running = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait((running,))
        raise


async def _ahead(jobs: Iterable[Callable[[], Awaitable[T]]], depth: int) -> AsyncGenerator[T, None]:
    """The results of the jobs, in order, with up to `depth` of them under way while one is used."""
    waiting = iter(jobs)
    running: deque[asyncio.Future[T]] = deque()
    try:
        while True:
            while len(running) < depth and (job := next(waiting, None)):
                running.append(asyncio.ensure_future(job()))
            if not running:
                return
            yield await running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
