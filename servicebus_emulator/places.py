"""What there is to attach to: queues, their dead letter queues, their management nodes, and $cbs.

The one file that joins addresses to queues and links. Rights by key would be checked here.
"""

from collections.abc import Callable

from servicebus_emulator import errors
from servicebus_emulator.addresses import Address, address_of, parse_address
from servicebus_emulator.errors import LinkFault
from servicebus_emulator.links import QueueInlet, QueueOutlet, ReceivingLink, SendingLink
from servicebus_emulator.management import Management
from servicebus_emulator.namespace import LiveQueue, Namespace
from servicebus_emulator.nodes import Cbs, Node, ReplyLink, RequestLink
from servicebus_emulator.performatives import Attach
from servicebus_emulator.session import Session

MOST_UNCOMMITTED = 16 * 1024 * 1024
SESSION_FILTER = "com.microsoft:session-filter"
SETTLED = 1  # snd-settle-mode (2.8.2): receive and delete


class NamespacePlaces:
    """The ``Places`` of a namespace."""

    def __init__(self, namespace: Namespace, max_message_size: int) -> None:
        self.max_message_size = max_message_size
        self._namespace = namespace
        self._cbs = Cbs(namespace.journal.after_commit)

    def is_congested(self) -> bool:
        return self._namespace.journal.backlog > MOST_UNCOMMITTED

    def after_commit(self, act: Callable[[], None]) -> None:
        self._namespace.journal.after_commit(act)

    def sending_link(self, session: Session, attach: Attach, address: str | None) -> SendingLink:
        place = _parse(address)
        if place.is_cbs or place.management:
            self._node(place)
            return ReplyLink(session, attach.handle, place, address_of(attach.target))
        live = self._queue(place)
        _refuse_sessions(attach)
        return QueueOutlet(session, attach.handle, live, dead=place.dead, deletes=attach.snd_settle_mode == SETTLED)

    def receiving_link(self, session: Session, attach: Attach, address: str | None) -> ReceivingLink:
        place = _parse(address)
        count = attach.initial_delivery_count or 0
        if place.is_cbs or place.management:
            return RequestLink(
                session,
                attach.handle,
                count,
                self.max_message_size,
                address=place,
                node=self._node(place),
                find_reply_link=session.reply_link,
            )
        live = self._queue(place)
        if place.dead:
            raise LinkFault(errors.NOT_ALLOWED, "nothing can be sent to a dead letter queue")
        return QueueInlet(session, attach.handle, count, self.max_message_size, live)

    def _node(self, place: Address) -> Node:
        if place.is_cbs:
            return self._cbs
        return Management(self._queue(place), self.max_message_size, dead=place.dead)

    def _queue(self, place: Address) -> LiveQueue:
        live = self._namespace.find(place.queue)
        if live is None:
            raise LinkFault(errors.NOT_FOUND, f"The messaging entity '{place.queue}' could not be found.")
        return live


def _refuse_sessions(attach: Attach) -> None:
    """3.5.3: a filter set is the eighth field of a source."""
    fields = attach.source.value if attach.source is not None else None
    filters = fields[7] if isinstance(fields, list) and len(fields) > 7 else None
    if isinstance(filters, dict) and SESSION_FILTER in filters:
        raise LinkFault(errors.NOT_IMPLEMENTED, "sessions are not supported")


def _parse(address: str | None) -> Address:
    if address is None:
        raise LinkFault(errors.INVALID_FIELD, "a link needs an address")
    return parse_address(address)
