"""The bus on Azure Service Bus, or on anything that speaks like it. With `servicebus_links`, all that touches its SDK.

The SDK's exceptions end here: what leaves is one of `messages.errors`, and its text names an operation, a queue, the
exception's class and its AMQP condition; never the SDK's own words, which may hold keys or tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Self, final

import certifi
from azure.core.exceptions import ClientAuthenticationError
from azure.servicebus import (
    ServiceBusMessage,
    ServiceBusReceivedMessage,
    ServiceBusSubQueue,
    TransportType,
)
from azure.servicebus import exceptions as sdk_errors
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver
from azure.servicebus.amqp import AmqpMessageBodyType

from messages import names
from messages.errors import Forbidden, LockLost, NoCredential, NotFound, Poison, SilobusError, Transient
from messages.ports import Bus, Delivery, Outgoing
from messages.transport.dead_letters import fitting
from messages.transport.servicebus_links import ReceiverLink, SenderLink, trust_the_broker

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential
    from azure.servicebus.aio import ServiceBusSender
    from pydantic import SecretStr

_FORGET_AFTER: Final = 3600.0


@final
class ServiceBus(Bus):
    """One client of a namespace: a sender and a receiver per queue, opened when first used."""

    def __init__(self, client: ServiceBusClient, *, credential: AsyncTokenCredential | None = None) -> None:
        self._client = client
        self._credential = credential
        self._closed = False
        self._senders: dict[str, SenderLink] = {}
        self._receivers: dict[str, ReceiverLink] = {}
        self._held: dict[str, tuple[float, ServiceBusReceivedMessage]] = {}
        """By lock token: when it was last locked or renewed, and what the SDK needs to settle it."""

    @classmethod
    def from_connection_string(cls, connection_string: SecretStr, **options: Any) -> Self:
        """A bus reached with a connection string; `options` are those of `client_options`. Raises ValueError."""
        try:
            client = ServiceBusClient.from_connection_string(connection_string.get_secret_value(), **options)
        except ValueError:
            raise ValueError(
                "the connection string is malformed; it should read "
                "Endpoint=sb://…;SharedAccessKeyName=…;SharedAccessKey=…, as the portal shows it"
            ) from None
        return cls(client)

    @classmethod
    def from_credential(cls, namespace: str, credential: AsyncTokenCredential, **options: Any) -> Self:
        """A bus reached as an identity of Microsoft Entra; closes the credential when closed."""
        return cls(ServiceBusClient(namespace, credential, **options), credential=credential)

    async def send(self, queue: str, message: Outgoing) -> None:
        link = self._senders.get(queue)
        if link is None:
            link = self._senders[queue] = SenderLink(lambda: self._new_sender(queue))
        async with _translated("send to", queue):
            await link.send(_to_sdk(message))

    async def receive(self, queue: str, *, wait: float) -> Delivery | None:
        async with _translated("receive from", queue):
            message = await self._receiver(queue).receive(wait)
        if message is None:
            return None
        delivery = _from_sdk(queue, message)
        self._forget_the_lapsed()
        self._hold(delivery, message)
        return delivery

    async def complete(self, delivery: Delivery) -> None:
        async with self._settling("complete", delivery) as (link, message):
            await link.perform(lambda sdk: sdk.complete_message(message))

    async def abandon(self, delivery: Delivery) -> None:
        async with self._settling("abandon", delivery) as (link, message):
            await link.perform(lambda sdk: sdk.abandon_message(message))

    async def dead_letter(self, delivery: Delivery, *, reason: str, description: str) -> None:
        text = fitting(description)
        async with self._settling("dead-letter", delivery) as (link, message):
            await link.perform(lambda sdk: sdk.dead_letter_message(message, reason=reason, error_description=text))

    async def renew(self, delivery: Delivery) -> datetime:
        message = self._message(delivery)
        async with _translated("renew a lock in", delivery.queue):
            until = await self._receiver(delivery.queue).perform(lambda sdk: sdk.renew_message_lock(message))
        self._hold(delivery, message)
        return until

    async def peek(self, queue: str, *, count: int, from_sequence_number: int = 0) -> Sequence[Delivery]:
        found: list[Delivery] = []
        start = max(1, from_sequence_number)
        async with _translated("peek into", queue):
            while len(found) < count:  # the broker may answer with fewer than asked for
                page = await self._peek(queue, count - len(found), start)
                if not page:
                    break
                found += page
                start = page[-1].sequence_number + 1
        return found

    async def _peek(self, queue: str, count: int, start: int) -> list[Delivery]:
        page = await self._receiver(queue).perform(lambda sdk: sdk.peek_messages(count, sequence_number=start))
        return [_from_sdk(queue, message) for message in page]

    async def close(self) -> None:
        links: list[SenderLink | ReceiverLink] = [*self._senders.values(), *self._receivers.values()]
        self._closed = True
        self._held.clear()
        await asyncio.gather(*(link.close() for link in links))
        with contextlib.suppress(Exception):
            await self._client.close()
        credential: Any = self._credential  # its protocol has close(), its annotations have not
        if credential is not None:
            with contextlib.suppress(Exception):
                await credential.close()

    def _receiver(self, queue: str) -> ReceiverLink:
        link = self._receivers.get(queue)
        if link is None:
            link = self._receivers[queue] = ReceiverLink(lambda: self._new_receiver(queue))
        return link

    def _new_sender(self, queue: str) -> ServiceBusSender:
        self._check_open()
        return self._client.get_queue_sender(queue)

    def _new_receiver(self, queue: str) -> ServiceBusReceiver:
        self._check_open()
        name, _, sub_queue = queue.partition("/")
        dead = ServiceBusSubQueue.DEAD_LETTER if sub_queue.lower() == names.DEAD_LETTERS.lower() else None
        return self._client.get_queue_receiver(name if dead else queue, sub_queue=dead, prefetch_count=0)

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionError("closed by this process")

    def _message(self, delivery: Delivery) -> ServiceBusReceivedMessage:
        try:
            return self._held[delivery.lock_token][1]
        except KeyError:
            raise LockLost(f"message {delivery.message_id!r} in {delivery.queue!r} is not held any more") from None

    @contextlib.asynccontextmanager
    async def _settling(
        self, verb: str, delivery: Delivery
    ) -> AsyncIterator[tuple[ReceiverLink, ServiceBusReceivedMessage]]:
        message = self._message(delivery)
        async with _translated(f"{verb} a message in", delivery.queue):
            try:
                yield self._receiver(delivery.queue), message
            except (sdk_errors.MessageLockLostError, sdk_errors.MessageAlreadySettled):
                self._held.pop(delivery.lock_token, None)
                raise
        self._held.pop(delivery.lock_token, None)

    def _hold(self, delivery: Delivery, message: ServiceBusReceivedMessage) -> None:
        trust_the_broker(message)
        self._held[delivery.lock_token] = (time.monotonic(), message)

    def _forget_the_lapsed(self) -> None:
        """Drops messages that nobody settled, because handling them failed; no lock lasts nearly so long."""
        if len(self._held) > 1000:
            horizon = time.monotonic() - _FORGET_AFTER
            self._held = {token: held for token, held in self._held.items() if held[0] > horizon}


def client_options(
    *, websocket: bool = False, proxy: dict[str, str | int] | None = None, ca_file: str | None = None
) -> dict[str, Any]:
    """The SDK's options for a way through the network. It tries once: trying again is the caller's business.

    All links share one TLS context: on its own each would read all root certificates again, which takes longer than
    everything else about opening a link. Raises OSError when `ca_file` holds no certificates.
    """
    options: dict[str, Any] = {"retry_total": 0, "user_agent": "silobus", "logging_enable": False}
    options["ssl_context"] = ssl.create_default_context(cafile=ca_file or certifi.where())
    if websocket or proxy:
        options["transport_type"] = TransportType.AmqpOverWebsocket
    if proxy:
        options["http_proxy"] = _proxy_for_the_sdk(proxy)
    return options


def _proxy_for_the_sdk(proxy: dict[str, str | int]) -> dict[str, str | int]:
    """Its asynchronous client makes a URL of host and port without a scheme, and insists on user and password both."""
    host = str(proxy["proxy_hostname"])
    made = {**proxy, "proxy_hostname": host if "://" in host else f"http://{host}"}
    return {"username": "", "password": "", **made} if {"username", "password"} & proxy.keys() else made


@contextlib.asynccontextmanager
async def _translated(what: str, queue: str) -> AsyncIterator[None]:
    try:
        yield
    except (SilobusError, asyncio.CancelledError):
        raise
    except Exception as error:  # noqa: BLE001  # this is where the SDK's exceptions end
        raise _translate(error, f"cannot {what} {queue!r}") from None


def _translate(error: Exception, sentence: str) -> SilobusError:
    condition = getattr(error, "_condition", None)
    where = f"{sentence}: {type(error).__name__}" + (f" ({condition})" if isinstance(condition, str) else "")
    inner = getattr(error, "inner_exception", None)
    match error:
        case sdk_errors.MessageLockLostError() | sdk_errors.SessionLockLostError() | sdk_errors.MessageAlreadySettled():
            return LockLost(where)
        case sdk_errors.MessagingEntityNotFoundError():
            return NotFound(f"{where}; is the queue's name right, and was it created?")
        case sdk_errors.ServiceBusAuthenticationError() | sdk_errors.ServiceBusAuthorizationError():
            return Forbidden(f"{where}; has this identity the right to do so on this queue?")
        case ClientAuthenticationError():
            return Forbidden(f"{where}; can this process get a token with the credential configured?")
        case sdk_errors.MessageSizeExceededError():
            return Poison("too-large", f"{where}. The message is larger than this queue takes.")
        case _ if isinstance(inner, NoCredential):
            return inner
        case _ if isinstance(inner, ClientAuthenticationError):
            return _translate(inner, sentence)
        case _:
            return Transient(where)


def _to_sdk(message: Outgoing) -> ServiceBusMessage:
    return ServiceBusMessage(
        message.body,
        content_type="application/json",
        message_id=message.message_id,
        subject=message.subject,
        correlation_id=message.correlation_id,
        scheduled_enqueue_time_utc=message.scheduled_at,
        time_to_live=message.time_to_live,
    )


def _from_sdk(queue: str, message: ServiceBusReceivedMessage) -> Delivery:
    sequence_number = message.sequence_number or 0
    scheduled = message.scheduled_enqueue_time_utc
    return Delivery(
        queue=queue,
        body=_body(message),
        message_id=str(message.message_id or f"sequence-number-{sequence_number}"),
        subject=message.subject,
        correlation_id=None if message.correlation_id is None else str(message.correlation_id),
        sequence_number=sequence_number,
        delivery_count=message.delivery_count or 0,
        enqueued_at=message.enqueued_time_utc or scheduled or datetime.fromtimestamp(0, UTC),
        locked_until=message.locked_until_utc,
        lock_token=str(message.lock_token or ""),
        scheduled_at=scheduled,
        dead_letter_reason=message.dead_letter_reason,
        dead_letter_description=message.dead_letter_error_description,
    )


def _body(message: ServiceBusReceivedMessage) -> bytes:
    """The bytes; other tools may have sent a string as an AMQP value, which is as good."""
    if message.body_type is AmqpMessageBodyType.DATA:
        return b"".join(message.body)
    return message.body.encode() if isinstance(message.body, str) else str(message).encode()
