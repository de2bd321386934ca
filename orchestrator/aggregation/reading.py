"""Reads updates for a sum: opened side by side, checked against the model's layout, read by range and ahead of use.

Updates were verified when they arrived and are never overwritten, so they are not hashed again here; each read is
pinned to the blob that was opened, and size and layout are checked.
"""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import to_thread
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar, final

import numpy as np

from messages.errors import InvalidWeights
from messages.ports import Reader, Store
from messages.weights import DTYPES, FLOATING, Layout, WeightsFault, layout_of, scan_blob, verify
from orchestrator.aggregation.plan import Piece, Range, ranges
from orchestrator.aggregation.strategy import Array

T = TypeVar("T")

READS_AHEAD: Final = 3
_OPENS_AHEAD: Final = 8
_MANY: Final = 64
"""Pieces of which it takes a thread to find out where they are."""


@dataclass(frozen=True, slots=True)
class Source:
    """A blob that was made by a round before: the weights this one started from, or what the strategy kept."""

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
class Read:
    """Ranges of one blob that were read, and the memory that they are in."""

    spans: Sequence[tuple[Range, memoryview]]
    memory: bytearray


@final
class Memory:
    """What ranges are read into, again and again: having the system clear fresh memory costs a third of a hash."""

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def take(self, length: int) -> bytearray:
        """So many bytes, or more."""
        for number, memory in enumerate(self._free):
            if len(memory) >= length:
                return self._free.pop(number)
        if self._free:
            self._free.pop()  # there are never more than were in use at once
        return bytearray(length)

    def give(self, *reads: Read) -> None:
        """What was read is not needed any more. Where somebody kept an array of it, it stays theirs."""
        for read in reads:
            for _, raw in read.spans:
                raw.release()
            with contextlib.suppress(BufferError):
                read.memory.append(read.memory.pop())  # what is looked at cannot change its length
                self._free.append(read.memory)


@dataclass(frozen=True, slots=True)
class Opened:
    """A blob that is read from, and what is in it."""

    reader: Reader
    layout: Layout

    def reading(self, batch: Sequence[Piece], memory: Memory) -> Callable[[], Awaitable[Read]]:
        """Reads these pieces when it is called."""

        async def run() -> Read:
            spans = ranges(batch, self.layout) if len(batch) < _MANY else await to_thread(ranges, batch, self.layout)
            taken = memory.take(sum(span.length for span in spans))
            left = memoryview(taken)
            filled = []
            for span in spans:
                into, left = left[: span.length], left[span.length :]
                await self.reader.read_into(span.offset, into)
                filled.append((span, into))
            return Read(filled, taken)

        return run

    def arrays(self, batch: Sequence[Piece], read: Read) -> list[Array]:
        """The pieces that were read, in the order of the batch. They are lent: until `Memory.give`."""
        found: dict[int, Array] = {}
        for span, raw in read.spans:
            for index, offset in span.pieces:
                piece = batch[index]
                dtype = DTYPES[self.layout.by_name[piece.tensor].dtype]
                found[index] = np.frombuffer(raw, dtype, piece.stop - piece.start, offset)
        return [found[index] for index in range(len(batch))]


async def open_all(store: Store, sources: Sequence[Source | Contribution], opened: list[Opened]) -> None:
    """Opens them into `opened`, in order. Raises InvalidWeights for one that does not fit the first."""
    model: Layout | None = None
    known: dict[Layout, Layout] = {}  # thousands of silos, one layout
    jobs = (_opening(store, source) for source in sources)
    async with contextlib.aclosing(ahead(jobs, _OPENS_AHEAD)) as results:
        async for one in results:
            source = sources[len(opened)]
            layout = known.get(one.layout)
            if layout is None:
                layout = known[one.layout] = one.layout
                model = model or layout
                if difference := await to_thread(_unfit, model, layout):
                    whose = f"silo {source.silo}" if isinstance(source, Contribution) else "the base"
                    raise InvalidWeights(
                        WeightsFault.LAYOUT_MISMATCH, f"The update of {whose} does not fit: {difference}"
                    )
            opened.append(Opened(one.reader, layout))


async def open_kept(store: Store, name: str, source: Source, model: Layout) -> Opened:
    """What the strategy kept, which has the model's floating tensors. Raises InvalidWeights when it does not."""
    one = await _opening(store, source)()
    if difference := model.floating().difference(one.layout):
        await one.reader.close()
        raise InvalidWeights(WeightsFault.LAYOUT_MISMATCH, f"The strategy's {name} does not fit: {difference}")
    return one


async def ahead(jobs: Iterable[Callable[[], Awaitable[T]]], depth: int) -> AsyncGenerator[T, None]:
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


def _opening(store: Store, source: Source | Contribution) -> Callable[[], Awaitable[Opened]]:
    async def run() -> Opened:
        reader = await store.open(source.container, source.blob)
        if reader.size != source.bytes:
            raise InvalidWeights(
                WeightsFault.SIZE_MISMATCH,
                f"{source.container}/{source.blob} has {reader.size} bytes; {source.bytes} were announced.",
            )
        if isinstance(source, Contribution) and source.etag not in (None, reader.etag):
            verify(await scan_blob(reader), sha256=source.sha256, bytes=source.bytes, layout=None)
        return Opened(reader, await layout_of(reader))

    return run


def _unfit(model: Layout, update: Layout) -> str | None:
    """Why an update cannot be summed into the model: only the width of its floating tensors may differ."""
    widths = {s.name: s.dtype for s in update.tensors if s.dtype in FLOATING}
    fitting = (
        (s.name, widths.get(s.name, s.dtype) if s.dtype in FLOATING else s.dtype, s.shape) for s in model.tensors
    )
    return Layout.of(fitting).difference(update)
