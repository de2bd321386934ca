"""Where an experiment stands, read from the store alone.

Only reading lives here; `wording` says it. Nothing is asked of any process, so it works while all of them are down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic import ValidationError

from messages import names
from messages.ports import Store
from orchestrator.cli.terminal import Complaint
from orchestrator.documents import Presence, Retained
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
from orchestrator.store import Documents

AT_ONCE = 16
"""Documents read at the same time."""


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
        """None when there is no experiment of that name."""
        try:
            loaded = await self._documents.load(experiment)
        except ValidationError:
            raise Complaint(f"The state of {experiment} is by another version of Silobus; use that one.") from None
        if loaded.document is None:
            return None
        state = loaded.document.state
        if isinstance(state, Tombstone):
            return Standing(experiment, state, {}, {})
        records = await self._rounds(state.run.id)
        for numbered in loaded.document.outbox:  # a round that was over just now may not have its own document yet
            if isinstance(numbered.effect, RecordRound) and numbered.effect.record.run == state.run.id:
                records[numbered.effect.record.round] = numbered.effect.record
        silos = Standing(experiment, state, {}, {}).silos
        presence, (retained, etag) = await self.presence(silos), await self._documents.retained(state.run.id)
        records = dict(sorted(records.items()))
        return Standing(experiment, state, records, presence, retained=retained if etag else None)

    async def experiments(self) -> list[str]:
        """Every name that was ever used."""
        return await Documents(self._store).experiments()

    async def presence(self, silos: Iterable[str]) -> dict[str, Presence]:
        """The last signs of life, of silos that ever gave one."""
        return await self._documents.presences(silos)

    async def _rounds(self, run: str) -> dict[int, RoundRecord]:
        known = self._records.setdefault(run, {})
        prefix = names.round_blob(run, 0).rpartition("/")[0] + "/"
        there = [
            int(info.name.removeprefix(prefix).removesuffix(".json"))
            for info in await self._store.list(names.STATE, prefix)
        ]
        gate = asyncio.Semaphore(AT_ONCE)

        async def read(number: int) -> None:
            async with gate:
                record = await self._documents.round_record(run, number)
                if record is not None:
                    known[number] = record

        await asyncio.gather(*(read(number) for number in there if number not in known))
        return dict(known)
