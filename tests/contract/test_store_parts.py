"""How long the parts of a transfer are tried: again while others arrive, and no longer than that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from messages.errors import Transient
from messages.transport.local_files import write_part
from messages.transport.parts import in_parallel


def _failing(which: Callable[[int], bool], tries: dict[int, int]) -> Callable[[int], Awaitable[None]]:
    async def work(offset: int) -> None:
        tries[offset] = tries.get(offset, 0) + 1
        await asyncio.sleep(0)
        if which(offset):
            raise Transient("lost")

    return work


async def test_every_part_may_fail_as_long_as_others_arrive() -> None:
    tries: dict[int, int] = {}
    await in_parallel(_failing(lambda offset: tries[offset] <= 2, tries), range(100, 140), pause=0)
    assert tries == dict.fromkeys(range(100, 140), 3)


async def test_a_line_that_breaks_under_several_parts_carries_one_at_a_time() -> None:
    under_way, arrived = set[int](), []

    async def work(offset: int) -> None:
        under_way.add(offset)
        crowded = len(under_way) > 1
        await asyncio.sleep(0.001)
        crowded = crowded or len(under_way) > 1
        under_way.discard(offset)
        if crowded:
            raise Transient("lost")
        arrived.append(offset)

    await in_parallel(work, range(20), pause=0)
    assert sorted(arrived) == list(range(20))


async def test_when_nothing_arrives_any_more_it_is_told_soon() -> None:
    tries: dict[int, int] = {}
    with pytest.raises(Transient):
        await in_parallel(_failing(lambda _: True, tries), range(10), pause=0)
    assert sum(tries.values()) <= 12


async def test_what_fails_for_good_is_not_tried_again(tmp_path: Path) -> None:
    tries: list[int] = []

    async def work(offset: int) -> None:
        tries.append(offset)
        await asyncio.to_thread(write_part, tmp_path / "nothing", offset, b"1")

    with pytest.raises(FileNotFoundError):
        await in_parallel(work, range(10))
    assert len(tries) <= 4
