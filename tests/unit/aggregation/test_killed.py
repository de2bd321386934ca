"""A sum that is killed and made again: a small sample of `python -m benchmarks.kill_aggregation`."""

from __future__ import annotations

import itertools
from pathlib import Path

from benchmarks import kill_aggregation
from benchmarks.kill_aggregation import prepare, worker


async def test_any_order_of_arrival_gives_the_same_bytes(tmp_path: Path) -> None:
    updates = await prepare(tmp_path, 40_000)
    made = {await worker(tmp_path, order) for order in itertools.permutations(updates)}
    assert len(made) == 1


def test_a_sum_that_was_killed_gives_the_same_bytes_and_leaves_nothing(tmp_path: Path) -> None:
    found = kill_aggregation.run(tmp_path, megabytes=4, kills=1)
    assert len(found["sha256"]) == 64
