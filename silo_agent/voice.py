"""Everything this silo says, on its own queue: logged in the egress log first, then sent.

Here lives the one way out for messages. What may be said is decided before; nothing is changed here.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from dataclasses import dataclass

from pydantic import BaseModel

from messages import names
from messages.codec import encode
from messages.ports import Bus, Clock, Outgoing
from messages.schemas import RoundAnnounced, SiloHeartbeat
from silo_agent.egress import EgressLog


@dataclass(frozen=True, slots=True)
class Voice:
    """How `silo` speaks."""

    silo: str
    bus: Bus
    clock: Clock
    egress: EgressLog

    async def say(self, message: BaseModel, *, run: str | None = None, asked: RoundAnnounced | None = None) -> None:
        """Logs and sends a message. Raises what `Bus.send` raises."""
        body = encode(message)
        entry = {
            "what": "message",
            "asked": asker(asked),
            "to": [names.from_silo(self.silo)],
            "sha256": hashlib.sha256(body).hexdigest(),
            "bytes": len(body),
            "message": json.loads(body),
        }
        # A sign of life is not worth a wait for the disk; losing its line in a power cut loses nothing else.
        durable = not isinstance(message, SiloHeartbeat)
        await asyncio.to_thread(self.egress.append, self.clock.now(), entry, durable=durable)
        await self.send(body, run=run)

    async def send(self, body: bytes, *, run: str | None) -> None:
        """Sends a message that was logged. Each time under a new id: it may be wanted again."""
        kind = json.loads(body)["kind"]
        about = f"{self.silo}.{run}" if run else self.silo
        message = Outgoing(body=body, message_id=f"{about}.{kind}.{uuid.uuid4().hex}", subject=kind, correlation_id=run)
        await self.bus.send(names.from_silo(self.silo), message)


def asker(asked: RoundAnnounced | None) -> dict[str, str | int] | None:
    """Who asked, for the egress log."""
    if asked is None:
        return None
    return {
        "experiment": asked.experiment,
        "run": asked.run,
        "round": asked.round,
        "announcement": asked.announcement,
        "task": asked.task,
    }
