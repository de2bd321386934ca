"""Work in threads that nothing may be pulled from under: whoever is cancelled waits until the thread is through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")


@asynccontextmanager
async def one_aside() -> AsyncIterator[Callable[..., Awaitable[None]]]:
    """A call that runs its argument in a thread and returns at once, when the one before is through; raises what that
    raised. However the block ends, no thread is left at work."""
    running: asyncio.Future[Any] | None = None

    async def through() -> None:
        if running is not None:
            await asyncio.shield(running)

    async def aside(call: Callable[..., object], *arguments: object) -> None:
        nonlocal running
        await through()
        running = asyncio.ensure_future(asyncio.to_thread(call, *arguments))

    try:
        yield aside
        await through()
    finally:
        if running is not None:
            await asyncio.wait((running,))
            if not running.cancelled():
                running.exception()  # raised before, or it is not what went wrong first


async def to_its_end(call: Callable[..., T], *arguments: object) -> T:
    """Runs it in a thread. Cancelling waits for it: nobody may close a file under a thread that writes to it."""
    running = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait((running,))
        raise
