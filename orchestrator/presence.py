"""Who is there: what silos say becomes presence documents, apart from the runs, so that they never contend.

What a hello means for the open rounds is decided elsewhere (`SiloAppeared`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, final

from messages.ports import Clock
from messages.schemas import SiloHeartbeat, SiloHello
from orchestrator.documents import Presence
from orchestrator.store import Documents

EVERY: Final = 2.0
"""Seconds between two writes for what one silo says, unless what it does has changed."""
_RUNS: Final = 20


@final
class Attendance:
    """Keeps the presence documents."""

    def __init__(self, documents: Documents, clock: Clock) -> None:
        self._documents, self._clock = documents, clock
        self._written: dict[str, tuple[datetime, tuple[object, ...]]] = {}
        self._answered: dict[str, datetime] = {}

    async def is_news(self, silo: str, hello: SiloHello, enqueued_at: datetime) -> bool:
        """Whether the hello comes from an instance not heard of yet, and is not older than what is known."""
        known = await self._documents.presence(silo)
        if known is None or known.hello is None or known.hello_at is None:
            return True
        return known.hello.instance != hello.instance and known.hello_at <= enqueued_at

    async def said_hello(self, silo: str, hello: SiloHello, enqueued_at: datetime) -> None:
        """Remembers what the silo offers. Order is the broker's: an older hello never replaces a newer one."""

        def change(known: Presence | None) -> Presence | None:
            if known is None:
                return Presence(silo=silo, seen_at=enqueued_at, hello=hello, hello_at=enqueued_at)
            if known.hello_at is not None and known.hello_at > enqueued_at:
                return None
            seen = max(known.seen_at, enqueued_at)
            return known.model_copy(update={"seen_at": seen, "hello": hello, "hello_at": enqueued_at})

        await self._documents.change_presence(silo, change)

    async def heartbeat(self, silo: str, beat: SiloHeartbeat, enqueued_at: datetime) -> None:
        """Remembers what the silo is doing, a few times a minute at most."""
        now, doing = self._clock.now(), (beat.run, beat.round, beat.doing, beat.stalled)
        written_at, did = self._written.get(silo, (None, ()))
        if written_at is not None and did == doing and (now - written_at).total_seconds() < EVERY:
            return

        def change(known: Presence | None) -> Presence | None:
            if known is None:
                known = Presence(silo=silo, seen_at=enqueued_at)
            times = {run: known.heartbeats_at.get(run, known.seen_at) for run in known.heartbeats}
            if times.get(beat.run, enqueued_at) > enqueued_at:
                return None
            times[beat.run] = enqueued_at
            kept = sorted(times, key=lambda run: times[run])[-_RUNS:]
            if beat.run not in kept:
                return None
            beats = {**known.heartbeats, beat.run: beat}
            return known.model_copy(
                update={
                    "seen_at": max(known.seen_at, enqueued_at),
                    "heartbeats": {run: beats[run] for run in kept},
                    "heartbeats_at": {run: times[run] for run in kept},
                }
            )

        await self._documents.change_presence(silo, change)
        self._written[silo] = (now, doing)

    async def answered(self, silo: str, enqueued_at: datetime) -> None:
        """Remembers that the silo answered a round, whatever it said: a silo that is done sends no heartbeats."""
        now = self._clock.now()
        written_at = self._answered.get(silo)
        if written_at is not None and (now - written_at).total_seconds() < EVERY:
            return

        def change(known: Presence | None) -> Presence | None:
            if known is None:
                return Presence(silo=silo, seen_at=enqueued_at)
            return known.model_copy(update={"seen_at": enqueued_at}) if known.seen_at < enqueued_at else None

        await self._documents.change_presence(silo, change)
        self._answered[silo] = now
