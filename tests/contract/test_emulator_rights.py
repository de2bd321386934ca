"""Rights as the unmodified SDK meets them: keys that may send, listen or manage, tokens that expire."""

import asyncio
import time
from collections.abc import Awaitable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest
from azure.servicebus import ServiceBusMessage, ServiceBusSubQueue
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.exceptions import (
    MessagingEntityNotFoundError,
    ServiceBusAuthenticationError,
    ServiceBusAuthorizationError,
    ServiceBusError,
)

from servicebus_emulator.rights import sign
from tests.emulator_process import EmulatorProcess

RULES = {
    "sender": (["Send"], "sender-key"),
    "listener": (["Listen"], "listener-key"),
    "manager": (["Manage"], "manager-key"),
}
REFUSED = (ServiceBusAuthorizationError, ServiceBusAuthenticationError)


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[EmulatorProcess]:
    rules = [{"Name": name, "Rights": rights, "PrimaryKey": key} for name, (rights, key) in RULES.items()]
    with EmulatorProcess(tmp_path, {"q": {}, "other": {}}, rules={"q": rules}) as running:
        yield running


def client(emulator: EmulatorProcess, name: str, key: str | None = None) -> ServiceBusClient:
    key = RULES[name][1] if key is None else key
    text = f"Endpoint=sb://127.0.0.1:{emulator.port};SharedAccessKeyName={name};SharedAccessKey={key}"
    return ServiceBusClient.from_connection_string(f"{text};UseDevelopmentEmulator=true", retry_total=0)


def with_token(emulator: EmulatorProcess, queue: str, name: str, seconds: int) -> ServiceBusClient:
    """With a token made beforehand, which nobody renews."""
    expiry = int(time.time()) + seconds
    resource = quote_plus(f"sb://127.0.0.1:{emulator.port}/{queue}")
    token = f"sr={resource}&sig={quote_plus(sign(resource, RULES[name][1], expiry))}&se={expiry}&skn={name}"
    text = f"Endpoint=sb://127.0.0.1:{emulator.port};SharedAccessSignature=SharedAccessSignature {token}"
    return ServiceBusClient.from_connection_string(f"{text};UseDevelopmentEmulator=true", retry_total=0)


async def send(bus: ServiceBusClient, queue: str = "q") -> None:
    async with bus.get_queue_sender(queue) as sender:
        await sender.send_messages(ServiceBusMessage("m"))


async def receive(bus: ServiceBusClient, queue: str = "q") -> list[Any]:
    async with bus.get_queue_receiver(queue) as receiver:
        messages = await receiver.receive_messages(max_wait_time=10)
        for message in messages:
            await receiver.complete_message(message)
        return messages


async def peek(bus: ServiceBusClient, queue: str = "q") -> list[Any]:
    async with bus.get_queue_receiver(queue) as receiver:
        return await receiver.peek_messages()


async def peek_dead_letters(bus: ServiceBusClient, queue: str = "q") -> list[Any]:
    """Whose token is for the dead letter queue only."""
    async with bus.get_queue_receiver(queue, sub_queue=ServiceBusSubQueue.DEAD_LETTER) as receiver:
        return await receiver.peek_messages()


async def schedule(bus: ServiceBusClient, queue: str = "q") -> None:
    async with bus.get_queue_sender(queue) as sender:
        numbers = await sender.schedule_messages(ServiceBusMessage("m"), datetime.now(UTC) + timedelta(hours=1))
        await sender.cancel_scheduled_messages(numbers)


async def all_refused(*operations: Awaitable[Any]) -> None:
    """Opening and closing a link takes the SDK up to a second: they do so at the same time."""
    outcomes = await asyncio.gather(*operations, return_exceptions=True)
    assert [type(o) for o in outcomes if not isinstance(o, REFUSED)] == []


async def test_each_right_allows_its_own_operations_only(emulator: EmulatorProcess) -> None:
    async with client(emulator, "sender") as bus:
        await asyncio.gather(send(bus), schedule(bus))
        await all_refused(receive(bus), peek(bus), peek_dead_letters(bus))
    async with client(emulator, "listener") as bus:
        await all_refused(send(bus), schedule(bus))
        assert len(await peek(bus)) == 1
        assert await peek_dead_letters(bus) == []
        assert len(await receive(bus)) == 1
    async with client(emulator, "manager") as bus:
        await send(bus)
        assert len(await receive(bus)) == 1


async def test_a_right_on_one_queue_is_none_on_another_nor_tells_which_there_are(emulator: EmulatorProcess) -> None:
    async with client(emulator, "manager") as bus:
        operations = (send, receive, peek, schedule)
        await all_refused(*(operation(bus, queue) for queue in ("other", "missing") for operation in operations))


async def test_a_wrong_key_is_refused(emulator: EmulatorProcess) -> None:
    for name, key in (("sender", "listener-key"), ("nobody", "sender-key")):
        async with client(emulator, name, key) as bus:
            with pytest.raises(ServiceBusAuthenticationError):
                await send(bus)
    assert "sender-key" not in emulator.log_file.read_text()


async def test_expiry_ends_links(emulator: EmulatorProcess) -> None:
    """Also one that does nothing, and one that waits for a message."""
    async with with_token(emulator, "q", "listener", 5) as bus, bus.get_queue_receiver("q") as receiver:
        assert await receiver.receive_messages(max_wait_time=0.1) == []
        waiting = asyncio.create_task(receiver.receive_messages(max_wait_time=60))
        with pytest.raises(ServiceBusError):
            await asyncio.wait_for(waiting, 30)
    assert "has expired" in emulator.log_file.read_text()


async def test_an_expired_token_is_refused(emulator: EmulatorProcess) -> None:
    async with with_token(emulator, "q", "sender", -1) as bus:
        with pytest.raises(ServiceBusError):
            await send(bus)


async def test_without_rules_any_key_will_do(tmp_path: Path) -> None:
    with EmulatorProcess(tmp_path, ["q"]) as running:
        async with client(running, "anybody", "any-key") as bus:
            await send(bus)
            assert len(await receive(bus)) == 1
            with pytest.raises(MessagingEntityNotFoundError):
                await send(bus, "missing")
