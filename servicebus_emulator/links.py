"""The links of a session (AMQP 1.0 part 2.6): deliveries put together, and credit counted.

What a delivery means is a subclass's: a queue's in ``queue_links``, a node's in ``nodes``. Frames, windows and handles
are the session's.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol
from uuid import UUID

from servicebus_emulator import errors, log
from servicebus_emulator.codec import DecodeError, Described
from servicebus_emulator.errors import DeliveryFault, LinkFault
from servicebus_emulator.faults import Fault, Operation
from servicebus_emulator.performatives import Flow, Transfer, rejected

CREDIT = 1000
MOST_CREDIT = 0xFFFFFFFF


class Carrier(Protocol):
    """What a link needs of its session."""

    def is_ready(self) -> bool: ...
    def reserve(self, deliveries: int, size: int) -> None: ...
    def grant(self, handle: int, delivery_count: int, credit: int) -> None: ...
    def report_drained(self, handle: int, delivery_count: int) -> None: ...
    def suffer(self, operation: Operation, handle: int) -> Fault | None: ...
    def lose_answer(self, handle: int) -> None: ...
    def acknowledge(self, delivery_id: int, state: Described) -> None: ...
    def detach(self, handle: int, fault: LinkFault | None = None) -> None: ...
    def transmit(
        self, link: "SendingLink", tag: bytes, payload: bytes, *, settled: bool, token: UUID | None = None
    ) -> None: ...


# ----------------------------------------------------------------------------------------- clients send, we receive


class ReceivingLink(ABC):
    """Puts the frames of a delivery together (2.6.14) and keeps the client in credit (2.6.7)."""

    def __init__(self, session: Carrier, handle: int, delivery_count: int, max_message_size: int) -> None:
        self.session = session
        self.handle = handle
        self.attached = True
        self.is_allowed: Callable[[], bool] = lambda: True
        """Whether the client still has the right to it."""
        self.max_message_size = max_message_size
        self.delivery_count = delivery_count
        self._spent = 0
        self._first: Transfer | None = None
        self._parts: list[bytes] = []
        self._size = 0

    def start(self) -> None:
        self.session.grant(self.handle, self.delivery_count, CREDIT)

    def detached(self) -> None:
        self.attached = False

    def on_flow(self, flow: Flow) -> None:
        if flow.echo:
            self.session.grant(self.handle, self.delivery_count, CREDIT - self._spent)

    def on_transfer(self, transfer: Transfer, payload: bytes) -> None:
        first = self._first
        if first is None:
            if transfer.delivery_id is None:
                raise errors.SessionFault(errors.INVALID_FIELD, "a delivery begins with a delivery-id")
            first = self._first = transfer
        self._size += len(payload)
        if self._size <= self.max_message_size:
            self._parts.append(payload)
        else:
            self._parts.clear()
        if transfer.more and not transfer.aborted:
            return
        whole, size = b"".join(self._parts), self._size
        self._first, self._parts, self._size = None, [], 0
        self._count_delivery()
        if transfer.aborted:
            return
        delivery_id = first.delivery_id or 0
        settled = bool(first.settled or transfer.settled)
        try:
            if size > self.max_message_size:
                raise DeliveryFault(
                    errors.MESSAGE_SIZE_EXCEEDED,
                    f"The message is {size} bytes; {self.max_message_size} are allowed.",
                )
            self.on_delivery(delivery_id, first.message_format or 0, whole, settled=settled)
        except DecodeError as error:
            self._refuse(delivery_id, DeliveryFault(errors.DECODE_ERROR, str(error)), settled=settled)
        except DeliveryFault as fault:
            self._refuse(delivery_id, fault, settled=settled)

    @abstractmethod
    def on_delivery(self, delivery_id: int, message_format: int, payload: bytes, *, settled: bool) -> None:
        """What a whole delivery means at this node."""

    def _refuse(self, delivery_id: int, fault: DeliveryFault, *, settled: bool) -> None:
        log.info("delivery.refused", condition=fault.condition, description=fault.description)
        if not settled:
            self.session.acknowledge(delivery_id, rejected(fault.condition, fault.description))

    def _count_delivery(self) -> None:
        self.delivery_count = (self.delivery_count + 1) & 0xFFFFFFFF
        self._spent += 1
        if self._spent >= CREDIT // 2:
            self._spent = 0
            self.session.grant(self.handle, self.delivery_count, CREDIT)


# ----------------------------------------------------------------------------------------- we send, clients receive


class SendingLink(ABC):
    """Counts the credit that the client gives (2.6.7)."""

    def __init__(self, session: Carrier, handle: int) -> None:
        self.session = session
        self.handle = handle
        self.attached = True
        self.is_allowed: Callable[[], bool] = lambda: True
        """Whether the client still has the right to it."""
        self.delivery_count = 0
        self.credit = 0

    def start(self) -> None:  # noqa: B027  # most links have nothing to say
        """Nothing to say before there is credit."""

    def detached(self) -> None:
        self.attached = False

    def on_flow(self, flow: Flow) -> None:
        if flow.link_credit is not None:
            unseen = _serial(self.delivery_count - (flow.delivery_count or 0))  # sent, but not when this was written
            self.credit = min(max(0, flow.link_credit - unseen), MOST_CREDIT)
        if self.credit:
            self.on_credit()
        if flow.drain:
            self.drain()

    @abstractmethod
    def on_credit(self) -> None:
        """There is credit to send with."""

    def drain(self) -> None:
        """2.6.7: use up what credit is left, and say so; said even when there was none, as clients wait for it."""
        self.delivery_count = (self.delivery_count + self.credit) & 0xFFFFFFFF
        self.credit = 0
        self.session.report_drained(self.handle, self.delivery_count)

    def spend(self) -> None:
        self.credit -= 1
        self.delivery_count = (self.delivery_count + 1) & 0xFFFFFFFF

    def on_disposition(self, token: UUID, state: Described, reply: Callable[[Described], None]) -> None:  # noqa: B027
        """Nodes send their replies settled; only queues hear of outcomes."""


def _serial(difference: int) -> int:
    """RFC 1982 arithmetic on 32 bits, which delivery counts are in (2.6.7)."""
    return ((difference + 0x80000000) & 0xFFFFFFFF) - 0x80000000
