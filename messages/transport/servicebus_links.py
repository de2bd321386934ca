"""One sender or receiver of the Azure SDK each: opened when needed, kept open, used by one operation at a time.

The SDK's links are not safe for concurrent use, and while a receiver waits for a message it holds its socket, so that
settling another message would wait for up to 0.2 s. Here an operation interrupts a waiting receive, has the link for
itself, and lets the receive go on: settling takes as long as the broker takes. A link that failed is thrown away;
the next operation opens another. Nothing here knows our messages or our errors.

A few private attributes of the SDK (7.15) are touched, at the end of this file, each with its reason. Should they go
away, things get slower but stay right.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, Final, Generic, Protocol, TypeVar, final

from azure.servicebus import ServiceBusMessage, ServiceBusReceivedMessage
from azure.servicebus.aio import ServiceBusReceiver, ServiceBusSender
from azure.servicebus.exceptions import (
    MessageAlreadySettled,
    MessageLockLostError,
    ServiceBusAuthenticationError,
    ServiceBusAuthorizationError,
)

T = TypeVar("T")

OPERATION_TIMEOUT: Final = 30.0
"""Seconds for one operation, opening the link included."""
CLOSE_TIMEOUT: Final = 5.0
_LINK_SURVIVES: Final = (MessageLockLostError, MessageAlreadySettled)
_NO_RIGHTS: Final = (ServiceBusAuthorizationError, ServiceBusAuthenticationError)


class RightsEnded(Exception):
    """The broker let us in and then ended it for want of rights: a token expired.

    Whether the rights are gone for good shows when the link is opened again, with a new token.
    """


class _Closable(Protocol):
    async def __aenter__(self) -> Any: ...

    async def close(self) -> None: ...


S = TypeVar("S", bound=_Closable)


class _Link(Generic[S]):
    """An SDK object, and whose turn it is to use it."""

    def __init__(self, create: Callable[[], S]) -> None:
        self._create = create
        self._sdk: S | None = None
        self._turn = asyncio.Lock()
        self._under_way: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def perform(self, operation: Callable[[S], Awaitable[T]]) -> T:
        """What `operation` returns, once it was its turn. A caller who is cancelled does not tear it: it still ends."""
        task = self._start(self._perform(operation))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Lets what is under way finish, then closes; bounded in time."""
        self._closed = True
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=CLOSE_TIMEOUT)
        sdk, self._sdk = self._sdk, None
        if sdk is not None:
            await _close(sdk)

    async def _perform(self, operation: Callable[[S], Awaitable[T]]) -> T:
        async with self._turn, asyncio.timeout(OPERATION_TIMEOUT):
            sdk = await self._opened()
            with self._discarding_on_failure():
                return await operation(sdk)

    async def _opened(self) -> S:
        if self._closed:
            raise ConnectionError("closed by this process")
        if self._sdk is None:
            sdk = self._create()
            _without_naps(sdk)
            try:
                await sdk.__aenter__()
            except BaseException:
                self._start(_close(sdk))
                raise
            self._prepare(sdk)
            self._sdk = sdk
        return self._sdk

    def _prepare(self, sdk: S) -> None:
        """What a subclass does with a link just opened."""

    @contextlib.contextmanager
    def _discarding_on_failure(self) -> Any:
        try:
            yield
        except _LINK_SURVIVES:
            raise
        except BaseException as error:
            if self._sdk is not None:
                self._start(_close(self._sdk))
            self._sdk = None
            if isinstance(error, _NO_RIGHTS):
                raise RightsEnded from None
            raise

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # whoever still waits for it gets it; if nobody does, it is not worth a warning


@final
class SenderLink(_Link[ServiceBusSender]):
    """Sends to one queue."""

    async def send(self, message: ServiceBusMessage) -> None:
        """Returns once the broker has the message."""
        await self.perform(lambda sdk: sdk.send_messages(message))


