"""Summing rounds of the past again, from the stored updates, to see whether the stored weights are what came of them.

Reads only; what it makes stays in scratch. The sum is made by the very code that made it first (`blobs`,
`aggregation`), in its fixed memory. What the record says of each update and of the weights the round began with is
checked before, so that the first thing that is not as it was is the one that is named.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Final, final

from messages import names
from messages.errors import Conflict, InvalidWeights, NotFound, Poison
from messages.ports import Reader, Store
from messages.schemas import Payload, Purpose
from messages.weights import Scan, layout_of, scan_blob, verify
from orchestrator.blobs import Weights
from orchestrator.documents import Retained
from orchestrator.experiment.state import Aggregating, Besides, Model, RoundOutcome, RoundRecord, Run, UpdateRecord
from orchestrator.store import Documents

_PIECE: Final = 4 << 20


class Verdict(StrEnum):
    """What a replay found."""

    SAME = "same"
    DIFFERENT = "different"
    """Something is not what the record says, or is gone without a tombstone."""
    DELETED = "deleted"
    """Retention deleted what it takes."""
    NOT_SUMMED = "not-summed"
    """The round made no weights: it evaluated, failed or was cancelled."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One round."""

    round: int
    verdict: Verdict
    why: str | None = None
    recorded: str | None = None
    """SHA-256 of the weights that the record says the round made."""
    recomputed: str | None = None
    """Of those that its updates make now."""
    tensor: str | None = None
    """The first, in the order of the file, in which what is stored differs from what was recomputed."""
    updates: int = 0


class _Differs(Exception):
    """The text says what is not as it was."""


