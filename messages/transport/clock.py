"""The real clock. The only place of the adapters that asks the machine what time it is; never waits by blocking."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import final

from messages.ports import Clock


@final
class SystemClock(Clock):
    """The machine's clock and the event loop's timer."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))
