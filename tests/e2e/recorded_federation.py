"""A small federation, in one process, over servers that write down what they are asked (`recorded`).

The real orchestrator, two real agents with real trainers, and the operator's commands, over azure-servicebus,
azure-storage-blob and azure-ai-ml as they are; north trains on AzureML. `everything` is each thing that anybody does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, cast

from typer.testing import CliRunner

from messages import names
from messages.ports import Bus, Outgoing, Store
from messages.rights import ORCHESTRATOR
from messages.settings import BusSettings, StoreSettings, load_yaml
from messages.transport.clock import SystemClock
from messages.transport.connect import open_bus, open_store
from messages.transport.servicebus import ServiceBus, client_options
from orchestrator import app as orchestrator_app
from orchestrator import cli
from orchestrator.cli.folder import write_connections
from orchestrator.cli.keys import connection_string, new_key
from orchestrator.experiment.state import Ended
from orchestrator.settings import RetentionSettings, load
from orchestrator.store import Documents
from silo_agent import check
from silo_agent.app import opened
from silo_agent.service import Agent
from silo_agent.settings import SiloSettings
from tests.e2e.recorded import TEST, Done, Mounted, azureml_operation, blob_operation, bus, open_to_all, signature
from tests.fakes.azureml import AzureMLDouble
from tests.fakes.blob_server import Asked, Blob, BlobServer, Container, Refused
from tests.federation import TASK, THREE, TRAINERS, Federation, Silo

SILOS = [silo.name for silo in THREE[:2]]
NORTH = SILOS[0]
TRAINING = "training"
"""The container of north's datastore, as the templates call it."""
PATIENCE = 180
"""Seconds for what must come."""


class World(Federation):
    """Two silos whose processes are coroutines, over servers that write down what they are asked."""

    def __init__(self, blobs: BlobServer, own: BlobServer, azureml: AzureMLDouble) -> None:
        """`blobs` is the exchange, `own` is north's."""
        self.blobs, self.own, self.azureml = blobs, own, azureml
        self.done: Done = set()
        super().__init__(THREE[:2], store=self._store)
        self.keys = {**self.keys, TEST: new_key()}
        azureml.datastores["of_north"] = self.folder.root / "mount"
        blobs.before = self._as_azure
        for container in names.containers(SILOS):
            blobs.containers[container] = Container()
        own.containers[TRAINING] = Container(cast("dict[str, Blob]", Mounted(azureml.datastores["of_north"])))

    def _store(self, who: str, at: BlobServer | None = None) -> Mapping[str, Any]:
        file = self.folder.root / f"{who}.signature"
        file.write_text(signature(who))
        return {"account_url": (at or self.blobs).url, "sas_file": str(file)}

    async def _as_azure(self, asked: Asked) -> None:
        """Who may create and not replace is told of a missing right where there is a blob already."""
        container, _, name = asked.path.split("/", 2)[2].partition("/")
        is_there = asked.method == "PUT" and name in self.blobs.containers[container].blobs
        if is_there and asked.query["sig"] not in (ORCHESTRATOR, TEST):
            raise Refused(403, "AuthorizationPermissionMismatch")

    def task(self, silo: Silo, **asked: Any) -> dict[str, Any]:
        task = super().task(silo, **asked)
        if silo.name != NORTH:
            return task
        datastore = {"name": "of_north", "container": TRAINING, "store": self._store(f"agent-{NORTH}", self.own)}
        local = {key: said for key, said in task.items() if key not in ("directory", "mode")}
        return {**local, "compute": self.azureml.settings(Path(), datastore=datastore, poll=0.1, lost=1)}

    def lay_out(self) -> None:
        super().lay_out()
        open_to_all(self.folder.queues, self.keys)

    @property
    def operations(self) -> Done:
        """All that was asked for so far."""
        found = [
            *map(blob_operation, [*self.blobs.asked, *self.own.asked]),
            *(azureml_operation(f"agent-{NORTH}", asked) for asked in self.azureml.asked),
        ]
        return self.done | {operation for operation in found if operation is not None}

    async def silobus(self, *arguments: object) -> None:
        """A command of the operator's, in a thread."""
        words = [*map(str, arguments), "--config", str(self.folder.operator)]
        result = await asyncio.to_thread(CliRunner().invoke, cli.app, words)
        assert result.exit_code == 0, f"{arguments}: {result.output} {result.exception!r}"

    @contextlib.asynccontextmanager
    async def processes(self) -> AsyncIterator[None]:
        """Orchestrator and agents, which must not end by themselves."""
        stop = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:

            def reached(on: BusSettings, at: StoreSettings) -> tuple[Bus, Store]:
                bus, store = open_bus(on), open_store(at)
                stack.push_async_callback(bus.close)
                stack.push_async_callback(store.close)
                return bus, store

            settings = load(self.folder.orchestrator)
            settings = settings.model_copy(update={"retention": RetentionSettings(updates=0, models=1, days=None)})
            bus, store = reached(settings.bus, settings.store)
            built = orchestrator_app.build(settings, bus=bus, store=store, clock=SystemClock())
            tasks = [asyncio.create_task(built.run(stop))]
            for silo in SILOS:
                told = load_yaml(self.folder.silo(silo), SiloSettings)
                bus, store = reached(told.bus, told.store)
                made = await stack.enter_async_context(opened(told, bus, store))
                tasks.append(asyncio.create_task(Agent(made, bus, receive_wait=1).run(stop)))
            yield
            assert not [task for task in tasks if task.done()]
            stop.set()
            await asyncio.gather(*tasks)

    async def becomes(self, holds: Callable[[Documents], Awaitable[bool]]) -> None:
        """Returns when it is so."""
        store = open_store(StoreSettings.model_validate(self._store(TEST)))
        async with asyncio.timeout(PATIENCE):
            while not await holds(Documents(store)):  # noqa: ASYNC110  # what it waits for is in a store
                await asyncio.sleep(0.05)
        await store.close()

    async def bury(self) -> Mapping[str, int]:
        """A dead letter in each queue; their numbers."""
        key = connection_string(self.port, TEST, self.keys[TEST])
        bus = ServiceBus.from_connection_string(key, **client_options())

        async def buried(queue: str) -> int:
            await bus.send(queue, Outgoing(body=b'{"kind": "nonsense"}', message_id=f"bad-{queue}", subject="nonsense"))
            while (delivery := await bus.receive(queue, wait=60)) and delivery.subject != "nonsense":
                await bus.complete(delivery)
            assert delivery is not None
            await bus.dead_letter(delivery, reason="bad", description="Not good.")
            [letter] = await bus.peek(names.dead_letters_of(queue), count=10)
            return letter.sequence_number

        queues = names.queues(SILOS)
        numbers = await asyncio.gather(*map(buried, queues))
        await bus.close()
        return dict(zip(queues, numbers, strict=True))


