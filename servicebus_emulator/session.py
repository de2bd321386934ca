"""A session (AMQP 1.0 part 2.5): transfer windows, handles, delivery ids, and which delivery is whose.

It routes frames to links and turns what links say into frames. Which places exist, and what a delivery means, it
does not know: ``Places`` resolves an address into a link.
"""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol
from uuid import UUID

from servicebus_emulator import errors, log, performatives, trouble
from servicebus_emulator.addresses import Address, address_of
from servicebus_emulator.codec import Described, Symbol, ULong
from servicebus_emulator.errors import ConnectionFault, LinkFault, SessionFault
from servicebus_emulator.faults import Fault, Faults, Operation
from servicebus_emulator.frames import split_transfer
from servicebus_emulator.links import ReceivingLink, SendingLink
from servicebus_emulator.nodes import ReplyLink
from servicebus_emulator.performatives import (
    Attach,
    Begin,
    Detach,
    Disposition,
    Flow,
    Performative,
    Transfer,
    outcome_code,
)
from servicebus_emulator.rights import Claims, Keyring

INCOMING_WINDOW = 4096
OUTGOING_WINDOW = 0x7FFFFFFF
HANDLE_MAX = 1023
MOST_RESERVED_BYTES = 4 * 1024 * 1024
RECEIVER = True
CBS_NODE = "$cbs"


class Places(Protocol):
    """Makes the link that an attach asks for, or raises LinkFault; knows how far the disk is behind."""

    max_message_size: int
    keyring: Keyring
    faults: Faults

    def now(self) -> int: ...
    def is_congested(self) -> bool: ...
    def after_commit(self, act: Callable[[], None]) -> None: ...

    def sending_link(self, session: "Session", attach: Attach, address: str | None) -> SendingLink: ...
    def receiving_link(self, session: "Session", attach: Attach, address: str | None) -> ReceivingLink: ...


