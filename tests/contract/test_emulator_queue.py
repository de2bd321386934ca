"""What a queue does beyond the everyday, through the unmodified SDK: limits, deferral, properties, kept locks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.servicebus import ServiceBusMessage, ServiceBusReceivedMessage, ServiceBusReceiveMode, ServiceBusSubQueue
from azure.servicebus._pyamqp.error import AMQPError
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver, ServiceBusSender
from azure.servicebus.exceptions import (
    MessageLockLostError,
    MessageNotFoundError,
    MessageSizeExceededError,
    MessagingEntityDisabledError,
    ServiceBusError,
    ServiceBusQuotaExceededError,
)

from tests.emulator_process import EmulatorProcess

Start = Callable[..., EmulatorProcess]
KB = 1024


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts an emulator with one queue, ``q``, of the given settings, always over the same data."""
    started: list[EmulatorProcess] = []

    def begin(**settings: Any) -> EmulatorProcess:
        for emulator in started:
            emulator.kill()
        started.append(EmulatorProcess(tmp_path, {"q": settings}).start())
        return started[-1]

    yield begin
    for emulator in started:
        emulator.stop()
        assert "connection.bug" not in emulator.log_file.read_text()


@contextlib.asynccontextmanager
async def opened(
    emulator: EmulatorProcess, **options: Any
) -> AsyncIterator[tuple[ServiceBusSender, ServiceBusReceiver]]:
    client = ServiceBusClient.from_connection_string(emulator.connection_string, retry_total=0)
    async with client:
        yield client.get_queue_sender("q"), client.get_queue_receiver("q", **options)


async def one(receiver: ServiceBusReceiver, wait: float = 10) -> ServiceBusReceivedMessage:
    (message,) = await receiver.receive_messages(max_wait_time=wait)
    return message


def body(message: ServiceBusReceivedMessage) -> str:
    return b"".join(message.body).decode()


async def receive_nothing(receiver: ServiceBusReceiver) -> None:
    await receiver._open_with_retry()
    assert await receiver.receive_messages(max_wait_time=0.2) == []


async def left(receiver: ServiceBusReceiver) -> list[str]:
    return [body(message) for message in await receiver.peek_messages(max_message_count=99, sequence_number=1)]


# ------------------------------------------------------------------------------------------------------------- limits


async def test_a_queue_may_take_smaller_messages_than_the_process(start: Start) -> None:
    async with opened(start(MaxMessageSizeInKilobytes=16)) as (sender, receiver):
        batch = await sender.create_message_batch()
        assert batch.max_size_in_bytes == 16 * KB
        for _ in range(14):
            batch.add_message(ServiceBusMessage(b"x" * KB))
        with pytest.raises(MessageSizeExceededError):
            batch.add_message(ServiceBusMessage(b"x" * KB))
        await sender.send_messages(batch)
        with pytest.raises(MessageSizeExceededError):
            await sender.send_messages(ServiceBusMessage(b"x" * 17 * KB))
        with pytest.raises(MessageSizeExceededError):
            await sender.schedule_messages(ServiceBusMessage(b"x" * 17 * KB), datetime.now(UTC) + timedelta(hours=1))
        await sender.send_messages(ServiceBusMessage("small"))
        found = await left(receiver)
        assert found[-1] == "small"
        assert len(found) == 15


async def test_a_full_queue_refuses_until_there_is_room(start: Start) -> None:
    emulator = start(MaxSizeInMegabytes=1)
    async with opened(emulator) as (sender, _):
        for _ in range(2):
            await sender.send_messages(ServiceBusMessage(b"x" * 600 * KB))
        with pytest.raises(ServiceBusQuotaExceededError):
            await sender.send_messages(ServiceBusMessage("more"))
        with pytest.raises(ServiceBusQuotaExceededError):
            await sender.schedule_messages(ServiceBusMessage("more"), datetime.now(UTC) + timedelta(hours=1))
    async with opened(start(MaxSizeInMegabytes=1)) as (sender, receiver):
        with pytest.raises(ServiceBusQuotaExceededError):
            await sender.send_messages(ServiceBusMessage("more"))
        await receiver.complete_message(await one(receiver))
        await sender.send_messages(ServiceBusMessage("more"))
        assert (await left(receiver))[-1] == "more"


