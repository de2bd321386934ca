"""Request and response over a pair of links: $cbs and $management (AMQP Management and CBS drafts).

Here is only the carrying of requests and replies. What a queue's management node can do is in ``management``.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from servicebus_emulator import errors, log
from servicebus_emulator.addresses import Address
from servicebus_emulator.codec import DecodeError, Int, Symbol, decode
from servicebus_emulator.errors import DeliveryFault, LinkFault
from servicebus_emulator.faults import Fault, Operation
from servicebus_emulator.links import Carrier, ReceivingLink, SendingLink
from servicebus_emulator.message import cut, value_section, write_message
from servicebus_emulator.performatives import ACCEPTED_STATE
from servicebus_emulator.rights import Claims, Unauthorized
from servicebus_emulator.trouble import REFUSALS
from servicebus_emulator.validity import is_message_id, read_map

MOST_WAITING = 1000
MOST_WAITING_BYTES = 4 * 1024 * 1024
MOST_CBS_BYTES = 256 * 1024
"""Who has shown no token yet is trusted with less."""


@dataclass(frozen=True, slots=True)
class Request:
    operation: str
    message_id: Any
    reply_to: str | None
    properties: Mapping[str, Any]  # application properties
    value: Any


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    description: str = "OK"
    value: Any = None
    condition: str | None = None


class Node(Protocol):
    def answer(self, request: Request) -> Reply: ...

    def after_commit(self, act: Callable[[], None]) -> None: ...

    def render(self, request: Request, reply: Reply) -> bytes: ...


class Host(Protocol):
    """What a node belongs to, if that can go away: a queue."""

    @property
    def name(self) -> str: ...
    def join(self, guest: Any) -> None: ...
    def leave(self, guest: Any) -> None: ...


def read_request(payload: bytes) -> Request:
    sections = cut(payload)
    properties: list[Any] = []
    if sections.properties is not None:
        properties = decode(sections.properties)[0]
        if not isinstance(properties, list):
            raise DecodeError("properties are a list")
    message_id, _, _, _, reply_to = (*properties[:5], None, None, None, None, None)[:5]
    if not is_message_id(message_id):
        raise DecodeError("message-id is a ulong, a uuid, binary or a string")
    named = {_text(key): value for key, value in read_map(sections.application_properties).items()}
    return Request(
        operation=_text(named.get("operation", "")),
        message_id=message_id,
        reply_to=reply_to if isinstance(reply_to, str) else None,
        properties=named,
        value=value_section(sections.body),
    )


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def render_reply(request: Request, reply: Reply, status: str, description: str) -> bytes:
    """The reply is found by its correlation-id: the request's message-id, in the same type."""
    application_properties: dict[str, Any] = {status: Int(reply.status), description: reply.description}
    if reply.condition is not None:
        application_properties["errorCondition"] = Symbol(reply.condition)
    return write_message(
        properties=[None, None, None, None, None, request.message_id],
        application_properties=application_properties,
        value=reply.value,
    )


class Cbs:
    """Claims-based security (CBS draft, 3): takes tokens for one connection."""

    def __init__(
        self, claims: Claims, now: Callable[[], int], after_commit: Callable[[Callable[[], None]], None]
    ) -> None:
        self.after_commit = after_commit
        self._claims = claims
        self._now = now

    def answer(self, request: Request) -> Reply:
        if request.operation != "put-token":
            return Reply(400, f"{request.operation} is not supported")
        audience, token = request.properties.get("name"), request.value
        if not isinstance(audience, str) or not isinstance(token, str):
            return Reply(400, "put-token takes a token, and the audience as name")
        try:
            self._claims.put_token(token, audience, self._now())
        except Unauthorized as refusal:
            log.info("token.refused", reason=str(refusal))
            return Reply(401, str(refusal))
        return Reply(202, "Accepted")

    def render(self, request: Request, reply: Reply) -> bytes:
        return render_reply(request, reply, "status-code", "status-description")


