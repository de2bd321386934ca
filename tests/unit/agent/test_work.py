"""One step of a round's work: what is left of it when the round is closed meanwhile."""

from __future__ import annotations

import asyncio
import gc
from typing import Any, cast

import pytest

from silo_agent.rounds import RoundIsClosed
from silo_agent.work import RoundWork


async def test_what_fails_while_it_is_given_up_does_not_get_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """An exception that nobody looks at is logged by asyncio, and this one may have a service's words in it."""
    work = cast(Any, object.__new__(RoundWork))
    work.phase, work._closed = None, asyncio.Event()

    async def doing() -> Any:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ValueError("words of a service") from None

    running = asyncio.create_task(work._unless_closed(doing()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    work._closed.set()
    assert isinstance(await running, RoundIsClosed)
    del running
    gc.collect()
    await asyncio.sleep(0)
    assert [record.message for record in caplog.records] == []
