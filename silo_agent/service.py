"""The agent: listens on its silo's queue, and keeps one piece of work per round going, however often it is asked.

SHELL. Here lives how messages meet work: a redelivered announcement joins the work that is going on, a closed round
stops it, and what goes wrong inside ends as a word of a closed list. What a round is, is `work`'s business.
"""

from __future__ import annotations

import asyncio
import json
import re
import traceback
import uuid
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, final

from messages import names
from messages.codec import decode
from messages.consumer import Consumer
from messages.errors import Duplicate, Poison, Transient
from messages.log import EventLog
from messages.ports import Bus, Delivery
from messages.schemas import ClosedBecause, DeclineReason, Offer, RoundAnnounced, RoundClosed, RoundDeclined, SiloHello
from silo_agent.approval import measured
from silo_agent.home import HomeGone
from silo_agent.rounds import Failed
from silo_agent.silo import Silo
from silo_agent.work import RoundWork

_log = EventLog(__name__)
_GRACE: Final = 3.0
"""Seconds that work on the point of being published has when the agent is told to stop."""


class AgentFault(Exception):
    """A bug of ours. Its whole story is in the silo's home; no word of it is in this exception, which others log."""


@final
class Agent:
    """One silo's agent."""

    def __init__(self, silo: Silo, bus: Bus, *, receive_wait: float = 60.0) -> None:
        self._silo = silo
        self._bus = bus
        self._works: dict[tuple[str, int], tuple[RoundWork, asyncio.Task[Any]]] = {}
        self._unannounced: set[RoundWork] = set()
        """Works whose message was let go, so that nothing would begin them again in this process."""
        self._receive_wait = receive_wait
        self._stop = asyncio.Event()
        self._homeless = False

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set. Cancelling it is like killing the agent, except that trainings end with it.

        Raises HomeGone: nothing that is charged or leaves could be remembered. What was being worked on comes again.
        """
        self._stop = stop
        greeting = asyncio.create_task(self._greet(), name="hello")
        consumer = Consumer(
            self._bus,
            names.to_silo(self._silo.name),
            self.handle,
            on_poison=self.reject,
            clock=self._silo.clock,
            receive_wait=self._receive_wait,
            waits=self._silo.waits,
            grace=_GRACE,
            again=self.let_go,
        )
        try:
            await consumer.run(stop)
        finally:
            greeting.cancel()
            await self._stop_working()
        if self._homeless:
            home = self._silo.home.path
            raise HomeGone(f"{home} was deleted or moved away; put it back if you can, and start the agent again.")

    async def handle(self, delivery: Delivery) -> None:
        """Returns when the message needs no more work here."""
        await self._stop_if_homeless()
        message: RoundAnnounced | RoundClosed = decode(delivery.body, RoundAnnounced, RoundClosed)
        with self._silo.waiting_for_room():
            if isinstance(message, RoundClosed):
                await self._close(message)
            elif not await self._take_part(message):
                raise Duplicate("the round was being worked on")

    async def _take_part(self, announced: RoundAnnounced) -> bool:
        """Works on the round until it has ended here; False: joined work that was going on."""
        key = (announced.run, announced.round)
        while True:
            joined = key in self._works
            if not joined:
                work = RoundWork(self._silo, announced)
                task = asyncio.create_task(self._work(work), name=f"round {announced.round} of {announced.run}")
                self._works[key] = (work, task)
                task.add_done_callback(partial(self._over, key, work))
            work, task = self._works[key]
            await asyncio.wait((task,))  # and not `await task`: losing this delivery must not end the work
            if (fault := task.exception()) is not None:
                raise fault
            if not (isinstance(work.phase, Failed) and work.about < (*key, announced.announcement)):
                return not joined
            # What failed was for an earlier announcement. This one is answered by tries of its own.

    def _over(self, key: tuple[str, int], work: RoundWork, _: asyncio.Task[Any]) -> None:
        self._works.pop(key, None)
        self._unannounced.discard(work)

    async def let_go(self, delivery: Delivery) -> bool:
        """Whether a message may go that was delivered very often: an announcement. An open round is announced again to
        each agent that starts, this one too; and work that is in hand goes on without a message.
        """
        message: RoundAnnounced | RoundClosed = decode(delivery.body, RoundAnnounced, RoundClosed)
        if isinstance(message, RoundClosed):
            return False
        if (found := self._works.get((message.run, message.round))) is not None:
            self._unannounced.add(found[0])
        return True

    async def reject(self, delivery: Delivery, poison: Poison) -> None:
        """Tells the run about a message that can never succeed, as far as it says which run that is."""
        about = _round_of(delivery.body)
        if about is None:
            return
        reason = DeclineReason.AGENT_FAULT if poison.reason == "bug" else DeclineReason.MESSAGE_INVALID
        run, number = about
        with self._silo.waiting_for_room():
            await self._silo.voice.say(RoundDeclined(run=run, round=number, reason=reason), run=run)

    async def _work(self, work: RoundWork) -> None:
        try:
            with self._silo.waiting_for_room():
                await work.run()
        except Transient:
            raise
        except Exception as bug:  # noqa: BLE001  # whatever it is, its text may tell what must not leave
            await self._stop_if_homeless()
            name = f"{self._silo.clock.now():%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
            story = "".join(traceback.format_exception(bug))
            with self._silo.waiting_for_room():
                await asyncio.to_thread(self._silo.home.write_fault, name, story)
            kind, (run, number, _) = type(bug).__name__, work.about
            _log.error("agent.fault", run=run, round=number, error=kind, look=f"faults/{name}.txt")
            if work in self._unannounced:
                declined = RoundDeclined(run=run, round=number, reason=DeclineReason.AGENT_FAULT)
                await self._silo.patiently(
                    lambda: self._silo.voice.say(declined, run=run), missing="the queue to the orchestrator"
                )
            raise AgentFault(f"{kind}; the silo's home has the story in faults/{name}.txt") from None

    async def _stop_if_homeless(self) -> None:
        """Stops the agent when its home is gone. Raises Transient then: the message is given back."""
        if not await asyncio.to_thread(lambda: self._silo.home.is_gone):
            return
        if not self._homeless:
            self._homeless = True
            _log.error("home.gone", silo=self._silo.name, next="put the home back if you can, and restart the agent")
        self._stop.set()
        raise Transient("the silo's home is gone")

    async def _close(self, closed: RoundClosed) -> None:
        found = self._works.get((closed.run, closed.round))
        if found is not None:
            work, task = found
            work.close()
            await asyncio.wait((task,))
        else:
            await self._silo.runner.abandon(closed.run, closed.round)  # what an earlier agent has started
        if closed.because is not ClosedBecause.AGGREGATED:
            await self._silo.runner.end(closed.run)

    async def _greet(self) -> None:
        offers = []
        for name, task in self._silo.policy.tasks.items():
            if await asyncio.to_thread(measured, task.code) == task.code.sha256:
                offers.append(Offer(task=name, code=task.code.sha256))
            else:
                _log.error("task.code-not-approved", task=name, next="silobus-agent code-digest PATH shows its digest")
        hello = SiloHello(
            instance=uuid.uuid4().hex,
            agent_version=_version(),
            policy=self._silo.policy_digest,
            offers=offers,
            heartbeat=self._silo.heartbeat,
            at=self._silo.clock.now(),
        )
        await self._silo.patiently(lambda: self._silo.voice.say(hello), missing="the queue to the orchestrator")
        _log.info("agent.started", silo=self._silo.name, instance=hello.instance, tasks=[o.task for o in offers])

    async def _stop_working(self) -> None:
        tasks = [task for _, task in self._works.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._silo.runner.close()


def _round_of(body: bytes) -> tuple[str, int] | None:
    """The run and round that an undecodable announcement is about, if it says so in the right form."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return None
    match data:
        case {"kind": "round-closed"}:
            return None
        case {"run": str(run), "round": int(number)} if re.fullmatch(names.RUN_PATTERN, run) and 0 <= number <= 99_999:
            return run, number
        case _:
            return None


def _version() -> str:
    try:
        return version("silobus")
    except PackageNotFoundError:
        return "unknown"
