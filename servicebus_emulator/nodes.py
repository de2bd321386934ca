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
from servicebus_emulator.errors import DeliveryFault
from servicebus_emulator.faults import Fault, Operation
from servicebus_emulator.links import Carrier, ReceivingLink, SendingLink
from servicebus_emulator.message import cut, read_map, value_section, write_message
from servicebus_emulator.performatives import ACCEPTED_STATE
from servicebus_emulator.rights import Claims, Unauthorized
from servicebus_emulator.trouble import REFUSALS


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


def read_request(payload: bytes) -> Request:
    sections = cut(payload)
    properties: list[Any] = []
    if sections.properties is not None:
        properties = decode(sections.properties)[0]
        if not isinstance(properties, list):
            raise DecodeError("properties are a list")
    message_id, _, _, _, reply_to = (*properties[:5], None, None, None, None, None)[:5]
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
    ) -> None:
        super().__init__(session, handle, delivery_count, max_message_size)
        self._address = address
        self._node = node
        self._find_reply_link = find_reply_link

    def on_delivery(self, delivery_id: int, message_format: int, payload: bytes, *, settled: bool) -> None:
        request = read_request(payload)
        if self._find_reply_link(self._address, request.reply_to) is None:
            raise DeliveryFault(errors.NOT_FOUND, "there is no link to send the reply on")
        fault = None if self._address.is_cbs else self.session.suffer(Operation.REQUEST, self.handle)
        if fault in REFUSALS:
            condition, said = REFUSALS[fault]
            reply = Reply(503, said, condition=condition)
        else:
            reply = self._node.answer(request)
        rendered = self._node.render(request, reply)
        log.debug("node.answered", operation=request.operation, status=reply.status)

        def respond() -> None:
            if fault is Fault.ACK_LOST:
                self.session.lose_answer(self.handle)
                return
            link = self._find_reply_link(self._address, request.reply_to)
            if link is not None:
                link.reply(rendered)  # first, since this is what the client waits for
            if self.attached and not settled:
                self.session.acknowledge(delivery_id, ACCEPTED_STATE)

        self._node.after_commit(respond)


class ReplyLink(SendingLink):
    """A node's replies, held until there is credit for them."""

    def __init__(self, session: Carrier, handle: int, address: Address, target: str | None) -> None:
        super().__init__(session, handle)
        self.address = address
        self.target = target
        self._waiting: deque[bytes] = deque()

    def reply(self, rendered: bytes) -> None:
        self._waiting.append(rendered)
        self.on_credit()

    def on_credit(self) -> None:
        while self._waiting and self.credit and self.attached:
            self.spend()
            tag = self.delivery_count.to_bytes(4, "big")
            self.session.transmit(self, tag, self._waiting.popleft(), settled=True)
