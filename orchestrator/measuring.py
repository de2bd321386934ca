"""What an experiment's checks want to know of an update when it arrives, found in the same pass that verifies it.

The update is read once, front to back; beside it, range by range and pinned to what was opened, the weights that its
round started from, and the silo's last update with the weights that it started from. What is in memory is a few ranges
of each, whatever the size of the model.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from typing import Final

import numpy as np

from messages import names
from messages.errors import Conflict, NotFound
from messages.ports import Reader, Store
from messages.safetensors_scan import Scanner
from messages.schemas import Payload
from messages.weights import FLOATING, Layout, Scan, layout_of, scan_blob
from orchestrator.aggregation.distances import GRAM_BLOCK, Gram
from orchestrator.aggregation.plan import Piece, batches
from orchestrator.aggregation.reading import Memory, Opened, Read, ahead
from orchestrator.aggregation.strategy import Array
from orchestrator.experiment.checking import Change
from orchestrator.experiment.state import Collecting
from orchestrator.store import Documents

_NUMBERS: Final = 16 * GRAM_BLOCK
"""Of each file at a time: half a megabyte of float32."""
_BATCHES_AHEAD: Final = 2


@dataclass(frozen=True, slots=True)
class _Changed:
    """Where a change can be read: an update, and what it is a change to; None where it is a delta."""

    update: Opened
    base: Opened | None

    @property
    def sources(self) -> list[Opened]:
        return [self.update, *([self.base] if self.base else [])]


async def scan_measuring(
    store: Store, state: Collecting, silo: str, *, payload: Payload, reader: Reader, expected: Layout
) -> tuple[Scan, Change | None]:
    """Scans an update of a round that trains, and measures what the experiment's checks want to know on arrival.

    No change of one that has not the layout that it should, or that is not finite. Raises InvalidWeights, NotFound (no
    base), Conflict.
    """
    checks, model = state.run.request.checks, state.run.model
    if checks is None or model is None or not checks.at_arrival:
        return await scan_blob(reader), None
    if payload.form == "delta" and not checks.measure:
        scan = await scan_blob(reader)
        return scan, Change(norm=scan.norm)
    layout = await layout_of(reader)
    if expected.difference(layout):
        return await scan_blob(reader), None
    async with AsyncExitStack() as held:
        base = None
        if payload.form == "weights":
            name = names.weights_blob(state.run.id, model.round, model.payload.sha256)
            base = await _opened(store, names.GLOBAL, name, held)
        new = _Changed(Opened(reader, layout), base)
        last = await _last(store, state, silo, layout, held) if checks.measure else None
        if last is not None:
            # Retention may delete the last update while it is read, and the new one is none the worse for it. If it is
            # the new one or its base that is gone, the pass without the last says so.
            with suppress(NotFound, Conflict):
                return await _scan(new, last)
        return await _scan(new, None)


async def _scan(new: _Changed, last: _Changed | None) -> tuple[Scan, Change | None]:
    layout, update = new.update.layout, new.update
    scanner, gram, memory = Scanner(update.reader.size), Gram(2 if last else 1), Memory()
    plan = list(batches(layout.in_file_order, _NUMBERS, GRAM_BLOCK))
    floating = [[piece for piece in batch if layout.by_name[piece.tensor].dtype in FLOATING] for batch in plan]
    beside = [*new.sources[1:], *(last.sources if last else [])]

    def take(batch: Sequence[Piece], numbers: Sequence[Piece], reads: list[Read]) -> None:
        for _, raw in reads[0].spans:
            scanner.feed(raw)
        mine = dict(zip(batch, update.arrays(batch, reads[0]), strict=True))
        others = [one.arrays(numbers, read) for one, read in zip(beside, reads[1:], strict=True)]
        for number, piece in enumerate(numbers):
            _add(gram, mine[piece], [arrays[number] for arrays in others], new, last)

    scanner.feed(await update.reader.read(0, layout.data_offset))
    jobs = (
        one.reading(batch if one is update else numbers, memory)
        for batch, numbers in zip(plan, floating, strict=True)
        for one in (update, *beside)
    )
    async with aclosing(ahead(jobs, _BATCHES_AHEAD * (1 + len(beside)))) as reads:
        for batch, numbers in zip(plan, floating, strict=True):
            there = [await anext(reads) for _ in (update, *beside)]
            await asyncio.to_thread(take, batch, numbers, there)
            memory.give(*there)
    scan = scanner.finish()
    if not scan.finite:  # who verifies the update refuses it; its change has no length to speak of
        return scan, None
    inner = gram.distances().inner
    lengths = math.sqrt(inner[0, 0]), math.sqrt(inner[-1, -1])
    cosine = float(inner[0, -1]) / (lengths[0] * lengths[1]) if last and all(lengths) else None
    return scan, Change(norm=lengths[0], cosine_last=cosine)


def _add(gram: Gram, mine: Array, others: list[Array], new: _Changed, last: _Changed | None) -> None:
    """`others` are the same numbers of the base, of the last update, and of its base, as far as there are such."""
    base = others.pop(0) if new.base else None
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by the scan
        if last is None:
            gram.add([mine], base)
            return
        gram.add([_minus(mine, base), _minus(others[0], others[1] if last.base else None)], None)


def _minus(numbers: Array, base: Array | None) -> Array:
    wide = numbers.astype(np.float64)
    if base is not None:
        wide -= base.astype(np.float64)
    return wide


async def _last(store: Store, state: Collecting, silo: str, layout: Layout, held: AsyncExitStack) -> _Changed | None:
    """The silo's last update that counted in a round that trains; None where it, or what it started from, is gone."""
    run, pace = state.run.id, state.run.paces.get(silo)
    if pace is None or not pace.updated:  # that of round 0 is no change to anything
        return None
    record = await Documents(store).round_record(run, pace.updated)
    payload = next((u.payload for u in record.updates if u.silo == silo), None) if record else None
    if payload is None:
        return None
    try:
        name = names.weights_blob(run, pace.updated, payload.sha256)
        update = await _opened(store, names.updates_of(silo), name, held)
        base = None
        if payload.form == "weights":
            name, _ = await Documents(store).made_in(run, pace.updated - 1)
            base = await _opened(store, names.GLOBAL, name, held)
    except (NotFound, Conflict):
        return None
    return None if update.layout.difference(layout) else _Changed(update, base)


async def _opened(store: Store, container: str, name: str, held: AsyncExitStack) -> Opened:
    reader = await store.open(container, name)
    held.push_async_callback(reader.close)
    return Opened(reader, await layout_of(reader))
