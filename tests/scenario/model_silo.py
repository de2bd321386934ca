"""A silo for scenarios: it trains in no time, by adding its constant, so that every sum can be checked."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
from pydantic import BaseModel
from safetensors.numpy import load, save

from messages import names
from messages.codec import decode, encode
from messages.errors import AlreadyExists, NotFound
from messages.ports import Bus, Clock, Outgoing, Store
from messages.schemas import (
    DeclineReason,
    FailureCategory,
    HistogramMetric,
    MeanMetric,
    Offer,
    Payload,
    Purpose,
    RoundAnnounced,
    RoundClosed,
    RoundDeclined,
    SiloHello,
    TrainingFailed,
    UpdatePublished,
)
from messages.weights import parse_layout

TASK = "toy"
CODE = "c" * 64
Lie = Literal["spoil", "reshape", "mislabel", "misform", "mispurpose", "empty"]
Doing = Literal["update", "decline", "fail", "ignore"] | Lie
LYING: tuple[Lie, ...] = get_args(Lie)


class ModelSilo:
    """An agent that trains in no time: it adds its constant to whatever it is sent."""

    def __init__(self, name: str, constant: float, *, bus: Bus, store: Store, clock: Clock) -> None:
        self.name, self.constant = name, constant
        self.bus, self.store, self.clock = bus, store, clock
        self.samples = 1
        self.offers = True
        """Whether its owner allows the task; said with each hello."""
        self.doing: Callable[[RoundAnnounced], Doing] = lambda _: "update"
        self.heard: list[RoundAnnounced | RoundClosed] = []
        self.said: list[BaseModel] = []
        """Everything it ever sent."""
        self.honest: dict[tuple[str, int], UpdatePublished] = {}
        """What it truly made, by run and round."""
        self._sent = itertools.count(1)
        self._instances = itertools.count(1)

    async def live(self) -> None:
        """Answers whatever comes, for ever."""
        while True:
            delivery = await self.bus.receive(names.to_silo(self.name), wait=60)
            if delivery is not None:
                await self.hear(delivery.body)
                await self.bus.complete(delivery)

    async def hear(self, body: bytes) -> None:
        """Does what a message asks for."""
        message: RoundAnnounced | RoundClosed = decode(body, RoundAnnounced, RoundClosed)
        self.heard.append(message)
        if isinstance(message, RoundAnnounced):
            await self.answer(message, self.doing(message))

    async def answer(self, asked: RoundAnnounced, doing: Doing) -> None:
        """Answers a round."""
        match doing:
            case "update":
                await self.send(await self.publish(asked))
            case "decline":
                reason = DeclineReason.BUDGET_SPENT
                await self.send(RoundDeclined(run=asked.run, round=asked.round, reason=reason))
            case "fail":
                await self.send(
                    TrainingFailed(
                        run=asked.run,
                        round=asked.round,
                        category=FailureCategory.SCRIPT_ERROR,
                        tries=1,
                        announcement=asked.announcement,
                    )
                )
            case "ignore":
                pass
            case lie:
                await self.send(await self._lie(asked, lie))

    async def publish(self, asked: RoundAnnounced, *, spoilt: Lie | None = None) -> UpdatePublished:
        """Trains and uploads, once per round: what was published before is found again."""
        store, container = self.store, names.updates_of(self.name)
        publication = names.publication_blob(asked.run, asked.round)
        if spoilt is None:
            try:
                said = (await store.read(container, publication)).data
                return UpdatePublished.model_validate_json(said)
            except NotFound:
                pass
        payloads = {}
        if asked.purpose is not Purpose.EVALUATE:
            match spoilt:
                case "spoil":
                    data = save({"w": np.full(4, np.nan, np.float32)})
                case "reshape":
                    data = save({"other": await self._train(asked)})
                case _:
                    data = save({"w": await self._train(asked)})
            sha256 = hashlib.sha256(data).hexdigest()
            with contextlib.suppress(AlreadyExists):
                await store.create(container, names.weights_blob(asked.run, asked.round, sha256), data)
            payloads["weights"] = Payload(
                sha256=sha256, bytes=len(data), form=asked.transfer.form, layout=parse_layout(data, len(data)).digest
            )
            if "control" in asked.roles:
                payloads["control"] = await self._control(asked)
        update = UpdatePublished.model_validate(
            {
                "run": asked.run,
                "round": asked.round,
                "purpose": asked.purpose,
                "announcement": asked.announcement,
                "payloads": payloads,
                "samples": self.samples,
                "steps": 1,
                "metrics": [
                    MeanMetric(name="loss", phase="received", count=1, value=1.0 / (1 + asked.round)),
                    HistogramMetric(name="auroc", phase="received", count=4, positive=[0, 2], negative=[2, 0]),
                ],
                "code": CODE,
                "policy": CODE,
                "seconds": 1.0,
            }
        )
        if spoilt is None:
            await store.create(container, publication, encode(update))
            self.honest[asked.run, asked.round] = update
        return update

    async def _lie(self, asked: RoundAnnounced, lie: Lie) -> UpdatePublished:
        """Weights that nobody can use, or its true update with something wrong said about it. Nobody can see through
        one in a round that evaluates, in which there are no weights, nor in the shape of the first model.
        """
        if asked.purpose is Purpose.EVALUATE or (lie == "reshape" and asked.purpose is Purpose.INITIALISE):
            return await self.publish(asked)
        if lie in {"spoil", "reshape"}:
            return await self.publish(asked, spoilt=lie)
        update = await self.publish(asked)
        weights = update.payloads["weights"]
        match lie:
            case "mislabel":
                return _saying(update, payloads={"weights": weights.model_copy(update={"layout": "0" * 64})})
            case "misform":
                other = "weights" if weights.form == "delta" else "delta"
                return _saying(update, payloads={"weights": weights.model_copy(update={"form": other})})
            case "mispurpose":
                train = asked.purpose is not Purpose.TRAIN
                return _saying(update, purpose=Purpose.TRAIN if train else Purpose.INITIALISE)
            case _:
                return _saying(update, payloads={})

    async def _train(self, asked: RoundAnnounced) -> np.ndarray[Any, np.dtype[np.float32]]:
        if asked.purpose is Purpose.INITIALISE:
            return np.full(4, self.constant, np.float32)
        given = asked.payloads["weights"]
        name = names.weights_blob(asked.run, asked.round - 1, given.sha256)
        received = load((await self.store.read(names.GLOBAL, name)).data)["w"]
        trained: np.ndarray[Any, np.dtype[np.float32]] = received + np.float32(self.constant)
        return np.full(4, self.constant, np.float32) if asked.transfer.form == "delta" else trained

    async def _control(self, asked: RoundAnnounced) -> Payload:
        """The change of its control variate: always its constant."""
        data = save({"w": np.full(4, self.constant, np.float32)})
        sha256 = hashlib.sha256(data).hexdigest()
        with contextlib.suppress(AlreadyExists):
            await self.store.create(
                names.updates_of(self.name), names.weights_blob(asked.run, asked.round, sha256), data
            )
        return Payload(sha256=sha256, bytes=len(data), form="delta", layout=parse_layout(data, len(data)).digest)

    async def hello(self) -> None:
        """A new instance of the agent starts."""
        instance = hashlib.md5(f"{self.name}{next(self._instances)}".encode(), usedforsecurity=False).hexdigest()
        await self.send(
            SiloHello(
                instance=instance,
                agent_version="1",
                policy=CODE,
                offers=[Offer(task=TASK, code=CODE)] if self.offers else [],
                at=self.clock.now(),
            )
        )

    async def send(self, message: BaseModel) -> None:
        """Sends to the orchestrator."""
        self.said.append(message)
        subject = str(type(message).model_fields["kind"].default)
        outgoing = Outgoing(body=encode(message), message_id=f"{self.name}-{next(self._sent)}", subject=subject)
        await self.bus.send(names.from_silo(self.name), outgoing)


def _saying(update: UpdatePublished, **other: object) -> UpdatePublished:
    return update.model_copy(update=other)
