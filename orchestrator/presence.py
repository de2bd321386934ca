"""Who is there: what silos say becomes presence documents, apart from the runs, so that they never contend.

What a hello means for the open rounds is decided elsewhere (`SiloAppeared`).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final, final

from messages.ports import Clock
from messages.schemas import SiloHeartbeat, SiloHello
from orchestrator.documents import Presence
from orchestrator.store import Documents

EVERY: Final = 2.0
"""Seconds between two writes for what one silo says, in however many runs, unless what it does has changed."""
MOST_RUNS: Final = 500
"""Runs of which a silo's last sign of life is kept: with more at once, some look as if it were silent."""
_RECENT: Final = timedelta(hours=1)
"""Older signs are kept of `_FEW` runs."""
_FEW: Final = 20


@final
class Attendance:
    """Keeps the presence documents."""

    def __init__(self, documents: Documents, clock: Clock) -> None:
        self._documents, self._clock = documents, clock
        self._heard: dict[str, dict[str, tuple[SiloHeartbeat, datetime]]] = {}
        """By silo and run: what is not written yet."""
        self._written: dict[str, tuple[datetime, dict[str, tuple[object, ...]]]] = {}
        """By silo: when, and what it did in each run, as far as was written."""
        self._answered: dict[str, datetime] = {}

    async def is_news(self, silo: str, hello: SiloHello, enqueued_at: datetime) -> bool:
        """Whether the hello comes from an instance not heard of yet, and is not older than what is known."""
        known = await self._documents.presence(silo)
        if known is None or known.hello is None or known.hello_at is None:
            return True
        return known.hello.instance != hello.instance and known.hello_at <= enqueued_at

    async def said_hello(self, silo: str, hello: SiloHello, enqueued_at: datetime) -> None:
        """Remembers what the silo offers. Order is the broker's: an older hello never replaces a newer one."""
        await self._documents.change_presence(silo, lambda known: greeted(known, silo, hello, enqueued_at))

    async def heartbeat(self, silo: str, beat: SiloHeartbeat, enqueued_at: datetime) -> None:
        """Remembers what the silo is doing: at once when it is something new, else as often as `EVERY`, with all
        that it said meanwhile of other runs.
        """
        heard = self._heard.setdefault(silo, {})
        if beat.run not in heard or heard[beat.run][1] <= enqueued_at:
            heard[beat.run] = beat, enqueued_at
        now = self._clock.now()
        written_at, did = self._written.get(silo, (None, {}))
        known_for = None if written_at is None else (now - written_at).total_seconds()
        if known_for is not None and known_for < EVERY and did.get(beat.run) == _doing(beat):
            return
        telling = dict(heard)
        await self._documents.change_presence(silo, lambda known: doing(known, silo, telling))
        for run, said in telling.items():
            if heard.get(run) == said:
                del heard[run]
        done = {run: _doing(said) for run, (said, _) in telling.items()}
        self._written[silo] = now, {run: did[run] for run in list(did)[-MOST_RUNS:]} | done

    async def answered(self, silo: str, enqueued_at: datetime) -> None:
        """Remembers that the silo answered a round, whatever it said: a silo that is done sends no heartbeats."""
        now = self._clock.now()
        written_at = self._answered.get(silo)
        if written_at is not None and (now - written_at).total_seconds() < EVERY:
            return
        await self._documents.change_presence(silo, lambda known: answered(known, silo, enqueued_at))
        self._answered[silo] = now


# What a message changes of what is known; None where it changes nothing.


def greeted(known: Presence | None, silo: str, hello: SiloHello, enqueued_at: datetime) -> Presence | None:
    """By a hello."""
    if known is None:
        return Presence(silo=silo, seen_at=enqueued_at, hello=hello, hello_at=enqueued_at)
    if known.hello_at is not None and known.hello_at > enqueued_at:
        return None
    seen = max(known.seen_at, enqueued_at)
    return known.model_copy(update={"seen_at": seen, "hello": hello, "hello_at": enqueued_at})


def doing(known: Presence | None, silo: str, told: Mapping[str, tuple[SiloHeartbeat, datetime]]) -> Presence | None:
    """By signs of life: by runs, the last of each and when it was enqueued."""
    if not told:
        return None
    known = known or Presence(silo=silo, seen_at=max(at for _, at in told.values()))
    times = {run: known.heartbeats_at.get(run, known.seen_at) for run in known.heartbeats}
    news = {run: said for run, said in told.items() if times.get(run, said[1]) <= said[1]}
    times |= {run: at for run, (_, at) in news.items()}
    beats = {**known.heartbeats, **{run: beat for run, (beat, _) in news.items()}}
    kept = _recent(times)
    if not news.keys() & set(kept):
        return None
    return known.model_copy(
        update={
            "seen_at": max(known.seen_at, *(at for _, at in news.values())),
            "heartbeats": {run: beats[run] for run in kept},
            "heartbeats_at": {run: times[run] for run in kept},
        }
    )


def answered(known: Presence | None, silo: str, enqueued_at: datetime) -> Presence | None:
    """By an answer to a round, whatever it says."""
    if known is None:
        return Presence(silo=silo, seen_at=enqueued_at)
    return known.model_copy(update={"seen_at": enqueued_at}) if known.seen_at < enqueued_at else None


def _doing(beat: SiloHeartbeat) -> tuple[object, ...]:
    return beat.round, beat.doing, beat.stalled


def _recent(times: Mapping[str, datetime]) -> list[str]:
    """Of the runs that a silo was heard of for, those whose last signs are kept; the latest last."""
    runs = sorted(times, key=lambda run: times[run])[-MOST_RUNS:]
    since = times[runs[-1]] - _RECENT
    return [run for number, run in enumerate(reversed(runs)) if number < _FEW or times[run] >= since][::-1]