async def all_said_hello(documents: Documents) -> bool:
    return all([await documents.presence(silo) is not None for silo in SILOS])


async def it_ended(documents: Documents) -> bool:
    """And what retention lets go of is gone."""
    document = (await documents.load("exp")).document
    if document is None or not isinstance(document.state, Ended):
        return False
    assert document.state.outcome == "completed", document.state
    retained, _ = await documents.retained(document.state.run.id)
    return retained.updates_gone > document.state.round


async def everything(azureml: AzureMLDouble, folder: Path) -> Done:
    """Each thing that anybody does, once at least; what of it was seen on the wire. `folder` is for files."""
    async with BlobServer() as blobs, BlobServer() as own:
        world = World(blobs, own, azureml)
        try:
            world.lay_out()
            async with bus(world.folder.queues, world.folder.bus, world.done) as world.port:
                write_connections(world.folder, SILOS, world.keys, world.port)
                await _run(world, folder)
                await _look_after(world, folder)
                await _check(world)
            return world.operations
        finally:
            world.__exit__(None, None, None)


async def _run(world: World, folder: Path) -> None:
    """An experiment of two rounds, a node of which is lost; and one that is cancelled while it trains."""

    def start(experiment: str) -> Path:
        said = {"kind": "start-experiment", "experiment": experiment, "task": TASK, "rounds": 2}
        (folder / f"{experiment}.json").write_text(json.dumps({**said, "quorum": {"minimum": 2}}))
        return folder / f"{experiment}.json"

    async def a_job_is_there(documents: Documents) -> bool:
        return any(name.startswith("over") for name in world.azureml.jobs)

    async def its_job_is_cancelled(documents: Documents) -> bool:
        return any(asked.path.endswith("/cancel") for asked in world.azureml.asked)

    async with world.processes():
        await world.becomes(all_said_hello)
        world.azureml.fates.append("node-lost")
        await world.silobus("start", start("exp"), "--init", TRAINERS / "add.py")
        await world.becomes(it_ended)
        world.azureml.held = True
        await world.silobus("start", start("over"), "--init", TRAINERS / "add.py")  # the same weights again
        await world.becomes(a_job_is_there)
        await world.silobus("cancel", "over")
        await world.becomes(its_job_is_cancelled)
        world.azureml.release()


async def _look_after(world: World, folder: Path) -> None:
    """What operators do besides."""
    buried = await world.bury()
    await world.silobus("queues")
    for queue, number in buried.items():
        what = "discard" if queue.startswith("from-") else "replay"
        await world.silobus("dead-letters", what, queue, number)
    await world.silobus("status")
    await world.silobus("model", "exp", "-o", folder / "m.safetensors")


async def _check(world: World) -> None:
    for silo in SILOS:
        findings = await check.check(load_yaml(world.folder.silo(silo), SiloSettings))
        assert [finding for finding in findings if not finding.good] == []
