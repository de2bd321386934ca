"""A sum that is given up."""

from __future__ import annotations

import asyncio
import threading

import pytest

from orchestrator.aggregation.driver import _to_its_end


async def test_cancelling_waits_for_the_thread_that_writes() -> None:
    go, done = threading.Event(), threading.Event()

    def write() -> None:
        go.wait(10)
        done.set()

    summing = asyncio.create_task(_to_its_end(write))
    await asyncio.sleep(0.01)
    summing.cancel()
    await asyncio.sleep(0.01)
    assert not summing.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await summing
    assert done.is_set()
