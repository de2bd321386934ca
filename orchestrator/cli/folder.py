"""A local federation's folder: where everything in it is, and the settings files its processes read.

Here lives what is written before anything runs (ARCHITECTURE.md, "A local federation's folder"). Starting processes is
in `local`, the demo's tasks are in `hospitals`.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from messages import names
from orchestrator.cli.terminal import Complaint

LOCK_DURATION = "PT30S"
MAX_DELIVERY_COUNT = 10


@dataclass(frozen=True, slots=True)
class Folder:
    """Paths inside one federation's folder."""

    root: Path

    @property
    def card(self) -> Path:
        """`federation.json`: connection string, silos, process ids; only its owner may read it."""
        return self.root / "federation.json"

    @property
    def connection(self) -> Path:
        """`connection`: the connection string alone, which every settings file of the folder names."""
        return self.root / "connection"

    @property
    def bus(self) -> Path:
        return self.root / "bus"

    @property
    def queues(self) -> Path:
        """The emulator's configuration."""
        return self.root / "bus.json"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def orchestrator(self) -> Path:
        return self.root / "orchestrator.yaml"

    def silo(self, silo: str) -> Path:
        return self.root / "silos" / silo / "silo.yaml"

    def home(self, silo: str) -> Path:
        return self.root / "silos" / silo / "home"

    def data(self, silo: str, task: str) -> Path:
        return self.root / "silos" / silo / "data" / task

    def patients(self, task: str) -> Path:
        """What a task's `make_data.py` made, before it is shared out: `pooled.csv`, and the held-out `test.csv`."""
        return self.root / "patients" / task

    def model(self, experiment: str) -> Path:
        return self.root / "models" / f"{experiment}.safetensors"

    def log(self, process: str) -> Path:
        return self.root / "logs" / f"{process}.log"


@dataclass(frozen=True, slots=True)
class Card:
    """What `federation.json` says."""

    connection_string: str
    silos: tuple[str, ...]
    processes: Mapping[str, int]


def write_card(folder: Folder, card: Card) -> None:
    """Replaces `federation.json` in one step."""
    text = json.dumps(
        {"connection_string": card.connection_string, "silos": list(card.silos), "processes": dict(card.processes)},
        indent=2,
    )
    _write_private(folder.card, text + "\n")


def write_connection(folder: Folder, connection: str) -> None:
    """Replaces the file in which the folder's processes find the connection string."""
    _write_private(folder.connection, connection + "\n")


def read_card(folder: Folder) -> Card | None:
    """What is there, or None when no federation was ever started in this folder."""
    try:
        said = json.loads(folder.card.read_text(encoding="utf-8"))
        return Card(str(said["connection_string"]), tuple(said["silos"]), dict(said["processes"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise Complaint(f"{folder.card} cannot be read. Remove the folder {folder.root} and start again.") from None


def connection_string(port: int, key: str) -> str:
    """How to reach the emulator on this machine, with any Service Bus SDK."""
    return (
        f"Endpoint=sb://127.0.0.1:{port};SharedAccessKeyName=RootManageSharedAccessKey;"
        f"SharedAccessKey={key};UseDevelopmentEmulator=true"
    )


def new_key() -> str:
    """A shared access key for one folder."""
    return secrets.token_hex(16)


def port_and_key(text: str) -> tuple[int, str]:
    """Those in a connection string that `connection_string` made, so that it stays the same from start to start."""
    parts = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
    return int(parts["Endpoint"].rpartition(":")[2]), parts["SharedAccessKey"]


def write_queues(folder: Folder, silos: Sequence[str]) -> None:
    """The emulator's configuration, in the official emulator's format."""
    properties = {
        "LockDuration": LOCK_DURATION,
        "MaxDeliveryCount": MAX_DELIVERY_COUNT,
        "RequiresDuplicateDetection": False,  # everything is correct without it
    }
    queues = [{"Name": queue, "Properties": properties} for queue in names.queues(list(silos))]
    config = {"UserConfig": {"Namespaces": [{"Name": "sbemulatorns", "Queues": queues}]}}
    _write(folder.queues, json.dumps(config, indent=2) + "\n")


def write_orchestrator(folder: Folder, silos: Sequence[str]) -> None:
    """`orchestrator.yaml`."""
    _write_yaml(folder.orchestrator, {**_reach(folder), "silos": list(silos), "scratch": str(folder.root / "scratch")})


def write_silo(folder: Folder, silo: str, policy: Mapping[str, Any]) -> None:
    """A silo's `silo.yaml`: its owner's policy, and where this federation's bus and store are."""
    folder.home(silo).mkdir(parents=True, exist_ok=True)
    said = {"silo": silo, **_reach(folder), "home": str(folder.home(silo)), "heartbeat": 5, **policy}
    _write_yaml(folder.silo(silo), said)


def make(folder: Folder) -> None:
    """The folder itself; what is in it is for its owner alone, since it holds data and keys."""
    try:
        folder.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Complaint(f"{folder.root} cannot be made: {error.strerror}. Give another folder with --dir.") from None


def _reach(folder: Folder) -> dict[str, Any]:
    return {"bus": {"connection_string_file": str(folder.connection)}, "store": {"directory": str(folder.store)}}


def _write_yaml(path: Path, value: Any) -> None:
    _write(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _write_private(path: Path, text: str) -> None:
    """Replaces a file in one step by one that only its owner may read."""
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    part.replace(path)
