"""Kills the process that sums a round at points all over its work, and compares the bytes that come out in the end.

    python -m benchmarks.kill_aggregation --megabytes 1000 --kills 10 --json
    python -m benchmarks.kill_aggregation --megabytes 64 --strategy fedadam

Each try is a process that takes updates in another order of arrival and sums them as an orchestrator does: into a
scratch directory, then into the store, by digest. It is killed (SIGKILL) when the file in scratch has reached a size
drawn beforehand, and once more at the end, when the file is whole and not yet in the store. After each kill another
process sums to its end and must make the same blobs, the weights and what the strategy keeps; scratch must be empty and
the store hold nothing else. A process that came to its end before it was killed shows nothing: it is tried again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.arguments import add_strategy, options_of
from messages import names
from messages.errors import AlreadyExists
from messages.safetensors_writer import Writer
from messages.transport.directory import DirectoryStore
from messages.weights import Layout, Scan
from orchestrator.aggregation import strategy_named
from orchestrator.aggregation.driver import Contribution, Source, aggregate
from orchestrator.scratch import Scratch

SILOS: Final = 3
TENSORS: Final = 8
RUN: Final = "kill_00000000"
_PIECE: Final = 1 << 20
_LOOK: Final = 0.002
_TRIES: Final = 5
"""For each kill: a small sum can be over between two looks."""


@dataclass(frozen=True, slots=True)
class Update:
    """A silo's weights in the store."""

    silo: str
    sha256: str
    bytes: int


def write_update(path: Path, floats: int, seed: int) -> Scan:
    """Random float32 weights, a few MB of them in memory at a time."""
    rng = np.random.default_rng(seed)
    size = floats // TENSORS
    with Writer(path, Layout.of((f"tensor.{i}", "F32", (size,)) for i in range(TENSORS))) as writer:
        for _ in range(TENSORS):
            for start in range(0, size, _PIECE):
                numbers = rng.standard_normal(min(_PIECE, size - start), dtype=np.float32)
                writer.write(numbers.view(np.uint8).data)
        return writer.finish()


async def prepare(root: Path, floats: int) -> list[Update]:
    """Puts an update of each silo in the store."""
    store = DirectoryStore(root / "store")
    updates = []
    for index in range(SILOS):
        path = root / f"update-{index}"
        scan = await asyncio.to_thread(write_update, path, floats, index)
        silo = f"silo-{index}"
        await store.create(names.updates_of(silo), names.weights_blob(RUN, 1, scan.sha256), path)
        path.unlink()
        updates.append(Update(silo, scan.sha256, scan.bytes))
    return updates


@dataclass(frozen=True, slots=True)
class Asked:
    """How updates are summed."""

    strategy: str = "fedavg"
    options: Mapping[str, Any] = field(default_factory=dict)


async def worker(root: Path, updates: Sequence[Update], asked: Asked) -> dict[str, str]:
    """Sums once, in the order given; digests of the weights and of what the strategy keeps."""
    store, scratch = DirectoryStore(root / "store"), Scratch(root / "scratch")
    contributions = [
        Contribution(
            silo=update.silo,
            container=names.updates_of(update.silo),
            blob=names.weights_blob(RUN, 1, update.sha256),
            sha256=update.sha256,
            bytes=update.bytes,
            form="weights",
            samples=10 + 7 * int(update.silo.rpartition("-")[2]),
            steps=1,
        )
        for update in updates
    ]
    first = min(contributions, key=lambda c: c.silo)
    base = Source(first.container, first.blob, first.sha256, first.bytes)
    async with scratch.directory() as directory:
        target = directory / "global.safetensors"
        strategy = strategy_named(asked.strategy, asked.options, {})
        summed = await aggregate(store, strategy, base=base, contributions=contributions, target=target)
        made = {"weights": (target, summed.scan), **summed.kept}
        for path, scan in made.values():
            with contextlib.suppress(AlreadyExists):
                await store.create(names.GLOBAL, names.weights_blob(RUN, 1, scan.sha256), path)
    return {name: scan.sha256 for name, (_, scan) in made.items()}


