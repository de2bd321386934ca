"""The same rounds in a real federation: embedded Service Bus, orchestrator, agents, `train` as their script.

Three silos only, since each is a process with torch. What comes out must be the study's model, but for rounding.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file

from benchmarks.quality import train
from benchmarks.quality.data import SILOS, divided
from benchmarks.quality.federation import STEPS, Method, models
from messages.experiments import Quorum, StartExperiment, Strategy
from orchestrator.cli import experiments, status
from orchestrator.cli.federation import Federation, reach
from orchestrator.cli.folder import Folder, write_silo
from orchestrator.cli.local import running
from orchestrator.cli.standing import Reader
from orchestrator.cli.wording import models as models_of
from orchestrator.cli.wording import reason_of, status_of

ROUNDS: Final = 2
SEED: Final = 0
LR: Final = 0.2
METHODS: Final = (
    Method("fedavg", LR),
    Method("fedprox", LR, {"mu": 0.1}),
    Method("scaffold", LR),
    Method("fedadam", LR, {"server_lr": 0.03}),
)
CHECKED: Final = SILOS[:3]
GLANCE: Final = 0.2


async def differences() -> AsyncIterator[tuple[str, float, float]]:
    """For each method how far the federation's model is from the study's at most, and how far that moved at most."""
    division = divided(SEED, silos=CHECKED)
    with tempfile.TemporaryDirectory(prefix="silobus-quality-") as root:
        folder = Folder(Path(root))
        async with running(folder, CHECKED, lambda line: print(line, file=sys.stderr)) as local:
            for number, silo in enumerate(CHECKED):
                write_silo(folder, silo, policy(number))
            await local.start_agents()
            await local.ready()
            async with reach(folder.root, None) as federation:
                for method in METHODS:
                    made = load_file(await _run(federation, method, folder.root / f"{method.strategy}.safetensors"))
                    *_, ours = models(method, division, ROUNDS, asked=len(CHECKED))
                    yield method.strategy, difference(made, ours), difference(ours, division.initial())


def policy(number: int) -> dict[str, Any]:
    """What the owner of silo `number` allows: to train, and what each method sends."""
    script = Path(train.__file__)
    environment = {"SEED": SEED, "SILOS": len(CHECKED), "NUMBER": number, "STEPS": STEPS, "LR": LR}
    return {
        "tasks": {
            "digits": {
                "command": [sys.executable, "-m", train.__name__],
                "directory": str(script.parents[2]),
                "mode": "warm",
                "code": {"path": str(script), "sha256": hashlib.sha256(script.read_bytes()).hexdigest()},
                "environment": {"OMP_NUM_THREADS": "1", **{name: str(value) for name, value in environment.items()}},
                "limits": {"rounds": 1000, "hyperparameters": {"proximal_mu": {"min": 0, "max": 1}}},
                "outbound": {
                    "roles": ["weights", "control"],
                    "tensors": ["*"],
                    "dtypes": ["float32"],
                    "max_bytes": 1_000_000,
                },
            }
        }
    }


async def _run(federation: Federation, method: Method, result: Path) -> Path:
    """One experiment; its last weights are put at `result`."""
    message = StartExperiment(
        experiment=f"check-{method.strategy}",
        task="digits",
        rounds=ROUNDS,
        quorum=Quorum(minimum="all"),
        strategy=Strategy(name=method.strategy, options=dict(method.options)),
    )
    sent = await experiments.send(federation.bus, message)
    await experiments.accepted(federation, message, sent)
    reader = Reader(federation.store)
    standing = await reader.read(message.experiment)
    while standing is None or not standing.is_over:
        await asyncio.sleep(GLANCE)
        standing = await reader.read(message.experiment)
    if status_of(standing) != "completed":
        raise SystemExit(f"the run with {method.strategy} {status_of(standing)}: {reason_of(standing)}")
    found = models_of(standing.run)["last"]
    await status.download(federation.store, found["blob"], found["sha256"], result)
    return result


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """The greatest, of any two numbers."""
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)
