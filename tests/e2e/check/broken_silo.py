"""A silo whose parts a test breaks one by one, and what `silobus-agent check` then says.

The bus is the embedded one with everybody's keys, laid out as `silobus up` does it. Silos other than `north` are there
to have something wrong with their queues or keys.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from messages import names
from silo_agent.cli import app
from silo_agent.code_digest import code_digest
from tests.e2e.command import ROOT
from tests.federation import TASK, Federation
from tests.federation import Silo as Enrolled

DEAF, MUTE, NO_TO, NO_FROM = "deaf", "mute", "no-to", "no-from"
SILOS = ("north", DEAF, MUTE, NO_TO, NO_FROM)
STORE_ROWS = ["read global", "create in updates-north", "read updates-north", "list updates-north", "clock"]
BUS_ROWS = ["read to-north", "send to from-north"]
TASK_ROWS = [f"task {TASK}: code", f"task {TASK}: data", f"task {TASK}: command", f"task {TASK}"]
HOME_ROWS = ["send to from-north", *STORE_ROWS[1:], f"task {TASK}"]


def rows_of(silo: str) -> list[str]:
    """All that is tried in a silo with one task on its own machine, in the order shown."""
    to, out, updates = names.to_silo(silo), names.from_silo(silo), names.updates_of(silo)
    exchange = ["store", "read global", f"create in {updates}", f"read {updates}", f"list {updates}", "clock"]
    return ["settings", "bus", f"read {to}", f"send to {out}", "home", "disk", *exchange, *TASK_ROWS]


TRAINS = r"""
import hashlib, json, os, pathlib, struct

source, target = (pathlib.Path(os.environ[f"SILOBUS_{way}"]) for way in ("INPUT", "OUTPUT"))
raw = struct.pack("<3f", 1, 1, 1)
head = json.dumps({"layer.bias": {"dtype": "F32", "shape": [3], "data_offsets": [0, len(raw)]}}).encode()
data = struct.pack("<Q", len(head)) + head + raw
(target / "update.safetensors").write_bytes(data)
(target / "state").mkdir()
update = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
report = {"schema_version": 1, "samples": 64, "steps": 1, "update": update, "metrics": []}
(target / "report.json").write_text(json.dumps(report))
"""
"""A round by hand: it takes a tenth of the time that it takes to import numpy and silobus."""


@contextlib.contextmanager
def enrolled() -> Iterator[Federation]:
    """Only its bus runs."""
    federation = Federation([Enrolled(name, agent=False) for name in SILOS])
    with contextlib.ExitStack() as stack:
        stack.push(federation.__exit__)
        federation.lay_out()
        config = json.loads(federation.folder.queues.read_text())
        namespace = config["UserConfig"]["Namespaces"][0]
        lost = (names.to_silo(NO_TO), names.from_silo(NO_FROM))
        namespace["Queues"] = [queue for queue in namespace["Queues"] if queue["Name"] not in lost]
        for queue in namespace["Queues"]:
            if queue["Name"] in (names.to_silo(DEAF), names.from_silo(MUTE)):
                rules = queue["AuthorizationRules"]
                queue["AuthorizationRules"] = [rule for rule in rules if not rule["Name"].startswith("agent-")]
        federation.folder.queues.write_text(json.dumps(config))
        federation.start("bus")
        yield federation


@dataclass
class Silo:
    """A silo's files, its own to break, and what `check` says of them."""

    federation: Federation
    path: Path
    name: str = "north"

    def __post_init__(self) -> None:
        self.file = self.path / "silo.yaml"
        self.home = self.path / "home"
        self.key = self.path / "connection"
        self.store = self.path / "store"
        self.script = self.path / "code" / "add.py"
        self.data = self.path / "rows.csv"
        for container in (names.GLOBAL, names.updates_of(self.name)):
            (self.store / container).mkdir(parents=True, exist_ok=True)
        self.script.parent.mkdir(exist_ok=True)
        self.script.write_text(TRAINS)
        self.data.write_text("1,2\n")
        self.said: dict[str, Any] = yaml.safe_load(self.federation.folder.silo(self.name).read_text())
        theirs = Path(self.said["bus"]["connection_string_file"])
        self.key.write_text(theirs.read_text())
        self.said |= {"home": str(self.home), "store": {"directory": str(self.store)}}
        self.said["bus"] = {"connection_string_file": str(self.key)}
        self.task.update(directory=str(self.script.parent), data={"rows": str(self.data)}, mode="per-round")
        self.task["code"] = {"path": str(self.script), "sha256": code_digest(self.script)}
        self.environment: dict[str, str] = {}

    @property
    def task(self) -> dict[str, Any]:
        task: dict[str, Any] = self.said["tasks"][TASK]
        return task

    def does(self, script: str) -> None:
        """The owner approves another script."""
        self.script.write_text(script)
        self.task["code"]["sha256"] = code_digest(self.script)

    def does_as_people_do(self) -> None:
        """It imports silobus, and reports a metric."""
        self.does((ROOT / "tests" / "trainers" / "add.py").read_text())

    def write(self) -> None:
        self.file.write_text(yaml.safe_dump(self.said))

    def checks(self, *, for_people: bool = False) -> Checked:
        """In this process, which is quicker."""
        self.write()
        asked = ["check", *([] if for_people else ["--json"]), "--config", str(self.file)]
        result = CliRunner().invoke(app, asked, env=self.environment)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return Checked(result.exit_code, result.output, self.secrets)

    def types(self, *options: str) -> Checked:
        """As an owner types it."""
        self.write()
        done = subprocess.run(
            [sys.executable, "-m", "silo_agent", "check", *options, "--config", str(self.file)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=120,
            check=False,
        )
        return Checked(done.returncode, done.stdout + done.stderr, self.secrets)

    @property
    def secrets(self) -> list[str]:
        return [*self.federation.secrets, *self.environment.values(), "SharedAccessKey="]


@contextlib.contextmanager
def obeying_permissions() -> Iterator[None]:
    """File permissions hold for this thread, and for those that it starts, even where the tests are root's."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    had, less = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 of each
    assert libc.capget(header, had) == 0
    less[:] = [had[0] & ~0b110, *had[1:]]  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, less) == 0
    try:
        yield
    finally:
        assert libc.capset(header, had) == 0


class Checked:
    """What `check` said."""

    def __init__(self, status: int, output: str, secrets: Sequence[str]) -> None:
        self.status, self.output = status, output
        for secret in secrets:
            assert secret not in output

    @property
    def rows(self) -> dict[str, Mapping[str, Any]]:
        return {row["what"]: row for row in json.loads(self.output)}

    def are(self, state: str) -> list[str]:
        return [what for what, row in self.rows.items() if row["state"] == state]

    def blames(self, red: str, *told: str, untried: Sequence[str] = ()) -> None:
        """Exactly this row is red, and says so much; exactly these could not be tried."""
        assert self.are("FAIL") == [red], self.output
        assert self.are("not tried") == list(untried), self.output
        row = self.rows[red]
        text = " ".join([row["found"], *row["details"]])
        for words in told:
            assert words in text
        assert self.status == 1
