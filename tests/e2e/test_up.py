"""`silobus up`, operated as the README says: with azure-servicebus alone, and with the command line."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from azure.servicebus import ServiceBusClient, ServiceBusMessage
from azure.servicebus.exceptions import ServiceBusError
from safetensors.numpy import load_file

from messages.transport.directory import DirectoryStore
from orchestrator.cli.standing import Reader
from orchestrator.cli.wording import as_json
from silo_agent.code_digest import code_digest
from tests.e2e.command import ROOT, ask, environment, eventually, processes_of, run, start

TRAINER = ROOT / "tests" / "trainers" / "add.py"
SECRET = "CANARY-of-whoever-runs-it"
ENDED = {"completed", "failed", "cancelled"}


@dataclass
class Up:
    """A federation that is up."""

    folder: Path
    connection: str
    process: subprocess.Popen[str]

    def status(self, experiment: str) -> Any:
        """What `silobus status --json` prints, without a process for every look; None while it is unknown."""

        async def read() -> Any:
            standing = await Reader(DirectoryStore(self.folder / "store")).read(experiment)
            return None if standing is None else as_json(standing)

        return asyncio.run(read())

    def pid(self, name: str) -> int:
        return int(json.loads((self.folder / "federation.json").read_text())["processes"][name])

    def post(self, **message: Any) -> None:
        with (
            ServiceBusClient.from_connection_string(self.connection) as client,
            client.get_queue_sender("experiments") as sender,
        ):
            sender.send_messages(ServiceBusMessage(json.dumps(message)))


@contextmanager
def going_up(folder: Path, *arguments: object) -> Iterator[Up]:
    """`silobus up` until the end of the block; then nothing of it is left."""
    process = start("up", "--dir", folder, *arguments, more={"SERVICEBUS_CONNECTION": SECRET})
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            lines.append(line.strip())
            if line.startswith("Ready"):
                break
        [connection] = [line for line in lines if line.startswith("Endpoint=")]
        yield Up(folder, connection, process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
        assert process.returncode == 0
        assert eventually("nothing is left", lambda: not processes_of(folder))
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Two owners whose trainers need no torch."""
    owners = tmp_path_factory.mktemp("owners")
    for silo in ("north", "south"):
        task = {
            "command": [sys.executable, TRAINER.name],
            "directory": str(TRAINER.parent),
            "code": {"path": str(TRAINER), "sha256": code_digest(TRAINER)},
            "limits": {"rounds": 10_000},
            "outbound": {"tensors": ["*"], "dtypes": ["float32"], "max_bytes": 1000},
        }
        (owners / f"{silo}.yaml").write_text(json.dumps({"tasks": {"add": task}}))
    with going_up(tmp_path_factory.mktemp("up"), "--silos-dir", owners) as running:
        yield running


@pytest.mark.slow
def test_the_readme_is_true(tmp_path: Path) -> None:
    with going_up(tmp_path / "federation", "--silos", 2) as up:
        as_the_readme_says(up, tmp_path)


