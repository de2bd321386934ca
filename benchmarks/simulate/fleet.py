"""Silos that pretend to train: for a while that is now and then very long; some fail, and some vanish meanwhile.

Each has an agent's bus traffic and an agent's blobs: it holds the announcement's lock while it works, gives signs of
life, looks at the head before it begins and before it uploads, and publishes once. What happens to a silo in a round
follows from seed, silo and round alone; after `period` rounds the same happens again, so that a late round can be
compared with an early one, count by count.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import random
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from pydantic import BaseModel
from safetensors.numpy import save

from messages import names
from messages.codec import decode, encode
from messages.consumer import Consumer
from messages.errors import AlreadyExists, NotFound, Poison
from messages.ports import Bus, Clock, Delivery, Outgoing, Store
from messages.schemas import (
    FailureCategory,
    Head,
    HistogramMetric,
    MeanMetric,
    Offer,
    Payload,
    Purpose,
    RoundAnnounced,
    RoundClosed,
    SiloHeartbeat,
    SiloHello,
    TrainingFailed,
    UpdatePublished,
)
from messages.weights import parse_layout

TASK: Final = "simulated"
_CODE: Final = "c" * 64
_BINS: Final = 50


@dataclass(frozen=True, slots=True)
class Weather:
    """What befalls silos, as shares of their rounds; times in seconds."""

    seed: int = 1
    period: int = 90
    shortest: float = 20.0
    """Training takes so long times a Pareto number: the mean is 49 s, one round in a hundred takes 5 minutes."""
    tail: float = 1.7
    vanish: float = 0.03
    shortest_absence: float = 30.0
    longest_absence: float = 600.0
    fail: float = 0.01
    heartbeat: float = 15.0

    def fate(self, silo: str, round_number: int) -> Fate:
        """What happens to this silo in this round."""
        chance = random.Random(f"{self.seed} {silo} {round_number % self.period}")  # noqa: S311  # a simulation
        away = min(self.longest_absence, self.shortest_absence * chance.paretovariate(1.0))
        return Fate(
            seconds=self.shortest * chance.paretovariate(self.tail),
            fails=chance.random() < self.fail,
            vanishes_after=chance.random() if chance.random() < self.vanish else None,
            away=away,
        )


@dataclass(frozen=True, slots=True)
class Fate:
    """One silo's round."""

    seconds: float
    fails: bool
    vanishes_after: float | None
    """The share of its training time after which the silo vanishes, if it does."""
    away: float
    """For how long, then."""