async def test_a_disabled_queue_says_so_to_those_it_keeps_out(start: Start) -> None:
    async with opened(start()) as (sender, _):
        await sender.send_messages(ServiceBusMessage("kept"))
    async with opened(start(Status="SendDisabled")) as (sender, receiver):
        with pytest.raises(MessagingEntityDisabledError):
            await sender.send_messages(ServiceBusMessage("x"))
        await receiver.abandon_message(await one(receiver))
    async with opened(start(Status="ReceiveDisabled")) as (sender, receiver):
        await sender.send_messages(ServiceBusMessage("more"))
        with pytest.raises(MessagingEntityDisabledError):
            await receiver.receive_messages(max_wait_time=1)
    async with opened(start(Status="Disabled")) as (sender, receiver):
        with pytest.raises(MessagingEntityDisabledError):
            await sender.send_messages(ServiceBusMessage("x"))
        with pytest.raises(MessagingEntityDisabledError):
            await receiver.receive_messages(max_wait_time=1)
    async with opened(start()) as (_, receiver):
        assert await left(receiver) == ["kept", "more"]


# ----------------------------------------------------------------------------------------------------------- deferral


async def test_deferred_messages_outlive_a_kill_and_are_settled_in_every_way(start: Start) -> None:
    texts = ["complete", "abandon", "bury", "defer", "delete"]
    numbers: list[int] = []
    async with opened(start()) as (sender, receiver):
        await sender.send_messages([ServiceBusMessage(text) for text in texts])
        for _ in texts:
            message = await one(receiver)
            numbers.append(message.sequence_number or 0)
            await receiver.defer_message(message)
    emulator = start()
    async with opened(emulator) as (_, receiver):
        await receive_nothing(receiver)
        held = await receiver.receive_deferred_messages(numbers[:4])
        assert [body(message) for message in held] == texts[:4]
        with pytest.raises(MessageNotFoundError):  # they are locked
            await receiver.receive_deferred_messages(numbers[:1])
        complete, abandon, bury, defer = held
        await receiver.renew_message_lock(complete)
        await receiver.complete_message(complete)
        await receiver.abandon_message(abandon)
        await receiver.dead_letter_message(bury, reason="why")
        await receiver.defer_message(defer)
        (abandoned, deferred) = await receiver.receive_deferred_messages([numbers[1], numbers[3]])
        assert (abandoned.delivery_count, deferred.delivery_count) == (1, 0)
    async with opened(emulator, receive_mode=ServiceBusReceiveMode.RECEIVE_AND_DELETE) as (_, receiver):
        (deleted,) = await receiver.receive_deferred_messages(numbers[4])
        assert body(deleted) == "delete"
        assert await left(receiver) == ["abandon", "defer"]
    async with opened(emulator, sub_queue=ServiceBusSubQueue.DEAD_LETTER) as (_, dead):
        assert [body(message) for message in await dead.peek_messages()] == ["bury"]


# --------------------------------------------------------------------------------------------------------- properties


async def modify(receiver: ServiceBusReceiver, message: ServiceBusReceivedMessage, **how: Any) -> None:
    """As the SDKs that can: .NET and Java."""
    handler: Any = receiver._handler
    await handler.settle_messages_async(
        message._delivery_id, message._delivery_tag, "modified", delivery_failed=True, await_outcome=True, **how
    )


async def test_abandoning_and_deferring_can_add_properties_which_last(start: Start) -> None:
    async with opened(start()) as (sender, receiver):
        await sender.send_messages(ServiceBusMessage("x", application_properties={"mine": "kept", "step": "none"}))
        first = await one(receiver)
        await modify(receiver, first, undeliverable_here=False, message_annotations={"step": "one", "tries": 1})
        again = await one(receiver)
        assert again.application_properties == {b"mine": b"kept", b"step": b"one", b"tries": 1}
        assert again.delivery_count == 1
        await modify(receiver, again, undeliverable_here=True, message_annotations={"step": "two"})
    async with opened(start()) as (_, receiver):
        (deferred,) = await receiver.receive_deferred_messages(first.sequence_number or 0)
        assert deferred.application_properties == {b"mine": b"kept", b"step": b"two", b"tries": 1}


async def test_properties_can_be_added_over_the_management_link(start: Start) -> None:
    async with opened(start()) as (sender, receiver):
        await sender.send_messages([ServiceBusMessage("abandoned"), ServiceBusMessage("suspended")])
        for status in ("abandoned", "suspended"):
            message = await one(receiver)
            details = {"properties-to-modify": {"by": status}}
            if status == "suspended":
                details["deadletter-reason"] = "why"  # type: ignore[assignment]
            await receiver._settle_message_via_mgmt_link(status, [message.lock_token], details)
            if status == "abandoned":
                message = await one(receiver)
                assert message.application_properties == {b"by": b"abandoned"}
                await receiver.complete_message(message)
        with pytest.raises(ServiceBusError):
            await receiver._settle_message_via_mgmt_link("abandoned", [message.lock_token], {"properties-to-modify": 1})
    async with opened(start(), sub_queue=ServiceBusSubQueue.DEAD_LETTER) as (_, dead):
        letter = await one(dead)
        assert letter.application_properties == {b"by": b"suspended", b"DeadLetterReason": b"why"}


