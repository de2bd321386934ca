"""One round, worked on: does what each phase of `rounds` says, and tells `rounds` what came of it.

Here lives the doing of one round, from announcement to answer. What is next is decided in `rounds`, what is allowed in
`policy` and `outbound`. Exceptions that leave here are our bugs; everything foreseen ends in a phase.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, assert_never, final

from pydantic import ValidationError

from messages import names
from messages.errors import InvalidWeights, NotFound
from messages.log import EventLog
from messages.schemas import DeclineReason, FailureCategory, Head, Payload, Purpose, Role, RoundAnnounced
from messages.weights import Layout
from silo_agent import given, outbound, rounds
from silo_agent.approval import cleared, measured
from silo_agent.ending import answer
from silo_agent.home import RoundDirectory
from silo_agent.policy import Accepted, Declined, Facts, Task, decide
from silo_agent.publication import Publisher
from silo_agent.result import Allowed, Unsound, Withheld, examine, tensors_of
from silo_agent.roles import given_as, layout_made, wanted
from silo_agent.rounds import (
    Announced,
    Checked,
    Checking,
    Closed,
    Deciding,
    Ended,
    Event,
    Failed,
    Fetching,
    Phase,
    Published,
    Publishing,
    Resending,
    Training,
    Waiting,
    step,
)
from silo_agent.runners import port
from silo_agent.signs_of_life import SignsOfLife
from silo_agent.silo import Silo

_log = EventLog(__name__)


@final
class RoundWork:
    """The work on one announced round."""

    def __init__(self, silo: Silo, announced: RoundAnnounced) -> None:
        self._silo = silo
        self._announced = announced
        self._key = (announced.run, announced.round)
        self._directory: RoundDirectory = silo.home.round(*self._key)
        self._signs = SignsOfLife(silo, announced)
        self._publisher = Publisher(silo, announced, self._directory)
        self._closed = asyncio.Event()
        self._turn: asyncio.Semaphore | None = None
        self._notes: tuple[str, ...] = ()
        self._received: Layout | None = None
        self._version: int | None = None
        self._result: Allowed | None = None
        self._ran = False
        self.phase: Phase = Announced()

    @property
    def about(self) -> tuple[str, int, int]:
        """Run, round, and the number of the announcement that is being answered."""
        return self._announced.run, self._announced.round, self._announced.announcement

    def close(self) -> None:
        """Nobody waits for this round any more: training stops, unless its result is just being published."""
        self._closed.set()

    async def run(self) -> Ended:
        """Works until the round has ended here. Cancelled, it ends the training; what was published stays."""
        telling = asyncio.create_task(self._signs.tell(), name=f"signs of life of {self._key}")
        try:
            while not isinstance(self.phase, Published | Declined | Failed | Closed):
                event = await self._unless_closed(self._do(self.phase))
                self._enter(step(self.phase, event))
        finally:
            telling.cancel()
            self._leave_turn()
        await answer(
            self._silo,
            self._announced,
            self.phase,
            ran=self._ran,
            notes=self._notes,
        )
        return self.phase

    def _enter(self, phase: Phase) -> None:
        if isinstance(phase, Checked | Ended):
            self._leave_turn()
        self.phase = phase
        attempt = self._directory.attempt(phase.tries.number) if isinstance(phase, Training) else None
        self._signs.enter(phase, attempt)
        _log.debug("round.phase", run=self._announced.run, round=self._announced.round, phase=type(phase).__name__)

    async def _unless_closed(self, doing: Coroutine[Any, Any, Event]) -> Event:
        """What came of it; or that the round was closed before."""
        if isinstance(self.phase, Publishing | Resending):
            return await doing
        task, closed = asyncio.create_task(doing), asyncio.create_task(self._closed.wait())
        try:
            await asyncio.wait((task, closed), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            return rounds.RoundIsClosed()
        finally:
            closed.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))  # and not `await task`, which would take our own cancellation for its
                if not task.cancelled():
                    task.exception()  # looked at, or asyncio would log it, whosever words are in it

    async def _do(self, phase: Phase) -> Event:
        match phase:
            case Announced() | Checked():
                return await self._look()
            case Deciding():
                return await self._decide()
            case Waiting():
                return await self._wait(phase)
            case Fetching():
                return await self._fetch(phase)
            case Training():
                return await self._train(phase)
            case Checking():
                return await self._check(phase)
            case Publishing():
                assert self._result is not None  # noqa: S101  # it was checked
                await self._publisher.publish(self._result, phase.accepted, phase.number)
                return rounds.PublicationMade()
            case Resending():
                await self._publisher.send()
                return rounds.PublicationSent()
            case Published() | Declined() | Failed() | Closed():
                raise AssertionError("the round has ended")
            case _:
                assert_never(phase)

    # --- one method per phase ----------------------------------------------------------------------------------------

    async def _look(self) -> Event:
        head, published = await asyncio.gather(self._head(), self._publisher.find())
        wanted = head is None or head.wants(self._announced.round)
        # A head that is behind the announcement is not yet written, and closes nothing.
        behind = head is not None and head.phase != "ended" and head.round < self._announced.round
        return rounds.LookedUp(wanted or behind, published)

    async def _head(self) -> Head | None:
        try:
            found = await self._silo.patiently(
                lambda: self._silo.store.read(names.GLOBAL, names.head_blob(self._announced.run))
            )
            return Head.model_validate_json(found.data)
        except (NotFound, ValidationError):
            return None

    async def _decide(self) -> Event:
        task = self._silo.policy.tasks.get(self._announced.task)
        facts = Facts(
            code=await asyncio.to_thread(measured, task.code) if task else None,
            spent=await asyncio.to_thread(self._silo.budget.spent, self._announced.task, besides=self._key),
            paused=await asyncio.to_thread(self._silo.home.pause_file.exists),
        )
        decision = decide(self._silo.policy, self._announced, facts)
        if isinstance(decision, Accepted):
            initialises = self._announced.purpose is Purpose.INITIALISE
            if initialises is ("weights" in self._announced.payloads):
                return Declined(DeclineReason.MESSAGE_INVALID)
            if decision.charged:
                await asyncio.to_thread(self._silo.budget.charge, self._announced.task, self._key)
        return decision

    async def _wait(self, phase: Waiting) -> Event:
        turn = self._silo.turns(self._announced.task)
        await turn.acquire()
        self._turn = turn
        return rounds.TurnCame(await asyncio.to_thread(self._tries))

    def _tries(self) -> rounds.Tries:
        self._directory.reopen()
        numbers = self._directory.attempts()
        failures = [self._directory.attempt(n).failure(self._announced.announcement) for n in numbers]
        last = numbers[-1] if numbers else 0
        interrupted = bool(numbers) and not self._directory.attempt(last).has_failed
        return rounds.Tries(last if interrupted else last + 1, tuple(f for f in failures if f is not None))

    async def _fetch(self, phase: Fetching) -> Event:
        silo, announced = self._silo, self._announced
        asked = given.round_json(announced, phase.accepted, silo.name)
        fresh = not await asyncio.to_thread(given.still_good, self._directory, asked, silo.state, *self._key)
        try:
            top = self._directory.input
            if fresh:
                top = await asyncio.to_thread(given.begin, self._directory)
                for role, payload in announced.payloads.items():
                    await silo.patiently(functools.partial(self._fetch_payload, top / given_as(role), payload))
            self._received = await asyncio.to_thread(given.examined, top, announced)
        except NotFound:
            return Declined(DeclineReason.WEIGHTS_MISSING)
        except InvalidWeights as fault:
            self._notes = (fault.description,)
            return Declined(DeclineReason.WEIGHTS_INVALID)
        if announced.purpose is Purpose.TRAIN and (reason := self._could_never_leave(phase.accepted.task)):
            return Declined(reason)
        if fresh:
            await asyncio.to_thread(given.finish, self._directory, asked, silo.state, *self._key)
        self._version = silo.state.version(announced.run, before=announced.round)
        return rounds.WeightsFetched(not fresh and self._directory.attempt(phase.tries.number).is_whole)

    async def _fetch_payload(self, target: Path, payload: Payload) -> None:
        await asyncio.to_thread(target.unlink, missing_ok=True)  # what a try that failed left of it
        blob = names.weights_blob(self._announced.run, self._announced.round - 1, payload.sha256)
        await self._silo.store.fetch(names.GLOBAL, blob, target)

    def _could_never_leave(self, task: Task) -> DeclineReason | None:
        """An update has the tensors of what was received: what may not leave is known before training."""
        assert self._received is not None  # noqa: S101  # it was fetched
        update: dict[Role, outbound.Tensors] = {}
        for role in wanted(self._announced):
            layout = layout_made(role, self._received, self._announced)
            size = Layout.of((s.name, s.dtype, s.shape) for s in layout.tensors)
            update[role] = tensors_of(layout, size.data_offset + size.data_bytes)
        self._notes = outbound.forbidden_tensors(task.outbound, update)
        return DeclineReason.OUTBOUND_FORBIDDEN if self._notes else None

    async def _train(self, phase: Training) -> Event:
        # It may have waited for long: what runs now is what must be approved.
        if await asyncio.to_thread(cleared, phase.accepted.task.code) != phase.accepted.task.code.sha256:
            return Declined(DeclineReason.CODE_NOT_APPROVED)
        attempt = self._directory.attempt(phase.tries.number)
        await asyncio.to_thread(attempt.start)
        job = port.Job(
            run=self._announced.run,
            round=self._announced.round,
            name=self._announced.task,
            task=phase.accepted.task,
            input=self._directory.input,
            output=attempt.output,
            log=attempt.log,
            version=self._version,
            seen=self._signs.seen,
        )
        self._ran = True
        outcome = await self._silo.runner.run(job)
        match outcome:
            case port.Finished():
                return rounds.TryFinished()
            case port.OverBudget():
                return Declined(DeclineReason.BUDGET_SPENT)
            case port.Failed(category):
                return await self._failed(phase, category, ())
            case _:
                assert_never(outcome)

    async def _check(self, phase: Checking) -> Event:
        attempt = self._directory.attempt(phase.tries.number)
        rules = phase.accepted.task.outbound
        found = await asyncio.to_thread(examine, attempt, self._announced, self._received, rules)
        match found:
            case Unsound(category, notes):
                return await self._failed(phase, category, notes)
            case Withheld(reason, notes):
                self._notes = notes
                return Declined(reason)
            case Allowed():
                self._result, self._notes = found, found.notes
                return rounds.ResultAllowed()
            case _:
                assert_never(found)

    async def _failed(self, phase: Training | Checking, category: FailureCategory, notes: tuple[str, ...]) -> Event:
        attempt = self._directory.attempt(phase.tries.number)
        await asyncio.to_thread(attempt.mark_failed, category, self._announced.announcement, notes)
        _log.info("round.try-failed", run=self._announced.run, round=self._announced.round, category=category)
        return rounds.TryFailed(category)

    def _leave_turn(self) -> None:
        if self._turn is not None:
            self._turn.release()
            self._turn = None
