"""A sum that is given up."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from orchestrator.aggregation.aside import one_aside, to_its_end


async def test_cancelling_waits_for_the_thread_that_writes() -> None:
    go, done = threading.Event(), threading.Event()

    def write() -> None:
        go.wait(10)
        done.set()

    summing = asyncio.create_task(to_its_end(write))
    await asyncio.sleep(0.01)
    summing.cancel()
    await asyncio.sleep(0.01)
    assert not summing.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await summing
    assert done.is_set()


async def test_cancelling_waits_for_what_runs_aside() -> None:
    go, done, began = threading.Event(), threading.Event(), asyncio.Event()

    def write() -> None:
        go.wait(10)
        done.set()

    async def work() -> None:
        async with one_aside() as aside:
            await aside(write)
            began.set()
            await aside(write)

    summing = asyncio.create_task(work())
    await began.wait()
    summing.cancel()
    await asyncio.sleep(0.01)
    assert not summing.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await summing
    assert done.is_set()


async def test_what_runs_aside_runs_in_order_and_one_at_a_time() -> None:
    order: list[int] = []

    def write(number: int) -> None:
        time.sleep(0.01 / (number + 1))
        order.append(number)

    async with one_aside() as aside:
        for number in range(5):
            await aside(write, number)
    assert order == list(range(5))


@pytest.mark.parametrize("calls", [1, 2])
async def test_what_goes_wrong_aside_is_told(calls: int) -> None:
    def write() -> None:
        raise OSError("the disk is full")

    async def work() -> None:
        async with one_aside() as aside:
            for _ in range(calls):
                await aside(write)

    with pytest.raises(OSError, match="full"):
        await work()
