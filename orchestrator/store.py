"""The documents in `state/` and the heads in `global/`: reading them, and writing them by compare-and-swap.

Every conditional write of the orchestrator's own documents is here. What they mean is the core's; weights are
`orchestrator.blobs`'.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, TypeVar, final

from pydantic import BaseModel, ValidationError

from messages import names
from messages.errors import Conflict, NotFound, Poison, SilobusError
from messages.ports import Store
from messages.schemas import Head
from orchestrator.documents import ExperimentDocument, Presence, Retained
from orchestrator.experiment.state import Ended, RoundRecord
from orchestrator.live import LiveRuns
from orchestrator.settings import RetentionSettings

M = TypeVar("M", bound=BaseModel)

MOST_BYTES: Final = 32 << 20
"""The largest document; enough for the answers of thousands of silos."""
CANNOT_BE_READ: Final = "cannot be read: it is by a later version of Silobus, so use that one, or it is damaged."
_CACHED: Final = 64
_AT_ONCE: Final = 32


class DocumentUnreadable(SilobusError):
    """What stands in a document is none of this version's. `document` says which it is."""

    def __init__(self, container: str, blob: str) -> None:
        self.document = f"{container}/{blob}"
        super().__init__(f"{self.document} {CANNOT_BE_READ}")


@dataclass(frozen=True, slots=True)
class Loaded:
    """An experiment's document as it was read or written; both None when there is none."""

    document: ExperimentDocument | None
    etag: str | None