async def test_a_dead_letter_can_have_properties(start: Start) -> None:
    async with opened(start()) as (sender, receiver):
        await sender.send_messages(ServiceBusMessage("x"))
        message = await one(receiver)
        handler: Any = receiver._handler
        info = {"DeadLetterReason": "why", "DeadLetterErrorDescription": "because", "by": "me"}
        await handler.settle_messages_async(
            message._delivery_id,
            message._delivery_tag,
            "rejected",
            error=AMQPError(condition=b"com.microsoft:dead-letter", description=None, info=info),
            await_outcome=True,
        )
    async with opened(start(), sub_queue=ServiceBusSubQueue.DEAD_LETTER) as (_, dead):
        letter = await one(dead)
        assert (letter.dead_letter_reason, letter.dead_letter_error_description) == ("why", "because")
        assert letter.application_properties is not None
        assert letter.application_properties[b"by"] == b"me"


# --------------------------------------------------------------------------------------------------- many at one time


async def test_what_is_prefetched_is_locked_then_and_comes_back_when_the_lock_lapses(start: Start) -> None:
    emulator = start(LockDuration="PT5S")
    async with opened(emulator) as (sender, other), opened(emulator, prefetch_count=50) as (_, receiver):
        await other._open_with_retry()
        await sender.send_messages([ServiceBusMessage(f"{number}") for number in range(50)])
        messages: list[ServiceBusReceivedMessage] = []
        while len(messages) < 25:
            messages += await receiver.receive_messages(max_message_count=25 - len(messages), max_wait_time=20)
        latest = datetime.now(UTC) + timedelta(seconds=5)
        assert all(message.locked_until_utc <= latest for message in messages)  # type: ignore[operator]
        await receive_nothing(other)
        for message in messages:
            await receiver.complete_message(message)
        receiver._handler._connection._transport.writer.transport.abort()  # type: ignore[attr-defined]
        found: set[str] = set()
        while len(found) < 25:  # what lay in the client's buffer
            for message in await other.receive_messages(max_message_count=25, max_wait_time=20):
                assert message.delivery_count == 1
                found.add(body(message))
                await other.complete_message(message)
        assert found == {f"{number}" for number in range(50)} - {body(message) for message in messages}


async def test_peeking_many_large_messages_takes_several_looks(start: Start) -> None:
    async with opened(start()) as (sender, receiver):
        for _ in range(10):
            await sender.send_messages(ServiceBusMessage(b"x" * 200 * KB))
        looks: list[int] = []
        while page := await receiver.peek_messages(max_message_count=10):
            looks.append(len(page))
        assert sum(looks) == 10
        assert len(looks) > 1


async def test_schedules_are_cancelled_all_or_none(start: Start) -> None:
    async with opened(start()) as (sender, receiver):
        due = datetime.now(UTC) + timedelta(hours=1)
        numbers = await sender.schedule_messages([ServiceBusMessage(text) for text in "abc"], due)
        with pytest.raises(MessageNotFoundError):
            await sender.cancel_scheduled_messages([*numbers, 99])
        assert await left(receiver) == ["a", "b", "c"]
        await sender.cancel_scheduled_messages(numbers[:2])
        assert await left(receiver) == ["c"]


# ----------------------------------------------------------------------------------------------------------- recovery


async def test_a_lock_holds_through_a_kill_and_its_token_still_renews_and_settles(start: Start) -> None:
    settings = {"LockDuration": "PT8S"}  # within which a process is killed and started
    async with opened(start(**settings)) as (sender, receiver):
        await sender.send_messages([ServiceBusMessage("held"), ServiceBusMessage("lapsing")])
        held, lapsing = await one(receiver), await one(receiver)
        emulator = start(**settings)
    async with opened(emulator) as (_, receiver), opened(emulator) as (_, other):
        rival = asyncio.create_task(other.receive_messages(max_message_count=2, max_wait_time=30))
        (until,) = (await receiver._renew_locks(held.lock_token))[b"expirations"]
        assert held.locked_until_utc is not None
        assert lapsing.locked_until_utc is not None
        assert until / 1000 > held.locked_until_utc.timestamp()
        (again,) = await rival
        assert datetime.now(UTC) >= lapsing.locked_until_utc, "it was given away before its lock had ended"
        assert (body(again), again.delivery_count) == ("lapsing", 1)
        await receiver._settle_message_via_mgmt_link("completed", [held.lock_token])
        with pytest.raises(MessageLockLostError):
            await receiver._settle_message_via_mgmt_link("completed", [lapsing.lock_token])
        assert await left(receiver) == ["lapsing"]