@final
class ReceiverLink(_Link[ServiceBusReceiver]):
    """Receives from one queue, and settles what it received."""

    def __init__(self, create: Callable[[], ServiceBusReceiver]) -> None:
        super().__init__(create)
        self._waiting: asyncio.Task[list[ServiceBusReceivedMessage]] | None = None
        self._wanted = 0
        self._kept: list[ServiceBusReceivedMessage] = []

    async def perform(self, operation: Callable[[ServiceBusReceiver], Awaitable[T]]) -> T:
        """Interrupts a waiting receive, if there is one."""
        self._wanted += 1
        if self._waiting is not None:
            self._waiting.cancel()
        return await super().perform(operation)

    async def _perform(self, operation: Callable[[ServiceBusReceiver], Awaitable[T]]) -> T:
        try:
            return await super()._perform(operation)
        finally:
            self._wanted -= 1

    async def receive(self, wait: float) -> ServiceBusReceivedMessage | None:
        """The next message, or None after `wait` seconds. One that arrives while it is cancelled comes next time."""
        deadline = None
        while True:
            if self._kept:
                return self._kept.pop(0)
            async with self._turn:
                async with asyncio.timeout(OPERATION_TIMEOUT):
                    sdk = await self._opened()
                if deadline is None:  # opening does not count as waiting
                    deadline = time.monotonic() + wait
                left = deadline - time.monotonic()
                messages = [] if self._wanted else await self._receive_until_wanted(sdk, max(left, 0.05))
                if not messages and left <= 0:
                    await self._withdraw()
                    return None
            if messages:
                return messages[0]
            await asyncio.sleep(0)  # whoever wants the link takes its turn

    async def _receive_until_wanted(self, sdk: ServiceBusReceiver, wait: float) -> list[ServiceBusReceivedMessage]:
        waiting = self._waiting = self._start(sdk.receive_messages(max_message_count=1, max_wait_time=wait))
        try:
            await asyncio.wait((waiting,))
        except asyncio.CancelledError:
            waiting.cancel()
            await asyncio.wait((waiting,))
            if not waiting.cancelled() and waiting.exception() is None:
                self._kept += waiting.result()
            self._start(self._withdraw())
            raise
        finally:
            self._waiting = None
        if waiting.cancelled():
            return []
        with self._discarding_on_failure():
            return waiting.result()

    def _prepare(self, sdk: ServiceBusReceiver) -> None:
        _keep_what_comes(sdk)
        _no_keep_alive(sdk)

    async def _withdraw(self) -> None:
        """Tells the broker to send nothing now; otherwise a message would be locked for a receiver that went away."""
        handler: Any = getattr(self._sdk, "_handler", None)
        with contextlib.suppress(Exception):  # at worst that message waits until its lock lapses
            await handler._link.flow(link_credit=0)

    async def close(self) -> None:
        kept, self._kept = self._kept, []
        for message in kept:
            with contextlib.suppress(Exception):
                await self._give_back(message)
        if self._waiting is not None:
            self._waiting.cancel()
        await super().close()

    async def _give_back(self, message: ServiceBusReceivedMessage) -> None:
        await self.perform(lambda sdk: sdk.abandon_message(message))


async def _close(sdk: _Closable) -> None:
    with contextlib.suppress(Exception):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await sdk.close()


# --- the SDK's private parts -----------------------------------------------------------------------------------------


def trust_the_broker(message: ServiceBusReceivedMessage) -> None:
    """The SDK refuses to settle a message whose lock has lapsed by this machine's clock, which may be off.

    Let the broker judge: it answers a lost lock with an error of its own.
    """
    private: Any = message
    private._expiry = datetime.max.replace(tzinfo=UTC)


def _without_naps(sdk: Any) -> None:
    """Opening takes nine frames, and the SDK sleeps 50 ms after each: let it ask for the next at once.

    Closing waits for the keep-alive task to wake from its sleep of a second: end that task first.
    """
    with contextlib.suppress(AttributeError):
        create_handler = sdk._create_handler

        def create_eager_handler(auth: Any) -> None:
            create_handler(auth)
            handler = sdk._handler
            is_ready, close = handler.client_ready_async, handler.close_async

            async def becomes_ready() -> bool:
                while not await is_ready():  # waits for a frame, or raises; the whole has a timeout
                    pass
                return True

            async def close_at_once() -> None:
                keep_alive, handler._keep_alive_thread = getattr(handler, "_keep_alive_thread", None), None
                if keep_alive is not None:
                    keep_alive.cancel()
                await close()

            handler.client_ready_async, handler.close_async = becomes_ready, close_at_once

        sdk._create_handler = create_eager_handler


def _keep_what_comes(receiver: Any) -> None:
    """The SDK releases messages that come while nobody is in receive_messages(), as when an operation interrupts one.

    A release may count as a delivery. Kept in its buffer instead, they are what the next receive returns.
    """

    class AlwaysSet(asyncio.Event):
        def clear(self) -> None:
            pass

    context = AlwaysSet()
    context.set()
    receiver._receive_context = context


def _no_keep_alive(receiver: Any) -> None:
    """Every 5 s the keep-alive would hold the socket for 0.2 s; a receiver that receives needs it far less often."""
    with contextlib.suppress(AttributeError):
        receiver._handler._keep_alive_interval = 60