@final
class Replay:
    """Replays rounds of one run."""

    def __init__(self, store: Store, documents: Documents, weights: Weights, run: Run) -> None:
        self._store, self._documents, self._weights, self._run = store, documents, weights, run

    async def rounds(self) -> list[int]:
        """The rounds that are over."""
        prefix = names.round_blob(self._run.id, 0).rpartition("/")[0] + "/"
        listed = await self._store.list(names.STATE, prefix)
        return [int(blob.name.removeprefix(prefix).removesuffix(".json")) for blob in listed]

    async def replay(self, rounds: Sequence[int]) -> AsyncIterator[Replayed]:
        """One after the other. Raises what the store raises."""
        for number in rounds:
            yield await self.round(number)

    async def round(self, number: int) -> Replayed:
        """Sums one round that is over again."""
        retained, _ = await self._documents.retained(self._run.id)
        if retained.dooms_updates(number):
            return Replayed(number, Verdict.DELETED, f"its updates are deleted: {retained.because}")
        record = await self._documents.round_record(self._run.id, number)
        if record is None:
            raise NotFound(f"There is no record of round {number} of {self._run.id}: it is not over.")
        if record.outcome is not RoundOutcome.AGGREGATED or record.model is None:
            return Replayed(number, Verdict.NOT_SUMMED, f"it was {record.outcome.value}")
        recorded, updates = record.model.sha256, len(record.updates)
        try:
            recomputed, tensor, besides = await self._recompute(record, record.model)
        except (NotFound, Conflict) as missing:
            said, _ = await self._documents.retained(self._run.id)  # it may have been swept meanwhile
            verdict, why = _absence(said, record, missing)
            return Replayed(number, verdict, why, recorded, updates=updates)
        except (InvalidWeights, Poison, _Differs) as wrong:
            return Replayed(number, Verdict.DIFFERENT, str(wrong), recorded, updates=updates)
        if besides is not None:
            return Replayed(number, Verdict.DIFFERENT, besides, recorded, recomputed, tensor, updates)
        if recomputed == recorded and tensor is None:
            return Replayed(number, Verdict.SAME, None, recorded, recomputed, updates=updates)
        why = f"the updates make {recomputed}" if recomputed != recorded else "the stored weights are not those"
        return Replayed(number, Verdict.DIFFERENT, why, recorded, recomputed, tensor, updates)

    async def _recompute(self, record: RoundRecord, made: Payload) -> tuple[str, str | None, str | None]:
        """The digest of what the updates make, the first tensor that is stored differently, and what is wrong with what
        was made besides the weights."""
        updates = [await self._checked(update, record.round) for update in record.updates]
        base = None if record.purpose is Purpose.INITIALISE else await self._base(record.round - 1)
        run = self._run.model_copy(update={"model": base})
        state = Aggregating(run=run, closed=record.model_copy(update={"updates": tuple(updates)}))
        async with self._weights.scratch.directory() as directory:
            target = directory / "replayed.safetensors"
            files = await self._weights.summed(state, target)
            _, scan = files["weights"]
            besides = {name: scan for name, (_, scan) in files.items() if name != "weights"}
            wrong = await self._besides(record, {name: scan.sha256 for name, scan in besides.items()})
            return scan.sha256, await self._first_difference(record.round, made, target, scan), wrong

    async def _besides(self, record: RoundRecord, made: Mapping[str, str]) -> str | None:
        """What is not as the record says of what the round made besides the weights; None when all is."""
        recorded = {name: payload.sha256 for name, payload in record.besides.items()}
        for name in sorted({*recorded, *made}):
            if recorded.get(name) != made.get(name):
                return f"the updates make {name} {made.get(name)}, and the record says {recorded.get(name)}"
        said, _ = await self._documents.retained(self._run.id)
        if not said.dooms_weights(record.round):
            for name, payload in record.besides.items():
                await self._stored(names.GLOBAL, record.round, payload, f"the stored {name}")
        return None

    async def _checked(self, update: UpdateRecord, number: int) -> UpdateRecord:
        """The update, if it is still what was counted; pinned to what was read now."""
        if update.payload is None:
            raise _Differs(f"the record names no weights of {update.silo}")
        container = names.updates_of(update.silo)
        etag = await self._stored(container, number, update.payload, f"the update of {update.silo}")
        besides = {
            role: Besides(
                payload=one.payload,
                etag=await self._stored(container, number, one.payload, f"the {role} of {update.silo}"),
            )
            for role, one in update.besides.items()
        }
        return update.model_copy(update={"etag": etag, "besides": besides})

    async def _stored(self, container: str, number: int, payload: Payload, what: str) -> str:
        """The ETag of a blob of a round, which is what its payload says. Raises _Differs, NotFound."""
        reader = await self._store.open(container, names.weights_blob(self._run.id, number, payload.sha256))
        try:
            await _is(reader, payload.sha256, payload.bytes, what)
            return reader.etag
        finally:
            await reader.close()

    async def _base(self, number: int) -> Model:
        """The weights a round began with: those that the round before made, or an operator gave."""
        name, record = await self._documents.made_in(self._run.id, number)
        sha256 = Path(name).stem
        reader = await self._store.open(names.GLOBAL, name)
        try:
            size = reader.size if record is None or record.model is None else record.model.bytes
            scan = await _is(reader, sha256, size, f"the weights of round {number}, which it began with,")
        finally:
            await reader.close()
        payload = Payload(sha256=sha256, bytes=size, layout=scan.layout.digest)
        if record is None:
            return Model(round=number, payload=payload)
        for name, one in record.besides.items():
            await self._stored(names.GLOBAL, number, one, f"the {name} of round {number}, which it began with,")
        return Model(round=number, payload=payload, besides=record.besides)

    async def _first_difference(self, number: int, made: Payload, target: Path, scan: Scan) -> str | None:
        """The first tensor in which the stored weights differ; None when none does, or they were let go."""
        try:
            reader = await self._store.open(names.GLOBAL, names.weights_blob(self._run.id, number, made.sha256))
        except NotFound:
            said, _ = await self._documents.retained(self._run.id)
            if said.dooms_weights(number):
                return None
            raise
        try:
            stored = await layout_of(reader)
            if difference := scan.layout.difference(stored):
                raise _Differs(f"the stored weights have other tensors than the updates make: {difference}")
            with target.open("rb") as file:
                for spec in stored.in_file_order:
                    mine = scan.layout.by_name[spec.name]
                    for begin in range(0, spec.end - spec.begin, _PIECE):
                        length = min(_PIECE, spec.end - spec.begin - begin)
                        there = await reader.read(stored.data_offset + spec.begin + begin, length)
                        offset = scan.layout.data_offset + mine.begin + begin
                        if there != await asyncio.to_thread(_piece, file, offset, length):
                            return spec.name
            await _is(reader, made.sha256, made.bytes, "the stored weights, in their header,")
        finally:
            await reader.close()
        return None


async def _is(reader: Reader, sha256: str, size: int, what: str) -> Scan:
    try:
        scan = await scan_blob(reader)
        verify(scan, sha256=sha256, bytes=size, layout=None)
    except InvalidWeights as wrong:
        raise _Differs(f"{what} is not what the record says: {wrong.description}") from None
    return scan


def _absence(said: Retained, record: RoundRecord, missing: Exception) -> tuple[Verdict, str]:
    initialises = record.purpose is Purpose.INITIALISE
    if said.dooms_updates(record.round) or (not initialises and said.dooms_weights(record.round - 1)):
        return Verdict.DELETED, f"what it was made of is deleted: {said.because}"
    return Verdict.DIFFERENT, f"missing, and no tombstone says that it was deleted: {missing}"


def _piece(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)
