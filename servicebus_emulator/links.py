"""The links of a session (AMQP 1.0 part 2.6): what clients send into queues, and what queues send to clients.

A link knows credit, deliveries and their outcomes. Frames, windows and handles are the session's; locks and order
are the queue's. Every acknowledgement goes through ``after_commit``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol
from uuid import UUID

from servicebus_emulator import errors, log, performatives
from servicebus_emulator.broker import Queue
from servicebus_emulator.codec import DecodeError, Described, Int, Timestamp, ULong
from servicebus_emulator.errors import DeliveryFault, LinkFault
from servicebus_emulator.message import BATCH_FORMAT, cut, data_sections, read_arrival, read_properties
from servicebus_emulator.message import render as render_message
from servicebus_emulator.namespace import LiveQueue
from servicebus_emulator.performatives import ACCEPTED_STATE, Flow, Transfer, outcome_code, rejected
from servicebus_emulator.record import LockLost, Message, NotFound, Refused

CREDIT = 1000


class Carrier(Protocol):
    """What a link needs of its session."""

    def is_ready(self) -> bool: ...
    def reserve(self, deliveries: int, size: int) -> None: ...
    def grant(self, handle: int, delivery_count: int, credit: int) -> None: ...
    def report_drained(self, handle: int, delivery_count: int) -> None: ...
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
        self._max_message_size = max_message_size
        self._delivery_count = delivery_count
        self._spent = 0
        self._first: Transfer | None = None
        self._parts: list[bytes] = []
        self._size = 0

    def start(self) -> None:
        self.session.grant(self.handle, self._delivery_count, CREDIT)

    def detached(self) -> None:
        self.attached = False

    def on_flow(self, flow: Flow) -> None:
        if flow.echo:
            self.session.grant(self.handle, self._delivery_count, CREDIT - self._spent)

    def on_transfer(self, transfer: Transfer, payload: bytes) -> None:
        first = self._first
        if first is None:
            if transfer.delivery_id is None:
                raise errors.SessionFault(errors.INVALID_FIELD, "a delivery begins with a delivery-id")
            first = self._first = transfer
        self._size += len(payload)
        if self._size <= self._max_message_size:
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
            if size > self._max_message_size:
                raise DeliveryFault(
                    errors.MESSAGE_SIZE_EXCEEDED,
                    f"The message is {size} bytes; {self._max_message_size} are allowed.",
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
        self._delivery_count = (self._delivery_count + 1) & 0xFFFFFFFF
        self._spent += 1
        if self._spent >= CREDIT // 2:
            self._spent = 0
            self.session.grant(self.handle, self._delivery_count, CREDIT)


class QueueInlet(ReceivingLink):
    """A client's messages on their way into a queue."""

    def __init__(
        self, session: Carrier, handle: int, delivery_count: int, max_message_size: int, live: LiveQueue
    ) -> None:
        super().__init__(session, handle, delivery_count, max_message_size)
        self._live = live
        live.join(self)

    def evict(self) -> None:
        self.session.detach(self.handle, _gone(self._live))

    def detached(self) -> None:
        super().detached()
        self._live.leave(self)

    def on_delivery(self, delivery_id: int, message_format: int, payload: bytes, *, settled: bool) -> None:
        payloads = [payload]
        if message_format == BATCH_FORMAT:
            payloads = data_sections(cut(payload).body)
        arrivals = [read_arrival(each) for each in payloads]
        self._live.send(arrivals)
        if not settled:
            self._live.journal.after_commit(lambda: self._accept(delivery_id))

    def _accept(self, delivery_id: int) -> None:
        if self.attached:
            self.session.acknowledge(delivery_id, ACCEPTED_STATE)


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
            limit = (flow.delivery_count or 0) + flow.link_credit
            self.credit = max(0, _serial(limit - self.delivery_count))
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


