"""How long a round takes when training takes no time, and how much memory each process needs for it.

    python -m benchmarks.rounds --silos 3 --megabytes 1 64 --rounds 10 --json

Real processes: bus, orchestrator, agents, trainers. The time of a round is from its announcement to the next one's, as
the orchestrator recorded them; the first two rounds, in which trainers start, are left out. The weights that come out
are compared with what must come out, value by value.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from messages.experiments import Quorum, StartExperiment
from orchestrator.cli import experiments, status
from orchestrator.cli.federation import reach
from orchestrator.cli.folder import Folder, make, write_silo
from orchestrator.cli.local import Local, running
from orchestrator.cli.standing import Reader, Standing
from orchestrator.cli.wording import models, reason_of, status_of

TRAINER = Path(__file__).with_name("trainer.py").resolve()
WARM_UP = 2
GLANCE = 0.1


def policy(floats: int) -> dict[str, Any]:
    """What a silo's owner allows: adding ones."""
    return {
        "tasks": {
            "add-one": {
                "command": [sys.executable, str(TRAINER)],
                "directory": str(TRAINER.parent.parent),
                "code": {"path": str(TRAINER), "sha256": hashlib.sha256(TRAINER.read_bytes()).hexdigest()},
                "environment": {"FLOATS": str(floats), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                "limits": {"rounds": 1_000_000, "quorum": 1, "silos": 1},
                "outbound": {"tensors": ["*"], "dtypes": ["float32"], "max_bytes": 1 << 40, "min_samples": 1},
            }
        }
    }


async def measure(silos: int, megabytes: float, rounds: int, folder: Folder) -> dict[str, Any]:
    """One federation, one experiment."""
    floats = round(megabytes * 1_000_000 / 4) // 8 * 8
    names = [f"silo-{n + 1}" for n in range(silos)]
    make(folder)
    async with running(folder, names, lambda line: print(line, file=sys.stderr)) as local:
        for name in names:
            write_silo(folder, name, policy(floats))
        await local.start_agents()
        await local.ready()
        async with reach(folder.root, None) as federation:
            message = StartExperiment(
                experiment="bench", task="add-one", rounds=rounds + WARM_UP, quorum=Quorum(minimum="all")
            )
            sent = await experiments.send(federation.bus, message)
            await experiments.accepted(federation, message, sent)
            memory = Memory(local)
            reader = Reader(federation.store)
            while not (standing := await _read(reader)).is_over:
                memory.look()
                await asyncio.sleep(GLANCE)
            if status_of(standing) != "completed":
                raise SystemExit(f"the run {status_of(standing)}: {reason_of(standing)}")
            found = models(standing.run)["last"]
            result = folder.root / "result.safetensors"
            await status.download(federation.store, found["blob"], found["sha256"], result)
    check(result, floats, rounds + WARM_UP)
    seconds = round_times(standing)[WARM_UP:]
    return {
        "silos": silos,
        "megabytes": megabytes,
        "rounds": len(seconds),
        "round_s": round(statistics.median(seconds), 4),
        "slowest_s": round(max(seconds), 4),
        **memory.peaks(),
    }


async def _read(reader: Reader) -> Standing:
    standing = await reader.read("bench")
    if standing is None:
        raise SystemExit("the run is gone")
    return standing


def round_times(standing: Standing) -> list[float]:
    """Seconds of each training round, until the next one was announced."""
    opened = {number: record.opened_at for number, record in standing.records.items()}
    return [(opened[n + 1] - opened[n]).total_seconds() for n in sorted(opened) if n >= 1 and n + 1 in opened]


def check(result: Path, floats: int, rounds: int) -> None:
    """Every weight is what it was at first, plus one per round. Raises SystemExit if not."""
    size = floats // 8
    expected = (np.arange(size, dtype=np.int64) % 1024).astype(np.float32) + np.float32(rounds)
    with safe_open(result, framework="np") as file:
        for i in range(8):
            if not np.array_equal(file.get_tensor(f"tensor.{i}"), expected):
                raise SystemExit(f"tensor.{i} is wrong after {rounds} rounds")


class Memory:
    """The most memory each kind of process had at any time."""

    def __init__(self, local: Local) -> None:
        self._local = local
        self._most: dict[str, float] = {"orchestrator": 0.0, "agent": 0.0, "trainer": 0.0, "bus": 0.0}

    def look(self) -> None:
        """Takes the highest marks so far."""
        for name, pid in self._local.processes.ids().items():
            kind = "agent" if name.startswith("agent-") else name
            self._note(kind, pid)
            if kind == "agent":
                for child in descendants(pid):
                    self._note("trainer", child)

    def peaks(self) -> dict[str, float]:
        """By process, in MiB."""
        return {f"{kind}_rss_mib": round(most, 1) for kind, most in self._most.items()}

    def _note(self, kind: str, pid: int) -> None:
        self._most[kind] = max(self._most[kind], peak_mib(pid))


def peak_mib(pid: int) -> float:
    """The highest resident memory of a process, ever; 0 when it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def descendants(pid: int) -> Iterator[int]:
    """Children, and theirs."""
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from descendants(child)


def main() -> None:
    parser = argparse.ArgumentParser(description="The time of a round, and memory, without training.")
    parser.add_argument("--silos", type=int, nargs="+", default=[3])
    parser.add_argument("--megabytes", type=float, nargs="+", default=[1.0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--dir", type=Path, help="where to keep everything, for a look at the logs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    for silos in args.silos:
        for megabytes in args.megabytes:
            root = args.dir or Path(tempfile.mkdtemp(prefix="silobus-bench-"))
            folder = Folder(root.absolute() / f"{silos}-{megabytes:g}")
            try:
                rows.append(asyncio.run(measure(silos, megabytes, args.rounds, folder)))
            finally:
                if args.dir is None:
                    shutil.rmtree(root, ignore_errors=True)
            if not args.json:
                print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if args.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
