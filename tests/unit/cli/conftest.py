"""A federation for commands: queues in memory, a store in a directory, and the command line as people type it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from typer.testing import CliRunner, Result

from messages import names
from messages.ports import Outgoing
from messages.transport.administration import Counts
from messages.transport.clock import SystemClock
from messages.transport.directory import DirectoryStore
from messages.transport.memory_bus import Faults, MemoryBroker, MemoryBus
from orchestrator import cli
from orchestrator.cli import federation, queues
from orchestrator.cli.folder import Card, Folder, make, write_card, write_operator, write_orchestrator
from orchestrator.documents import ExperimentDocument
from orchestrator.experiment.state import State
from orchestrator.store import Documents, Loaded

T = TypeVar("T")
SILOS = ("east", "north", "south")


@dataclass
class Federation:
    """What commands find, and what is left when they are done."""

    folder: Folder
    broker: MemoryBroker
    faults: Faults | None = None
    told: dict[str, Counts] | None = None
    """What the bus itself says of its queues, where it does."""

    def __call__(self, *arguments: object, stdin: str | None = None) -> Result:
        """`silobus ARGUMENTS`. What is not an expected error of the command is raised here."""
        words = [*map(str, arguments), "--dir", str(self.folder.root)]
        result = CliRunner().invoke(cli.app, words, input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    @property
    def store(self) -> DirectoryStore:
        return DirectoryStore(self.folder.store)

    def send(self, queue: str, body: str, message_id: str = "m", **more: Any) -> None:
        message = Outgoing(body=body.encode(), message_id=message_id, subject=more.pop("subject", "test"), **more)
        run(MemoryBus(self.broker).send(queue, message))

    def bury(self, queue: str, body: str, message_id: str, reason: str = "bad", description: str = "Not good.") -> None:
        """A dead letter."""
        self.send(queue, body, message_id)

        async def set_aside() -> None:
            bus = MemoryBus(self.broker)
            delivery = await bus.receive(queue, wait=0)
            assert delivery is not None
            await bus.dead_letter(delivery, reason=reason, description=description)

        run(set_aside())

    def bodies(self, queue: str) -> list[str]:
        return [delivery.body.decode() for delivery in self.broker.peek(queue, 1000, 0)]

    def ids(self, queue: str) -> list[str]:
        return [delivery.message_id for delivery in self.broker.peek(queue, 1000, 0)]

    def save(self, experiment: str, state: State) -> None:
        """The experiment stands there."""
        documents = Documents(self.store)

        async def save() -> None:
            loaded = await documents.load(experiment)
            await documents.save(experiment, ExperimentDocument(state=state), replacing=loaded or Loaded(None, None))

        run(save())


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Outside of any loop, as commands are."""
    return asyncio.run(coroutine)


@pytest.fixture
def silobus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Federation:
    """The command, beside a federation of three silos in which nothing runs."""
    folder = Folder(tmp_path / "federation")
    make(folder)
    write_orchestrator(folder, SILOS)
    write_operator(folder, SILOS)
    write_card(folder, Card("Endpoint=sb://127.0.0.1:1", SILOS, {}))
    made = Federation(folder, MemoryBroker(SystemClock(), names.queues(list(SILOS))))
    opened: Callable[[object], MemoryBus] = lambda settings: MemoryBus(made.broker, faults=made.faults)  # noqa: E731
    monkeypatch.setattr(federation, "open_bus", opened)

    async def ask(settings: object) -> dict[str, Counts] | None:
        return made.told

    monkeypatch.setattr(queues, "ask", ask)
    return made
