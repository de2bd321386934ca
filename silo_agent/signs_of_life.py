"""Signs of life of one round: sent as long as it is worked on, and whether the work itself makes progress.

Here lives how progress is seen: by `progress.json` changing, on the agent's clock. That the agent is alive says nothing
about its trainer: one that was stopped, or hangs, is reported as stalled. Of a job elsewhere it also counts that it was
just seen in a queue, which is waiting; and that it was just seen running, until it has shown progress of its own once.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime
from pathlib import Path
from typing import Literal, final

from messages.errors import SilobusError
from messages.log import EventLog
from messages.schemas import RoundAnnounced, SiloHeartbeat
from silo_agent.home import TryDirectory, read_json
from silo_agent.rounds import (
    Announced,
    Checked,
    Checking,
    Deciding,
    Fetching,
    Phase,
    Publishing,
    Resending,
    Training,
    Waiting,
)
from silo_agent.runners import port
from silo_agent.silo import Silo

_log = EventLog(__name__)
Doing = Literal["waiting", "fetching", "training", "uploading"]


@final
class SignsOfLife:
    """What the orchestrator hears of a round that is being worked on."""

    def __init__(self, silo: Silo, announced: RoundAnnounced) -> None:
        self._silo = silo
        self._announced = announced
        self._phase: Phase | None = None
        self._progress_file: Path | None = None
        self._seen: tuple[int, int] | None = None
        self._steps = 0
        self._progressed: datetime = silo.clock.now()
        self._stalled = False
        self._sign: tuple[port.Sign, datetime] | None = None

    def enter(self, phase: Phase, attempt: TryDirectory | None) -> None:
        """The round has come to another phase, which is progress."""
        self._phase, self._progressed, self._seen, self._stalled = phase, self._silo.clock.now(), None, False
        self._sign = None
        if attempt is not None:
            self._progress_file, self._steps = attempt.output / "progress.json", 0

    def seen(self, sign: port.Sign) -> None:
        """A job that runs elsewhere was looked at."""
        now = self._silo.clock.now()
        if isinstance(sign, port.Running) and self._sign is not None and isinstance(self._sign[0], port.Queued):
            self._progressed = now  # its turn has come
        self._sign = (sign, now)

    async def tell(self) -> None:
        """Sends a sign every so often, until cancelled."""
        while True:
            await self._silo.clock.sleep(self._silo.heartbeat)
            doing = _doing(self._phase, self._lately())
            if doing is None:
                continue
            stalled = isinstance(self._phase, Training) and not await self._makes_progress()
            now = self._silo.clock.now()
            sign = SiloHeartbeat(
                run=self._announced.run,
                round=self._announced.round,
                doing=doing,
                steps=self._steps,
                progress_age=max(0.0, (now - self._progressed).total_seconds()),
                stalled=stalled,
                every=self._silo.heartbeat,
                at=now,
            )
            with contextlib.suppress(SilobusError, OSError):  # the next one will do
                await self._silo.voice.say(sign, run=self._announced.run, asked=self._announced)

    def _lately(self) -> port.Sign | None:
        """What was seen of a job elsewhere, if that is not too long ago to be true still."""
        if self._sign is None or (self._silo.clock.now() - self._sign[1]).total_seconds() > self._silo.stalled_after:
            return None
        return self._sign[0]

    async def _makes_progress(self) -> bool:
        now = self._silo.clock.now()
        seen = await asyncio.to_thread(self._look) if self._progress_file else None
        if seen is not None and seen != self._seen:
            self._seen, self._progressed, self._steps, self._stalled = seen, now, seen[1], False
        if (now - self._progressed).total_seconds() <= self._silo.stalled_after:
            return True
        match self._lately():
            case port.Queued():
                return True
            case port.Running() if self._seen is None:
                return True
        if not self._stalled:
            self._stalled = True
            _log.warning("trainer.stalled", run=self._announced.run, round=self._announced.round)
        return False

    def _look(self) -> tuple[int, int] | None:
        """When progress was last written, and how many steps it says."""
        assert self._progress_file is not None  # noqa: S101  # asked before
        try:
            written = self._progress_file.stat().st_mtime_ns
        except OSError:
            return None
        steps = (read_json(self._progress_file) or {}).get("steps")
        return written, min(steps, 10**12) if isinstance(steps, int) and steps >= 0 else 0


def _doing(phase: Phase | None, sign: port.Sign | None) -> Doing | None:
    match phase:
        case Training() if isinstance(sign, port.Queued):
            return "waiting"
        case Announced() | Deciding() | Waiting():
            return "waiting"
        case Fetching():
            return "fetching"
        case Training() | Checking():
            return "training"
        case Checked() | Publishing() | Resending():
            return "uploading"
        case _:
            return None
