"""One measurement: a federation of real processes (bus, orchestrator, agents, trainers), one experiment.

The time of a round is from its announcement to the next one's, as the orchestrator recorded them; the first rounds, in
which trainers start, are left out. The weights that come out are compared with what must come out, value by value.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import statistics
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import yaml

from benchmarks.rounds.counters import KINDS, Counters
from benchmarks.rounds.floor import DTYPES, Machine
from messages.experiments import Quorum, StartExperiment, Strategy, Transfer
from messages.weights import read_layout
from orchestrator.cli import experiments, status
from orchestrator.cli.federation import reach
from orchestrator.cli.folder import Folder, make, write_silo
from orchestrator.cli.local import Local, running
from orchestrator.cli.standing import Reader, Standing
from orchestrator.cli.wording import models, reason_of, status_of

HERE: Final = Path(__file__).resolve().parent.parent
TRAINER: Final = HERE / "trainer.py"
STREAMER: Final = HERE / "streamer.py"
TENSORS: Final = 8
WARM_UP: Final = 2
GLANCE: Final = 0.1
SPEEDS: Final = ("hash", "read", "write", "add", "disk")
"""Of one core, and of all together."""
_CHECKED_AT_ONCE: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is measured."""

    silos: int = 3
    megabytes: float = 1.0
    """10^6 bytes of float32."""
    rounds: int = 5
    """That count; `warm_up` more go before them."""
    warm_up: int = WARM_UP
    strategy: str = "fedavg"
    options: dict[str, Any] = field(default_factory=dict)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """In which updates travel."""
    form: Literal["weights", "delta"] = "weights"
    memory_budget: int | None = None
    """The orchestrator's, in MiB; None: as it comes."""
    streams: bool = False
    """With a trainer that holds no model, a new process each round: for models larger than memory."""

    @property
    def floats(self) -> int:
        """Numbers of the model."""
        return round(self.megabytes * 1_000_000 / 4) // TENSORS * TENSORS

    @property
    def modulus(self) -> int:
        """Weights begin as 0, 1, 2, … modulo this: whole numbers that the transfer dtype holds exactly."""
        return 128 if self.dtype == "bfloat16" and self.form == "weights" else 1024


def policy(asked: Asked) -> dict[str, Any]:
    """What a silo's owner allows: adding ones."""
    script = STREAMER if asked.streams else TRAINER
    return {
        "tasks": {
            "add-one": {
                "command": [sys.executable, str(script)],
                "directory": str(HERE.parent),
                "mode": "per-round" if asked.streams else "warm",
                "code": {"path": str(script), "sha256": hashlib.sha256(script.read_bytes()).hexdigest()},
                "environment": {
                    "FLOATS": str(asked.floats),
                    "MODULUS": str(asked.modulus),
                    "OMP_NUM_THREADS": "1",
                    "OPENBLAS_NUM_THREADS": "1",
                },
                "limits": {
                    "rounds": 1_000_000,
                    "quorum": 1,
                    "silos": 1,
                    "hyperparameters": {"proximal_mu": {"min": 0, "max": 1}},
                },
                "outbound": {"tensors": ["*"], "dtypes": list(DTYPES), "max_bytes": 1 << 40, "min_samples": 1},
            }
        }
    }


async def measure(asked: Asked, folder: Folder, machine: Machine) -> dict[str, Any]:
    """One federation, one experiment, held against what the machine can do. Raises SystemExit when what comes out is
    wrong."""
    names = [f"silo-{n + 1}" for n in range(asked.silos)]
    make(folder)
    update = float(DTYPES[asked.dtype].itemsize) * asked.floats
    floor = machine.floor(silos=asked.silos, model=4.0 * asked.floats, update=update)
    async with running(folder, names, lambda line: print(line, file=sys.stderr)) as local:
        if asked.memory_budget is not None:
            _limit_memory(local, asked.memory_budget)
        for name in names:
            write_silo(folder, name, policy(asked))
        await local.start_agents()
        await local.ready()
        standing, counters = await _run(local, asked, folder.root / "result.safetensors")
    check(folder.root / "result.safetensors", asked.floats, asked.rounds + asked.warm_up, asked.modulus)
    seconds = round_times(standing)[asked.warm_up :]
    taken = statistics.median(seconds)
    return {
        "silos": asked.silos,
        "megabytes": asked.megabytes,
        "strategy": asked.strategy,
        "dtype": asked.dtype,
        "form": asked.form,
        "rounds": len(seconds),
        "round_s": round(taken, 4),
        "slowest_s": round(max(seconds), 4),
        "floor_s": round(floor.seconds, 4),
        "ratio": round(taken / floor.seconds, 2),
        "floor_parts_s": {
            "cpu": round(floor.cpu_s, 4),
            "disk": round(floor.disk_s, 4),
            "chain": round(floor.chain_s, 4),
        },
        "speeds_mb_s": {
            name: [round(getattr(s, name) / 1e6) for s in (machine.one, machine.together)] for name in SPEEDS
        },
        **counters.peaks(),
        **_each_round(counters, standing, asked),
    }


