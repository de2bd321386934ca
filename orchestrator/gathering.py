"""Doing many things at once, none of them left half done because another failed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable


async def all_of(actions: Iterable[Awaitable[None]]) -> None:
    """Runs all of them to their end, even when one fails; then raises the first failure."""
    for result in await asyncio.gather(*actions, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
