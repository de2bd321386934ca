"""What a fault looks like to a client: its name, turned into what the service shows. Which one strikes is in `faults`.

What ends a link, the rights or the connection is done here. A refusal, a lost answer and a duplicate are for the
operation that was struck to carry out. $cbs is spared: without it nobody could come back.
"""

import asyncio
from collections.abc import Mapping
from typing import Protocol

from servicebus_emulator import errors, log
from servicebus_emulator.errors import LinkFault
from servicebus_emulator.faults import Fault, Faults, Operation
from servicebus_emulator.rights import Claims

REFUSALS: Mapping[Fault | None, tuple[str, str]] = {
    Fault.SERVER_BUSY: (
        errors.SERVER_BUSY,
        "The request was terminated because the entity is being throttled. Error code : 50001. "
        "Please wait 4 seconds and try again.",
    ),
    Fault.QUEUE_FULL: (
        errors.RESOURCE_LIMIT_EXCEEDED,
        "The maximum entity size has been reached or exceeded (as was asked for with the fault queue-full).",
    ),
}


class Struck(Exception):
    """The operation is not done, and nobody is there to hear of it."""


class Line(Protocol):
    """The connection, as faults see it."""

    def abort(self) -> None: ...
    def hold(self, seconds: float) -> None: ...


class Victim(Protocol):
    """The session."""

    claims: Claims
    line: Line

    def detach(self, handle: int, fault: LinkFault | None = None) -> None: ...


class Watched(Protocol):
    """A link."""

    attached: bool
    delivery_count: int


def strike(faults: Faults, victim: Victim, operation: Operation, handle: int) -> Fault | None:
    """What is left for the operation to do. Raises Struck, and LinkFault when it is an attach."""
    fault = faults.strike(operation)
    if fault is None:
        return None
    log.debug("fault.struck", fault=fault, operation=operation)
    match fault:
        case Fault.DELAY:
            victim.line.hold(faults.seconds(fault))
        case Fault.DROP_CONNECTION:
            victim.line.abort()
            raise Struck
        case Fault.TOKEN_EXPIRED:
            victim.claims.revoke()  # which detaches what is attached
            if operation is Operation.ATTACH:
                raise LinkFault(errors.UNAUTHORIZED, "ExpiredToken: The token is expired.")
            raise Struck
        case Fault.DETACH:
            if operation is Operation.ATTACH:
                raise _forced()
            victim.detach(handle, _forced())
            raise Struck
        case Fault.SERVER_BUSY if operation is Operation.ATTACH:
            raise LinkFault(*REFUSALS[fault])
    return fault


def _forced() -> LinkFault:
    return LinkFault(errors.DETACH_FORCED, "The link is force detached by the broker. Code: ServerError.")


def lose_answer(faults: Faults, victim: Victim, handle: int) -> None:
    """What was asked for is done; its link goes, or the connection, before that is said."""
    if faults.toss():
        victim.detach(handle, _forced())
    else:
        victim.line.abort()


def watch_idle(victim: Victim, handle: int, link: Watched, seconds: float) -> None:
    """Detaches the link once nothing was delivered on it for so long, or a little longer."""
    before = link.delivery_count

    def look() -> None:
        if link.attached and link.delivery_count == before:
            victim.detach(handle, LinkFault(errors.DETACH_FORCED, f"IdleTimerExpired: Idle timeout: {seconds:g} s."))
        elif link.attached:
            watch_idle(victim, handle, link, seconds)

    asyncio.get_running_loop().call_later(seconds, look)
