"""How an experiment moves: load, do what is still to be done, step, save, do what follows.

The one place where state changes, and the reason why nothing is lost or done on a wrong footing:

- Effects are stored with the state they belong to, in one conditional write, before any of them is carried out.
- Nothing moves on before they are: whoever comes next (another event, a duplicate, another orchestrator) carries out
  what is pending first. What this process knows to be done is not repeated.
- A lost race means: load and go again. A write whose answer was lost may have succeeded: whoever asked asks again, and
  then it is a duplicate, before which what is pending is done.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Set
from typing import Final, TypeGuard, TypeVar, final
from weakref import WeakValueDictionary

from messages.codec import Work
from messages.errors import Conflict, Poison, Stale, Transient
from messages.log import EventLog
from messages.ports import Clock
from messages.schemas import DeadlinePassed, GraceOver
from orchestrator.documents import ExperimentDocument, Numbered
from orchestrator.experiment.effects import Effects
from orchestrator.experiment.events import (
    AggregationFailed,
    Event,
    RoundAggregated,
    RoundRefused,
    TrainingBroke,
    UpdateCameLate,
    UpdateRejected,
    UpdatesCompared,
    UpdateVerified,
)
from orchestrator.experiment.state import Aggregating, Collecting, Ended, LeftOut, Live, Paused, State, Tombstone
from orchestrator.experiment.step import expected_in_work, reconcile, step
from orchestrator.outbox import Performer, work_of
from orchestrator.store import Documents, Loaded

T = TypeVar("T")
_TRIES: Final = 50
_REMEMBERED: Final = 1000
"""Experiments of which it is known what is done; of more than live at once, it is done again."""
_log: Final = EventLog(__name__)


@final
class Experiments:
    """Every experiment of a federation, moved by events."""

    def __init__(self, documents: Documents, performer: Performer, clock: Clock) -> None:
        self._documents, self._performer, self._clock = documents, performer, clock
        self._done: dict[str, tuple[str | None, set[int]]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def apply(self, experiment: str, event: Event) -> State:
        """Moves the experiment by `event`. Raises Stale, Duplicate or Poison; what was pending has been done then too.

        The lock only spares this process from racing with itself; what decides is the conditional write.
        """
        async with self._lock(experiment):
            return await self._moved(experiment, lambda state: step(state, event, self._clock.now()), _run_of(event))

    async def admit(self, experiment: str, check: Callable[[State | None], T], *, run: str | None = None) -> T:
        """What `check` finds in the state as it is now, once everything pending is done. Changes nothing."""
        async with self._lock(experiment):
            loaded = await self._settled(experiment)
            return await self._known(run, lambda: check(_state(loaded)))

    async def undertake(self, experiment: str, check: Callable[[State | None], T], asked_by: Work) -> T:
        """`admit` for long work: what is pending is done, and then known to be done to every other orchestrator.

        The message that asks for it is not sent again, having come; else each orchestrator that looks at the experiment
        meanwhile would have the work done once more.
        """
        async with self._lock(experiment):
            loaded = await self._settled(experiment, frozenset((asked_by,)))
            found = await self._known(asked_by.run, lambda: check(_state(loaded)))
            if loaded.document:
                await self._tidy(experiment, loaded, loaded.document)
            return found

    async def presume(self, experiment: str, standing: Set[Work]) -> None:
        """Takes what stands in `work` as sent: of what is pending, that much is done."""
        async with self._lock(experiment):
            self._presumed(experiment, await self._documents.load(experiment), standing)

    async def reconcile(self, experiment: str, standing: Set[Work] | None = None) -> None:
        """Has everything done again that the live phase needs, whatever became of the messages sent before.

        `standing` is what waits in `work`. Where that is all that the phase waits for, the queues were not lost, and
        nothing is sent again but what was pending.
        """
        async with self._lock(experiment):
            loaded = await self._settled(experiment, standing or frozenset())
            if isinstance(_state(loaded), Collecting | Aggregating | Paused):
                if standing is not None and loaded.document and expected_in_work(loaded.document.state) <= standing:
                    await self._tidy(experiment, loaded, loaded.document)
                else:
                    await self._moved(experiment, _with_reconciled_effects, None)

    async def _moved(
        self, experiment: str, move: Callable[[State | None], tuple[State, Effects]], run: str | None
    ) -> State:
        for attempt in range(1, _TRIES + 1):
            loaded = await self._settled(experiment)
            state, effects = await self._known(run, lambda loaded=loaded: move(_state(loaded)))  # type: ignore[misc]
            if _begins(state, after=loaded):
                await self._documents.live.enter(state.run.id)
            try:
                saved = await self._documents.save(experiment, _next(loaded, state, effects), replacing=loaded)
            except Conflict as conflict:  # somebody else was faster
                if attempt == _TRIES:
                    raise Transient(f"the state of {experiment} could not be written {attempt} times") from conflict
                await self._clock.sleep(_wait(attempt))
                continue
            await self._perform(experiment, saved)
            _tell(loaded, state)
            return state
        raise AssertionError("unreachable")

    async def _settled(self, experiment: str, sent: Set[Work] = frozenset()) -> Loaded:
        """The document as it is, with everything in its outbox done; what was `sent` is done already."""
        loaded = await self._documents.load(experiment)
        self._presumed(experiment, loaded, sent)
        await self._perform(experiment, loaded)
        return loaded

    def _presumed(self, experiment: str, loaded: Loaded, sent: Set[Work] = frozenset()) -> set[int]:
        """The numbers of the effects that are known to be done; those that `sent` shows are, from now on."""
        etag, done = self._done.get(experiment, (None, set()))
        if etag != loaded.etag:
            # A version's outbox holds the effects of the one event that led to it: what was done before is not in it.
            done = set()
            self._done.pop(experiment, None)
            if loaded.document and loaded.document.outbox:  # else there is nothing to repeat
                self._done[experiment] = (loaded.etag, done)
            while len(self._done) > _REMEMBERED:  # of runs that others brought to their end
                del self._done[next(iter(self._done))]
        if loaded.document:
            done.update(n.sequence for n in loaded.document.outbox if work_of(n.effect) in sent)
        return done

    async def _perform(self, experiment: str, loaded: Loaded) -> None:
        document = loaded.document
        if document is None or not document.outbox:
            return
        done = self._presumed(experiment, loaded)
        over = isinstance(document.state, Ended | Tombstone)
        if not over and all(numbered.sequence in done for numbered in document.outbox):
            return
        await self._performer.perform(document, done)
        if over:
            if isinstance(document.state, Ended):
                await self._documents.live.leave(document.state.run.id)
            await self._tidy(experiment, loaded, document)
            self._done.pop(experiment, None)

    async def _tidy(self, experiment: str, loaded: Loaded, document: ExperimentDocument) -> None:
        """Gives done marks a write of their own where nothing may come for long, or ever; losing it costs nothing."""
        if not document.outbox:
            return
        try:
            await self._documents.save(experiment, document.model_copy(update={"outbox": ()}), replacing=loaded)
        except (Conflict, Transient):
            return

    async def _known(self, run: str | None, check: Callable[[], T]) -> T:
        """Runs a check of the core; a run that it does not know may be one that was over long ago."""
        try:
            return check()
        except Poison as poison:
            if poison.reason == "unknown-run" and run is not None and await self._documents.is_over(run):
                raise Stale(f"{run} is over") from None
            raise

    def _lock(self, experiment: str) -> asyncio.Lock:
        return self._locks.setdefault(experiment, asyncio.Lock())


def _next(loaded: Loaded, state: State, effects: Effects) -> ExperimentDocument:
    last = loaded.document.sequence if loaded.document else 0
    outbox = tuple(Numbered(sequence=last + i, effect=effect) for i, effect in enumerate(effects, start=1))
    return ExperimentDocument(state=state, sequence=last + len(outbox), outbox=outbox)


def _state(loaded: Loaded) -> State | None:
    return loaded.document.state if loaded.document else None


def _begins(state: State, *, after: Loaded) -> TypeGuard[Live]:
    goes_on = isinstance(_state(after), Collecting | Aggregating | Paused)
    return isinstance(state, Collecting | Aggregating | Paused) and not goes_on


def _with_reconciled_effects(state: State | None) -> tuple[State, Effects]:
    if state is None:
        raise Stale("there is nothing to reconcile")
    return state, reconcile(state)


def _run_of(event: Event) -> str | None:
    match event:
        case UpdateVerified():
            return event.update.run
        case UpdatesCompared():
            return event.run
        case UpdateRejected() | RoundRefused() | TrainingBroke() | RoundAggregated() | AggregationFailed():
            return event.run
        case UpdateCameLate():
            return event.run
        case DeadlinePassed() | GraceOver():
            return event.run
        case _:
            return None


def _wait(attempt: int) -> float:
    return random.uniform(0.0, min(1.0, 0.01 * 1.5**attempt))  # noqa: S311  # jitter, not a secret


def _left_out(state: State | None) -> dict[tuple[str, int, str], str]:
    """Why which updates of the current round are left out."""
    match state:
        case Collecting(run=run, round=number, answers=answers):
            return {(run.id, number, silo): a.reason for silo, a in answers.items() if isinstance(a, LeftOut)}
        case Aggregating(judging=None, closed=closed):
            others = {u.silo: closed.others[u.silo].removeprefix("left out: ") for u in closed.left_out}
            return {(closed.run, closed.round, silo): why for silo, why in others.items()}
        case Aggregating(judging=judging):
            return _left_out(judging)
        case _:
            return {}


def _tell(before: Loaded, after: State) -> None:
    """Logs what moved, for those who follow a run."""
    was = _state(before)
    known = _left_out(was)
    for (run, number, silo), why in _left_out(after).items():
        if (run, number, silo) not in known:
            _log.warning("update.left-out", run=run, round=number, silo=silo, reason=why)
    match after:
        case Collecting():
            if not isinstance(was, Collecting) or (was.round, was.announcement) != (after.round, after.announcement):
                _log.info(
                    "round.announced",
                    run=after.run.id,
                    round=after.round,
                    purpose=after.purpose.value,
                    announcement=after.announcement,
                    silos=len(after.asked),
                    deadline=after.deadline.isoformat(),
                )
        case Aggregating():
            if not isinstance(was, Aggregating):
                updates = len(after.closed.updates)
                _log.info("round.closed", run=after.run.id, round=after.closed.round, updates=updates)
        case Paused():
            _log.info("run.paused", run=after.run.id, next_round=after.round, because=after.because or "an operator")
        case Ended():
            if not isinstance(was, Ended):
                _log.info("run.ended", run=after.run.id, outcome=after.outcome.value, reason=after.reason)
        case Tombstone():
            _log.info("experiment.cancelled-before-start", experiment=after.experiment)
