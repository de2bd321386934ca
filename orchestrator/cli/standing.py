"""Where an experiment stands, read from the store alone.

Only reading lives here; `wording` says it. Nothing is asked of any process, so it works while all of them are down. A
document that cannot be read costs what it says, and no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from messages import names
from messages.ports import Store
from orchestrator.cli.terminal import Complaint
from orchestrator.documents import ExperimentDocument, Presence, Retained
from orchestrator.experiment.effects import RecordRound
from orchestrator.experiment.state import (
    Aggregating,
    Collecting,
    Ended,
    Paused,
    RoundRecord,
    Run,
    Tombstone,
)
from orchestrator.store import Documents, DocumentUnreadable

AT_ONCE = 16
"""Documents read at the same time."""
EXPERIMENTS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Unread:
    """What a silo has said and no orchestrator has read; looked for by `listening`."""

    since: datetime | None = None
    """When the oldest sign of life of it was sent; None: there is none. An answer may be read for long, a sign not."""
    said: Presence | None = None
    """What the silo is known to do from it; None: nothing waits."""
    answers: Mapping[tuple[str, int], datetime] = field(default_factory=dict)
    """When answers were sent that wait, by run and round."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An experiment whose document cannot be read."""

    experiment: str
    words: str
    """Which document, and what to do."""


@dataclass(frozen=True, slots=True)
class Standing:
    """An experiment's state, its rounds that are over, and when its silos were last heard of."""

    experiment: str
    state: Collecting | Aggregating | Paused | Ended | Tombstone
    records: Mapping[int, RoundRecord]
    presence: Mapping[str, Presence]
    read_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    retained: Retained | None = None
    """What retention deleted of the run, and whether it is held; None: neither was ever so."""
    unread: Mapping[str, Unread] = field(default_factory=dict)
    """Of silos whose queues were looked into; what they said is in `presence`, too."""
    unreadable: tuple[str, ...] = ()
    """Documents that are left out here, since they cannot be read."""

    @property
    def run(self) -> Run | None:
        return None if isinstance(self.state, Tombstone) else self.state.run

    @property
    def silos(self) -> tuple[str, ...]:
        """Those that take part, and then those that did, or still owe the open round an answer."""
        run = self.run
        if run is None:
            return ()
        asked = self.state.asked if isinstance(self.state, Collecting) else ()
        return tuple(dict.fromkeys((*run.silos, *asked, *run.paces)))

    @property
    def is_over(self) -> bool:
        return isinstance(self.state, Ended | Tombstone)


class Reader:
    """Reads standings; keeps the rounds that are over, since those never change."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._documents = Documents(store)
        self._records: dict[str, dict[int, RoundRecord]] = {}

    async def read(self, experiment: str) -> Standing | None:
        """None when there is no experiment of that name. Raises Complaint when its document cannot be read."""
        found = await self._load(experiment)
        if isinstance(found, Unreadable):
            raise Complaint(found.words)
        return None if found is None else await self._standing(experiment, found)

    async def experiments(self) -> list[str]:
        """Every name that was ever used."""
        return await self._documents.experiments()

    async def overview(self) -> list[Standing | Unreadable]:
        """All that there ever were, by name: those that go on as by `read`, and those over by their document alone."""
        gate = asyncio.Semaphore(EXPERIMENTS_AT_ONCE)

        async def one(name: str) -> Standing | Unreadable | None:
            async with gate:
                match await self._load(name):
                    case ExperimentDocument(state=Ended() as ended):
                        return Standing(name, ended, {}, {})
                    case ExperimentDocument() as document:
                        return await self._standing(name, document)
                    case found:
                        return found

        found = await asyncio.gather(*(one(name) for name in await self.experiments()))
        return [standing for standing in found if standing is not None]

    async def presence(self, silos: Iterable[str]) -> tuple[dict[str, Presence], list[str]]:
        """The last signs of life, of silos that ever gave one; and those documents of them that cannot be read."""
        found: dict[str, Presence] = {}
        unreadable: list[str] = []
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(silo: str) -> None:
            async with gate:
                try:
                    presence = await self._documents.presence(silo)
                except DocumentUnreadable as error:
                    unreadable.append(error.document)
                else:
                    if presence is not None:
                        found[silo] = presence

        await asyncio.gather(*(one(silo) for silo in silos))
        return found, sorted(unreadable)

    async def _load(self, experiment: str) -> ExperimentDocument | Unreadable | None:
        try:
            return (await self._documents.load(experiment)).document
        except DocumentUnreadable as error:
            return Unreadable(experiment, str(error))

    async def _standing(self, experiment: str, document: ExperimentDocument) -> Standing:
        state = document.state
        if isinstance(state, Tombstone):
            return Standing(experiment, state, {}, {})
        records, unreadable = await self._rounds(state.run.id)
        for numbered in document.outbox:  # a round that was over just now may not have its own document yet
            if isinstance(numbered.effect, RecordRound) and numbered.effect.record.run == state.run.id:
                records[numbered.effect.record.round] = numbered.effect.record
        presence, more = await self.presence(Standing(experiment, state, {}, {}).silos)
        unreadable += more
        retained = None
        try:
            said, etag = await self._documents.retained(state.run.id)
            retained = said if etag else None
        except DocumentUnreadable as error:
            unreadable.append(error.document)
        records = dict(sorted(records.items()))
        return Standing(experiment, state, records, presence, retained=retained, unreadable=tuple(unreadable))

    async def _rounds(self, run: str) -> tuple[dict[int, RoundRecord], list[str]]:
        known = self._records.setdefault(run, {})
        unreadable: list[str] = []
        prefix = names.round_blob(run, 0).rpartition("/")[0] + "/"
        there = [
            int(info.name.removeprefix(prefix).removesuffix(".json"))
            for info in await self._store.list(names.STATE, prefix)
        ]
        gate = asyncio.Semaphore(AT_ONCE)

        async def read(number: int) -> None:
            async with gate:
                try:
                    record = await self._documents.round_record(run, number)
                except DocumentUnreadable as error:
                    unreadable.append(error.document)
                else:
                    if record is not None:
                        known[number] = record

        await asyncio.gather(*(read(number) for number in there if number not in known))
        return dict(known), sorted(unreadable)
