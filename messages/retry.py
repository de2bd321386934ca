"""Trying again: tenacity, wrapped once. Only `Transient` is ever tried again; every other error passes at once.

Waits grow and are jittered, so that many clients do not come back to a recovering service in step.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import tenacity

from messages.errors import Transient
from messages.ports import Clock

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds before trying again: `first`, then twice as long, up to `most`; jittered down to half."""

    first: float = 0.2
    most: float = 30.0

    def after(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        full = min(self.most, self.first * 2.0 ** min(failures - 1, 60))
        return full * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, not a secret


async def retry_transient(
    operation: Callable[[], Awaitable[T]],
    *,
    clock: Clock,
    waits: Waits | None = None,
    attempts: int | None = None,
    until: Callable[[], datetime] | None = None,
    before_wait: Callable[[Transient, int, float], None] | None = None,
    sleep: Callable[[float], Awaitable[None]] | None = None,
) -> T:
    """What `operation` returns, tried again for as long as it raises `Transient`.

    Gives up, raising the last one, after `attempts` tries or from the time `until()` on; never, if neither is given.
    `before_wait` is told error, number of failures and seconds to wait; `sleep` replaces the clock's.
    """

    def over(state: tenacity.RetryCallState) -> bool:
        tried_enough = attempts is not None and state.attempt_number >= attempts
        return tried_enough or (until is not None and clock.now() >= until())

    def tell(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if before_wait is not None and isinstance(error, Transient):
            before_wait(error, state.attempt_number, state.upcoming_sleep)

    schedule = waits or Waits()
    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(Transient),
        wait=lambda state: schedule.after(state.attempt_number),
        stop=over,
        before_sleep=tell,
        sleep=sleep or clock.sleep,
        reraise=True,
    )

    async def attempt() -> T:  # tenacity awaits only what it can see to be a coroutine function, and a lambda is not
        return await operation()

    return await retrying(attempt)
