"""A round's sum, from the message that asks for it to the event that it is made.

Any number of workers may be at the same one: they make the same bytes, and the first to say so is the one that counts.
What is added up, and how, is `aggregation`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar, final

from messages import names
from messages.errors import Duplicate, Transient
from messages.log import EventLog
from messages.ports import Clock
from messages.schemas import AggregateRound
from orchestrator.blobs import Weights
from orchestrator.experiment.events import RoundAggregated, UpdatesCompared
from orchestrator.experiment.state import Aggregating, State
from orchestrator.experiment.step import aggregation_of
from orchestrator.transitions import Experiments

T = TypeVar("T")
_log: Final = EventLog(__name__)
_LOOK_EVERY: Final = 30.0
"""Seconds between two looks whether a sum that is being made is still wanted."""


@final
class Sums:
    """Sums of frozen sets, made by this process."""

    def __init__(self, *, experiments: Experiments, weights: Weights, clock: Clock) -> None:
        self._experiments, self._weights, self._clock = experiments, weights, clock

    async def make(self, message: AggregateRound) -> None:
        """Compares the updates first, where the experiment checks them. Raises Duplicate, Stale, Poison, Transient."""
        run, number = message.run, message.round
        experiment = names.experiment_of(run)

        def look(state: State | None) -> Aggregating:
            return aggregation_of(state, run, number)

        state = await self._experiments.undertake(experiment, look, message)
        wanted = partial(self._experiments.admit, experiment, look, run=run)
        while state.judging is not None:
            cosines = await self._unless_over(self._weights.compared(state), wanted)
            announcement = state.closed.announcements
            compared = UpdatesCompared(run=run, round=number, announcement=announcement, cosines=cosines)
            with contextlib.suppress(Duplicate):  # another worker was faster, and may be dead: go on from what is so
                await self._experiments.apply(experiment, compared)
            state = await wanted()
        made = await self._unless_over(self._weights.aggregate(state), wanted)
        aggregated = RoundAggregated(run=run, round=number, payload=made.payload, besides=made.besides)
        await self._experiments.apply(experiment, aggregated)
        updates = len(state.closed.updates)
        _log.info("round.aggregated", run=run, round=number, updates=updates, sha256=made.payload.sha256)

    async def _unless_over(self, summing: Coroutine[Any, Any, T], wanted: Callable[[], Awaitable[object]]) -> T:
        """What `summing` makes. Given up when another worker has made it meanwhile, or the run is over: what `wanted`
        then raises. A lock that was lost says neither; whoever is first is first.
        """
        task = asyncio.create_task(summing)
        try:
            while True:
                looking = asyncio.create_task(self._clock.sleep(_LOOK_EVERY))
                await asyncio.wait((task, looking), return_when=asyncio.FIRST_COMPLETED)
                looking.cancel()
                if task.done():
                    return task.result()
                with contextlib.suppress(Transient):
                    await wanted()
        finally:
            task.cancel()
            await asyncio.wait((task,))
