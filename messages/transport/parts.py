"""How a large file travels in parts, whatever carries them: a few at a time, again when one is lost, never all anew.

Nothing here knows a store. A part that was lost is sent or fetched once more for as long as others arrive; those that
have arrived stay where they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final

from messages.errors import Transient
from messages.transport.local_files import read_part

AT_ONCE: Final = 4
_IN_VAIN: Final = 2 * AT_ONCE
"""So many failures in a row, with no part arriving between them, are waited out; one more is told."""


async def in_parallel(work: Callable[[int], Awaitable[None]], offsets: Iterable[int], *, pause: float = 0.5) -> None:
    """Does the work at every offset, a few at a time; what fails with Transient is done again after `pause` seconds.

    Then parts go one by one until one has arrived: a line that breaks often may have time for one, and not for four.
    When one fails for good, or nothing gets through any more, the others are stopped first.
    """
    waiting, in_vain, alone = deque(offsets), 0, asyncio.Lock()

    async def go_on() -> None:
        nonlocal in_vain
        while waiting:
            offset = waiting.popleft()
            try:
                async with alone if in_vain else contextlib.nullcontext():
                    await work(offset)
                    in_vain = 0
            except Transient:
                in_vain += 1
                if in_vain > _IN_VAIN:
                    raise
                waiting.appendleft(offset)
                await asyncio.sleep(pause)

    tasks = [asyncio.create_task(go_on()) for _ in range(AT_ONCE)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def part_of(source: Path, offset: int, length: int, number: int) -> tuple[str, bytes]:
    """A part of a file, and its name: what it holds, and which it is. All names are of the same length.

    Because the name tells the content, a part that an earlier try has left can be used by anybody who has the same
    file, and two who send different files under one name never mix them.
    """
    data = read_part(source, offset, length)
    return f"{hashlib.blake2b(data, digest_size=8).hexdigest()}-{number:05d}", data


def hand_out(partial: Path, target: Path) -> None:
    """Gives a finished file its name, read-only. Raises ValueError when there is one of that name."""
    partial.chmod(0o444)
    try:
        os.link(partial, target)
    except FileExistsError:
        raise ValueError(f"{target} exists already") from None
