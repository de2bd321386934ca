"""Which experiments have a run that goes on: one small document, so that nobody has to look through all that ended.

A run is entered before its first state is saved and taken out when everything after its end is done, so what goes on is
always listed; what is listed too long costs a look. Should the document be missing, or nothing that can be read, it is
made anew from the documents of all experiments.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, Literal, final

from pydantic import BaseModel, ConfigDict, ValidationError

from messages import names
from messages.errors import Conflict, NotFound
from messages.fields import Name, RunId
from messages.log import EventLog
from messages.ports import Store
from orchestrator.documents import ExperimentDocument
from orchestrator.experiment.state import Tombstone

_AT_ONCE: Final = 32
_MOST_BYTES: Final = 32 << 20
_log: Final = EventLog(__name__)


class LiveDocument(BaseModel):
    """`state/live.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: Literal[1] = 1
    runs: Mapping[Name, RunId | None] = {}
    """By experiment; null for a document that could not be read."""


@final
class LiveRuns:
    """The runs that go on. Every change is a compare-and-swap; a run's id never lives twice."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def experiments(self) -> list[str]:
        """The experiments with a run that goes on, by name; and maybe one that a crash left in the list."""
        return sorted((await self._changed(dict)).runs)

    async def enter(self, run: str) -> None:
        """Lists a run that is about to begin."""
        await self._changed(lambda runs: {**runs, names.experiment_of(run): run})

    async def leave(self, run: str) -> None:
        """Takes a run that is over from the list; a later one of the same experiment stays."""
        await self._changed(lambda runs: {name: listed for name, listed in runs.items() if listed != run})

    async def _changed(self, change: Callable[[Mapping[str, str | None]], dict[str, str | None]]) -> LiveDocument:
        while True:
            try:
                read = await self._store.read(names.STATE, names.live_blob(), limit=_MOST_BYTES)
            except NotFound:
                before, etag = None, None
            else:
                before, etag = _parsed(read.data), read.etag
            after = LiveDocument(runs=change(before.runs if before else await self._looked_up()))
            if after == before:
                return after
            try:
                await self._store.write(names.STATE, names.live_blob(), after.model_dump_json().encode(), if_match=etag)
            except Conflict:
                continue
            return after

    async def _looked_up(self) -> dict[str, str | None]:
        prefix, suffix = names.experiment_blob("").removesuffix(".json"), ".json"
        found = await self._store.list(names.STATE, prefix)
        gate, runs = asyncio.Semaphore(_AT_ONCE), dict[str, str | None]()

        async def one(name: str) -> None:
            async with gate:
                read = await self._store.read(names.STATE, names.experiment_blob(name), limit=_MOST_BYTES)
            try:
                document = ExperimentDocument.model_validate_json(read.data)
            except ValidationError:
                runs[name] = None  # somebody edited it: whoever looks at it says so
                return
            state = document.state
            if not isinstance(state, Tombstone) and (state.phase != "ended" or document.outbox):
                runs[name] = state.run.id

        await asyncio.gather(*(one(blob.name.removeprefix(prefix).removesuffix(suffix)) for blob in found))
        return runs


def _parsed(data: bytes) -> LiveDocument | None:
    try:
        return LiveDocument.model_validate_json(data)
    except ValidationError as error:
        _log.warning("live.made-anew", error=f"{names.live_blob()} cannot be read: {error.error_count()} errors")
        return None
