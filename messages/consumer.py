"""The receive loop both halves use: what becomes of a message, decided in one place by the error its handler raised.

    returned, Stale, Duplicate   complete
    Transient, Forbidden         try again under the lock, with growing waits; meanwhile receive nothing new
    Poison                       tell the run (`on_poison`), then dead-letter with reason and description
    anything else                our bug: log it whole, let the lock lapse; the last time, dead-letter it as `bug`

A lost lock, a stop and a kill count as deliveries for the broker, which sets a message aside after so many of them. Yet
they say nothing against a message, and long work meets many. So a message that comes again while it is worked on here
joins that work; and one that comes near the limit makes room for a new one, which nobody has been given yet.

One message never stops the process, and neither does a broker that is away. Nothing here knows what messages mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar, final

from messages import names
from messages.errors import Duplicate, Forbidden, LockLost, NotFound, Poison, SilobusError, Stale, Transient
from messages.locks import Locks, about
from messages.log import EventLog
from messages.ports import Bus, Clock, Delivery
from messages.retry import Waits, retry_transient

T = TypeVar("T")
Handler = Callable[[Delivery], Awaitable[None]]
OnPoison = Callable[[Delivery, Poison], Awaitable[None]]
Again = Callable[[Delivery], Awaitable[bool]]
_SENT_AT_MOST: Final = 50
"""Messages in a row for the same, each delivered until its limit. So many say that it kills whoever takes it."""

_log: Final = EventLog(__name__)


class _Stopping(Exception):
    """Not an error, but the way out of a wait."""


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """A handler at work on a message, for as many deliveries of it as come; and what came of it."""

    delivery: Delivery
    task: asyncio.Task[Exception | None]


@final
class Consumer:
    """Receives from one queue until told to stop, and hands each message to `handler`, several at a time.

    `concurrency` bounds how many are held at once (None: no bound). Of `max_delivery_count` deliveries the last two are
    kept back for what has to be done before the broker puts a message aside; a handler's bug in the last before them is
    its last. One that gets beyond without a bug having been seen here is completed if `again` returns True: what it
    asks for comes again as another message, or goes on here and needs none. Else it is dead-lettered as `bug`, if it is
    not being worked on. `receive_wait` is the length of one receive, `lock_ceiling` the longest time between two
    renewals of a lock, `grace` how long handlers may go on after a stop, and `probe_every` how often one message is
    received all the same while a dependency is down; all in seconds. Messages that `aside` is true of are handled like
    all others, but `idle_since` looks past them.
    """

    def __init__(
        self,
        bus: Bus,
        queue: str,
        handler: Handler,
        *,
        on_poison: OnPoison,
        clock: Clock,
        max_delivery_count: int = 10,
        concurrency: int | None = None,
        waits: Waits | None = None,
        receive_wait: float = 60.0,
        lock_ceiling: float = 150.0,
        grace: float = 10.0,
        probe_every: float = 30.0,
        aside: Callable[[Delivery], bool] = lambda _: False,
        again: Again | None = None,
    ) -> None:
        if max_delivery_count < 3:
            raise ValueError("max_delivery_count must be at least 3: two deliveries are kept for telling the run")
        self._bus, self._queue, self._handler, self._on_poison = bus, queue, handler, on_poison
        self._clock, self._again = clock, again
        self._deliveries_to_handle = max_delivery_count - 2
        self._slots = asyncio.Semaphore(concurrency or 2**31)
        self._waits = waits or Waits()
        self._receive_wait, self._grace, self._probe_every = receive_wait, grace, probe_every
        self._locks, self._aside = Locks(bus, clock, ceiling=lock_ceiling), aside
        self._reached_at: datetime | None = None
        self._worked_at = clock.now()
        self._held: dict[asyncio.Task[None], Delivery] = {}
        self._works: dict[tuple[str, bytes], _Work] = {}
        self._concluded = 0
        self._dependencies_up = asyncio.Event()
        self._dependencies_up.set()
        self._bugs: dict[tuple[str, bytes], str] = {}
        self._stop = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Returns some time after `stop` is set: handlers get their grace, then messages in hand are abandoned.

        Cancelling it instead is like killing the process: nothing is settled, and locks lapse.
        """
        self._stop = stop
        try:
            with contextlib.suppress(_Stopping):
                while not stop.is_set():
                    await self._receive_one()
        finally:
            await self._wind_up(abandon=stop.is_set())

    @property
    def idle_since(self) -> datetime | None:
        """Since when the queue has had no work; None while there is some in hand, or while it cannot be told: before
        the first receive has come back, and while the broker is away.
        """
        in_hand = (*self._held.values(), *(work.delivery for work in self._works.values()))
        if self._reached_at is None or any(not self._aside(delivery) for delivery in in_hand):
            return None
        return max(self._reached_at, self._worked_at)

    # --- receiving ---------------------------------------------------------------------------------------------------

    async def _receive_one(self) -> None:
        await self._unless_stopping(self._slots.acquire())
        await self._unless_stopping(self._dependencies())
        delivery = await self._unless_stopping(self._next())
        task = asyncio.create_task(self._take_care_of(delivery), name=f"{self._queue}: {delivery.message_id}")
        self._held[task] = delivery
        task.add_done_callback(self._done_with)

    def _done_with(self, task: asyncio.Task[None]) -> None:
        self._slots.release()
        self._note_work(self._held.pop(task))

    def _note_work(self, delivery: Delivery) -> None:
        if not self._aside(delivery):
            self._worked_at = self._clock.now()

    async def _next(self) -> Delivery:
        failures = 0
        while True:
            try:
                delivery = await self._bus.receive(self._queue, wait=self._receive_wait)
            except Exception as error:  # noqa: BLE001  # whatever ails the broker, it must not end the process
                failures, self._reached_at = failures + 1, None
                if failures == 1:
                    self._report_outage(error)
                await self._clock.sleep(self._waits.after(failures))
            else:
                if failures:
                    _log.info("bus.reachable", queue=self._queue, failures=failures)
                failures = 0
                self._reached_at = self._reached_at or self._clock.now()
                if delivery is not None:
                    return delivery

    def _report_outage(self, error: Exception) -> None:
        match error:
            case Transient():
                _log.warning("bus.unreachable", queue=self._queue, error=str(error))
            case NotFound() | Forbidden():
                _log.error("bus.refused", queue=self._queue, error=str(error), next="keeps trying, ever less often")
            case _:
                _log.exception("bus.bug", queue=self._queue)

    async def _dependencies(self) -> None:
        """Returns when dependencies are up, or when it is time to see with one message whether they are."""
        if not self._dependencies_up.is_set():
            await _race(self._dependencies_up.wait(), self._clock.sleep(self._probe_every))

    # --- one message -------------------------------------------------------------------------------------------------

    async def _take_care_of(self, delivery: Delivery) -> None:
        lost = asyncio.Event()
        renewing = asyncio.create_task(self._locks.keep(delivery, lost), name=f"lock of {delivery.message_id}")
        try:
            await self._handle(delivery, lost)
        except _Stopping:
            await self._abandon(delivery)
        except LockLost:
            _log.info("message.lock-lost", **about(delivery))
        except Exception as bug:  # noqa: BLE001  # one message never stops the process
            self._note_bug(delivery, bug)
        finally:
            renewing.cancel()

    async def _handle(self, delivery: Delivery, lost: asyncio.Event) -> None:
        work = self._works.get(_matter(delivery))
        if delivery.delivery_count >= self._deliveries_to_handle:
            if await self._made_room(delivery, work):
                await self._settle(delivery, lambda: self._bus.complete(delivery))
                return
            if work is None:
                await self._reject(delivery, self._delivered_too_often(delivery), last=True)
                return
        work = self._works.get(_matter(delivery)) or self._begin(delivery)
        await _race(asyncio.wait((work.task,)), lost.wait())
        if not work.task.done():
            return  # it comes again, and joins
        match work.task.result():
            case None:
                await self._settle(delivery, lambda: self._bus.complete(delivery))
            case Poison() as poison:
                await self._reject(delivery, poison)
            case _Stopping() | LockLost() as over:
                raise over
            case _ if delivery.delivery_count + 1 >= self._deliveries_to_handle:
                await self._reject(delivery, self._delivered_too_often(delivery), last=True)
            case _:
                pass  # the lock lapses

    def _begin(self, delivery: Delivery) -> _Work:
        matter = _matter(delivery)

        def over(_: asyncio.Task[Exception | None]) -> None:
            del self._works[matter]
            self._note_work(delivery)

        task = asyncio.create_task(self._work(delivery), name=f"work on {delivery.message_id}")
        self._works[matter] = work = _Work(delivery, task)
        task.add_done_callback(over)
        return work

    async def _work(self, delivery: Delivery) -> Exception | None:
        """Runs the handler; returns what went wrong."""
        try:
            await self._try(delivery, lambda: self._handler(delivery))
        except (Stale, Duplicate) as over:
            _log.debug("message.over", **about(delivery), because=str(over))
        except (Poison, LockLost, _Stopping) as error:
            return error
        except Exception as bug:  # noqa: BLE001  # one message never stops the process
            self._note_bug(delivery, bug)
            return bug
        return None

    def _note_bug(self, delivery: Delivery, bug: Exception) -> None:
        self._bugs[_matter(delivery)] = _where(bug)
        if len(self._bugs) > 1000:
            self._bugs.pop(next(iter(self._bugs)))
        _log.exception("message.bug", **about(delivery))

    async def _made_room(self, delivery: Delivery, work: _Work | None) -> bool:
        """Whether a message near its limit may go, since nothing speaks against it and nothing is lost with it."""
        _, times = names.sent_before(delivery.message_id)
        if self._again is None or (work is None and (_matter(delivery) in self._bugs or times >= _SENT_AT_MOST)):
            return False
        again, made = self._again, False

        async def make() -> None:
            nonlocal made
            made = await again(delivery)

        try:
            await self._try(delivery, make)
        except Poison:
            return False
        if made:
            _log.info("message.made-room", **about(delivery))
        return made

    async def _reject(self, delivery: Delivery, poison: Poison, *, last: bool = False) -> None:
        try:
            await self._try(delivery, lambda: self._on_poison(delivery, poison))
        except (Stale, Duplicate, Poison):
            pass  # there is no run to be told
        except (_Stopping, LockLost):
            raise
        except Exception:
            if not last:
                raise
            _log.exception("message.bug", **about(delivery))
        reason, description = poison.reason, poison.description
        _log.warning("message.dead-lettered", **about(delivery), reason=reason, description=description)
        await self._settle(delivery, lambda: self._bus.dead_letter(delivery, reason=reason, description=description))

    def _delivered_too_often(self, delivery: Delivery) -> Poison:
        cause = self._bugs.pop(_matter(delivery), None)
        seen = f"the last failure seen was {cause}" if cause else "the processes that had it died or lost its lock"
        text = (
            f"Delivered {self._deliveries_to_handle} times and never finished; {seen}. Look for message.bug in the log"
        )
        return Poison("bug", f"{text}; when the cause is gone, send it again under a new message id.")

    async def _try(self, delivery: Delivery, operation: Callable[[], Awaitable[None]]) -> None:
        """Retries while a dependency is down or refuses us, and pauses reception if it seems down for others too.

        A token may have expired in this instant; and where a right is missing, the message waits until it is granted.
        """
        concluded_before = self._concluded

        async def attempt() -> None:
            try:
                await operation()
            except Forbidden as refusal:
                raise Transient(str(refusal)) from refusal

        def note(error: Transient, failures: int, wait: float) -> None:
            log = _log.warning if failures == 1 else _log.debug
            log("message.retrying", **about(delivery), failures=failures, wait=round(wait, 3), error=str(error))
            if failures > 1 and self._concluded == concluded_before:
                self._dependencies_up.clear()

        try:
            await retry_transient(
                attempt, clock=self._clock, waits=self._waits, before_wait=note, sleep=self._sleep_unless_stopping
            )
        finally:
            self._concluded += 1
            self._dependencies_up.set()

    async def _settle(self, delivery: Delivery, settle: Callable[[], Awaitable[None]]) -> None:
        """Tries for about a minute; if the broker is away for longer, the message comes again and is found done."""
        try:
            await retry_transient(settle, clock=self._clock, waits=self._waits, attempts=10)
        except (Transient, Forbidden) as error:
            _log.warning("message.not-settled", **about(delivery), error=str(error))

    async def _abandon(self, delivery: Delivery) -> None:
        try:
            await self._bus.abandon(delivery)
        except (LockLost, Transient) as error:
            _log.info("message.not-abandoned", **about(delivery), error=str(error))
        except Exception:  # noqa: BLE001  # stopping goes on
            _log.exception("message.not-abandoned", **about(delivery))

    # --- stopping ----------------------------------------------------------------------------------------------------

    async def _wind_up(self, *, abandon: bool) -> None:
        if abandon and self._in_hand():
            await _race(asyncio.wait(self._in_hand()), self._clock.sleep(self._grace))
        held = dict(self._held)
        left = self._in_hand()
        for task in left:
            task.cancel()
        if left:
            await _race(asyncio.wait(left), self._clock.sleep(self._grace))
        if abandon:
            await asyncio.gather(*(self._abandon(delivery) for delivery in held.values()))

    def _in_hand(self) -> list[asyncio.Task[Any]]:
        return [*self._held, *(work.task for work in self._works.values())]

    async def _sleep_unless_stopping(self, seconds: float) -> None:
        await self._unless_stopping(self._clock.sleep(seconds))

    async def _unless_stopping(self, waited: Coroutine[Any, Any, T]) -> T:
        """What `waited` returns; raises `_Stopping` when told to stop first. A result is never thrown away."""
        task, stopping = asyncio.create_task(waited), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))
        if task.cancelled():
            raise _Stopping
        return task.result()


async def _race(*contenders: Coroutine[Any, Any, object]) -> None:
    """Returns when the first of them has finished; the others are cancelled."""
    tasks = [asyncio.create_task(contender) for contender in contenders]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _matter(delivery: Delivery) -> tuple[str, bytes]:
    """What is the same for a message, its redeliveries, and those that were sent in its place."""
    first, _ = names.sent_before(delivery.message_id)
    return first, delivery.body


def _where(bug: Exception) -> str:
    if isinstance(bug, SilobusError):  # which says what happened, to what, and what to do
        return f"this: {str(bug).removesuffix('.')}"
    frames = traceback.extract_tb(bug.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(bug).__name__}{place}"
