"""A link is used by one operation at a time, is not torn by a caller who leaves, and is thrown away when it fails."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from azure.servicebus.exceptions import (
    MessageLockLostError,
    ServiceBusAuthorizationError,
    ServiceBusConnectionError,
)

from messages.transport.servicebus_links import RightsEnded, SenderLink


class Sdk:
    """Stands in for the SDK's sender; notices when it is used twice at once."""

    made: list[Sdk]

    refusal: Exception | None = None

    def __init__(self) -> None:
        self.busy = self.closed = False
        self.sent: list[Any] = []
        self.error: Exception | None = None

    async def __aenter__(self) -> Sdk:
        if self.refusal is not None:
            raise self.refusal
        return self

    async def send_messages(self, message: Any) -> None:
        assert not self.busy, "the SDK's sender is not safe for concurrent use"
        self.busy = True
        await asyncio.sleep(0.01)
        self.busy = False
        if self.error is not None:
            raise self.error
        self.sent.append(message)

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def made() -> list[Sdk]:
    return []


@pytest.fixture
def link(made: list[Sdk]) -> SenderLink:
    def create() -> Any:
        made.append(Sdk())
        return made[-1]

    return SenderLink(create)


async def test_operations_take_turns_on_one_link(link: SenderLink, made: list[Sdk]) -> None:
    messages: list[Any] = list(range(10))
    await asyncio.gather(*(link.send(message) for message in messages))
    assert [sdk.sent for sdk in made] == [messages]


async def test_a_caller_who_is_cancelled_does_not_tear_the_operation(link: SenderLink, made: list[Sdk]) -> None:
    first: Any = "first"
    second: Any = "second"
    await link.send(first)
    sending = asyncio.create_task(link.send(second))
    while not made[0].busy:  # noqa: ASYNC110  # nothing else would say so
        await asyncio.sleep(0)
    sending.cancel()
    await asyncio.wait((sending,))
    assert sending.cancelled()
    await link.close()
    assert made[0].sent == ["first", "second"]
    assert made[0].closed


async def test_a_link_that_failed_is_closed_and_replaced(link: SenderLink, made: list[Sdk]) -> None:
    message: Any = "m"
    await link.send(message)
    made[0].error = ServiceBusConnectionError()
    with pytest.raises(ServiceBusConnectionError):
        await link.send(message)
    await link.send(message)
    await link.close()
    assert [(sdk.sent, sdk.closed) for sdk in made] == [(["m"], True), (["m"], True)]


async def test_a_lost_lock_is_no_fault_of_the_link(link: SenderLink, made: list[Sdk]) -> None:
    message: Any = "m"
    await link.send(message)
    made[0].error = MessageLockLostError()
    with pytest.raises(MessageLockLostError):
        await link.send(message)
    made[0].error = None
    await link.send(message)
    assert len(made) == 1
    await link.close()


async def test_rights_that_end_are_not_rights_that_were_never_there(
    link: SenderLink, made: list[Sdk], monkeypatch: pytest.MonkeyPatch
) -> None:
    message: Any = "m"
    await link.send(message)
    made[0].error = ServiceBusAuthorizationError()
    with pytest.raises(RightsEnded):
        await link.send(message)
    await link.send(message)
    assert [sdk.closed for sdk in made] == [True, False]
    made[1].error = ServiceBusAuthorizationError()
    with pytest.raises(RightsEnded):
        await link.send(message)
    monkeypatch.setattr(Sdk, "refusal", ServiceBusAuthorizationError())
    for _ in range(2):
        with pytest.raises(ServiceBusAuthorizationError):
            await link.send(message)
    await link.close()


async def test_a_closed_link_is_not_opened_again(link: SenderLink, made: list[Sdk]) -> None:
    message: Any = "m"
    await link.send(message)
    await link.close()
    with pytest.raises(ConnectionError):
        await link.send(message)
    assert len(made) == 1
