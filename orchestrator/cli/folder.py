"""A local federation's folder: where everything in it is, and the files its processes read: settings, and keys.

Here lives what is written before anything runs (ARCHITECTURE.md, "A local federation's folder"). What a key opens is in
`keys`; starting processes is in `local`, the demo's tasks are in `hospitals`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import SecretStr

from messages import names
from messages.log import system_said
from messages.rights import AGENT, OPERATOR, ORCHESTRATOR, principals
from orchestrator.cli.keys import Keys, connection_string, key_in, new_key, rules
from orchestrator.cli.terminal import Complaint

LOCK_DURATION = "PT30S"
MAX_DELIVERY_COUNT = 10


@dataclass(frozen=True, slots=True)
class Folder:
    """Paths inside one federation's folder."""

    root: Path

    @property
    def card(self) -> Path:
        """`federation.json`: the operator's connection string, silos, process ids; only its owner may read it."""
        return self.root / "federation.json"

    def connection(self, role: str, silo: str | None = None) -> Path:
        """The connection string of one role or silo, which their settings file names; only its owner may read it."""
        if silo is not None:
            return self.root / "silos" / silo / "connection"
        return self.root / ("connection" if role == OPERATOR else f"{role}.connection")

    @property
    def bus(self) -> Path:
        return self.root / "bus"

    @property
    def queues(self) -> Path:
        """The emulator's configuration: queues, and every key with what it may do; only its owner may read it."""
        return self.root / "bus.json"

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def orchestrator(self) -> Path:
        return self.root / "orchestrator.yaml"

    @property
    def operator(self) -> Path:
        """What the commands read."""
        return self.root / "operator.yaml"

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


def keys_of(folder: Folder, silos: Sequence[str]) -> Keys:
    """Everybody's key: the one that is in their file, so that it stays the same from start to start, or a new one."""
    return {who.name: key_in(folder.connection(who.role, who.silo), who.name) or new_key() for who in principals(silos)}


def write_connections(folder: Folder, silos: Sequence[str], keys: Keys, port: int) -> SecretStr:
    """Everybody's connection string, in a file of their own. Returns the operator's."""
    for who in principals(silos):
        text = connection_string(port, who.name, keys[who.name]).get_secret_value()
        _write_private(folder.connection(who.role, who.silo), text + "\n")
    return connection_string(port, OPERATOR, keys[OPERATOR])


def read_card(folder: Folder) -> Card | None:
    """What is there, or None when no federation was ever started in this folder."""
    try:
        said = json.loads(folder.card.read_text(encoding="utf-8"))
        return Card(str(said["connection_string"]), tuple(said["silos"]), dict(said["processes"]))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Complaint(system_said(error)) from None
    except (ValueError, KeyError, TypeError):
        raise Complaint(
            f"{folder.card} is damaged. Move this one file away: `silobus up` writes it anew, and nothing else is lost."
        ) from None


def write_queues(folder: Folder, silos: Sequence[str], keys: Keys) -> None:
    """The emulator's configuration, in the official emulator's format, with authorization rules."""
    folder.bus.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.bus.chmod(0o700)  # the emulator keeps its configuration there, keys included
    everybody = principals(silos)
    properties = {
        "LockDuration": LOCK_DURATION,
        "MaxDeliveryCount": MAX_DELIVERY_COUNT,
        "RequiresDuplicateDetection": False,  # everything is correct without it
    }
    queues = [
        {"Name": queue, "Properties": properties, "AuthorizationRules": rules(queue, everybody, keys)}
        for queue in names.queues(list(silos))
    ]
    config = {"UserConfig": {"Namespaces": [{"Name": "sbemulatorns", "Queues": queues}]}}
    _write_private(folder.queues, json.dumps(config, indent=2) + "\n")


def write_orchestrator(folder: Folder, silos: Sequence[str]) -> None:
    """`orchestrator.yaml`."""
    _write_yaml(folder.orchestrator, _federation(folder, ORCHESTRATOR, silos))


def write_operator(folder: Folder, silos: Sequence[str]) -> None:
    """`operator.yaml`: the same federation, with the operator's rights."""
    _write_yaml(folder.operator, _federation(folder, OPERATOR, silos))


def write_silo(folder: Folder, silo: str, policy: Mapping[str, Any]) -> None:
    """A silo's `silo.yaml`: its owner's policy, and where this federation's bus and store are."""
    folder.home(silo).mkdir(parents=True, exist_ok=True)
    reach = _reach(folder, folder.connection(AGENT, silo))
    said = {"silo": silo, **reach, "home": str(folder.home(silo)), "heartbeat": 5, **policy}
    _write_yaml(folder.silo(silo), said)


def make(folder: Folder) -> None:
    """The folder itself; what is in it is for its owner alone, since it holds data and keys."""
    try:
        folder.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Complaint(f"{folder.root} cannot be made: {error.strerror}. Give another folder with --dir.") from None


def _federation(folder: Folder, role: str, silos: Sequence[str]) -> dict[str, Any]:
    reach = _reach(folder, folder.connection(role))
    return {**reach, "silos": list(silos), "scratch": str(folder.root / "scratch")}


def _reach(folder: Folder, connection: Path) -> dict[str, Any]:
    return {"bus": {"connection_string_file": str(connection)}, "store": {"directory": str(folder.store)}}


def _write_yaml(path: Path, value: Any) -> None:
    _write(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _write_private(path: Path, text: str) -> None:
    """Replaces a file in one step by one that only its owner may read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    part.replace(path)