class Session:
    def __init__(
        self,
        begin: Begin,
        places: Places,
        *,
        claims: Claims,
        line: trouble.Line,
        send: Callable[[Performative, bytes], None],
        is_writable: Callable[[], bool],
        max_frame_size: int,
    ) -> None:
        self._places = places
        self.claims = claims
        self.line = line
        self._send_frame = send
        self._is_writable = is_writable
        self._max_frame_size = max_frame_size
        self._next_incoming_id = begin.next_outgoing_id
        self._incoming_window = INCOMING_WINDOW
        self._next_outgoing_id = 0
        self._remote_window = begin.incoming_window
        self._next_delivery_id = 0
        self._links: dict[int, SendingLink | ReceivingLink] = {}
        self._detaching: set[int] = set()  # we have detached; the peer has not confirmed
        self._unsettled: dict[int, tuple[SendingLink, UUID]] = {}
        self._outbox: deque[tuple[Transfer, bytes]] = deque()
        self._reserved = 0  # deliveries, and their bytes, that are on their way to disk
        self._reserved_bytes = 0
        self.ended = False

    def handle(self, performative: Performative, payload: bytes) -> None:
        with suppress(trouble.Struck):
            self._handle(performative, payload)

    def _handle(self, performative: Performative, payload: bytes) -> None:
        match performative:
            case Transfer():
                self._on_transfer(performative, payload)
            case Disposition():
                self._on_disposition(performative)
            case Flow():
                self._on_flow(performative)
            case Attach():
                self._on_attach(performative)
            case Detach():
                self._on_detach(performative)
            case _:
                raise ConnectionFault(errors.NOT_ALLOWED, f"{type(performative).__name__} is out of place in a session")

    def close(self) -> None:
        """The session is over: nothing more goes out, and links stop asking for messages."""
        self.ended = True
        for link in self._links.values():
            link.detached()
        self._links.clear()
        self._unsettled.clear()
        self._outbox.clear()

    # -------------------------------------------------------------------------------------------- links

    def _on_attach(self, attach: Attach) -> None:
        """2.6.3. A refused link is attached without source and target, then detached with the reason."""
        if attach.handle > HANDLE_MAX:
            raise ConnectionFault(errors.FRAMING_ERROR, "a handle is larger than handle-max")
        if attach.handle in self._links:
            raise SessionFault(errors.HANDLE_IN_USE, f"handle {attach.handle} is in use")
        self._detaching.discard(attach.handle)  # some clients never confirm the detach of a refused link
        link: SendingLink | ReceivingLink
        mishap: Fault | None = None
        try:
            if CBS_NODE not in (address_of(attach.source), address_of(attach.target)):
                mishap = self.suffer(Operation.ATTACH, attach.handle)
            if attach.role is RECEIVER:
                link = self._places.sending_link(self, attach, address_of(attach.source))
            else:
                link = self._places.receiving_link(self, attach, address_of(attach.target))
        except LinkFault as fault:
            log.info("link.refused", link=attach.name, condition=fault.condition, description=fault.description)
            self._reply_to_attach(attach)
            self.detach(attach.handle, fault)
            return
        self._links[attach.handle] = link
        self._reply_to_attach(attach, link)
        link.start()
        if mishap is Fault.IDLE_DETACH:
            trouble.watch_idle(self, attach.handle, link, self._places.faults.seconds(mishap))

    def _reply_to_attach(self, attach: Attach, link: SendingLink | ReceivingLink | None = None) -> None:
        """Without a link it is a refusal."""
        size = link.max_message_size if isinstance(link, ReceivingLink) else self._places.max_message_size
        source, target = attach.source, attach.target
        if source is None or not source.value:
            source = Described(ULong(performatives.SOURCE), [address_of(target)])
        if target is None or not target.value:
            target = Described(ULong(performatives.TARGET), [address_of(source)])
        self.send(
            Attach(
                name=attach.name,
                handle=attach.handle,
                role=not attach.role,
                snd_settle_mode=attach.snd_settle_mode,
                rcv_settle_mode=attach.rcv_settle_mode,
                source=source if link else None,
                target=target if link else None,
                initial_delivery_count=0 if attach.role is RECEIVER else None,
                max_message_size=size,
                properties={Symbol("com.microsoft:max-message-batch-size"): ULong(size)},
            )
        )

    def detach(self, handle: int, fault: LinkFault | None = None) -> None:
        """End a link from our side."""
        self._forget_link(handle)
        self._detaching.add(handle)
        error = performatives.error(fault.condition, fault.description) if fault is not None else None
        self.send(Detach(handle=handle, closed=True, error=error))

    def suffer(self, operation: Operation, handle: int) -> Fault | None:
        """What goes wrong with this operation because somebody asked for that. Raises Struck."""
        return trouble.strike(self._places.faults, self, operation, handle)

    def lose_answer(self, handle: int) -> None:
        if handle in self._links:
            trouble.lose_answer(self._places.faults, self, handle)

    def check_rights(self) -> None:
        """Ends the links to which the client has no right any more."""
        for handle, link in list(self._links.items()):
            if not link.is_allowed():
                fault = LinkFault(errors.UNAUTHORIZED, "Unauthorized access: the token for this link has expired.")
                log.info("link.ended", condition=fault.condition, description=fault.description)
                self.detach(handle, fault)

    def _on_detach(self, detach: Detach) -> None:
        """2.6.6"""
        if detach.handle in self._detaching:
            self._detaching.remove(detach.handle)
            return
        self._link(detach.handle)
        self._forget_link(detach.handle)
        self.send(Detach(handle=detach.handle, closed=detach.closed))

    def _forget_link(self, handle: int) -> None:
        link = self._links.pop(handle, None)
        if link is None:
            return
        link.detached()
        if isinstance(link, SendingLink):
            # Later dispositions of this link are ignored: clients settle again over $management.
            self._unsettled = {key: entry for key, entry in self._unsettled.items() if entry[0] is not link}

    def _link(self, handle: int) -> SendingLink | ReceivingLink:
        try:
            return self._links[handle]
        except KeyError:
            raise SessionFault(errors.UNATTACHED_HANDLE, f"handle {handle} is not attached") from None

    def reply_link(self, address: Address, reply_to: str | None) -> ReplyLink | None:
        """Where a node's reply goes: the link whose target is the reply-to, else one to the same node."""
        replies = [link for link in self._links.values() if isinstance(link, ReplyLink)]
        named = (link for link in replies if reply_to is not None and link.target == reply_to)
        same = (link for link in replies if link.address == address)
        return next(named, None) or next(same, None)

    # --------------------------------------------------------------------------------- frames from the peer

    def _on_flow(self, flow: Flow) -> None:
        """2.5.6: how much more the peer can take, and for a link its credit."""
        base = flow.next_incoming_id if flow.next_incoming_id is not None else 0
        self._remote_window = (base + flow.incoming_window - self._next_outgoing_id) & 0xFFFFFFFF
        if self._remote_window > 0x7FFFFFFF:
            self._remote_window = 0
        self._flush()
        self.resume()
        if flow.handle is not None and flow.handle not in self._detaching:
            self._link(flow.handle).on_flow(flow)
        elif flow.handle is None and flow.echo:
            self._report_window()

    def _on_transfer(self, transfer: Transfer, payload: bytes) -> None:
        self._next_incoming_id = (self._next_incoming_id + 1) & 0xFFFFFFFF
        self._incoming_window -= 1
        if self._incoming_window <= INCOMING_WINDOW // 2:
            self._incoming_window = INCOMING_WINDOW
            self._report_window()
        if transfer.handle in self._detaching:
            return
        link = self._link(transfer.handle)
        if not isinstance(link, ReceivingLink):
            raise SessionFault(errors.NOT_ALLOWED, "a transfer on a link that only receives")
        link.on_transfer(transfer, payload)

    def _on_disposition(self, disposition: Disposition) -> None:
        """2.6.12. First and last are the peer's: what is known is walked, never the range."""
        if disposition.role is not RECEIVER:
            return
        last = disposition.last if disposition.last is not None else disposition.first
        state = disposition.state
        if disposition.first == last:
            ids = [last] if last in self._unsettled else []
        else:
            ids = [key for key in self._unsettled if disposition.first <= key <= last]
        code = outcome_code(state)
        for delivery_id in ids:
            if state is None or code == performatives.RECEIVED:
                if disposition.settled:
                    del self._unsettled[delivery_id]  # without an outcome; the lock will lapse
                continue
            link, token = self._unsettled.pop(delivery_id)
            link.on_disposition(token, state, self._confirmation(delivery_id, wanted=not disposition.settled))

    def _confirmation(self, delivery_id: int, *, wanted: bool) -> Callable[[Described], None]:
        def confirm(outcome: Described) -> None:
            if wanted and not self.ended:
                self.send(Disposition(role=not RECEIVER, first=delivery_id, settled=True, state=outcome))

        return confirm

    # ------------------------------------------------------------------------------------ frames to the peer

    def send(self, performative: Performative) -> None:
        if not self.ended:
            self._send_frame(performative, b"")

    def grant(self, handle: int, delivery_count: int, credit: int) -> None:
        self.send(self._flow(handle=handle, delivery_count=delivery_count, link_credit=credit))

    def report_drained(self, handle: int, delivery_count: int) -> None:
        self.send(self._flow(handle=handle, delivery_count=delivery_count, link_credit=0, drain=True))

    def _report_window(self) -> None:
        self.send(self._flow())

    def _flow(
        self,
        *,
        handle: int | None = None,
        delivery_count: int | None = None,
        link_credit: int | None = None,
        drain: bool = False,
    ) -> Flow:
        return Flow(
            next_incoming_id=self._next_incoming_id,
            incoming_window=self._incoming_window,
            next_outgoing_id=self._next_outgoing_id,
            outgoing_window=OUTGOING_WINDOW,
            handle=handle,
            delivery_count=delivery_count,
            link_credit=link_credit,
            drain=drain,
        )

    def acknowledge(self, delivery_id: int, state: Described) -> None:
        self.send(Disposition(role=RECEIVER, first=delivery_id, settled=True, state=state))

    def transmit(
        self, link: SendingLink, tag: bytes, payload: bytes, *, settled: bool, token: UUID | None = None
    ) -> None:
        delivery_id = self._next_delivery_id
        self._next_delivery_id = (delivery_id + 1) & 0xFFFFFFFF
        if token is not None and not settled:
            self._unsettled[delivery_id] = (link, token)
        transfer = Transfer(
            handle=link.handle,
            delivery_id=delivery_id,
            delivery_tag=tag,
            message_format=0,
            settled=settled,
        )
        self._outbox.extend(split_transfer(transfer, payload, self._max_frame_size))
        self._flush()

    def is_ready(self) -> bool:
        """What is locked for the peer now would leave as soon as that is on disk."""
        return (
            not self.ended
            and not self._outbox
            and self._remote_window > self._reserved
            and self._reserved_bytes < MOST_RESERVED_BYTES
            and self._is_writable()
        )

    def reserve(self, deliveries: int, size: int) -> None:
        self._reserved += deliveries
        self._reserved_bytes += size
        if deliveries < 0 and self._reserved == 0:
            self.resume()

    def resume(self) -> None:
        """The way is free again: links that have credit ask for messages."""
        if self.is_ready():
            for link in list(self._links.values()):
                if isinstance(link, SendingLink) and link.credit:
                    link.on_credit()

    def _flush(self) -> None:
        while self._outbox and self._remote_window > 0 and not self.ended:
            transfer, payload = self._outbox.popleft()
            self._remote_window -= 1
            self._next_outgoing_id = (self._next_outgoing_id + 1) & 0xFFFFFFFF
            self._send_frame(transfer, payload)
