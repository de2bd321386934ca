"""Only `Transient` is tried again, for as long as was asked, with waits that grow."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from messages.errors import Conflict, Poison, Transient
from messages.retry import Waits, retry_transient
from tests.virtual_clock import VirtualClock


def failing(*errors: Exception) -> tuple[Callable[[], Awaitable[str]], list[Exception]]:
    left = list(errors)

    async def operation() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return operation, left


async def immediately(seconds: float) -> None:
    assert seconds > 0


async def test_what_succeeds_is_returned_without_waiting() -> None:
    operation, _ = failing()
    assert await retry_transient(operation, clock=VirtualClock()) == "done"


async def test_transient_errors_are_tried_again_without_end() -> None:
    operation, left = failing(*[Transient("x")] * 200)
    assert await retry_transient(operation, clock=VirtualClock(), sleep=immediately) == "done"
    assert left == []


@pytest.mark.parametrize("error", [Conflict("lost"), Poison("r", "d"), ValueError("bug"), TimeoutError()])
async def test_every_other_error_passes_at_once(error: Exception) -> None:
    operation, left = failing(error, Transient("x"))
    with pytest.raises(type(error)):
        await retry_transient(operation, clock=VirtualClock(), sleep=immediately)
    assert len(left) == 1


async def test_it_gives_up_after_the_attempts_allowed_with_the_last_error() -> None:
    operation, left = failing(*[Transient(str(n)) for n in range(5)])
    with pytest.raises(Transient, match="2"):
        await retry_transient(operation, clock=VirtualClock(), sleep=immediately, attempts=3)
    assert len(left) == 2


async def test_it_gives_up_when_the_time_has_come() -> None:
    clock = VirtualClock()
    end = clock.now() + timedelta(seconds=60)

    async def sleep(seconds: float) -> None:
        await clock.advance(seconds)

    operation, left = failing(*[Transient("x")] * 1000)
    with pytest.raises(Transient):
        await retry_transient(operation, clock=clock, sleep=sleep, until=lambda: end)
    assert timedelta(0) <= clock.now() - end < timedelta(seconds=31)
    assert len(left) > 900


async def test_each_wait_is_told_beforehand() -> None:
    told: list[tuple[str, int, float]] = []
    operation, _ = failing(Transient("a"), Transient("b"))
    await retry_transient(
        operation, clock=VirtualClock(), sleep=immediately, before_wait=lambda e, n, s: told.append((str(e), n, s))
    )
    assert [(text, failures) for text, failures, _ in told] == [("a", 1), ("b", 2)]
    assert all(seconds > 0 for *_, seconds in told)


def test_waits_double_up_to_the_most_and_are_jittered_down_to_half() -> None:
    waits = Waits(first=1.0, most=20.0)
    for failures, full in zip(itertools.count(1), (1, 2, 4, 8, 16, 20, 20), strict=False):
        drawn = [waits.after(failures) for _ in range(200)]
        assert full / 2 <= min(drawn) < full * 0.6
        assert full * 0.9 < max(drawn) <= full
    assert waits.after(10_000) <= 20
