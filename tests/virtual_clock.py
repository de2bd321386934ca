"""A clock that stands still until a test moves it: hours of deadlines and locks pass in milliseconds.

It wakes sleepers in the order of their times, and after each lets everything that became ready run to rest.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import final

from messages.ports import Clock

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


@final
class VirtualClock(Clock):
    """`await clock.advance(60)` lets a minute pass; `await clock.until(lambda: done)` as much as it takes."""

    def __init__(self, start: datetime = BEGINNING) -> None:
        self._now = start
        self._order = itertools.count()
        self._sleepers: list[tuple[datetime, int, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + timedelta(seconds=seconds), next(self._order), woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """Lets `seconds` pass, waking every sleeper at its time."""
        end = self._now + timedelta(seconds=seconds)
        await rest()
        while await self._wake_next(end):
            pass
        self._now = max(self._now, end)
        await rest()

    async def until(self, condition: Callable[[], bool], *, within: float = 86400.0) -> None:
        """Lets time pass, from sleeper to sleeper, until `condition()`. Raises TimeoutError after `within` seconds.

        Where threads or sockets are at work and nobody sleeps, it waits for them (at most 10 real seconds).
        """
        end = self._now + timedelta(seconds=within)
        patience = 5000
        await rest()
        while not condition():
            if not await self._wake_next(end):
                patience -= 1
                if patience == 0 or self._sleepers:
                    raise TimeoutError(f"not so after {within} s, at {self._now.isoformat()}")
                await asyncio.sleep(0.002)
            await rest()

    @property
    def sleeping(self) -> int:
        """How many sleepers there are."""
        return sum(not woken.done() for _, _, woken in self._sleepers)

    async def _wake_next(self, end: datetime) -> bool:
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)  # cancelled
        if not self._sleepers or self._sleepers[0][0] > end:
            return False
        at, _, woken = heapq.heappop(self._sleepers)
        self._now = max(self._now, at)
        woken.set_result(None)
        await rest()
        return True


async def rest(most: int = 10_000) -> None:
    """Returns when no task of this event loop is ready to run (those waiting for threads or sockets are not)."""
    ready = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]  # nothing public says it
    for _ in range(most):
        await asyncio.sleep(0)
        if not ready:
            return
    raise RuntimeError("the event loop does not come to rest: some task spins")
