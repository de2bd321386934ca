"""The links of queues: what clients send into one, and what one sends to clients.

Deliveries and credit are the ``links`` they are made of; locks and order are the queue's. Every acknowledgement goes
through ``after_commit``.
"""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from servicebus_emulator import errors, log, performatives
from servicebus_emulator.broker import Queue
from servicebus_emulator.codec import DecodeError, Described, Int, Timestamp, ULong
from servicebus_emulator.errors import DeliveryFault, LinkFault
from servicebus_emulator.faults import Fault, Operation
from servicebus_emulator.links import Carrier, ReceivingLink, SendingLink
from servicebus_emulator.message import BATCH_FORMAT, cut, data_sections, read_arrival, read_properties
from servicebus_emulator.message import render as render_message
from servicebus_emulator.namespace import LiveQueue
from servicebus_emulator.performatives import ACCEPTED_STATE, outcome_code, rejected
from servicebus_emulator.record import Disabled, LockLost, Message, NotFound, QueueFull, Refused
from servicebus_emulator.trouble import REFUSALS, Struck


class QueueInlet(ReceivingLink):
    """A client's messages on their way into a queue."""

    def __init__(
        self, session: Carrier, handle: int, delivery_count: int, max_message_size: int, live: LiveQueue
    ) -> None:
        _refuse_disabled(live.queue.check_takes)
        own = live.queue.settings.max_message_size or max_message_size
        super().__init__(session, handle, delivery_count, min(own, max_message_size))
        self._live = live
        live.join(self)

    def evict(self) -> None:
        self.session.detach(self.handle, errors.gone(self._live.name))

    def detached(self) -> None:
        super().detached()
        self._live.leave(self)

    def on_delivery(self, delivery_id: int, message_format: int, payload: bytes, *, settled: bool) -> None:
        fault = self.session.suffer(Operation.SEND, self.handle)
        if fault in REFUSALS:
            raise DeliveryFault(*REFUSALS[fault])
        payloads = [payload]
        if message_format == BATCH_FORMAT:
            payloads = data_sections(cut(payload).body)
        arrivals = [read_arrival(each) for each in payloads]
        try:
            self._live.send(arrivals * 2 if fault is Fault.DUPLICATE else arrivals)
        except QueueFull as full:
            raise DeliveryFault(errors.RESOURCE_LIMIT_EXCEEDED, str(full)) from None
        except Disabled as disabled:
            raise DeliveryFault(errors.ENTITY_DISABLED, str(disabled)) from None
        if not settled:
            self._live.journal.after_commit(lambda: self._accept(delivery_id, is_lost=fault is Fault.ACK_LOST))

    def _accept(self, delivery_id: int, *, is_lost: bool) -> None:
        if is_lost:
            self.session.lose_answer(self.handle)
        elif self.attached:
            self.session.acknowledge(delivery_id, ACCEPTED_STATE)


class QueueOutlet(SendingLink):
    """A queue's messages on their way to a client."""

    def __init__(self, session: Carrier, handle: int, live: LiveQueue, *, dead: bool, deletes: bool) -> None:
        _refuse_disabled(live.queue.check_gives)
        super().__init__(session, handle)
        self.deletes = deletes
        self._live = live
        self._dead = dead
        live.join(self)

    def evict(self) -> None:
        self.session.detach(self.handle, errors.gone(self._live.name))

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
        token = message.lock
        payload = render_delivery(message)
        self.spend()
        self.session.reserve(1, len(payload))
        self._live.journal.after_commit(lambda: self._transmit(token, payload))

    def _transmit(self, token: UUID | None, payload: bytes) -> None:
        if self.attached and self._leaves():
            tag = token.bytes_le if token is not None else self.delivery_count.to_bytes(4, "big")
            self.session.transmit(self, tag, payload, settled=self.deletes, token=token)
        elif token is not None:
            self._release_unsent(token)
        self.session.reserve(-1, -len(payload))

    def _leaves(self) -> bool:
        try:
            self.session.suffer(Operation.DELIVER, self.handle)
        except Struck:
            return False
        return True

    def _release_unsent(self, token: UUID) -> None:
        """The client went away before the message left: it was never delivered."""
        try:
            self._live.act(lambda queue, now: queue.release(token, now))
        except (LockLost, NotFound):
            log.debug("lock.lapsed_unsent", queue=self._live.name)

    def on_disposition(self, token: UUID, state: Described, reply: Callable[[Described], None]) -> None:
        """Settle in the queue; the reply repeats the outcome, or says why there is none."""
        fault = self.session.suffer(Operation.SETTLE, self.handle)
        if fault in REFUSALS:
            reply(rejected(*REFUSALS[fault]))
            return
        try:
            answer = self._live.act(lambda queue, now: settle(queue, token, state, now))
        except LockLost as lost:
            reply(rejected(errors.LOCK_LOST, f"The lock supplied is invalid: {lost}."))
            return
        except Refused as refused:
            reply(rejected(errors.NOT_ALLOWED, str(refused)))
            return
        if fault is Fault.ACK_LOST:
            self._live.journal.after_commit(lambda: self.session.lose_answer(self.handle))
        else:
            self._live.journal.after_commit(lambda: reply(answer))


def _refuse_disabled(check: Callable[[], None]) -> None:
    try:
        check()
    except Disabled as disabled:
        raise LinkFault(errors.ENTITY_DISABLED, str(disabled)) from None


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