class Silo:
    """One silo, for as long as `live()` runs."""

    def __init__(self, name: str, weather: Weather, *, bus: Bus, store: Store, clock: Clock) -> None:
        self.name = name
        self._weather, self._bus, self._store, self._clock = weather, bus, store, clock
        weights = save({"w": np.full(4, len(name), np.float32)})
        self._weights = weights
        self._payload = Payload(
            sha256=hashlib.sha256(weights).hexdigest(),
            bytes=len(weights),
            form="weights",
            layout=parse_layout(weights, len(weights)).digest,
        )
        self._instances, self._sent = itertools.count(1), itertools.count(1)
        self._working: dict[tuple[str, int], asyncio.Event] = {}
        """Rounds in work, with what is set when they are closed."""
        self._vanished_in: set[int] = set()
        self._gone: asyncio.Future[float] | None = None

    async def live(self) -> None:
        """Starts an agent, and another one some time after it has vanished, for ever."""
        while True:
            self._gone = asyncio.get_running_loop().create_future()
            consumer = Consumer(
                self._bus, names.to_silo(self.name), self._hear, on_poison=self._on_poison, clock=self._clock
            )
            agent = asyncio.create_task(consumer.run(asyncio.Event()), name=f"agent of {self.name}")
            await self._hello()
            away = await self._gone
            await _killed(agent)
            self._working.clear()
            await self._clock.sleep(away)

    async def _hello(self) -> None:
        instance = hashlib.md5(f"{self.name}{next(self._instances)}".encode(), usedforsecurity=False).hexdigest()
        offers = [Offer(task=TASK, code=_CODE)]
        hello = SiloHello(instance=instance, agent_version="1", policy=_CODE, offers=offers, at=self._clock.now())
        await self._say(hello)

    async def _hear(self, delivery: Delivery) -> None:
        message: RoundAnnounced | RoundClosed = decode(delivery.body, RoundAnnounced, RoundClosed)
        key = (message.run, message.round)
        if isinstance(message, RoundClosed):
            if key in self._working:
                self._working[key].set()
            return
        if key in self._working or not await self._is_wanted(message):
            return
        closed = self._working[key] = asyncio.Event()
        try:
            await self._work(message, closed)
        finally:
            self._working.pop(key, None)

    async def _work(self, asked: RoundAnnounced, closed: asyncio.Event) -> None:
        if (given := asked.payloads.get("weights")) is not None:
            reader = await self._store.open(names.GLOBAL, names.weights_blob(asked.run, asked.round - 1, given.sha256))
            await reader.read(0, reader.size)
            await reader.close()
        fate = self._weather.fate(self.name, asked.round)
        vanishing = fate.vanishes_after is not None and asked.round not in self._vanished_in
        if fate.vanishes_after is not None and vanishing:
            self._vanished_in = {asked.round}
            if await self._train(asked, fate.seconds * fate.vanishes_after, closed) and self._gone is not None:
                self._gone.set_result(fate.away)
                await asyncio.Event().wait()
        elif await self._train(asked, fate.seconds, closed) and await self._is_wanted(asked):
            if fate.fails and asked.purpose is Purpose.TRAIN:
                await self._say(
                    TrainingFailed(
                        run=asked.run,
                        round=asked.round,
                        category=FailureCategory.SCRIPT_ERROR,
                        tries=1,
                        announcement=asked.announcement,
                    )
                )
            else:
                await self._publish(asked, fate.seconds)

    async def _train(self, asked: RoundAnnounced, seconds: float, closed: asyncio.Event) -> bool:
        """Gives signs of life for so long. False when the round was closed before."""
        left, steps = seconds, 0
        while left > 0 and not closed.is_set():
            await self._pause(min(left, self._weather.heartbeat), closed)
            left, steps = left - self._weather.heartbeat, steps + 1
            if left > 0 and not closed.is_set():
                at = self._clock.now()
                await self._say(
                    SiloHeartbeat(
                        run=asked.run, round=asked.round, doing="training", steps=steps, progress_age=0.0, at=at
                    )
                )
        return not closed.is_set()

    async def _pause(self, seconds: float, closed: asyncio.Event) -> None:
        waits: list[Coroutine[Any, Any, Any]] = [self._clock.sleep(seconds), closed.wait()]
        tasks = [asyncio.create_task(wait) for wait in waits]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    async def _publish(self, asked: RoundAnnounced, seconds: float) -> None:
        container = names.updates_of(self.name)
        payloads = {}
        if asked.purpose is not Purpose.EVALUATE:
            payloads = {"weights": self._payload.model_dump()}
            blob = names.weights_blob(asked.run, asked.round, self._payload.sha256)
            with contextlib.suppress(AlreadyExists):
                await self._store.create(container, blob, self._weights)
        evaluated = asked.purpose is not Purpose.INITIALISE
        counts = [1] * _BINS
        metrics = [
            MeanMetric(name="loss", phase="received", count=100, value=1.0 / (1 + asked.round)),
            HistogramMetric(name="auroc", phase="received", count=2 * _BINS, positive=counts, negative=counts),
        ]
        update = UpdatePublished.model_validate(
            {
                "run": asked.run,
                "round": asked.round,
                "purpose": asked.purpose,
                "announcement": asked.announcement,
                "payloads": payloads,
                "samples": 100,
                "steps": 100,
                "metrics": metrics if evaluated else [],
                "code": _CODE,
                "policy": _CODE,
                "seconds": round(seconds, 3),
            }
        )
        with contextlib.suppress(AlreadyExists):
            await self._store.create(container, names.publication_blob(asked.run, asked.round), encode(update))
        await self._say(update)

    async def _is_wanted(self, asked: RoundAnnounced) -> bool:
        """Whether an update still counts, and has not been published: what was published is said again."""
        with contextlib.suppress(NotFound):
            said = await self._store.read(names.updates_of(self.name), names.publication_blob(asked.run, asked.round))
            await self._say(UpdatePublished.model_validate_json(said.data))
            return False
        read = await self._store.read(names.GLOBAL, names.head_blob(asked.run))
        return Head.model_validate_json(read.data).wants(asked.round)

    async def _say(self, message: BaseModel) -> None:
        subject = str(type(message).model_fields["kind"].default)
        outgoing = Outgoing(body=encode(message), message_id=f"{self.name}-{next(self._sent)}", subject=subject)
        await self._bus.send(names.from_silo(self.name), outgoing)

    async def _on_poison(self, delivery: Delivery, poison: Poison) -> None:
        raise AssertionError(f"{self.name} was sent nonsense: {poison}")


async def _killed(agent: asyncio.Task[None]) -> None:
    agent.cancel()
    await asyncio.wait((agent,))
