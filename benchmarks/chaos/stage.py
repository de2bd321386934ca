"""The federation on stage: its folder, its disks, and every process of it, each of which may end at any time.

Here lives starting, killing and holding up processes. When that happens is `plan`'s and `director`'s business. Laid
out as `silobus up` does it, but with short locks, several orchestrators, and a key for the emulator's faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shutil
import signal
import socket
import sqlite3
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_plus

from benchmarks.chaos.disks import Disk
from benchmarks.chaos.load import ADDS, TASK
from benchmarks.chaos.logs import Departure
from messages import names
from orchestrator.cli import folder as layout
from orchestrator.cli.folder import Card, Folder
from orchestrator.cli.processes import Command, spawn, terminate
from servicebus_emulator.rights import sign
from silo_agent.code_digest import code_digest
from silo_agent.runners.processes import marked

TRAINER = Path(__file__).with_name("trainer.py").resolve()
ROOT = TRAINER.parents[2]
MEBIBYTE = 1 << 20
FAULTS_KEY = "faults"
UPDATES_KEPT, MODELS_KEPT = 3, 4
"""Rounds whose updates, and whose weights, stay in the store."""
_PAUSE = 1.0
"""Seconds until a process that ended by itself is started again."""


@dataclass(frozen=True, slots=True)
class Silo:
    """A silo whose trainer adds `adds` and weighs `samples`."""

    name: str
    adds: float
    samples: int


SILOS = (Silo("north", 1, 64), Silo("south", 7, 64), Silo("east", 4, 128))
"""All three together add exactly 4, and any two of them a whole number: sums that float32 holds exactly."""


@dataclass(slots=True)
class _Running:
    """A process, and where its part of the log begins."""

    name: str
    process: asyncio.subprocess.Process
    log: Path
    begins: int
    since: float
    """By the monotonic clock."""
    is_noted: bool = False


class Stage:
    """Processes are `bus`, `orchestrator-1`, …, and `agent-<silo>`."""

    def __init__(
        self, root: Path, *, orchestrators: int, at_once: int, floats: int, lock: float, small_disks: bool
    ) -> None:
        self.folder = Folder(root)
        self.orchestrators = [f"orchestrator-{n + 1}" for n in range(orchestrators)]
        self.agents = [f"agent-{silo.name}" for silo in SILOS]
        self.faults: Sequence[str] = ()
        """What the emulator is asked to go wrong with."""
        self.departures: list[Departure] = []
        """Processes that ended though nobody ended them, and those that did not end well when they were told to."""
        self.messages = 0
        """Messages that the emulator took before its queues were emptied."""
        self.disks: dict[str, Disk] = {}
        self._at_once, self._floats, self._lock = at_once, floats, lock
        self._port = 0
        self._seed = 0
        self._key = secrets.token_hex(16)
        self._running: dict[str, _Running] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        layout.make(self.folder)
        if small_disks:
            self._mount()
        self._lay_out()

    # --- the folder --------------------------------------------------------------------------------------------------

    def _mount(self) -> None:
        sizes = {"bus": (self.folder.bus, 64), "scratch": (self.folder.root / "scratch", 16)}
        homes = {f"home-{silo.name}": (self.folder.home(silo.name), 64) for silo in SILOS}
        self.disks = {name: Disk(path, size * MEBIBYTE) for name, (path, size) in (sizes | homes).items()}

    def _lay_out(self) -> None:
        silos = [silo.name for silo in SILOS]
        keys = layout.keys_of(self.folder, silos)
        layout.write_queues(self.folder, silos, keys)
        config = json.loads(self.folder.queues.read_text())
        namespace = config["UserConfig"]["Namespaces"][0]
        namespace["AuthorizationRules"] = [{"Name": FAULTS_KEY, "Rights": ["Manage", "Send", "Listen"]}]
        namespace["AuthorizationRules"][0]["PrimaryKey"] = self._key
        for queue in namespace["Queues"]:
            queue["Properties"]["LockDuration"] = f"PT{self._lock:g}S"
        self.folder.queues.write_text(json.dumps(config))
        self._port = _free_port()
        connection = layout.write_connections(self.folder, silos, keys, self._port)
        layout.write_orchestrator(self.folder, silos)
        with self.folder.orchestrator.open("a") as settings:
            settings.write(f"retention: {{updates: {UPDATES_KEPT}, models: {MODELS_KEPT}}}\n")
        layout.write_operator(self.folder, silos)
        layout.write_card(self.folder, Card(connection.get_secret_value(), tuple(silos), {}))
        for container in names.containers(silos):
            (self.folder.store / container).mkdir(parents=True, exist_ok=True)
        for silo in SILOS:
            layout.write_silo(self.folder, silo.name, {"heartbeat": 1, "tasks": {TASK: self._task(silo)}})

    def _task(self, silo: Silo) -> dict[str, object]:
        own = {"ADD": f"{silo.adds:g}", "SAMPLES": str(silo.samples), "FLOATS": str(self._floats)}
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        asked = {"adds": {"one_of": list(ADDS)}, "delay": {"min": 0, "max": 600}}
        return {
            "command": [sys.executable, str(TRAINER)],
            "directory": str(ROOT),
            "code": {"path": str(TRAINER), "sha256": code_digest(TRAINER)},
            "timeout": 60,
            "at_once": self._at_once,
            "warm": self._at_once,
            "environment": own | threads | {"CHAOS": self.mark(silo.name)},
            "limits": {"rounds": 1_000_000, "quorum": 1, "silos": 1, "hyperparameters": asked},
            "outbound": {
                "tensors": ["*"],
                "dtypes": ["float32"],
                "max_bytes": 1 << 40,
                "metrics": {"level": {}, "rounds": {}},
                "min_samples": 1,
            },
        }

    def mark(self, silo: str) -> str:
        """What the environment of a silo's trainers, and of nobody else, names."""
        return str(self.folder.home(silo))

    # --- processes ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts everything."""
        await asyncio.gather(*(self.raise_up(name) for name in ("bus", *self.orchestrators, *self.agents)))

    async def raise_up(self, name: str) -> None:
        """Starts a process, if it does not run."""
        async with self._turn(name):
            if not self.alive(name):
                keeper = self._keepers.pop(name, None)
                if keeper is not None and keeper is not asyncio.current_task():
                    keeper.cancel()
                command = self._command(name)
                wrote = command.log.stat().st_size if command.log.exists() else 0
                self._running[name] = it = _Running(name, await spawn(command), command.log, wrote, time.monotonic())
                self._keepers[name] = asyncio.create_task(self._keep(it))

    def _turn(self, name: str) -> asyncio.Lock:
        return self._turns.setdefault(name, asyncio.Lock())

    async def _keep(self, it: _Running) -> None:
        """One that ends by itself is started again, and noted."""
        await it.process.wait()
        self._note(it)
        await asyncio.sleep(_PAUSE)
        await self.raise_up(it.name)

    def _note(self, it: _Running) -> None:
        """Notes an end that is not as it should be, once."""
        status = it.process.returncode
        if status is None or it.is_noted:
            return
        it.is_noted = True
        disk = self.disks.get(it.name.replace("agent-", "home-"))
        was_full = disk is not None and disk.last_full >= it.since
        wrote = range(it.begins, it.log.stat().st_size)
        self.departures.append(Departure(it.name, status, it.log, wrote, disk_was_full=was_full))

    def alive(self, name: str) -> bool:
        """Whether it runs, or is held up."""
        return name in self._running and self._running[name].process.returncode is None

    def living(self, among: Sequence[str]) -> list[str]:
        """Those of them that run."""
        return [name for name in among if self.alive(name)]

    async def kill(self, name: str) -> bool:
        """As a power cut ends it; nobody starts it again but `raise_up`. False: it had ended by itself."""
        async with self._turn(name):
            if (keeper := self._keepers.pop(name, None)) is not None:
                keeper.cancel()
            it = self._running.pop(name, None)
            if it is None:
                return False
            if it.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    it.process.kill()
                if await it.process.wait() == -signal.SIGKILL:
                    return True
            self._note(it)
            return False

    def signal(self, name: str, number: signal.Signals) -> int | None:
        """Its process id, or None when it does not run."""
        if not self.alive(name):
            return None
        process = self._running[name].process
        process.send_signal(number)
        return process.pid

    async def trainers(self) -> list[int]:
        """Process ids of all that trains."""
        found = await asyncio.gather(*(asyncio.to_thread(marked, f"CHAOS={self.mark(s.name)}") for s in SILOS))
        return sorted(pid for pids in found for pid in pids)

    async def end(self) -> None:
        """Stops everything, in order: as `silobus up` does."""
        for keeper in self._keepers.values():
            keeper.cancel()
        for names_ in (self.agents, self.orchestrators, ["bus"]):
            ending = [self._running.pop(name) for name in names_ if name in self._running]
            await asyncio.gather(*(terminate(it.process) for it in ending))
            for it in ending:
                if it.process.returncode != 0:
                    self._note(it)

    def _command(self, name: str) -> Command:
        python = [sys.executable, "-m"]
        if name == "bus":
            data = ["--data", str(self.folder.bus), "--config", str(self.folder.queues)]
            self._seed += 1
            asked = [option for fault in self.faults for option in ("--fault", fault)]
            more = ["--port", str(self._port), *data, "--seed", str(self._seed), *asked]
            arguments = [*python, "servicebus_emulator", *more]
        elif name in self.orchestrators:
            arguments = [*python, "orchestrator", "--config", str(self.folder.orchestrator)]
        else:
            config = str(self.folder.silo(name.removeprefix("agent-")))
            arguments = [*python, "silo_agent", "run", "--config", config]
        return Command(name, arguments, self.folder.log(name))

    async def reconcile(self) -> int:
        """`silobus reconcile`; its exit status."""
        program = "from orchestrator.cli import main; main()"
        arguments = [sys.executable, "-c", program, "reconcile", "--dir", str(self.folder.root)]
        process = await spawn(Command("reconcile", arguments, self.folder.log("reconcile")))
        return await process.wait()

    # --- the emulator ------------------------------------------------------------------------------------------------

    async def ask_for_faults(self, faults: Sequence[str], seed: int) -> bool:
        """Has the emulator go wrong with these from now on; False when it does not answer."""
        try:
            await asyncio.to_thread(self._put_faults, faults, seed)
        except OSError:
            return False
        return True

    def _put_faults(self, faults: Sequence[str], seed: int) -> None:
        address = f"http://127.0.0.1:{self._port}"
        expiry, resource = int(time.time()) + 60, quote_plus(f"{address}/")
        signature = quote_plus(sign(resource, self._key, expiry))
        token = f"SharedAccessSignature sr={resource}&sig={signature}&se={expiry}&skn={FAULTS_KEY}"
        body = json.dumps({"faults": list(faults), "seed": seed}).encode()
        request = urllib.request.Request(f"{address}/$faults", body, {"Authorization": token}, method="PUT")  # noqa: S310
        with urllib.request.urlopen(request, timeout=3) as answer:  # noqa: S310  # an address of our own
            answer.read()

    async def empty_queues(self) -> None:
        """Every message is gone, scheduled ones and dead letters too. The emulator must not run."""
        self.messages += await asyncio.to_thread(self.messages_there)
        for file in self.folder.bus.iterdir():
            if file.is_file():
                file.unlink()

    def messages_there(self) -> int:
        """How many messages the queues have taken since they were made."""
        try:
            with contextlib.closing(sqlite3.connect(self.folder.bus / "queues.sqlite")) as there:
                return int(there.execute("SELECT total(last_sequence) FROM queues").fetchone()[0])
        except sqlite3.Error:  # a full disk leaves no room to look either
            return 0

    def forget(self, *, keep: bool) -> None:
        """Takes the disks away, and with `keep` leaves what was on them; else the folder goes too."""
        for disk in self.disks.values():
            if keep:
                disk.become_plain()
            else:
                disk.unmount()
        if not keep:
            shutil.rmtree(self.folder.root, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
