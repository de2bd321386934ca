"""What there is to attach to: queues, their dead letter queues, their management nodes, and $cbs.

The one file that joins addresses to queues and links, and asks whether the client has the right to them.
"""

from collections.abc import Callable, Sequence
from functools import partial

from servicebus_emulator import errors
from servicebus_emulator.addresses import Address, address_of, parse_address
from servicebus_emulator.errors import LinkFault
from servicebus_emulator.links import ReceivingLink, SendingLink
from servicebus_emulator.management import Management
from servicebus_emulator.namespace import LiveQueue, Namespace
from servicebus_emulator.nodes import Cbs, Node, ReplyLink, RequestLink
from servicebus_emulator.performatives import Attach
from servicebus_emulator.queue_links import QueueInlet, QueueOutlet
from servicebus_emulator.rights import Claims, Keyring, Right
from servicebus_emulator.session import Session

MOST_UNCOMMITTED = 16 * 1024 * 1024
SESSION_FILTER = "com.microsoft:session-filter"
SETTLED = 1  # snd-settle-mode (2.8.2): receive and delete


class NamespacePlaces:
    """The ``Places`` of a namespace."""

    def __init__(self, namespace: Namespace, max_message_size: int) -> None:
        self.max_message_size = max_message_size
        self.keyring = Keyring(namespace.rules_of, enforced=namespace.has_rules())
        self.faults = namespace.faults
        self._namespace = namespace

    def is_congested(self) -> bool:
        return self._namespace.journal.backlog > MOST_UNCOMMITTED

    def after_commit(self, act: Callable[[], None]) -> None:
        self._namespace.journal.after_commit(act)

    def now(self) -> int:
        return self._namespace.now()

    def sending_link(self, session: Session, attach: Attach, address: str | None) -> SendingLink:
        place = _parse(address)
        link: SendingLink
        if place.is_cbs:
            return ReplyLink(session, attach.handle, place, address_of(attach.target))
        if place.management:
            is_allowed = self._check(session, place, Right.LISTEN, Right.SEND)
            link = ReplyLink(session, attach.handle, place, address_of(attach.target), self._queue(place))
        else:
            is_allowed = self._check(session, place, Right.LISTEN)
            live = self._queue(place)
            _refuse_sessions(attach)
            deletes = attach.snd_settle_mode == SETTLED
            link = QueueOutlet(session, attach.handle, live, dead=place.dead, deletes=deletes)
        link.is_allowed = is_allowed
        return link

    def receiving_link(self, session: Session, attach: Attach, address: str | None) -> ReceivingLink:
        place = _parse(address)
        if place.is_cbs:
            return self._request_link(session, attach, place, Cbs(session.claims, self.now, self.after_commit))
        link: ReceivingLink
        if place.management:
            is_allowed = self._check(session, place, Right.LISTEN, Right.SEND)
            may = partial(self._may, session.claims, place)
            live = self._queue(place)
            management = Management(live, self.max_message_size, may, dead=place.dead)
            link = self._request_link(session, attach, place, management, live)
        else:
            is_allowed = self._check(session, place, Right.SEND)
            live = self._queue(place)
            if place.dead:
                raise LinkFault(errors.NOT_ALLOWED, "nothing can be sent to a dead letter queue")
            count = attach.initial_delivery_count or 0
            link = QueueInlet(session, attach.handle, count, self.max_message_size, live)
        link.is_allowed = is_allowed
        return link

    def _request_link(
        self, session: Session, attach: Attach, place: Address, node: Node, live: LiveQueue | None = None
    ) -> RequestLink:
        return RequestLink(
            session,
            attach.handle,
            attach.initial_delivery_count or 0,
            self.max_message_size,
            address=place,
            node=node,
            find_reply_link=session.reply_link,
            host=live,
        )

    def _may(self, claims: Claims, place: Address, *rights: Right) -> bool:
        """Whether one of these rights on the queue is there."""
        return any(claims.allow(place.path, right, self.now()) for right in rights)

    def _check(self, session: Session, place: Address, *rights: Right) -> Callable[[], bool]:
        """The same question for later; raises LinkFault when the answer is no now."""
        is_allowed = partial(self._may, session.claims, place, *rights)
        if not is_allowed():
            raise unauthorized(place.queue, rights)
        return is_allowed

    def _queue(self, place: Address) -> LiveQueue:
        live = self._namespace.find(place.queue)
        if live is None:
            raise LinkFault(errors.NOT_FOUND, f"The messaging entity '{place.queue}' could not be found.")
        return live


def unauthorized(queue: str, rights: Sequence[Right]) -> LinkFault:
    """Said before it is known whether the queue is there, so that it tells nothing about that."""
    wanted = "' or '".join(rights)
    return LinkFault(
        errors.UNAUTHORIZED,
        f"Unauthorized access. '{wanted}' claim(s) are required to perform this operation. Resource: '{queue}'.",
    )


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
