"""Everything that a federation does on bus and store, recorded: all of it is granted, and all that is granted is used.

The real orchestrator, three real agents with real trainers, and the operator's commands, in one process: every call
goes through a wrapper that writes down whose it is. What the Azure SDK sends for a call is in `NEEDS`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from messages import names
from messages.ports import Bus, Delivery, Outgoing, Store
from messages.rights import Right, Verb, principals
from messages.settings import load_yaml
from messages.transport.clock import SystemClock
from messages.transport.directory import DirectoryStore
from messages.transport.memory_bus import MemoryBroker, MemoryBus
from orchestrator import app as orchestrator_app
from orchestrator import cli
from orchestrator.cli import federation as commands
from orchestrator.cli import queues
from orchestrator.cli.folder import Card, write_card
from orchestrator.experiment.state import Ended
from orchestrator.settings import RetentionSettings, load
from orchestrator.store import Documents
from silo_agent import check
from silo_agent.app import opened
from silo_agent.service import Agent
from silo_agent.settings import SiloSettings
from tests.federation import TASK, THREE, TRAINERS, Federation

pytestmark = pytest.mark.slow

NEEDS: dict[str, Right | Verb] = {
    "send": Right.SEND,
    **dict.fromkeys(("receive", "complete", "abandon", "dead_letter", "renew", "peek"), Right.LISTEN),
    **dict.fromkeys(("read", "open", "fetch"), Verb.READ),  # GET and HEAD of a blob
    "list": Verb.LIST,  # GET of a container
    "create": Verb.CREATE,  # PUT of a blob that is not there
    "write": Verb.WRITE,  # PUT under a condition
    "delete": Verb.DELETE,
}
FREE = {"close"}
UNUSED: dict[tuple[str, str, str], str] = {}
"""Grants that this scenario does not use, and why they are granted all the same."""
Done = set[tuple[str, str, Right | Verb]]
SILOS = [silo.name for silo in THREE]


class Recorded:
    """A bus or a store; writes down who did what where."""

    def __init__(self, inner: Bus | Store, who: str, done: Done) -> None:
        self._inner, self._who, self._done = inner, who, done

    def __getattr__(self, name: str) -> Any:
        call: Callable[..., Awaitable[Any]] = getattr(self._inner, name)
        if name in FREE:
            return call

        async def recorded(*args: Any, **more: Any) -> Any:
            place = args[0].queue if isinstance(args[0], Delivery) else str(args[0])
            self._done.add((self._who, place.partition("/")[0], NEEDS[name]))
            return await call(*args, **more)

        return recorded


class World:
    """A federation whose processes are coroutines."""

    def __init__(self, done: Done) -> None:
        self.laid_out = Federation(THREE)
        self.laid_out.lay_out()
        self.folder = self.laid_out.folder
        write_card(self.folder, Card("Endpoint=sb://127.0.0.1:1", tuple(SILOS), {}))
        self.broker = MemoryBroker(SystemClock(), names.queues(SILOS))
        self.done = done

    def bus(self, who: str) -> Any:
        return Recorded(MemoryBus(self.broker), who, self.done)

    def store(self, who: str) -> Any:
        return Recorded(DirectoryStore(self.folder.store), who, self.done)

    def silobus(self, *arguments: object) -> str:
        result = CliRunner().invoke(cli.app, [*map(str, arguments), "--dir", str(self.folder.root)])
        assert result.exit_code == 0, f"{arguments}: {result.output} {result.exception!r}"
        return result.stdout

    def bury(self, queue: str) -> int:
        """A dead letter; its number."""

        async def set_aside() -> int:
            bus = MemoryBus(self.broker)
            await bus.send(queue, Outgoing(body=b'{"kind": "nonsense"}', message_id=f"bad-{queue}", subject="nonsense"))
            delivery = await bus.receive(queue, wait=0)
            assert delivery is not None
            await bus.dead_letter(delivery, reason="bad", description="Not good.")
            [letter] = await bus.peek(names.dead_letters_of(queue), count=10)
            return letter.sequence_number

        return asyncio.run(set_aside())

    async def run_until(self, ended: Callable[[Documents], Awaitable[bool]]) -> None:
        """Orchestrator and agents, for as long as it takes."""
        stop = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack, asyncio.timeout(40):
            who = "orchestrator"
            kept = RetentionSettings(updates=0, models=1, days=None)
            settings = load(self.folder.orchestrator).model_copy(update={"retention": kept})
            built = orchestrator_app.build(settings, bus=self.bus(who), store=self.store(who), clock=SystemClock())
            tasks = [asyncio.create_task(built.run(stop))]
            for silo in SILOS:
                who = f"agent-{silo}"
                told = load_yaml(self.folder.silo(silo), SiloSettings)
                made = await stack.enter_async_context(opened(told, self.bus(who), self.store(who)))
                tasks.append(asyncio.create_task(Agent(made, self.bus(who), receive_wait=1).run(stop)))
            documents = Documents(DirectoryStore(self.folder.store))
            while not await ended(documents):
                assert not [task for task in tasks if task.done()]
                await asyncio.sleep(0.05)
            stop.set()
            await asyncio.gather(*tasks)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(set())
    monkeypatch.setattr(commands, "open_bus", lambda settings: made.bus("operator"))
    monkeypatch.setattr(commands, "open_store", lambda settings: made.store("operator"))

    async def nothing(settings: object) -> None:
        return None

    monkeypatch.setattr(queues, "ask", nothing)
    try:
        yield made
    finally:
        made.laid_out.__exit__(None, None, None)


async def all_said_hello(documents: Documents) -> bool:
    return all([await documents.presence(silo) is not None for silo in SILOS])


async def it_ended(documents: Documents) -> bool:
    document = (await documents.load("exp")).document
    if document is None or not isinstance(document.state, Ended):
        return False
    retained, _ = await documents.retained(document.state.run.id)
    return retained.updates_gone > document.state.round


def everything(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thing that anybody does, once at least."""
    asyncio.run(world.run_until(all_said_hello))
    message = {"kind": "start-experiment", "experiment": "exp", "task": TASK, "rounds": 2, "quorum": {"minimum": 3}}
    (tmp_path / "exp.json").write_text(json.dumps(message))
    world.silobus("start", tmp_path / "exp.json", "--init", TRAINERS / "add.py")
    asyncio.run(world.run_until(it_ended))

    for queue in names.queues(SILOS):
        number = world.bury(queue)
        world.silobus("dead-letters", "list", queue)
        if queue.startswith("from-"):
            world.silobus("dead-letters", "discard", queue, number)
        else:
            world.silobus("dead-letters", "replay", queue, number)
    world.silobus("queues")
    world.silobus("status")
    world.silobus("model", "exp", "-o", tmp_path / "m.safetensors")

    for silo in SILOS:
        who = f"agent-{silo}"
        monkeypatch.setattr(check, "open_bus", lambda settings, who=who: world.bus(who))
        monkeypatch.setattr(check, "open_store", lambda settings, who=who: world.store(who))
        findings = asyncio.run(check.check(load_yaml(world.folder.silo(silo), SiloSettings)))
        assert [finding for finding in findings if not finding.good] == []


def test_everything_that_is_done_is_granted_and_every_grant_is_used(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything(world, tmp_path, monkeypatch)

    granted = {
        (who.name, place, what)
        for who in principals(SILOS)
        for places in (who.queues, who.containers)
        for place, allowed in places.items()
        for what in allowed
    }
    assert world.done - granted == set(), "done, and not granted"
    assert {(who, place, str(what)) for who, place, what in granted - world.done} == UNUSED.keys(), "granted, not used"