@final
class Documents:
    """State in a store. Holds nothing that cannot be read again: parsed documents, by the ETag they were read under."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.live = LiveRuns(store)
        self._parsed: dict[str, Loaded] = {}

    # --- experiments ---------------------------------------------------------------------------------------------

    async def load(self, experiment: str) -> Loaded:
        """The experiment's document, read now; parsed only if this version was not parsed before."""
        blob = names.experiment_blob(experiment)
        try:
            read = await self._store.read(names.STATE, blob, limit=MOST_BYTES)
        except NotFound:
            return Loaded(None, None)
        known = self._parsed.get(experiment)
        if known is not None and known.etag == read.etag:
            return known
        return self._remember(experiment, Loaded(_parsed(ExperimentDocument, names.STATE, blob, read.data), read.etag))

    async def save(self, experiment: str, document: ExperimentDocument, *, replacing: Loaded) -> Loaded:
        """Writes the document in place of the one that was loaded. Raises Conflict when that is not there any more."""
        data = document.model_dump_json().encode()
        if len(data) > MOST_BYTES:
            raise Poison(
                "state-too-large", f"The state of {experiment} would have {len(data)} bytes: too many answers."
            )
        etag = await self._store.write(names.STATE, names.experiment_blob(experiment), data, if_match=replacing.etag)
        return self._remember(experiment, Loaded(document, etag))

    async def experiments(self) -> list[str]:
        """The names of all experiments there ever were, for people; those that go on are `live`'s."""
        prefix, suffix = names.experiment_blob("").removesuffix(".json"), ".json"
        found = await self._store.list(names.STATE, prefix)
        return [blob.name.removeprefix(prefix).removesuffix(suffix) for blob in found]

    def _remember(self, experiment: str, loaded: Loaded) -> Loaded:
        self._parsed.pop(experiment, None)
        self._parsed[experiment] = loaded
        while len(self._parsed) > _CACHED:
            del self._parsed[next(iter(self._parsed))]
        return loaded

    # --- what is written once ------------------------------------------------------------------------------------

    async def record_round(self, record: RoundRecord) -> None:
        """Writes a round's record; one that is there stays."""
        await self._write_once(names.round_blob(record.run, record.round), record.model_dump_json().encode())

    async def record_run(self, ended: Ended) -> None:
        """Writes a run's summary; one that is there stays."""
        await self._write_once(names.run_blob(ended.run.id), ended.model_dump_json().encode())

    async def round_record(self, run: str, round_number: int) -> RoundRecord | None:
        """A round's record, if the round is over."""
        blob = names.round_blob(run, round_number)
        try:
            read = await self._store.read(names.STATE, blob, limit=MOST_BYTES)
        except NotFound:
            return None
        return _parsed(RoundRecord, names.STATE, blob, read.data)

    async def made_in(self, run: str, round_number: int) -> tuple[str, RoundRecord | None]:
        """The name in `global` of the weights that a round made, or that an operator gave in place of the first; and
        the round's record, if there is one. Raises NotFound.
        """
        record = await self.round_record(run, round_number)
        if record is not None and record.model is not None:
            return names.weights_blob(run, round_number, record.model.sha256), record
        there = await self._store.list(names.GLOBAL, names.round_prefix(run, round_number))
        if len(there) != 1:
            raise NotFound(f"the weights of round {round_number} of {run}, which has no record of any")
        return there[0].name, record

    async def is_over(self, run: str) -> bool:
        """Whether this run is known to have ended."""
        return await self.run_record(run) is not None

    async def run_record(self, run: str) -> Ended | None:
        """A run's summary, if the run is over."""
        blob = names.run_blob(run)
        try:
            read = await self._store.read(names.STATE, blob, limit=MOST_BYTES)
        except NotFound:
            return None
        return _parsed(Ended, names.STATE, blob, read.data)

    async def _write_once(self, name: str, data: bytes) -> None:
        try:
            await self._store.write(names.STATE, name, data, if_match=None)
        except Conflict:
            return

    # --- retention -----------------------------------------------------------------------------------------------

    async def retained(self, run: str) -> tuple[Retained, str | None]:
        """What is said of a run's retention, with its ETag; nothing at first."""
        blob = names.retained_blob(run)
        try:
            read = await self._store.read(names.STATE, blob)
        except NotFound:
            return Retained(run=run), None
        return _parsed(Retained, names.STATE, blob, read.data), read.etag

    async def change_retained(self, run: str, change: Callable[[Retained], Awaitable[Retained]]) -> Retained:
        """Replaces what is said by what `change` makes of it, which may be the same; what is said then."""
        while True:
            before, etag = await self.retained(run)
            after = await change(before)
            if after == before:
                return before
            try:
                data = after.model_dump_json().encode()
                await self._store.write(names.STATE, names.retained_blob(run), data, if_match=etag)
            except Conflict:
                continue
            return after

    async def unswept(self, settings: RetentionSettings) -> list[str]:
        """Runs of which something may still have to be deleted: those over, or swept before, and not for the last time.

        Four listings at most, whatever is in the documents.
        """
        there = await self._runs(names.run_blob("")) | await self._runs(names.retained_blob(""))
        done = await self._runs(names.swept_blob(""))
        if settings.days is None:
            done |= await self._runs(names.kept_blob(settings.updates, settings.models, ""))
        return sorted(there - done)

    async def record_swept(self, run: str) -> None:
        """Remembers that a run was swept for the last time."""
        await self._write_once(names.swept_blob(run), b"{}")

    async def record_kept(self, run: str, settings: RetentionSettings) -> None:
        """Remembers that of a run that is over nothing more goes under these settings, by which `days` is null."""
        await self._write_once(names.kept_blob(settings.updates, settings.models, run), b"{}")

    async def _runs(self, nameless: str) -> set[str]:
        prefix = nameless.removesuffix(".json")
        listed = await self._store.list(names.STATE, prefix)
        return {blob.name.removeprefix(prefix).removesuffix(".json") for blob in listed}

    # --- heads ---------------------------------------------------------------------------------------------------

    async def publish_head(self, head: Head) -> None:
        """Says where the run stands, unless something newer is said already: a head only ever moves forward."""
        name = names.head_blob(head.run)
        while True:
            try:
                read = await self._store.read(names.GLOBAL, name)
            except NotFound:
                etag = None
            else:
                if _order(_parsed(Head, names.GLOBAL, name, read.data)) >= _order(head):
                    return
                etag = read.etag
            try:
                await self._store.write(names.GLOBAL, name, head.model_dump_json().encode(), if_match=etag)
            except Conflict:
                continue
            return

    # --- presence ------------------------------------------------------------------------------------------------

    async def presence(self, silo: str) -> Presence | None:
        """What is known of a silo."""
        return (await self._presence(silo))[0]

    async def presences(self, silos: Iterable[str]) -> dict[str, Presence]:
        """What is known of these silos; those never heard of are left out."""
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(silo: str) -> tuple[str, Presence | None]:
            async with gate:
                return silo, await self.presence(silo)

        found = await asyncio.gather(*(one(silo) for silo in silos))
        return {silo: presence for silo, presence in found if presence is not None}

    async def change_presence(self, silo: str, change: Callable[[Presence | None], Presence | None]) -> None:
        """Replaces a presence by what `change` makes of it; leaves it when that is None."""
        while True:
            before, etag = await self._presence(silo)
            after = change(before)
            if after is None:
                return
            try:
                await self._store.write(
                    names.STATE, names.presence_blob(silo), after.model_dump_json().encode(), if_match=etag
                )
            except Conflict:
                continue
            return

    async def _presence(self, silo: str) -> tuple[Presence | None, str | None]:
        blob = names.presence_blob(silo)
        try:
            read = await self._store.read(names.STATE, blob)
        except NotFound:
            return None, None
        return _parsed(Presence, names.STATE, blob, read.data), read.etag


def _parsed(kind: type[M], container: str, blob: str, data: bytes) -> M:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise DocumentUnreadable(container, blob) from error


def _order(head: Head) -> tuple[bool, int, bool, int]:
    return (head.phase == "ended", head.round, head.phase == "closed", head.announcement)