class QueueOutlet(SendingLink):
    """A queue's messages on their way to a client."""

    def __init__(self, session: Carrier, handle: int, live: LiveQueue, *, dead: bool, deletes: bool) -> None:
        super().__init__(session, handle)
        self.deletes = deletes
        self._live = live
        self._dead = dead
        live.join(self)

    def evict(self) -> None:
        self.session.detach(self.handle, _gone(self._live))

    def is_hungry(self) -> bool:
        """Has credit, and what is sent would leave at once: a message is not locked to wait in a buffer."""
        return self.attached and self.credit > 0 and self.session.is_ready()

    def detached(self) -> None:
        super().detached()
        self._live.forget(self, dead=self._dead)
        self._live.leave(self)

    def on_credit(self) -> None:
        self._live.feed(self, dead=self._dead)

    def drain(self) -> None:
        # What is already locked for this link goes out before the client hears that nothing more comes.
        drain = super().drain
        self._live.journal.after_commit(lambda: drain() if self.attached else None)

    def deliver(self, message: Message) -> None:
        self.spend()
        token = message.lock
        payload = render_delivery(message)
        self.session.reserve(1, len(payload))
        self._live.journal.after_commit(lambda: self._transmit(token, payload))

    def _transmit(self, token: UUID | None, payload: bytes) -> None:
        if self.attached:
            tag = token.bytes_le if token is not None else self.delivery_count.to_bytes(4, "big")
            self.session.transmit(self, tag, payload, settled=self.deletes, token=token)
        elif token is not None:
            self._release_unsent(token)
        self.session.reserve(-1, -len(payload))

    def _release_unsent(self, token: UUID) -> None:
        """The client went away before the message left: it was never delivered."""
        try:
            self._live.act(lambda queue, now: queue.release(token, now))
        except (LockLost, NotFound):
            log.debug("lock.lapsed_unsent", queue=self._live.name)

    def on_disposition(self, token: UUID, state: Described, reply: Callable[[Described], None]) -> None:
        """Settle in the queue; the reply repeats the outcome, or says why there is none."""
        try:
            answer = self._live.act(lambda queue, now: settle(queue, token, state, now))
        except LockLost as lost:
            reply(rejected(errors.LOCK_LOST, f"The lock supplied is invalid: {lost}."))
            return
        except Refused as refused:
            reply(rejected(errors.NOT_ALLOWED, str(refused)))
            return
        self._live.journal.after_commit(lambda: reply(answer))


def _gone(live: LiveQueue) -> LinkFault:
    return LinkFault(errors.NOT_FOUND, f"The messaging entity '{live.name}' has been deleted.")


def render_delivery(message: Message) -> bytes:
    """The message with the annotations that receivers look for."""
    annotations: dict[str, Any] = {
        "x-opt-sequence-number": message.sequence,
        "x-opt-enqueued-time": Timestamp(message.enqueued_at),
        "x-opt-message-state": Int(message.state),
    }
    if message.locked_until is not None:
        annotations["x-opt-locked-until"] = Timestamp(message.locked_until)
    return render_message(
        message.payload,
        delivery_count=message.delivery_count,
        annotations=annotations,
        lock_token=message.lock,
        added=message.added,
    )


def settle(queue: Queue, token: UUID, state: Described, now: int) -> Described:
    """What a terminal delivery state (3.4) means to a queue; gives the state that confirms it."""
    match outcome_code(state):
        case performatives.ACCEPTED:
            queue.complete(token, now)
            return ACCEPTED_STATE
        case performatives.REJECTED:
            queue.dead_letter(token, now, *_dead_letter_details(state.value))
            return Described(ULong(performatives.REJECTED), [])  # with an error in it, it would be a failure
        case performatives.RELEASED:
            queue.release(token, now)
        case performatives.MODIFIED:
            delivery_failed, undeliverable_here, annotations = (*state.value[:3], None, None, None)[:3]
            added = read_properties(annotations)
            if undeliverable_here:
                queue.defer(token, now, added)
            elif delivery_failed:
                queue.abandon(token, now, added)
            else:
                queue.release(token, now)
        case _:
            raise DecodeError("not a terminal delivery state")
    return state


def _dead_letter_details(fields: list[Any]) -> tuple[str | None, str | None, dict[str, Any]]:
    """Reason and description, which clients put into the error's info (3.4.3, 2.8.14), and properties beside them."""
    error = fields[0] if fields else None
    if not isinstance(error, Described) or not isinstance(error.value, list):
        return None, None, {}
    condition, description, info = (*error.value[:3], None, None, None)[:3]
    details = read_properties(info)
    reason = details.pop("DeadLetterReason", None)
    if reason is None and isinstance(condition, str) and condition != "com.microsoft:dead-letter":
        reason = condition
    text = details.pop("DeadLetterErrorDescription", description)
    return (
        str(reason) if isinstance(reason, str) else None,
        str(text) if isinstance(text, str) else None,
        details,
    )
