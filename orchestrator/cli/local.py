"""A federation on one machine: the embedded Service Bus, an orchestrator and an agent per silo, as separate processes.

`up` and `demo` share it. Here lives only starting, readiness and stopping; what they read is written by `folder`.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from messages import names
from messages.ports import Store
from messages.settings import StoreSettings
from messages.transport.connect import open_store
from orchestrator.cli.folder import (
    Card,
    Folder,
    keys_of,
    make,
    read_card,
    write_card,
    write_connections,
    write_operator,
    write_orchestrator,
    write_queues,
)
from orchestrator.cli.keys import port_of
from orchestrator.cli.processes import Command, Processes
from orchestrator.cli.terminal import Complaint

PRESENCE: Final = "presence/"
STARTUP = 30.0
"""Seconds that a process may take until it is ready."""
GLANCE = 0.02
"""Seconds between looks at a file that is about to appear."""


class Local:
    """A running local federation."""

    def __init__(
        self, folder: Folder, silos: Sequence[str], processes: Processes, connection: SecretStr, store: Store
    ) -> None:
        self.folder = folder
        self.store = store
        self.silos = list(silos)
        self.processes = processes
        self.connection = connection
        """The operator's."""

    async def start_agents(self) -> None:
        """Starts every silo's agent; its `silo.yaml` must be there."""
        await asyncio.gather(*(self.processes.start(self._agent(silo)) for silo in self.silos))
        self.publish()

    async def ready(self) -> None:
        """Returns when every silo has been heard of: then bus, orchestrator and agents all work."""
        waiting = set(self.silos)
        deadline = asyncio.get_running_loop().time() + STARTUP
        while waiting:
            waiting -= await self._heard_of()
            if waiting and asyncio.get_running_loop().time() > deadline:
                self._give_up(waiting)
            if waiting:
                await asyncio.sleep(GLANCE)

    async def _heard_of(self) -> set[str]:
        infos = await self.store.list(names.STATE, PRESENCE)
        return {info.name.removeprefix(PRESENCE).removesuffix(".json") for info in infos}

    def _give_up(self, waiting: set[str]) -> None:
        logs = self.folder.root / "logs"
        dead = self.processes.dead()
        who = f"{', '.join(dead)} keep dying" if dead else f"no sign of life from {', '.join(sorted(waiting))}"
        raise Complaint(f"The federation did not start: {who}.\nLook into the logs in {logs}.")

    def _agent(self, silo: str) -> Command:
        config = str(self.folder.silo(silo))
        arguments = [sys.executable, "-m", "silo_agent", "run", "--config", config]
        name = f"agent-{silo}"
        return Command(name, arguments, self.folder.log(name))

    def publish(self) -> None:
        """Writes `federation.json`."""
        ids = {"silobus": os.getpid(), **self.processes.ids()}
        write_card(self.folder, Card(self.connection.get_secret_value(), tuple(self.silos), ids))


@asynccontextmanager
async def running(folder: Folder, silos: Sequence[str], notice: Callable[[str], None]) -> AsyncIterator[Local]:
    """Starts bus and orchestrator; the agents follow with `start_agents`. Stops everything at the end, in order."""
    make(folder)
    with _alone_in(folder):
        before = read_card(folder)
        store = open_store(StoreSettings(directory=folder.store))
        await _forget_presence(store)
        keys = keys_of(folder, silos)
        write_queues(folder, silos, keys)
        write_orchestrator(folder, silos)
        write_operator(folder, silos)
        processes = Processes(notice)
        try:
            port = await _start_bus(folder, before, processes)
            connection = write_connections(folder, silos, keys, port)
            await processes.start(_orchestrator(folder))
            local = Local(folder, silos, processes, connection, store)
            local.publish()
            processes.on_restart = local.publish
            yield local
        finally:
            await asyncio.shield(_stop(processes))
            await store.close()


async def _stop(processes: Processes) -> None:
    """First those who speak, then the one they speak to, so that each can say goodbye."""
    everyone = processes.ids()
    await processes.stop([name for name in everyone if name.startswith("agent-")])
    await processes.stop(["orchestrator"])
    await processes.stop()


async def _start_bus(folder: Folder, before: Card | None, processes: Processes) -> int:
    """The port of the emulator: the one it had before where that is free; it then keeps it."""
    port = 0 if before is None else port_of(before.connection_string)
    if not _is_free(port):
        port = _free_port()
    log = folder.log("bus")
    offset = log.stat().st_size if log.exists() else 0
    arguments = [sys.executable, "-m", "servicebus_emulator", "--port", str(port)]
    arguments += ["--data", str(folder.bus), "--config", str(folder.queues)]
    await processes.start(Command("bus", arguments, log))
    deadline = asyncio.get_running_loop().time() + STARTUP
    while not re.search(rb"listening on [\d.]+:\d+", _tail(log, offset)):
        if processes.dead() or asyncio.get_running_loop().time() > deadline:
            raise Complaint(f"The embedded Service Bus did not start. Look into {log}.")
        await asyncio.sleep(GLANCE)
    return port


def _orchestrator(folder: Folder) -> Command:
    arguments = [sys.executable, "-m", "orchestrator", "--config", str(folder.orchestrator)]
    return Command("orchestrator", arguments, folder.log("orchestrator"))


def _tail(log: Path, offset: int) -> bytes:
    with suppress(FileNotFoundError), log.open("rb") as file:
        file.seek(offset)
        return file.read(1 << 16)
    return b""


async def _forget_presence(store: Store) -> None:
    """Signs of life of an earlier start would make this one look ready."""
    for info in await store.list(names.STATE, PRESENCE):
        await store.delete(names.STATE, info.name)


@contextmanager
def _alone_in(folder: Folder) -> Iterator[None]:
    """One federation at a time in a folder; the system gives the lock back however this process ends."""
    with (folder.root / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Complaint(
                f"A federation runs in {folder.root} already. Stop it, or give another folder with --dir."
            ) from None
        yield


def _is_free(port: int) -> bool:
    if port == 0:
        return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