def start(root: Path, updates: Sequence[Update], asked: Asked, shuffled: random.Random) -> subprocess.Popen[str]:
    """A process that sums the updates as if they had arrived in some order."""
    order = list(updates)
    shuffled.shuffle(order)
    command = [sys.executable, "-m", "benchmarks.kill_aggregation", "--strategy", asked.strategy]
    command += [f"--option={name}={json.dumps(value)}" for name, value in asked.options.items()]
    command += ["--worker", str(root), json.dumps([asdict(update) for update in order])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])


def kill_at(process: subprocess.Popen[str], scratch: Path, size: int) -> int | None:
    """Kills it once its file has `size` bytes; how many there were then. None: it had come to its end."""
    while process.poll() is None:
        if (there := _size_in(scratch)) >= size:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return there if process.returncode == -signal.SIGKILL else None
        time.sleep(_LOOK)
    return None


def kill_one(root: Path, updates: Sequence[Update], asked: Asked, draws: random.Random, size: int) -> int:
    """Kills a sum once its file has `size` bytes, and says how many there were. The last sum is deleted first.

    Raises SystemExit when every try was missed, or a process failed by itself.
    """
    for _ in range(_TRIES):
        for blob in (root / "store" / names.GLOBAL).rglob("*.safetensors"):
            blob.unlink()
        process = start(root, updates, asked, draws)
        if (reached := kill_at(process, root / "scratch", size)) is not None:
            return reached
        if process.returncode:
            raise SystemExit(f"a sum failed with exit status {process.returncode}")
    raise SystemExit(
        f"{_TRIES} sums came to their end before they were killed at {size:,} bytes, so nothing was shown. Give more "
        "--megabytes, or run it where less goes on."
    )


def run(root: Path, megabytes: float, kills: int, asked: Asked | None = None, seed: int = 0) -> dict[str, Any]:
    """All kills. Raises SystemExit when bytes differ, something is left behind, or a kill was missed each time."""
    asked = asked or Asked()
    floats = round(megabytes * 1_000_000 / 4) // TENSORS * TENSORS
    updates = asyncio.run(prepare(root, floats))
    draws = random.Random(seed)  # noqa: S311  # orders, not secrets
    made = _finished(start(root, updates, asked, draws))
    blobs = [root / "store" / names.GLOBAL / names.weights_blob(RUN, 1, digest) for digest in made.values()]
    killed: list[float] = []
    for number in range(kills):
        # From nothing written to everything written: in the last one the whole file is there, and not in the store.
        share = number / max(1, kills - 1)
        reached = kill_one(root, updates, asked, draws, max(1, int(share * updates[0].bytes)))
        killed.append(round(reached / updates[0].bytes, 3))
        again = _finished(start(root, updates, asked, draws))
        left = [str(path) for path in (root / "scratch").iterdir()]
        there = sorted(path.name for path in (root / "store" / names.GLOBAL).rglob("*.safetensors"))
        if again != made or left or there != sorted(blob.name for blob in blobs):
            raise SystemExit(f"after kill {number + 1}: {again} instead of {made}; left {left}; in the store {there}")
    return {
        "megabytes": megabytes,
        "silos": SILOS,
        "strategy": asked.strategy,
        "sums": 1 + kills,
        "killed_at": killed,
        "sha256": made,
    }


def _finished(process: subprocess.Popen[str]) -> dict[str, str]:
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a sum failed with exit status {process.returncode}")
    made: dict[str, str] = json.loads(out)
    return made


def _size_in(scratch: Path) -> int:
    try:
        return max((path.stat().st_size for path in scratch.glob("*/global.safetensors")), default=0)
    except FileNotFoundError:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=1000.0)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the orders of arrival")
    add_strategy(parser, help="how they are summed")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    asked = Asked(args.strategy, options_of(args))
    if args.worker:
        root, updates = Path(args.worker[0]), [Update(**update) for update in json.loads(args.worker[1])]
        print(json.dumps(asyncio.run(worker(root, updates, asked))))
        return
    root = Path(tempfile.mkdtemp(prefix="silobus-kill-"))
    try:
        found = run(root, args.megabytes, args.kills, asked, args.seed)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    found["load_average"] = round(os.getloadavg()[0], 1)
    print(json.dumps(found, indent=2) if args.json else found)


if __name__ == "__main__":
    main()
