"""Writes the folder of the Compose file: keys, settings, and three hospitals' data, each where only its owner looks.

    python lay_out.py /federation [PORT [PORT-OF-HEALTH ...]]

    bus/                   the emulator's: queues, everybody's rules, its file
    roles/orchestrator/    orchestrator.yaml and its connection string; roles/operator/ likewise, and an experiment
    silos/<silo>/          silo.yaml, its connection string, its data, its home
    store/                 blobs

What is there is kept: keys stay the same from one start to the next.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from messages import names
from messages.rights import OPERATOR, ORCHESTRATOR
from orchestrator.cli import hospitals
from orchestrator.cli.folder import Folder, keys_of, make, write_connections, write_queues, write_silo

SILOS: Final = ("north", "south", "island")
BUS: Final = 5673
HEALTH: Final = {ORCHESTRATOR: 8080, "north": 8081, "south": 8082, "island": 8083}
"""All in one network namespace, so each has a port of its own."""
EXPERIMENT: Final = {
    "kind": "start-experiment",
    "experiment": "bc-1",
    "task": "breast-cancer",
    "rounds": 5,
    "quorum": {"minimum": 2},
}


async def lay_out(root: Path, port: int, health: Mapping[str, int]) -> None:
    """Everything, for processes that share one loopback."""
    folder = Folder(root)
    make(folder)
    keys = keys_of(folder, SILOS)
    write_queues(folder, SILOS, keys)
    write_connections(folder, SILOS, keys, port)
    shutil.copy(folder.queues, folder.bus / "config.json")
    for container in names.containers(list(SILOS)):
        (folder.store / container).mkdir(parents=True, exist_ok=True)
    for role in (ORCHESTRATOR, OPERATOR):
        _write_role(folder, role, health.get(role))
    (folder.root / "roles" / OPERATOR / "bc-1.json").write_text(
        json.dumps(EXPERIMENT, indent=2) + "\n", encoding="utf-8"
    )
    task = hospitals.task_named("breast-cancer")
    await hospitals.admit(task, folder, SILOS, seed=0)
    for silo in SILOS:
        policy = hospitals.policy(task, folder, silo, len(SILOS))
        write_silo(folder, silo, {"health": {"port": health[silo]}, **policy})


def _write_role(folder: Folder, role: str, health: int | None) -> None:
    directory = folder.root / "roles" / role
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder.connection(role), directory / "connection")
    said: dict[str, Any] = {
        "bus": {"connection_string_file": "connection"},
        "store": {"directory": str(folder.store)},
        "silos": list(SILOS),
        "scratch": "/tmp/scratch",  # noqa: S108  # the container's own
    }
    if health is not None:
        said["health"] = {"port": health}
    (directory / f"{role}.yaml").write_text(yaml.safe_dump(said, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    where, *ports = sys.argv[1:]
    bus, *healths = map(int, ports or [str(BUS)])
    asyncio.run(lay_out(Path(where), bus, HEALTH | dict(zip(HEALTH, healths, strict=False))))