def _limit_memory(local: Local, mebibytes: int) -> None:
    """Has the orchestrator started again, with another budget."""
    path = local.folder.orchestrator
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**settings, "memory_budget": mebibytes}))
    os.kill(local.processes.ids()["orchestrator"], signal.SIGTERM)


async def _run(local: Local, asked: Asked, result: Path) -> tuple[Standing, Counters]:
    """The experiment from start to end; its last weights are put at `result`."""
    counters = Counters()
    async with reach(local.folder.root, None) as federation:
        message = StartExperiment(
            experiment="bench",
            task="add-one",
            rounds=asked.rounds + asked.warm_up,
            quorum=Quorum(minimum="all"),
            transfer=Transfer(form=asked.form, dtype=None if asked.dtype == "float32" else asked.dtype),
            strategy=Strategy(name=asked.strategy, options=asked.options),
        )
        sent = await experiments.send(federation.bus, message)
        await experiments.accepted(federation, message, sent)
        reader = Reader(federation.store)
        while not (standing := await _read(reader)).is_over:
            counters.look(datetime.now(UTC), local.processes.ids())
            await asyncio.sleep(GLANCE)
        counters.look(datetime.now(UTC), local.processes.ids())
        if status_of(standing) != "completed":
            raise SystemExit(f"the run {status_of(standing)}: {reason_of(standing)}")
        found = models(standing.run)["last"]
        await status.download(federation.store, found["blob"], found["sha256"], result)
    return standing, counters


async def _read(reader: Reader) -> Standing:
    standing = await reader.read("bench")
    if standing is None:
        raise SystemExit("the run is gone")
    return standing


def round_times(standing: Standing) -> list[float]:
    """Seconds of each training round, until the next one was announced."""
    opened = _opened(standing)
    return [(opened[n + 1] - opened[n]).total_seconds() for n in sorted(opened) if n >= 1 and n + 1 in opened]


def _opened(standing: Standing) -> dict[int, datetime]:
    return {number: record.opened_at for number, record in standing.records.items()}


def _each_round(counters: Counters, standing: Standing, asked: Asked) -> dict[str, Any]:
    """CPU seconds and bytes per round that counts, by kind of process: all of a kind together."""
    opened = _opened(standing)
    first, last = asked.warm_up + 1, asked.warm_up + asked.rounds + 1
    used = counters.between(opened[first], opened[last])
    return {
        "cpu_s": {kind: round(used[kind].cpu_s / asked.rounds, 3) for kind in KINDS},
        "read_mb": {kind: round(used[kind].read / asked.rounds / 1e6, 1) for kind in KINDS},
        "written_mb": {kind: round(used[kind].written / asked.rounds / 1e6, 1) for kind in KINDS},
    }


def check(result: Path, floats: int, rounds: int, modulus: int = 1024) -> None:
    """Every weight is what it was at first, plus one per round. Raises SystemExit if not. Holds a few MB at a time."""
    layout = read_layout(result)
    size = floats // TENSORS
    with result.open("rb") as file:
        for i in range(TENSORS):
            spec = layout.by_name[f"tensor.{i}"]
            file.seek(layout.data_offset + spec.begin)
            for start in range(0, size, _CHECKED_AT_ONCE):
                stop = min(start + _CHECKED_AT_ONCE, size)
                expected = np.arange(start, stop, dtype=np.int64) % modulus + rounds
                found = np.frombuffer(file.read(4 * (stop - start)), "<f4")
                if spec.dtype != "F32" or not np.array_equal(found, expected):
                    raise SystemExit(f"tensor.{i} is wrong after {rounds} rounds")


def as_json(rows: list[dict[str, Any]]) -> str:
    """For files."""
    return json.dumps(rows, indent=2)
