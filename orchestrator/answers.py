"""What silos say, made into events: answers of rounds, hellos, signs of life.

Who a silo is comes from the queue its message arrived on. What has to be looked up first is looked up here: whether an
update is what it says it is, and fits the round that is open.
"""

from __future__ import annotations

import json
from typing import Final, assert_never, final

from messages import names
from messages.codec import FromSilo, decode
from messages.errors import Poison, Stale
from messages.log import EventLog
from messages.ports import Delivery
from messages.schemas import (
    Purpose,
    Role,
    RoundDeclined,
    SiloHeartbeat,
    SiloHello,
    TrainingFailed,
    UpdatePublished,
)
from orchestrator.aggregation import Facts, admit
from orchestrator.blobs import Weights
from orchestrator.experiment.announcing import roles_of
from orchestrator.experiment.checking import beyond
from orchestrator.experiment.collecting import check_update
from orchestrator.experiment.events import RoundRefused, TrainingBroke, UpdateCameLate, UpdateRejected, UpdateVerified
from orchestrator.experiment.state import Collecting, State
from orchestrator.experiment.step import open_round_of
from orchestrator.members import Members
from orchestrator.presence import Attendance
from orchestrator.sweeping import Sweeper
from orchestrator.transitions import Experiments

_log: Final = EventLog(__name__)
_ANSWERS: Final = {"update-published", "round-declined", "training-failed"}


@final
class Answers:
    """The messages of `from-<silo>`, whichever silo's."""

    def __init__(
        self,
        *,
        experiments: Experiments,
        weights: Weights,
        attendance: Attendance,
        members: Members,
        sweeper: Sweeper,
    ) -> None:
        self._experiments, self._weights = experiments, weights
        self._attendance, self._members, self._sweeper = attendance, members, sweeper

    async def on_message(self, silo: str, delivery: Delivery) -> None:
        """A message on `from-<silo>`: who sent it is known from the queue, whatever it says."""
        message: FromSilo = decode(
            delivery.body, SiloHello, UpdatePublished, RoundDeclined, TrainingFailed, SiloHeartbeat
        )
        if isinstance(message, UpdatePublished | RoundDeclined | TrainingFailed):
            await self._attendance.answered(silo, delivery.enqueued_at)
        match message:
            case UpdatePublished():
                await self._update(silo, message)
            case RoundDeclined(run=run, round=number, words=words):
                refused = RoundRefused(silo=silo, run=run, round=number, reason=words)
                await self._experiments.apply(names.experiment_of(run), refused)
                _log.info("round.declined", run=run, round=number, silo=silo, reason=words)
            case TrainingFailed(run=run, round=number, category=category, announcement=announcement):
                broke = TrainingBroke(
                    silo=silo, run=run, round=number, reason=category.value, announcement=announcement
                )
                await self._experiments.apply(names.experiment_of(run), broke)
                _log.warning("training.failed", run=run, round=number, silo=silo, category=category.value)
            case SiloHello():
                await self._hello(silo, message, delivery)
            case SiloHeartbeat():
                await self._attendance.heartbeat(silo, message, delivery.enqueued_at)
            case _:
                assert_never(message)

    async def _update(self, silo: str, update: UpdatePublished) -> None:
        try:
            await self._count(silo, update)
        except Stale:  # its round was closed, maybe while the update was being verified
            await self._sweeper.sweep_late(silo, update.run, update.round)
            late = UpdateCameLate(silo=silo, run=update.run, round=update.round)
            await self._experiments.apply(names.experiment_of(update.run), late)
            _log.info("update.late", run=update.run, round=update.round, silo=silo)

    async def _count(self, silo: str, update: UpdatePublished) -> None:
        experiment = names.experiment_of(update.run)

        def look(state: State | None) -> Collecting:
            found = open_round_of(state, update.run, update.round)
            check_update(found, silo, update)
            return found

        state = await self._experiments.admit(experiment, look, run=update.run)
        if state.purpose is Purpose.TRAIN:
            admit(state.run.request, Facts(silo, update.samples, update.steps))
        payload = None if state.purpose is Purpose.EVALUATE else update.payloads.get("weights")
        found = await self._weights.verify_update(state, silo, payload) if payload else None
        norm, etag = (found.norm, found.etag) if found else (None, None)
        etags: dict[Role, str] = {
            role: (await self._weights.verify_update(state, silo, update.payloads[role], role)).etag
            for role in roles_of(state)
            if role != "weights"
        }
        change = found.change if found else None
        verified = UpdateVerified(silo=silo, update=update, norm=norm, change=change, etag=etag, etags=etags)
        await self._experiments.apply(experiment, verified)
        if beyond(state.run.request.checks, change) is None:
            _log.info(
                "update.counted", run=update.run, round=update.round, silo=silo, samples=update.samples, norm=norm
            )

    async def _hello(self, silo: str, hello: SiloHello, delivery: Delivery) -> None:
        await self._members.said_hello(silo, hello, delivery)
        _log.info("silo.appeared", silo=silo, instance=hello.instance, agent_version=hello.agent_version)

    async def on_poison(self, silo: str, delivery: Delivery, poison: Poison) -> None:
        """Tells the run that this silo's answer is of no use, if it can be made out which run that is."""
        told = round_of(delivery.body, _ANSWERS)
        if told is not None:
            run, number = told
            reason = f"{poison.reason}: {poison.description}"[:300]
            event = UpdateRejected(silo=silo, run=run, round=number, reason=reason)
            await self._experiments.apply(names.experiment_of(run), event)


def round_of(body: bytes, kinds: set[str]) -> tuple[str, int] | None:
    """Run and round named in a message that may be wrong in every other way; None when they cannot be made out."""
    try:
        said = json.loads(body)
        run, number = str(said["run"]), int(said["round"])
        names.experiment_of(run)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
    return (run, number) if said.get("kind") in kinds and 0 <= number <= 99_999 else None
