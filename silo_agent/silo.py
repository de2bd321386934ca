"""What the work on a round needs of its silo, in one frozen place. Built by `app`, used by `work` and `service`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from messages.errors import Forbidden, NotFound, Transient, says_full
from messages.log import EventLog
from messages.ports import Clock, Store
from messages.retry import Waits, retry_transient
from silo_agent.budget import Budget
from silo_agent.egress import EgressLog
from silo_agent.home import Home
from silo_agent.policy import Policy
from silo_agent.private_state import PrivateState
from silo_agent.runners.port import Runner
from silo_agent.voice import Voice

T = TypeVar("T")
_log = EventLog(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Silo:
    """One silo: its rules, its memory, and its ways out."""

    name: str
    policy: Policy
    policy_digest: str
    home: Home
    budget: Budget
    egress: EgressLog
    state: PrivateState
    runner: Runner
    store: Store
    voice: Voice
    clock: Clock
    heartbeat: float = 15.0
    stalled_after: float = 30.0
    """Seconds without progress after which a trainer is reported as stalled."""
    keep_rounds: int = 3
    waits: Waits = field(default_factory=Waits)
    _turns: dict[str, asyncio.Semaphore] = field(default_factory=dict)

    def turns(self, task: str) -> asyncio.Semaphore:
        """Who may train: so many rounds of a task at once."""
        return self._turns.setdefault(task, asyncio.Semaphore(self.policy.tasks[task].at_once))

    @contextlib.contextmanager
    def waiting_for_room(self) -> Iterator[None]:
        """A full disk is a dependency that is away. Raises Transient instead: whoever asked tries again."""
        try:
            yield
        except OSError as error:
            if not says_full(error):
                raise
            _log.error("home.full", silo=self.name, next="make room where the silo's home is; what waits then goes on")
            raise Transient("the disk with the silo's home is full") from None

    async def patiently(self, operation: Callable[[], Awaitable[T]], *, missing: str | None = None) -> T:
        """What `operation` returns, however long a dependency is down or refuses us.

        A right that is missing is waited for too, and so is a queue or container if `missing` names it: a person has to
        make it, and rights take minutes to be known everywhere. What was trained must not be lost meanwhile.
        """

        async def attempt() -> T:
            try:
                with self.waiting_for_room():
                    return await operation()
            except Forbidden as refusal:
                _log.error("agent.forbidden", silo=self.name, next="silobus-agent check says which right is missing")
                raise Transient("a right is missing") from refusal
            except NotFound as absence:
                if missing is None:
                    raise
                _log.error("agent.missing", silo=self.name, what=missing, next="create it; what is to be sent waits")
                raise Transient(f"{missing} is missing") from absence

        def note(_: Transient, failures: int, wait: float) -> None:
            if failures in (1, 10):
                _log.warning("agent.retrying", silo=self.name, failures=failures, wait=round(wait, 1))

        return await retry_transient(attempt, clock=self.clock, waits=self.waits, before_wait=note)
