"""Deleting what retention lets go, and holding what an operator wants kept. What may go is said by `retention`.

    sweep-run ─▶ tombstone, by compare-and-swap ─▶ delete ─▶ remember how far

Killed anywhere, a sweep is done again from the tombstone; any number may run at once. A hold is a write to the same
document: after it no tombstone grows, and whoever is deleting sees it before the next round's blobs. What a tombstone
names already may be gone, and a hold does not bring it back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Final, final
from weakref import WeakValueDictionary

from messages import names
from messages.codec import encode
from messages.errors import Forbidden, Poison, Stale
from messages.experiments import HoldExperiment, ReleaseExperiment
from messages.log import EventLog
from messages.ports import Bus, Clock, Outgoing, Store
from messages.retry import retry_transient
from messages.schemas import SweepRun
from orchestrator.documents import Retained
from orchestrator.experiment.state import Ended, Live, Tombstone
from orchestrator.gathering import all_of
from orchestrator.retention import expires_at, is_complete, tombstone
from orchestrator.settings import RetentionSettings
from orchestrator.store import Documents

_log: Final = EventLog(__name__)
_AT_ONCE: Final = 16
"""Containers that are swept at the same time."""
_EARLY: Final = timedelta(seconds=60)
"""At least so long waits a last sweep that came before its time."""


@final
class Sweeper:
    """Retention, carried out; `silos` are those enrolled."""

    def __init__(
        self,
        *,
        bus: Bus,
        store: Store,
        documents: Documents,
        clock: Clock,
        settings: RetentionSettings,
        silos: Sequence[str],
    ) -> None:
        self._bus, self._store, self._documents, self._clock = bus, store, documents, clock
        self._settings, self._silos = settings, tuple(silos)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def sweep(self, message: SweepRun, posted_at: datetime) -> None:
        """Deletes what may go of this run, and asks for the next sweep if there is one to come.

        `posted_at` is when the message was enqueued, or was due, by the broker's clock. Raises Stale when an operator
        holds the run, Poison for one that there is not. The lock only spares this process from deleting twice what two
        messages ask for.
        """
        async with self._locks.setdefault(message.run, asyncio.Lock()):
            await self._sweep(message, posted_at)

    async def _sweep(self, message: SweepRun, posted_at: datetime) -> None:
        run = message.run
        state: Live | Ended | None = None

        async def grow(known: Retained) -> Retained:
            nonlocal state
            state = await self._state(run)  # read after what is known, so never older than that
            return tombstone(state, known, self._settings, self._clock.now())

        said = await self._documents.change_retained(run, grow)
        if said.held_at is not None or state is None:
            raise Stale(f"{run} is held")
        complete = is_complete(state, said, self._settings, self._clock.now())
        silos = [*state.run.silos, *state.run.paces, *(self._silos if complete else ())]  # those that left, too
        if complete:
            await self._empty(said, f"{run}/", names.GLOBAL, *map(names.updates_of, silos))
        else:
            await self._go_through(said, silos)
        await self._documents.change_retained(run, partial(_remembered, said))
        if complete:
            await self._documents.record_swept(run)
            _log.info("run.swept", run=run)
            return
        await self._ask_again(state, said, message, posted_at)

    async def sweep_late(self, silo: str, run: str, round_number: int) -> None:
        """Deletes an update that came when those of its round were gone: sweeps go on from there, and find it no more.

        Of a run that is held, only the last sweep does.
        """
        said, _ = await self._documents.retained(run)
        if said.dooms_updates(round_number):
            with contextlib.suppress(Stale):
                await self._empty(said, names.round_prefix(run, round_number), names.updates_of(silo))

    async def clear_refused(self, run: str) -> None:
        """Deletes the weights copied for a run whose start is refused: no document names it, so no sweep would.

        Before its message is settled; so who dies here leaves that to whoever has the message next. Nothing is deleted
        of a run that was started, whatever became of it.
        """
        try:
            await self._state(run)
        except Poison:
            for blob in await self._store.list(names.GLOBAL, f"{run}/"):
                await self._store.delete(names.GLOBAL, blob.name)

    async def change_hold(self, message: HoldExperiment | ReleaseExperiment, posted_at: datetime) -> None:
        """Holds a run, or lets it go. Raises Duplicate, Stale for what was posted before the last, Poison."""
        run = await self._run_meant(message)
        holds = isinstance(message, HoldExperiment)

        async def change(known: Retained) -> Retained:
            if known.asked_at is not None and posted_at < known.asked_at:
                raise Stale(f"{run} was held or released since")
            held_at = (known.held_at or posted_at) if holds else None
            return known.model_copy(update={"held_at": held_at, "asked_at": posted_at})

        await self._documents.change_retained(run, change)
        _log.info("run.held" if holds else "run.released", run=run)
        if not holds:  # every time: the last try may have died here
            await self._ask(SweepRun(run=run), f"{run}-sweep-released-{posted_at.isoformat()}")

    async def rearm(self, standing: Collection[object] = ()) -> None:
        """Asks for a sweep of every run that may need one and has none in `standing`, which is what waits in `work`.

        Each is asked for until the bus has it: beginning again at the first would, with many runs, never end. Of one
        that is held, the release asks.
        """
        now = self._clock.now()
        for run in await retry_transient(partial(self._documents.unswept, self._settings), clock=self._clock):
            wanted = SweepRun(run=run, last=True)
            if wanted in standing or await retry_transient(partial(self._is_held, run), clock=self._clock):
                continue
            asking = partial(self._ask, wanted, f"{run}-sweep-{now.isoformat()}")
            await retry_transient(asking, clock=self._clock)

    async def _is_held(self, run: str) -> bool:
        try:
            return (await self._documents.retained(run))[0].held_at is not None
        except ValueError:  # somebody edited the document: the sweep says so, and holds up no other
            return False

    async def _go_through(self, said: Retained, silos: Iterable[str]) -> None:
        """Round by round, from where the last sweep ended."""
        updates = range(said.updates_gone, said.updates_before)
        models = {n for n in range(said.models_gone, said.models_before) if said.dooms_weights(n)} | {*said.outdated}
        for number in sorted({*updates, *models}):
            containers = [names.updates_of(silo) for silo in silos] if number in updates else []
            if number in models:
                containers.append(names.GLOBAL)
            await self._empty(said, names.round_prefix(said.run, number), *containers)

    async def _empty(self, said: Retained, prefix: str, *containers: str) -> None:
        """Deletes what the tombstone names, and nothing else, of the blobs that begin so. Raises Stale when held."""
        if (await self._documents.retained(said.run))[0].held_at is not None:
            raise Stale(f"{said.run} is held")
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(container: str) -> None:
            dooms: Callable[[int], bool] = said.dooms_weights if container == names.GLOBAL else said.dooms_updates
            async with gate:
                try:
                    for blob in await self._store.list(container, prefix):
                        number = names.round_of_blob(blob.name)
                        if number is not None and dooms(number):
                            await self._store.delete(container, blob.name)
                except Forbidden as error:  # a silo that left took its container with it; the others' are swept
                    _log.error("container.not-swept", container=container, run=said.run, error=str(error))

        await all_of(one(container) for container in dict.fromkeys(containers))

    async def _ask_again(self, state: Live | Ended, said: Retained, message: SweepRun, posted_at: datetime) -> None:
        """The next hundred rounds; or the last sweep of a run that is over, where nobody else has asked for it."""
        run, now = said.run, self._clock.now()
        if tombstone(state, said, self._settings, now) != said:
            which = f"{'last-' if message.last else ''}{said.updates_before}-{said.models_before}"
            await self._ask(message, f"{run}-sweep-{which}")
        elif isinstance(state, Ended):
            at = expires_at(state.ended_at, self._settings)
            if at is None:
                await self._documents.record_kept(run, self._settings)
            elif message.last or posted_at >= at:
                # Where our clock is behind the broker's, what is due in our future is delivered at once, each time.
                at = max(at, max(now, posted_at) + _EARLY)
                await self._ask(SweepRun(run=run, last=True), f"{run}-sweep-{at.isoformat()}", at)

    async def _ask(self, message: SweepRun, message_id: str, at: datetime | None = None) -> None:
        outgoing = Outgoing(
            body=encode(message),
            message_id=message_id,
            subject=message.kind,
            correlation_id=message.run,
            scheduled_at=at,
        )
        await self._bus.send(names.WORK, outgoing)

    async def _state(self, run: str) -> Live | Ended:
        document = (await self._documents.load(names.experiment_of(run))).document
        if document is not None and not isinstance(document.state, Tombstone) and document.state.run.id == run:
            return document.state
        ended = await self._documents.run_record(run)
        if ended is None:
            raise Poison("unknown-run", f"There is no run {run}.")
        return ended

    async def _run_meant(self, message: HoldExperiment | ReleaseExperiment) -> str:
        name, run = message.experiment, message.run
        if run is not None:
            if names.experiment_of(run) != name:
                raise Poison("unknown-run", f"{run} is no run of {name}.")
            await self._state(run)
            return run
        document = (await self._documents.load(name)).document
        if document is None or isinstance(document.state, Tombstone):
            raise Poison("unknown-experiment", f"No experiment named {name} was started. Check the name.")
        return document.state.run.id


async def _remembered(said: Retained, known: Retained) -> Retained:
    """How far the deleting is, by what a sweep has done; others may be further."""
    return known.model_copy(
        update={
            "updates_gone": max(known.updates_gone, said.updates_before),
            "models_gone": max(known.models_gone, said.models_before),
            "outdated": tuple(number for number in known.outdated if number not in said.outdated),
        }
    )
