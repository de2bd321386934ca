"""A sum that is killed and made again: a small sample of `python -m benchmarks.kill_aggregation`."""

from __future__ import annotations

import itertools
import random
import subprocess
from pathlib import Path

import pytest

from benchmarks import kill_aggregation
from benchmarks.kill_aggregation import Asked, kill_one, prepare, worker

WAYS = (
    Asked("fedavg", {"clip_factor": 0.5}),
    Asked("fedavgm"),
    Asked("fedadam"),
    Asked("median"),
    Asked("trimmed-mean", {"count": 1}),
    Asked("krum", {"f": 0}),
    Asked("geometric-median"),
)
"""Those that measure, that keep something, and that hold a row of each silo."""


@pytest.mark.parametrize("asked", [Asked(), *WAYS], ids=lambda asked: asked.strategy)
async def test_any_order_of_arrival_gives_the_same_bytes(asked: Asked, tmp_path: Path) -> None:
    updates = await prepare(tmp_path, 40_000)
    made = [await worker(tmp_path, order, asked) for order in itertools.permutations(updates)]
    assert made == [made[0]] * 6
    assert len(set(made[0].values())) == len(made[0])


def test_a_sum_that_was_killed_gives_the_same_bytes_and_leaves_nothing(tmp_path: Path) -> None:
    found = kill_aggregation.run(tmp_path, 4, kills=1, asked=Asked("fedadam"))
    assert len(found["killed_at"]) == 1
    assert 0 < found["killed_at"][0] <= 1
    assert set(found["sha256"]) == {"weights", "momentum", "variance"}


@pytest.mark.parametrize(("program", "said"), [("true", "5 sums came to their end before"), ("false", "exit status 1")])
def test_a_sum_that_was_not_killed_shows_nothing(
    program: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kill_aggregation, "start", lambda *_: subprocess.Popen([program], text=True))
    with pytest.raises(SystemExit, match=said):
        kill_one(tmp_path, [], Asked(), random.Random(0), 1)
