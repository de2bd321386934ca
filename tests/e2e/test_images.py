"""The containers of the Compose file without containers: the same commands, in the same order, as contained as can be.

Each process runs as nobody in particular, in a copy of the code that nobody may write to, with no HOME, no variable but
those an image sets, and TMPDIR and the federation's folder as the only places to write. What a kernel does for
containers (read-only root, namespaces) is for the test of the Compose file to promise.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from azure.servicebus import ServiceBusClient, ServiceBusMessage
from pydantic import SecretStr

from deploy.containers.lay_out import BUS, HEALTH, SILOS
from messages import names
from messages.codec import encode
from messages.schemas import Head, RoundAnnounced
from messages.transport.servicebus import ServiceBus, client_options
from orchestrator.cli.processes import die_with_parent

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "deploy/containers/compose.yaml").read_text())["services"]
PACKAGES = ("messages", "orchestrator", "silo_agent", "silobus", "servicebus_emulator", "examples")
NOBODY = 10001
PATIENCE = 120.0
OPERATORS = """#!{python}
import sys
sys.path.insert(0, {code!r})
import orchestrator.cli
assert orchestrator.cli.__file__.startswith({code!r}), "not the copy that nobody may write to"
sys.exit(orchestrator.cli.main())
"""
"""The command `silobus` as pip writes it, of the copy: that of the environment would run the working tree."""
SOME_ONE_ELSE = [
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"),
    # Root's own interpreter may lie where nobody else reads; to write takes more than this.
    *("--bounding-set=-all,+dac_read_search", "--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"),
] * (os.geteuid() == 0)


@dataclass
class Machine:
    """Where the containers' processes run."""

    top: Path
    ports: Mapping[int, int]
    """Ours for each of the Compose file's: several of these tests may run on one machine."""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def code(self) -> Path:
        return self.top / "code"

    @property
    def federation(self) -> Path:
        return self.top / "federation"

    def words(self, name: str, command: list[str] | None = None) -> list[str]:
        """What the service starts, on this machine."""
        service = SERVICES[name]
        words = [*service["entrypoint"], *service["command"]] if command is None else command
        known = {
            "/opt/silobus/bin/python": sys.executable,
            "/opt/silobus/lay_out.py": str(self.code / "lay_out.py"),
            "/opt/silobus/bin/silobus": str(self.top / "silobus"),
        }
        words = [known.get(word, self.here(word)) for word in words]
        return [str(self.ports.get(int(word), word)) if word.isdigit() else word for word in words]

    def here(self, word: str) -> str:
        """A path of the containers, on this machine."""
        return re.sub("^/federation", str(self.federation), word)

    def environment(self, name: str) -> dict[str, str]:
        """What the images set, and what the Compose file adds."""
        image = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
        more = {
            k: v.replace("/federation", str(self.federation)) for k, v in SERVICES[name].get("environment", {}).items()
        }
        return {**image, "PYTHONUNBUFFERED": "1", "TMPDIR": str(self.top / "tmp"), **more}

    def start(self, name: str) -> subprocess.Popen[bytes]:
        log = (self.top / f"{name}.log").open("ab")
        with log:
            self.processes[name] = subprocess.Popen(
                [*SOME_ONE_ELSE, *self.words(name)],
                cwd=self.code,
                env=self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,  # noqa: PLW1509  # it calls prctl and nothing else
            )
        return self.processes[name]

    def ask(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command beside the service, such as its health check."""
        return subprocess.run(
            [*SOME_ONE_ELSE, *self.words(name, list(arguments))],
            cwd=self.code,
            env=self.environment(name),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def operator(self, *arguments: str) -> str:
        done = self.ask("operator", *SERVICES["operator"]["entrypoint"], *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def healthy(self, name: str) -> bool:
        check = SERVICES[name]["healthcheck"]["test"]
        assert check[0] == "CMD"
        words = [word.replace(str(BUS), str(self.ports[BUS])) for word in check[1:]]
        return self.ask(name, *words).returncode == 0

    def stop(self, name: str) -> int:
        """As a platform stops a container."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(float(SERVICES[name]["stop_grace_period"].removesuffix("s")))

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not holds():
            dead = [name for name, process in self.processes.items() if process.poll() is not None]
            assert not dead, f"{dead} ended; {self.tails()}"
            assert time.monotonic() < end, f"{what}; {self.tails()}"
            time.sleep(0.1)

    def tails(self) -> str:
        return "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in self.top.glob("*.log"))

    def connection(self, *parts: str) -> str:
        return self.federation.joinpath(*parts, "connection").read_text().strip()


def free_ports(count: int) -> list[int]:
    """Of those that the system gives to nobody who asks for any: nobody takes them before they are listened on."""
    found: list[int] = []
    for port in random.sample(range(20_000, 32_000), 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("there are no free ports")


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A federation that was started service by service, each once what it depends on is there."""
    top = Path(tempfile.mkdtemp(prefix="silobus-images-"))
    ports = dict(zip([BUS, *HEALTH.values()], free_ports(5), strict=True))
    made = Machine(top, ports)
    try:
        top.chmod(0o755)
        for package in PACKAGES:
            shutil.copytree(ROOT / package, made.code / package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "deploy/containers/lay_out.py", made.code)
        for path in [made.code, *made.code.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        (top / "silobus").write_text(OPERATORS.format(python=sys.executable, code=str(made.code)))
        (top / "silobus").chmod(0o555)
        for writable in (made.federation, top / "tmp"):
            writable.mkdir()
            if os.geteuid() == 0:
                os.chown(writable, NOBODY, NOBODY)
        yield made
    finally:
        for process in made.processes.values():
            process.kill()
            process.wait(20)
        for path in [made.code, *made.code.rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(top, ignore_errors=True)


@pytest.fixture(scope="module")
def running(machine: Machine) -> Machine:
    init = SERVICES["init"]
    done = machine.ask("init", *init["entrypoint"], *init["command"], *map(str, machine.ports))  # each becomes ours
    assert done.returncode == 0, done.stdout + done.stderr
    machine.start("emulator")
    machine.until("the emulator is not healthy", lambda: machine.healthy("emulator"))
    for name in ("orchestrator", *SILOS):
        machine.start(name)
    for name in ("orchestrator", *SILOS):
        machine.until(f"{name} is not healthy", lambda name=name: machine.healthy(name))  # type: ignore[misc]
    return machine


def test_a_round_is_trained_by_processes_that_may_do_nothing_else(running: Machine) -> None:
    comment = (ROOT / "deploy/containers/compose.yaml").read_text()
    [post, watch] = [line.split()[1:] for line in re.findall(r"#.* run --rm (operator .*)", comment)]
    running.operator(*map(running.here, post))
    running.operator(*watch)

    [run] = json.loads(running.operator("status", "--json"))["experiments"]
    assert "completed" in json.dumps(run)


def test_none_of_them_is_root_or_can_write_to_the_code_or_wrote_elsewhere(running: Machine) -> None:
    for name, process in running.processes.items():
        status = Path(f"/proc/{process.pid}/status").read_text()
        uids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
        assert set(uids) == {str(NOBODY if os.geteuid() == 0 else os.geteuid())}, name
        assert "0" not in uids
    probe = "import os, sys; sys.exit(os.access('.', os.W_OK) or 'HOME' in os.environ)"
    assert running.ask("north", sys.executable, "-c", probe).returncode == 0
    assert not list(running.code.rglob("__pycache__"))
    seen = {path.name for path in running.top.iterdir()}
    assert seen - {f"{name}.log" for name in SERVICES} == {"code", "federation", "tmp", "silobus"}


def test_health_is_answered_on_loopback_only(running: Machine) -> None:
    ours = {running.ports[port] for port in HEALTH.values()}
    listening = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        address, state = line.split()[1], line.split()[3]
        host, _, port = address.partition(":")
        if state == "0A" and int(port, 16) in ours:
            listening.add((host, int(port, 16)))
    assert listening == {("0100007F", port) for port in ours}


def test_sigterm_hands_back_what_an_agent_holds(running: Machine) -> None:
    """Its announcement can be had at once, and not only when the lock lapses, which takes half a minute."""
    running.stop("orchestrator")  # nobody closes the round, or announces it again
    pid = running.processes["north"].pid
    before = children(pid)
    announced = announce(running)
    running.until("north does not train", lambda: bool(children(pid) - before))
    for trainer in children(pid) - before:
        os.kill(trainer, signal.SIGSTOP)  # and goes on doing so

    assert running.stop("north") == 0
    began = time.monotonic()
    assert asyncio.run(next_for_north(running)) == announced
    assert time.monotonic() - began < 10


def test_sigterm_ends_everything_with_status_0(running: Machine) -> None:
    for name in [name for name in running.processes if name != "emulator"]:
        assert running.stop(name) == 0, running.tails()
    assert running.stop("emulator") == 0


def children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def announce(machine: Machine) -> str:
    """Asks north for initial weights, as an orchestrator would; the message's id."""
    run = "held_00000000"
    said = {"experiment": "held", "run": run, "round": 0, "purpose": "initialise", "announcement": 1, "quorum": 1}
    more = {"task": "breast-cancer", "silos": 1, "deadline": datetime.now(UTC) + timedelta(hours=1)}
    head = Head.model_validate({"run": run, "round": 0, "announcement": 1, "phase": "open"})
    file = machine.federation / "store" / names.GLOBAL / names.head_blob(run)
    file.parent.mkdir(parents=True)
    file.write_bytes(encode(head))
    for path in (file.parent, file):
        path.chmod(0o777)
    with (
        ServiceBusClient.from_connection_string(machine.connection("roles", "operator")) as client,
        client.get_queue_sender(names.to_silo("north")) as sender,
    ):
        sender.send_messages(ServiceBusMessage(encode(RoundAnnounced.model_validate(said | more)), message_id="held-1"))
    return "held-1"


async def next_for_north(machine: Machine) -> str | None:
    bus = ServiceBus.from_connection_string(SecretStr(machine.connection("silos", "north")), **client_options())
    try:
        delivery = await bus.receive(names.to_silo("north"), wait=20)
        return None if delivery is None else delivery.message_id
    finally:
        await bus.close()
