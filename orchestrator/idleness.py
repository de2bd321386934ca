"""When an orchestrator has nothing to do: no message came for so long, none is in hand, and every queue can be asked.

What is scheduled and not yet due is no work: whoever starts orchestrators starts one when it comes (docs/operate.md).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Final

from messages.consumer import Consumer
from messages.ports import Clock

_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_LOOK_EVERY: Final = 1.0
"""Seconds between two looks while something is in hand."""


async def idle(consumers: Sequence[Consumer], clock: Clock, seconds: float, *, after: asyncio.Task[None]) -> None:
    """Returns when none of the consumers has had work for `seconds` since the task `after` was over."""
    await asyncio.wait((after,))
    ready = clock.now()
    while True:
        since = [consumer.idle_since for consumer in consumers]
        quiet = [ready, *(at for at in since if at is not None)]
        left = seconds - (clock.now() - max(quiet)).total_seconds()
        if None not in since and left <= 0:
            return
        await clock.sleep(left if None not in since else min(_LOOK_EVERY, seconds))


def seconds_of(text: str) -> float:
    """The seconds in `60s`, `5m`, `1h` or `90`. Raises ValueError, saying what is expected."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < seconds <= 30 * 86400:
        raise ValueError(f"{text!r} is no time to wait: say 60s, 5m, 1h or a number of seconds, 30 days at most")
    return seconds


def receive_wait(until_idle: float | None) -> float:
    """Seconds that one receive waits: short enough that it is soon known whether every queue can be asked."""
    return 60.0 if until_idle is None else min(60.0, max(1.0, until_idle / 4))