class RequestLink(ReceivingLink):
    """A client's requests to a node."""

    def __init__(
        self,
        session: Carrier,
        handle: int,
        delivery_count: int,
        max_message_size: int,
        *,
        address: Address,
        node: Node,
        find_reply_link: Callable[[Address, str | None], "ReplyLink | None"],
        host: Host | None = None,
    ) -> None:
        super().__init__(session, handle, delivery_count, max_message_size)
        self._address = address
        self._node = node
        self._find_reply_link = find_reply_link
        self._host = host
        if host is not None:
            host.join(self)

    def evict(self) -> None:
        if self._host is not None:
            self.session.detach(self.handle, errors.gone(self._host.name))

    def detached(self) -> None:
        super().detached()
        if self._host is not None:
            self._host.leave(self)

    def on_delivery(self, delivery_id: int, message_format: int, payload: bytes, *, settled: bool) -> None:
        request = read_request(payload)
        replies = self._find_reply_link(self._address, request.reply_to)
        if replies is None:
            raise DeliveryFault(errors.NOT_FOUND, "there is no link to send the reply on")
        replies.check_room()
        fault = None if self._address.is_cbs else self.session.suffer(Operation.REQUEST, self.handle)
        if fault in REFUSALS:
            condition, said = REFUSALS[fault]
            reply = Reply(503, said, condition=condition)
        else:
            reply = self._node.answer(request)
        rendered = self._node.render(request, reply)
        replies.book(rendered)
        log.debug("node.answered", operation=request.operation, status=reply.status)

        def respond() -> None:
            if fault is Fault.ACK_LOST:
                self.session.lose_answer(self.handle)
                return
            replies.reply(rendered)  # first, since this is what the client waits for
            if self.attached and not settled:
                self.session.acknowledge(delivery_id, ACCEPTED_STATE)

        self._node.after_commit(respond)


class ReplyLink(SendingLink):
    """A node's replies, held until there is credit for them and the way is free: some, then the link is ended."""

    def __init__(
        self, session: Carrier, handle: int, address: Address, target: str | None, host: Host | None = None
    ) -> None:
        super().__init__(session, handle)
        self.address = address
        self.target = target
        self._waiting: deque[bytes] = deque()
        self._booked = 0  # replies that have not left, and their bytes
        self._booked_bytes = 0
        self._host = host
        if host is not None:
            host.join(self)

    def evict(self) -> None:
        if self._host is not None:
            self.session.detach(self.handle, errors.gone(self._host.name))

    def detached(self) -> None:
        super().detached()
        self._waiting.clear()
        if self._host is not None:
            self._host.leave(self)

    def check_room(self) -> None:
        """Ends the link, and refuses, if the client asks and asks and takes no replies."""
        most = MOST_CBS_BYTES if self.address.is_cbs else MOST_WAITING_BYTES
        if self._booked >= MOST_WAITING or self._booked_bytes >= most:
            said = "Too many replies wait to be taken: give the link credit, and read."
            self.session.detach(self.handle, LinkFault(errors.RESOURCE_LIMIT_EXCEEDED, said))
            raise DeliveryFault(errors.RESOURCE_LIMIT_EXCEEDED, said)

    def book(self, rendered: bytes) -> None:
        """A reply that will be given as soon as what it rests upon is on disk."""
        self._booked += 1
        self._booked_bytes += len(rendered)

    def reply(self, rendered: bytes) -> None:
        """One that was booked."""
        if self.attached:
            self._waiting.append(rendered)
            self.on_credit()

    def on_credit(self) -> None:
        while self._waiting and self.credit and self.attached and self.session.is_ready():
            rendered = self._waiting.popleft()
            self._booked -= 1
            self._booked_bytes -= len(rendered)
            self.spend()
            tag = self.delivery_count.to_bytes(4, "big")
            self.session.transmit(self, tag, rendered, settled=True)
