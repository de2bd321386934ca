"""The experiments: many at once, and as one ends the next begins, until the time is over.

Here lives what is asked for, and how it is posted: as a careful operator does, again under the same id until there is
a run. What must come of it is `judge`'s.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Final

from messages import names
from messages.errors import NotFound, SilobusError
from messages.experiments import Quorum, StartExperiment, Strategy
from messages.ports import Store
from orchestrator.cli import experiments
from orchestrator.cli.federation import Federation
from orchestrator.documents import ExperimentDocument
from orchestrator.experiment.state import Ended, State, Tombstone

TASK = "add"
ADDS: Final = ("constant", "count", "momentum")
"""What the trainer does (`trainer.py`)."""
SERVER_MOMENTUM: Final = 0.5
"""A power of two, so that float32 holds every velocity, and every model, exactly."""


@dataclass(frozen=True, slots=True)
class Row:
    """A kind of experiment: what its silos add, and how that is summed. What comes of it is `arithmetic`'s."""

    name: str
    adds: str
    strategy: Strategy


ROWS: Final = (
    *(Row(adds, adds, Strategy()) for adds in ADDS),
    Row("server-momentum", "constant", Strategy(name="fedavgm", options={"momentum": SERVER_MOMENTUM})),
)
DEADLINE = 10.0
"""Seconds until a round without a quorum is announced again: what a disk was full for is tried again then."""
_AGAIN = 8.0
"""Seconds without a run after which a start is posted again."""
_GLANCE = 0.2


@dataclass(frozen=True, slots=True)
class Asked:
    """One experiment, and the id its start is posted under."""

    message: StartExperiment
    message_id: str
    row: Row

    @property
    def run(self) -> str:
        """The id of its run."""
        return names.run_id(self.message.experiment, self.message_id, experiments.body_of(self.message))


@dataclass(frozen=True, slots=True)
class Load:
    """How much is asked for."""

    at_once: int
    rounds: int
    delay: float
    """Seconds that a silo trains, at most; half of it at least."""
    partial: bool
    """Whether every fifth experiment is content with two silos: each row is, in its turn."""

    def experiment(self, seed: int, number: int) -> Asked:
        """The experiment of this number: it follows from both alone."""
        chance = random.Random(f"{seed} experiment {number}")  # noqa: S311  # repeatable, not secret
        row = ROWS[number % len(ROWS)]
        partial = self.partial and number % (len(ROWS) + 1) == 3
        quorum = Quorum(minimum=2 if partial else "all", grace=0.5, deadline=DEADLINE, reminders=1000)
        message = StartExperiment(
            experiment=f"{row.name}-{number}",
            task=TASK,
            rounds=chance.randint(max(1, self.rounds - 2), self.rounds + 2),
            quorum=quorum,
            strategy=row.strategy,
            hyperparameters={"adds": row.adds, "delay": round(chance.uniform(self.delay / 2, self.delay), 3)},
        )
        return Asked(message, f"start-{number}-{chance.getrandbits(64):016x}", row)


class Operator:
    """Keeps so many experiments going. `asked` are all of them so far."""

    def __init__(self, federation: Federation, load: Load, seed: int) -> None:
        self._federation, self._load, self._seed = federation, load, seed
        self._over = asyncio.Event()
        self.asked: list[Asked] = []
        self.waiting: set[str] = set()
        """Experiments that have not ended."""

    async def run(self) -> None:
        """Returns when all have ended that were begun before `stop`."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._load.at_once):
                group.create_task(self._one_after_another())

    def stop(self) -> None:
        """Begins no more."""
        self._over.set()

    async def _one_after_another(self) -> None:
        while not self._over.is_set():
            asked = self._load.experiment(self._seed, len(self.asked))
            self.asked.append(asked)
            self.waiting.add(asked.message.experiment)
            await self._until_it_has_ended(asked)
            self.waiting.discard(asked.message.experiment)

    async def _until_it_has_ended(self, asked: Asked) -> None:
        loop = asyncio.get_running_loop()
        posted_at = float("-inf")
        while not isinstance(state := await state_of(self._federation.store, asked.message.experiment), Ended):
            if state is None and loop.time() - posted_at > _AGAIN:
                posted_at = loop.time()
                await self._post(asked)
            await asyncio.sleep(_GLANCE)

    async def _post(self, asked: Asked) -> None:
        try:
            async with asyncio.timeout(_AGAIN):
                await experiments.send(self._federation.bus, asked.message, message_id=asked.message_id)
        except (SilobusError, TimeoutError):
            return  # it may have arrived all the same: whether it did is seen in the state


async def state_of(store: Store, experiment: str) -> State | Tombstone | None:
    """Where an experiment stands."""
    try:
        found = await store.read(names.STATE, names.experiment_blob(experiment))
    except NotFound:
        return None
    return ExperimentDocument.model_validate_json(found.data).state