def as_the_readme_says(up: Up, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    [script] = [block for block in blocks if "ServiceBusClient" in block]
    (tmp_path / "post.py").write_text(script)
    subprocess.run([sys.executable, tmp_path / "post.py", up.connection], check=True, env=environment(), cwd=tmp_path)
    eventually("it has begun", lambda: up.status("bc-1"))

    watched = run("watch", "bc-1", "--dir", up.folder)

    assert watched.returncode == 0, watched.stderr
    assert "round 5: 2 updates" in watched.stdout
    said = ask("status", "bc-1", "--dir", up.folder)
    assert said["status"] == "completed"
    assert said["metrics"]["accuracy"] > 0.85
    assert run("model", "bc-1", "-o", tmp_path / "m.safetensors", "--dir", up.folder).returncode == 0
    assert load_file(tmp_path / "m.safetensors")["0.weight"].shape == (16, 30)


@pytest.mark.slow
def test_pause_resume_and_cancel(up: Up) -> None:
    up.post(kind="start-experiment", experiment="long", task="add", rounds=2000)
    eventually("it has begun", lambda: up.status("long"))
    eventually("rounds go by", lambda: up.status("long")["round"] > 1)

    assert run("pause", "long", "--dir", up.folder).returncode == 0
    eventually("it is paused", lambda: up.status("long")["status"] == "paused")
    stands = up.status("long")["round"]
    assert up.status("long")["waiting_for"] == "resume-experiment"

    assert run("resume", "long", "--dir", up.folder).returncode == 0
    eventually("it goes on", lambda: up.status("long")["round"] > stands)

    assert run("cancel", "long", "--dir", up.folder).returncode == 0
    eventually("it is cancelled", lambda: up.status("long")["status"] == "cancelled")
    assert up.status("long")["models"]["last"]["round"] >= stands - 1


@pytest.mark.slow
def test_a_wrong_message_is_a_dead_letter_and_start_says_so(up: Up, tmp_path: Path) -> None:
    up.post(kind="start-experiment", experiment="bad-1", task="add", rounds="many")

    [letter] = eventually("it is set aside", lambda: ask("dead-letters", "list", "experiments", "--dir", up.folder))
    assert "rounds" in letter["description"]
    counts = {row["queue"]: row for row in ask("queues", "--dir", up.folder)}
    assert counts["experiments"]["dead_lettered"] == 1

    sequence = letter["sequence_number"]
    assert run("dead-letters", "discard", "experiments", sequence, "--dir", up.folder).returncode == 0
    assert ask("dead-letters", "list", "experiments", "--dir", up.folder) == []

    (tmp_path / "start.yaml").write_text("{experiment: bad-2, task: cats, rounds: 1, silos: [nobody]}")
    refused = run("start", tmp_path / "start.yaml", "--wait", "--dir", up.folder)
    assert refused.returncode == 1
    assert refused.stderr.startswith("bad-2 was not started: ")
    assert run("dead-letters", "discard", "experiments", "--all", "--dir", up.folder).returncode == 0


@pytest.mark.slow
def test_initial_weights_come_from_a_script(up: Up, tmp_path: Path) -> None:
    (tmp_path / "start.yaml").write_text("{experiment: init-1, task: add, rounds: 1}")

    done = run("start", tmp_path / "start.yaml", "--init", TRAINER, "--wait", "--dir", up.folder)

    assert done.returncode == 0, done.stderr
    assert 0 not in [row["round"] for row in up.status("init-1")["history"]], "no silo was asked for a model"


@pytest.mark.slow
def test_processes_that_die_are_started_again(up: Up) -> None:
    before = {name: up.pid(name) for name in ("orchestrator", "agent-north", "bus")}
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)

    eventually("all are back", lambda: all(up.pid(name) != pid for name, pid in before.items()))

    def posted() -> bool:
        """A process is back some time before it listens."""
        try:
            up.post(kind="start-experiment", experiment="after-1", task="add", rounds=2)
        except ServiceBusError:
            return False
        return True

    eventually("the bus takes messages", posted)
    eventually("it is known", lambda: up.status("after-1"))
    eventually("it ends", lambda: up.status("after-1")["status"] in ENDED)
    assert up.status("after-1")["status"] == "completed"


def test_a_second_federation_in_the_same_folder_is_refused(up: Up) -> None:
    second = run("up", "--dir", up.folder)

    assert second.returncode == 1
    assert "runs in" in second.stderr
    assert "--dir" in second.stderr


def test_a_typo_in_an_owners_file_is_said_before_anything_starts(tmp_path: Path) -> None:
    owner = tmp_path / "silos" / "north.yaml"
    owner.parent.mkdir()
    owner.write_text("tasks:\n  mine:\n    command: [python]\n    limtis: {rounds: 5}\n")

    refused = run("up", "--silos-dir", owner.parent, "--dir", tmp_path / "federation")

    assert refused.returncode == 1
    assert str(owner) in refused.stderr
    assert "line 4: tasks.mine.limtis: there is no such field" in refused.stderr
    assert "agent-north" not in refused.stderr
    assert not (tmp_path / "federation").exists()


def test_no_process_has_the_environment_of_whoever_started_them(up: Up) -> None:
    ids = json.loads((up.folder / "federation.json").read_text())["processes"]
    assert SECRET.encode() in Path(f"/proc/{ids.pop('silobus')}/environ").read_bytes()
    assert len(ids) == 4
    seen = {name: Path(f"/proc/{pid}/environ").read_bytes() for name, pid in ids.items()}
    assert [name for name, environ in seen.items() if SECRET.encode() in environ] == []
    assert all(b"PATH=" in environ for environ in seen.values())
