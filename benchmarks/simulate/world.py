"""One simulation: a broker and blobs in memory, the orchestrator as it is wired for production, a fleet of silos."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.simulate.fleet import TASK, Silo, Weather
from benchmarks.simulate.meters import SIDE, MeteredBus, MeteredStore, Meters
from messages import names
from messages.codec import encode
from messages.experiments import Quorum, StartExperiment
from messages.ports import Outgoing
from messages.settings import BusSettings, StoreSettings
from messages.transport.memory_bus import MemoryBroker, MemoryBus, QueueOptions
from messages.transport.memory_store import MemoryStore
from orchestrator.app import build
from orchestrator.documents import ExperimentDocument
from orchestrator.experiment.state import Ended, RoundRecord, RunOutcome
from orchestrator.settings import OrchestratorSettings, RetentionSettings
from tests.virtual_clock import VirtualClock, rest

T = TypeVar("T")
NAME = "simulated"
LOCK = 30.0
"""Seconds a lock lasts: that of the queues that deploy/azure makes."""


class Inline(ThreadPoolExecutor):
    """Runs what is meant for threads at once, so that a simulation is the same every time."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001  # handed on to whoever waits for the future
            future.set_exception(error)
        return future


@dataclass(frozen=True)
class Outcome:
    """What came of a simulation."""

    silos: int
    rounds: int
    meters: Meters
    records: dict[int, RoundRecord]
    wall: float
    """Seconds it took, everything included."""


def simulate(
    silos: int, rounds: int, weather: Weather, quorum: Quorum, retention: RetentionSettings | None = None
) -> Outcome:
    """Has one experiment run to its end. Raises RuntimeError when it does not get there."""
    return asyncio.run(_simulate(silos, rounds, weather, quorum, retention or RetentionSettings()))


async def _simulate(count: int, rounds: int, weather: Weather, quorum: Quorum, retention: RetentionSettings) -> Outcome:
    logging.getLogger().setLevel(logging.CRITICAL)
    begun = time.perf_counter()
    silos = [f"silo-{n:05d}" for n in range(1, count + 1)]
    clock, meters, blobs = VirtualClock(), Meters(), MemoryStore()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(Inline(1))
    loop.set_task_factory(meters.start)  # type: ignore[arg-type]  # typeshed's protocol is private
    broker = MemoryBroker(clock, names.queues(silos), options=QueueOptions(lock_duration=LOCK))
    bus, store = MeteredBus(MemoryBus(broker), meters), MeteredStore(blobs, meters, clock)
    with tempfile.TemporaryDirectory() as scratch:
        settings = OrchestratorSettings(
            bus=BusSettings(connection_string_env="UNUSED"),
            store=StoreSettings(directory=Path(scratch)),
            silos=tuple(silos),
            scratch=Path(scratch),
            retention=retention,
        )
        SIDE.set("orchestrator")
        orchestrator = asyncio.create_task(build(settings, bus=bus, store=store, clock=clock).run(asyncio.Event()))
        SIDE.set("world")
        fleet = [Silo(name, weather, bus=bus, store=store, clock=clock) for name in silos]
        living = [asyncio.create_task(silo.live()) for silo in fleet]
        await rest()
        start = StartExperiment(experiment=NAME, task=TASK, rounds=rounds, quorum=quorum)
        posted = Outgoing(body=encode(start), message_id="start", subject=start.kind)
        await bus.send(names.EXPERIMENTS, posted)
        run = names.run_id(NAME, posted.message_id, posted.body)
        await clock.until(lambda: orchestrator.done() or _is_over(blobs, run), within=1e9)
        await rest()
        ended = await _ended(blobs)
        if ended.outcome is not RunOutcome.COMPLETED:
            raise RuntimeError(f"the run {ended.outcome.value}: {ended.reason}")
        records = {number: await _record(blobs, run, number) for number in range(rounds + 2)}
        for task in (orchestrator, *living):
            task.cancel()
        await asyncio.wait([orchestrator, *living])
    return Outcome(count, rounds, meters, records, time.perf_counter() - begun)


def _is_over(blobs: MemoryStore, run: str) -> bool:
    return (names.STATE, names.run_blob(run)) in blobs._blobs


async def _ended(blobs: MemoryStore) -> Ended:
    read = await blobs.read(names.STATE, names.experiment_blob(NAME), limit=1 << 30)
    state = ExperimentDocument.model_validate_json(read.data).state
    if not isinstance(state, Ended):
        raise RuntimeError(f"the run stopped: {state.phase}")
    return state


async def _record(blobs: MemoryStore, run: str, number: int) -> RoundRecord:
    read = await blobs.read(names.STATE, names.round_blob(run, number), limit=1 << 30)
    return RoundRecord.model_validate_json(read.data)
