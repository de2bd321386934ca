"""The orchestrator at work: every message it receives becomes an event, here and nowhere else.

What a message does to a run is the core's (`experiment`), how state moves is `transitions`', what becomes of the
message afterwards is the consumer's. Here is what has to be looked up first: weights, offers, who is enrolled.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Coroutine, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar, assert_never, final

from messages import names
from messages.codec import FromSilo, OperatorMessage, Work, decode
from messages.consumer import Consumer, Handler, OnPoison
from messages.errors import Duplicate, Forbidden, NotFound, Poison, Stale, Transient
from messages.experiments import (
    CancelExperiment,
    HoldExperiment,
    PauseExperiment,
    ReleaseExperiment,
    ResumeExperiment,
    StartExperiment,
)
from messages.log import EventLog
from messages.ports import Bus, Clock, Delivery
from messages.retry import retry_transient
from messages.schemas import (
    AggregateRound,
    DeadlinePassed,
    GraceOver,
    Purpose,
    Role,
    RoundDeclined,
    SiloHeartbeat,
    SiloHello,
    SweepRun,
    TrainingFailed,
    UpdatePublished,
)
from orchestrator.aggregation import Facts, Strategy, admit, admitted
from orchestrator.blobs import Weights
from orchestrator.experiment.announcing import roles_of
from orchestrator.experiment.checking import beyond
from orchestrator.experiment.collecting import check_update
from orchestrator.experiment.events import (
    AggregationFailed,
    CancelRequested,
    PauseRequested,
    ResumeRequested,
    RoundAggregated,
    RoundRefused,
    StartRequested,
    TrainingBroke,
    UpdateCameLate,
    UpdateRejected,
    UpdatesCompared,
    UpdateVerified,
)
from orchestrator.experiment.starting import cancelled_before_start, check_start
from orchestrator.experiment.state import Aggregating, Collecting, State, Tombstone
from orchestrator.experiment.step import aggregation_of, open_round_of
from orchestrator.idleness import idle, receive_wait
from orchestrator.members import Members
from orchestrator.presence import Attendance
from orchestrator.store import Documents
from orchestrator.sweeping import Sweeper
from orchestrator.transitions import Experiments

T = TypeVar("T")
_log: Final = EventLog(__name__)
_AT_ONCE: Final = 64
"""Messages of one queue in hand; what is heavy about them waits its turn in `blobs`, so that nothing light does."""
_PAGE: Final = 250
"""Messages of one look into a queue; Service Bus shows no more at once."""
_LOOK_EVERY: Final = 30.0
"""Seconds between two looks whether a sum that is being made is still wanted."""
_ANSWERS: Final = {"update-published", "round-declined", "training-failed"}


@final
class Orchestrator:
    """One orchestrator; any number of them may work on the same queues and the same store."""

    def __init__(
        self,
        *,
        bus: Bus,
        clock: Clock,
        silos: Sequence[str],
        documents: Documents,
        experiments: Experiments,
        weights: Weights,
        attendance: Attendance,
        sweeper: Sweeper,
        max_delivery_count: int = 10,
    ) -> None:
        self._bus, self._clock, self._silos = bus, clock, tuple(silos)
        self._documents, self._experiments = documents, experiments
        self._weights, self._attendance, self._sweeper = weights, attendance, sweeper
        self._members = Members(silos, documents=documents, experiments=experiments, attendance=attendance)
        self._max_delivery_count = max_delivery_count

    async def run(self, stop: asyncio.Event, *, until_idle: float | None = None) -> None:
        """Receives from every queue until `stop` is set, and takes up every live experiment meanwhile.

        Sets `stop` itself once there was nothing to do for `until_idle` seconds; signs of life are nothing to do.
        """
        wait = receive_wait(until_idle)
        consumers = [
            self._consumer(names.EXPERIMENTS, self.on_operator, self.on_poison, wait),
            self._consumer(names.WORK, self.on_work, self.on_work_poison, wait),
            *(
                self._consumer(
                    names.from_silo(silo), partial(self.on_silo, silo), partial(self.on_silo_poison, silo), wait
                )
                for silo in self._silos
            ),
        ]
        _log.info("orchestrator.ready", silos=list(self._silos))
        async with asyncio.TaskGroup() as group:
            taking_up = group.create_task(self.take_up())
            ending = group.create_task(self._end(stop, consumers, until_idle, after=taking_up))
            async with asyncio.TaskGroup() as receiving:
                for consumer in consumers:
                    receiving.create_task(consumer.run(stop))
            taking_up.cancel()
            ending.cancel()
        _log.info("orchestrator.stopped")

    async def _end(
        self, stop: asyncio.Event, consumers: Sequence[Consumer], until_idle: float | None, *, after: asyncio.Task[None]
    ) -> None:
        if until_idle is not None:
            await idle(consumers, self._clock, until_idle, after=after)
            _log.info("orchestrator.idle", seconds=until_idle)
            stop.set()

    async def take_up(self) -> None:
        """What every start does: sweeps, and reconciles those runs whose messages are not in `work` any more.

        So a start costs a look into the queue and a read per live run, and agents hear nothing of it: orchestrators
        may come and go every minute.
        """
        await self._weights.scratch.sweep()
        standing: frozenset[Work] = frozenset()
        try:
            standing = await retry_transient(self._standing, clock=self._clock)
        except (NotFound, Forbidden) as error:  # then nothing is known of it, and everything is sent again
            _log.error("work.not-seen", error=str(error))
        await self.reconcile(standing)

    async def _standing(self) -> frozenset[Work]:
        """What is in `work`: free, locked, or scheduled."""
        found: set[Work] = set()
        after = 0
        while page := await self._bus.peek(names.WORK, count=_PAGE, from_sequence_number=after):
            for delivery in page:
                with contextlib.suppress(Poison):
                    found.add(decode(delivery.body, AggregateRound, DeadlinePassed, GraceOver, SweepRun))
            after = page[-1].sequence_number + 1
        return frozenset(found)

    async def reconcile(self, standing: Set[Work] | None = None) -> None:
        """Has every live run's messages sent again, from its state alone: the queues may be lost.

        Before that it is told who is enrolled and what they offer: silos that were taken out of the settings leave.

        Not those of runs for which all that they need is in `standing`. Waits for as long as the bus or the store is
        away. One experiment that cannot be read does not hold up others.
        """
        live = await retry_transient(self._documents.live.experiments, clock=self._clock)
        for experiment in live if standing else ():
            with contextlib.suppress(Exception):  # one that cannot be read is told of below
                await self._experiments.presume(experiment, standing or frozenset())
        try:
            await retry_transient(partial(self._members.look, live, enrolled=True), clock=self._clock)
        except Exception:  # noqa: BLE001  # our bug, or a presence somebody edited: runs go on with those they have
            _log.exception("members.not-seen")
        for experiment in live:
            try:
                await retry_transient(partial(self._experiments.reconcile, experiment, standing), clock=self._clock)
            except Exception:  # noqa: BLE001  # our bug, or a document somebody edited: the others go on
                _log.exception("experiment.not-reconciled", experiment=experiment)
        await self._sweeper.rearm(standing or ())

    # --- operators -----------------------------------------------------------------------------------------------

    async def on_operator(self, delivery: Delivery) -> None:
        """A message on `experiments`."""
        message: OperatorMessage = decode(
            delivery.body,
            StartExperiment,
            CancelExperiment,
            PauseExperiment,
            ResumeExperiment,
            HoldExperiment,
            ReleaseExperiment,
        )
        name = message.experiment
        match message:
            case StartExperiment():
                await self._start(delivery, message)
            case CancelExperiment(run=run):
                await self._experiments.apply(name, CancelRequested(experiment=name, run=run))
            case PauseExperiment():
                await self._experiments.apply(name, PauseRequested(experiment=name))
            case ResumeExperiment():
                await self._experiments.apply(name, ResumeRequested(experiment=name))
            case HoldExperiment() | ReleaseExperiment():
                await self._sweeper.change_hold(message, delivery.enqueued_at)
            case _:
                assert_never(message)

    async def _start(self, delivery: Delivery, request: StartExperiment) -> None:
        run = names.run_id(request.experiment, delivery.message_id, delivery.body)
        strategy = admitted(request)
        try:
            await self._begin(run, request, strategy)
        finally:
            # A silo may have said hello since its presence was read, and found no run to join; and whoever read it may
            # have got no further than this. So a start that is a duplicate looks as well.
            await self._members.look([request.experiment], enrolled=False)
        _log.info("run.started", run=run, task=request.task, rounds=request.rounds)

    async def _begin(self, run: str, request: StartExperiment, strategy: Strategy) -> None:
        name = request.experiment
        presences = await self._documents.presences(self._silos)
        offering = frozenset(silo for silo, presence in presences.items() if presence.offers(request.task))
        ran_before = await self._documents.is_over(run)

        event = StartRequested(
            run=run,
            request=request,
            enrolled=self._silos,
            offering=offering,
            roles=tuple(strategy.roles),
            hyperparameters=strategy.hyperparameters,
            ran_before=ran_before,
        )
        if request.initial is not None:  # a cheap look before weights are copied
            await self._experiments.admit(name, lambda state: check_start(state, event))
            placed = await self._weights.place_initial(run, request.initial, request.share, self._documents)
            event = replace(event, initial=placed)
        if isinstance(await self._experiments.apply(name, event), Tombstone):
            raise cancelled_before_start(event)

    # --- silos ---------------------------------------------------------------------------------------------------

    async def on_silo(self, silo: str, delivery: Delivery) -> None:
        """A message on `from-<silo>`: who sent it is known from the queue, whatever it says."""
        message: FromSilo = decode(
            delivery.body, SiloHello, UpdatePublished, RoundDeclined, TrainingFailed, SiloHeartbeat
        )
        if isinstance(message, UpdatePublished | RoundDeclined | TrainingFailed):
            await self._attendance.answered(silo, delivery.enqueued_at)
        match message:
            case UpdatePublished():
                await self._update(silo, message)
            case RoundDeclined(run=run, round=number, reason=reason):
                refused = RoundRefused(silo=silo, run=run, round=number, reason=reason)
                await self._experiments.apply(names.experiment_of(run), refused)
                _log.info("round.declined", run=run, round=number, silo=silo, reason=reason.value)
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

    # --- our own work --------------------------------------------------------------------------------------------

    async def on_work(self, delivery: Delivery) -> None:
        """A message on `work`."""
        message: Work = decode(delivery.body, AggregateRound, DeadlinePassed, GraceOver, SweepRun)
        experiment = names.experiment_of(message.run)
        match message:
            case AggregateRound():
                await self._aggregate(experiment, message)
            case DeadlinePassed() | GraceOver():
                await self._experiments.apply(experiment, message)
            case SweepRun(run=run):
                await self._sweeper.sweep(run)
            case _:
                assert_never(message)

    async def _aggregate(self, experiment: str, message: AggregateRound) -> None:
        run, number = message.run, message.round

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

    # --- what can never succeed ----------------------------------------------------------------------------------

    async def on_poison(self, delivery: Delivery, poison: Poison) -> None:
        """An operator's message is dead-lettered; there is nobody else to tell."""

    async def on_silo_poison(self, silo: str, delivery: Delivery, poison: Poison) -> None:
        """Tells the run that this silo's answer is of no use, if it can be made out which run that is."""
        told = _round_of(delivery.body, _ANSWERS)
        if told is not None:
            run, number = told
            reason = f"{poison.reason}: {poison.description}"[:300]
            event = UpdateRejected(silo=silo, run=run, round=number, reason=reason)
            await self._experiments.apply(names.experiment_of(run), event)

    async def on_work_poison(self, delivery: Delivery, poison: Poison) -> None:
        """A round that cannot be aggregated ends its run."""
        told = _round_of(delivery.body, {"aggregate-round"})
        if told is not None:
            run, number = told
            reason = f"{poison.reason}: {poison.description}"
            event = AggregationFailed(run=run, round=number, reason=reason)
            await self._experiments.apply(names.experiment_of(run), event)

    def _consumer(self, queue: str, handler: Handler, on_poison: OnPoison, wait: float) -> Consumer:
        return Consumer(
            self._bus,
            queue,
            handler,
            on_poison=on_poison,
            clock=self._clock,
            concurrency=_AT_ONCE,
            max_delivery_count=self._max_delivery_count,
            receive_wait=wait,
            aside=_is_sign_of_life,
        )


def _is_sign_of_life(delivery: Delivery) -> bool:
    return delivery.subject == str(SiloHeartbeat.model_fields["kind"].default)


def _round_of(body: bytes, kinds: set[str]) -> tuple[str, int] | None:
    """Run and round named in a message that may be wrong in every other way; None when they cannot be made out."""
    try:
        said = json.loads(body)
        run, number = str(said["run"]), int(said["round"])
        names.experiment_of(run)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
    return (run, number) if said.get("kind") in kinds and 0 <= number <= 99_999 else None
