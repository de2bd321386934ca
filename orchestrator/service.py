"""The orchestrator at work: every message it receives becomes an event, here and nowhere else.

What a message does to a run is the core's (`experiment`), how state moves is `transitions`', what becomes of the
message afterwards is the consumer's. What silos say is `answers`', what a sum takes is `sums`'.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Final, assert_never, final

from messages import names
from messages.codec import OperatorMessage, Work, decode
from messages.consumer import Again, Consumer, Handler, OnPoison
from messages.errors import Duplicate, Forbidden, NotFound, Poison, Transient
from messages.experiments import (
    CancelExperiment,
    HoldExperiment,
    PauseExperiment,
    ReleaseExperiment,
    ResumeExperiment,
    StartExperiment,
)
from messages.log import EventLog
from messages.ports import Bus, Clock, Delivery, Outgoing
from messages.retry import retry_transient
from messages.schemas import (
    AggregateRound,
    DeadlinePassed,
    GraceOver,
    SiloHeartbeat,
    SweepRun,
)
from orchestrator.aggregation import Strategy, admitted, least_updates
from orchestrator.answers import Answers, round_of
from orchestrator.blobs import Weights
from orchestrator.experiment.events import (
    AggregationFailed,
    CancelRequested,
    PauseRequested,
    ResumeRequested,
    StartRequested,
)
from orchestrator.experiment.starting import cancelled_before_start, check_start
from orchestrator.experiment.state import Tombstone
from orchestrator.idleness import idle, receive_wait
from orchestrator.members import Members
from orchestrator.presence import Attendance
from orchestrator.store import Documents
from orchestrator.sums import Sums
from orchestrator.sweeping import Sweeper
from orchestrator.transitions import Experiments

_log: Final = EventLog(__name__)
_AT_ONCE: Final = 64
"""Messages of one queue in hand; what is heavy about them waits its turn in `blobs`, so that nothing light does."""
_PAGE: Final = 250
"""Messages of one look into a queue; Service Bus shows no more at once."""


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
        self._answers = Answers(
            experiments=experiments, weights=weights, attendance=attendance, members=self._members, sweeper=sweeper
        )
        self._sums = Sums(experiments=experiments, weights=weights, clock=clock)
        self._max_delivery_count = max_delivery_count

    async def run(self, stop: asyncio.Event, *, until_idle: float | None = None) -> None:
        """Receives from every queue until `stop` is set, and takes up every live experiment meanwhile.

        Sets `stop` itself once there was nothing to do for `until_idle` seconds; signs of life are nothing to do.
        """
        wait = receive_wait(until_idle)
        consumers = [
            self._consumer(names.EXPERIMENTS, self.on_operator, self.on_poison, wait),
            self._consumer(names.WORK, self.on_work, self.on_work_poison, wait, again=self.send_work_again),
            *(self._silo_consumer(silo, wait) for silo in self._silos),
        ]
        _log.info("orchestrator.ready", silos=list(self._silos))
        async with asyncio.TaskGroup() as group:
            taking_up = group.create_task(self._take_up())
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

    async def _take_up(self) -> None:
        """`take_up`, for as long as it takes: a right that is granted holds after minutes. Whatever else goes wrong
        here is told, and what comes through the queues is taken care of all the same.
        """

        async def attempt() -> None:
            try:
                await self.take_up()
            except (Forbidden, NotFound) as refusal:
                raise Transient(str(refusal)) from refusal

        def note(error: Transient, failures: int, wait: float) -> None:
            log = _log.error if failures == 1 else _log.debug
            log("runs.not-taken-up", error=str(error), next="keeps trying, ever less often", wait=round(wait, 3))

        try:
            await retry_transient(attempt, clock=self._clock, before_wait=note)
        except Exception:  # noqa: BLE001  # our bug, or a document somebody edited
            _log.exception("runs.not-taken-up")

    async def take_up(self) -> None:
        """What every start does: sweeps, and reconciles those runs whose messages are not in `work` any more.

        So a start costs a look into the queue and a read per live run, and agents hear nothing of it: orchestrators
        may come and go every minute.
        """
        await self._weights.scratch.sweep()
        standing: frozenset[Work] = frozenset()
        try:
            standing = await retry_transient(self._standing, clock=self._clock)
        except NotFound as error:  # then nothing is known of it, and everything is sent again
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
        away. One experiment that cannot be read does not hold up others. Raises Forbidden: a right is missing that all
        of them take.
        """
        live = await retry_transient(self._documents.live.experiments, clock=self._clock)
        for experiment in live if standing else ():
            with contextlib.suppress(Exception):  # one that cannot be read is told of below
                await self._experiments.presume(experiment, standing or frozenset())
        try:
            await retry_transient(partial(self._members.look, live, enrolled=True), clock=self._clock)
        except Forbidden:
            raise
        except Exception:  # noqa: BLE001  # our bug, or a presence somebody edited: runs go on with those they have
            _log.exception("members.not-seen")
        for experiment in live:
            try:
                await retry_transient(partial(self._experiments.reconcile, experiment, standing), clock=self._clock)
            except Forbidden:
                raise
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
        except (Poison, Duplicate):
            if request.initial is not None:
                await self._sweeper.clear_refused(run)
            raise
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
            least=least_updates(strategy),
            ran_before=ran_before,
        )
        if request.initial is not None:  # a cheap look before weights are copied
            await self._experiments.admit(name, lambda state: check_start(state, event))
            placed = await self._weights.place_initial(run, request.initial, request.share, self._documents)
            event = replace(event, initial=placed)
        if isinstance(await self._experiments.apply(name, event), Tombstone):
            raise cancelled_before_start(event)

    # --- our own work --------------------------------------------------------------------------------------------

    async def on_work(self, delivery: Delivery) -> None:
        """A message on `work`."""
        message: Work = decode(delivery.body, AggregateRound, DeadlinePassed, GraceOver, SweepRun)
        experiment = names.experiment_of(message.run)
        match message:
            case AggregateRound():
                await self._sums.make(message)
            case DeadlinePassed() | GraceOver():
                await self._experiments.apply(experiment, message)
            case SweepRun():
                await self._sweeper.sweep(message, delivery.enqueued_at)
            case _:
                assert_never(message)

    # --- what can never succeed ----------------------------------------------------------------------------------

    async def on_poison(self, delivery: Delivery, poison: Poison) -> None:
        """An operator's message is dead-lettered; there is nobody else to tell."""

    async def send_work_again(self, delivery: Delivery) -> bool:
        """In place of a message that was delivered very often: a sum may take days, and many who make it."""
        again = Outgoing(
            body=delivery.body,
            message_id=names.sent_again(delivery.message_id),
            subject=delivery.subject or "",
            correlation_id=delivery.correlation_id,
        )
        await self._bus.send(names.WORK, again)
        return True

    async def on_work_poison(self, delivery: Delivery, poison: Poison) -> None:
        """A round that cannot be aggregated ends its run."""
        told = round_of(delivery.body, {"aggregate-round"})
        if told is not None:
            run, number = told
            reason = f"{poison.reason}: {poison.description}"
            event = AggregationFailed(run=run, round=number, reason=reason)
            await self._experiments.apply(names.experiment_of(run), event)

    def _silo_consumer(self, silo: str, wait: float) -> Consumer:
        on_message, on_poison = partial(self._answers.on_message, silo), partial(self._answers.on_poison, silo)
        return self._consumer(names.from_silo(silo), on_message, on_poison, wait)

    def _consumer(
        self, queue: str, handler: Handler, on_poison: OnPoison, wait: float, *, again: Again | None = None
    ) -> Consumer:
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
            again=again,
        )


def _is_sign_of_life(delivery: Delivery) -> bool:
    return delivery.subject == str(SiloHeartbeat.model_fields["kind"].default)
