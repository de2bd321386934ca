"""Keeping the locks of messages in hand. A lock is a hint, never mutual exclusion: losing one is normal."""

from __future__ import annotations

import asyncio
from typing import Final, final

from messages.errors import Forbidden, LockLost, Transient
from messages.log import EventLog
from messages.ports import Bus, Clock, Delivery

_log: Final = EventLog(__name__)


@final
class Locks:
    """Renews locks at half of what is left of them, and at least every `ceiling` seconds."""

    def __init__(self, bus: Bus, clock: Clock, *, ceiling: float) -> None:
        self._bus, self._clock, self._ceiling = bus, clock, ceiling

    async def keep(self, delivery: Delivery, lost: asyncio.Event) -> None:
        """Renews until it is cancelled, or until the lock is gone: then `lost` is set."""
        until, reached = delivery.locked_until, True
        while until is not None:
            left = (until - self._clock.now()).total_seconds()
            wait = min(max(left / 2, 0.2), self._ceiling) if left > 0 else 5.0
            await self._clock.sleep(wait)
            try:
                until, reached = await self._bus.renew(delivery), True
            except Transient:
                reached = False
            except Forbidden as error:  # a token that was refused may be the last of its kind
                reached = False
                _log.warning("message.not-renewed", **about(delivery), error=str(error))
            except LockLost:
                if reached:  # in spite of renewing: a clock is off, or somebody slept. The next are renewed sooner.
                    self._ceiling = max(1.0, wait / 2)
                _log.info("message.lock-lost", **about(delivery))
                lost.set()
                return
            except Exception:  # noqa: BLE001  # whoever handles the message goes on
                _log.exception("message.lock-bug", **about(delivery))
                return


def about(delivery: Delivery) -> dict[str, object]:
    """What a log entry says of a delivery; nothing of its body."""
    return {
        "queue": delivery.queue,
        "message": delivery.message_id,
        "kind": delivery.subject,
        "run": delivery.correlation_id,
        "deliveries": delivery.delivery_count + 1,
    }
