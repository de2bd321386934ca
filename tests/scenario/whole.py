"""A whole federation in one event loop: the real orchestrator, real agents, and `silobus` itself under a loop body.

Only what carries messages and bytes is in memory, the clock is virtual, and training is called instead of started.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, final

from messages import names
from messages.codec import encode
from messages.experiments import StartExperiment
from messages.ports import Outgoing
from messages.transport.memory_bus import MemoryBroker, MemoryBus, QueueOptions
from orchestrator.app import build
from orchestrator.documents import ExperimentDocument
from orchestrator.experiment.state import Ended, RoundRecord, RunOutcome
from orchestrator.settings import OrchestratorSettings
from silo_agent.app import opened
from silo_agent.code_digest import code_digest
from silo_agent.egress import read
from silo_agent.runners.port import Finished, Job, Outcome, Runner
from silo_agent.service import Agent
from silo_agent.settings import SiloSettings
from silobus.federated import FederatedRound
from silobus.round import Round
from tests.scenario.world import Inline, Watched
from tests.virtual_clock import VirtualClock, rest

Body = Callable[[Round], None]
Fault = Callable[[Any, str, str], None]
"""Called before and after every operation on a queue; what it raises happens instead."""

TASK: Final = "toy"
_ELSEWHERE: Final = {"bus": {"connection_string_env": "UNUSED"}, "store": {"directory": "/nowhere"}}


class Called(Runner):
    """Runs a loop body, as a script that is started for one round."""

    def __init__(self, body: Body) -> None:
        self._body = body

    async def run(self, job: Job) -> Outcome:
        rnd = FederatedRound(job.input, job.output, defaults={}, writes=True, hashes=False)
        self._body(rnd)
        rnd.finish()
        return Finished()

    async def abandon(self, run: str, round_number: int) -> None:
        pass

    def committed(self, run: str, version: int | None) -> None:
        pass

    async def end(self, run: str) -> None:
        pass

    async def close(self) -> None:
        pass


@final
class Whole:
    """Silos by name, each with its loop body. `root`: an empty directory."""

    def __init__(self, root: Path, silos: Mapping[str, Body], **outbound: Any) -> None:
        asyncio.get_running_loop().set_default_executor(Inline(1))
        self.root, self.silos = root, dict(silos)
        self.clock = VirtualClock()
        self.store = Watched(self.clock)
        self.broker = MemoryBroker(self.clock, names.queues(list(silos)), options=QueueOptions(lock_duration=60))
        self._outbound = outbound
        (root / "train.py").write_text("what the owner approved\n")
        self.runners: dict[str, Runner] = {silo: Called(body) for silo, body in silos.items()}
        self.heartbeat = 15.0
        self.links: dict[str, Fault] = {}
        """By silo: what may be wrong with its way to the bus."""
        self.agents: dict[str, tuple[asyncio.Task[None], asyncio.Event]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self, *, within: float = 86400.0, **start: Any) -> str:
        """Runs one experiment to its end, which has to be a good one; returns the run's id."""
        settings = OrchestratorSettings.model_validate(
            {"silos": list(self.silos), "scratch": self.root / "scratch", **_ELSEWHERE}
        )
        orchestrator = build(settings, bus=MemoryBus(self.broker), store=self.store, clock=self.clock)
        self._tasks = [asyncio.create_task(orchestrator.run(asyncio.Event()))]
        for silo in self.silos:
            self.start_agent(silo)
        await self.clock.until(lambda: len(self.store.named("presence/")) == len(self.silos))
        asked = {"experiment": "exp", "task": TASK, "rounds": 1, "quorum": {"minimum": "all"}, **start}
        body = encode(StartExperiment.model_validate(asked))
        message = Outgoing(body=body, message_id="m", subject="start-experiment")
        await MemoryBus(self.broker).send(names.EXPERIMENTS, message)
        await self.clock.until(lambda: self._ended() is not None, within=within)
        ended = self._ended()
        assert ended is not None
        assert ended.outcome is RunOutcome.COMPLETED, ended.reason
        for task in (*self._tasks, *(task for task, _ in self.agents.values())):
            task.cancel()
        await rest()
        return names.run_id("exp", "m", body)

    def start_agent(self, silo: str) -> None:
        """Another agent for this silo; the one before it is dead, or has stopped."""
        stop = asyncio.Event()
        self.agents[silo] = (asyncio.create_task(self._agent(silo, stop), name=silo), stop)

    def record(self, run: str, number: int) -> RoundRecord:
        """A round's record."""
        return RoundRecord.model_validate_json(self.store.blobs[names.STATE, names.round_blob(run, number)].data)

    def blob(self, container: str, run: str, number: int, sha256: str) -> bytes:
        """A payload's bytes."""
        data: bytes = self.store.blobs[container, names.weights_blob(run, number, sha256)].data
        return data

    def egress(self, silo: str) -> list[dict[str, Any]]:
        """What has left a silo."""
        return read(self.root / silo / "egress.jsonl")

    def _ended(self) -> Ended | None:
        blob = self.store.blobs.get((names.STATE, names.experiment_blob("exp")))
        state = None if blob is None else ExperimentDocument.model_validate_json(blob.data).state
        return state if isinstance(state, Ended) else None

    async def _agent(self, silo: str, stop: asyncio.Event) -> None:
        code = self.root / "train.py"
        everything = ["float64", "float32", "bfloat16", "float16", "int64"]
        task = {
            "command": ["nothing"],
            "directory": self.root,
            "code": {"path": code, "sha256": code_digest(code)},
            "limits": {"rounds": 100, "hyperparameters": {"proximal_mu": {"min": 0, "max": 10}}},
            "outbound": {
                "tensors": ["*"],
                "dtypes": everything,
                "max_bytes": 10_000,
                "min_samples": 1,
                **self._outbound,
            },
        }
        settings = SiloSettings.model_validate(
            {"silo": silo, "home": self.root / silo, "heartbeat": self.heartbeat, "tasks": {TASK: task}, **_ELSEWHERE}
        )
        bus = MemoryBus(self.broker, faults=self.links.get(silo))
        async with opened(settings, bus, self.store, clock=self.clock, local=self.runners[silo]) as made:
            await Agent(made, bus).run(stop)
