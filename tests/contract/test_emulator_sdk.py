"""The emulator as the unmodified azure-servicebus SDK sees it: a real process, real sockets, a real disk."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from azure.servicebus import (
    ServiceBusClient as SyncClient,
)
from azure.servicebus import (
    ServiceBusMessage,
    ServiceBusMessageBatch,
    ServiceBusMessageState,
    ServiceBusReceivedMessage,
    ServiceBusReceiveMode,
    ServiceBusSubQueue,
)
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver, ServiceBusSender
from azure.servicebus.amqp import AmqpAnnotatedMessage, AmqpMessageBodyType
from azure.servicebus.exceptions import (
    MessageLockLostError,
    MessageNotFoundError,
    MessageSizeExceededError,
    MessagingEntityNotFoundError,
    ServiceBusError,
)

from tests.emulator_process import EmulatorProcess

BRIEFLY = 0.4  # to see that nothing comes
PATIENTLY = 10.0  # for what must come

Start = Callable[..., EmulatorProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts an emulator with one queue, ``q``, of the given settings."""
    started: list[EmulatorProcess] = []

    def begin(**settings: Any) -> EmulatorProcess:
        emulator = EmulatorProcess(tmp_path / "emulator", {"q": settings}).start()
        started.append(emulator)
        return emulator

    yield begin
    for emulator in started:
        emulator.stop()
        assert "connection.bug" not in emulator.log_file.read_text()


pytestmark = pytest.mark.asyncio(loop_scope="module")
_closing: list[asyncio.Task[None]] = []


@pytest_asyncio.fixture(loop_scope="module", scope="module", autouse=True)
async def closers() -> AsyncIterator[None]:
    """The SDK takes a second to close a handler; tests that do not care leave it to the end."""
    yield
    await asyncio.gather(*_closing, return_exceptions=True)


@asynccontextmanager
async def opened(
    emulator: EmulatorProcess, **receiver_options: Any
) -> AsyncIterator[tuple[ServiceBusSender, ServiceBusReceiver]]:
    client = client_of(emulator)
    sender, receiver = client.get_queue_sender("q"), client.get_queue_receiver("q", **receiver_options)
    try:
        await asyncio.gather(sender._open_with_retry(), receiver._open_with_retry())
        yield sender, receiver
    finally:
        _closing.append(asyncio.create_task(client.close()))


@asynccontextmanager
async def connected(
    emulator: EmulatorProcess, **receiver_options: Any
) -> AsyncIterator[tuple[ServiceBusSender, ServiceBusReceiver]]:
    """As ``opened``, and closed before the test goes on."""
    async with opened(emulator, **receiver_options) as (sender, receiver):
        yield sender, receiver
        await asyncio.gather(sender.close(), receiver.close())


async def receive_one(receiver: ServiceBusReceiver, wait: float = PATIENTLY) -> ServiceBusReceivedMessage:
    messages = await receiver.receive_messages(max_wait_time=wait)
    assert len(messages) == 1, "nothing arrived"
    return messages[0]


async def receive_nothing(receiver: ServiceBusReceiver) -> None:
    messages = await receiver.receive_messages(max_wait_time=BRIEFLY)
    assert [body(message) for message in messages] == []


def body(message: ServiceBusReceivedMessage) -> str:
    return b"".join(message.body).decode()


async def bodies(receiver: ServiceBusReceiver, count: int) -> list[str]:
    """Receive and complete that many."""
    found: list[str] = []
    while len(found) < count:
        messages = await receiver.receive_messages(max_message_count=count - len(found), max_wait_time=PATIENTLY)
        assert messages, f"only {found} arrived"
        for message in messages:
            found.append(body(message))
            await receiver.complete_message(message)
    return found


@asynccontextmanager
async def dead_letters(sender: ServiceBusSender) -> AsyncIterator[ServiceBusReceiver]:
    client = client_beside(sender)
    receiver = client.get_queue_receiver("q", sub_queue=ServiceBusSubQueue.DEAD_LETTER)
    try:
        yield receiver
    finally:
        _closing.append(asyncio.create_task(client.close()))


def client_of(emulator: EmulatorProcess) -> ServiceBusClient:
    return ServiceBusClient.from_connection_string(emulator.connection_string, retry_total=0)


def client_beside(sender: ServiceBusSender) -> ServiceBusClient:
    host = sender.fully_qualified_namespace
    return ServiceBusClient.from_connection_string(
        f"Endpoint=sb://{host};SharedAccessKeyName=x;SharedAccessKey=y;UseDevelopmentEmulator=true", retry_total=0
    )


def unexpired(message: ServiceBusReceivedMessage) -> ServiceBusReceivedMessage:
    """Make the client believe that the lock still holds, so that the emulator has to say that it does not."""
    message._expiry = datetime.now(UTC) + timedelta(hours=1)
    return message


# ----------------------------------------------------------------------------------------------- sending, receiving


async def test_a_message_arrives_as_it_was_sent(start: Start) -> None:
    async with opened(start()) as (sender, receiver):
        before = datetime.now(UTC) - timedelta(milliseconds=2)
        await sender.send_messages(
            ServiceBusMessage(
                b"payload",
                message_id="m-1",
                correlation_id="c-1",
                subject="s",
                content_type="application/json",
                reply_to="elsewhere",
                to="there",
                session_id=None,
                partition_key="p",
                time_to_live=timedelta(hours=1),
                application_properties={"text": "ü", "int": 7, "float": 1.5, "bool": True, "id": UUID(int=5)},
            )
        )
        message = await receive_one(receiver)
        assert body(message) == "payload"
        assert (message.message_id, message.correlation_id, message.subject) == ("m-1", "c-1", "s")
        assert (message.content_type, message.reply_to, message.to) == ("application/json", "elsewhere", "there")
        assert message.partition_key == "p"
        assert message.time_to_live == timedelta(hours=1)
        assert message.application_properties == {
            b"text": "ü".encode(),
            b"int": 7,
            b"float": 1.5,
            b"bool": True,
            b"id": UUID(int=5),
        }
        assert message.sequence_number == 1
        assert message.delivery_count == 0
        assert message.state is ServiceBusMessageState.ACTIVE
        assert message.enqueued_time_utc is not None
        assert message.locked_until_utc is not None
        after = datetime.now(UTC) + timedelta(milliseconds=2)
        assert before <= message.enqueued_time_utc <= after
        assert before <= message.locked_until_utc - timedelta(seconds=60) <= after
        await receiver.complete_message(message)
        await receive_nothing(receiver)


async def test_value_and_sequence_bodies_arrive_too(start: Start) -> None:
    async with opened(start()) as (sender, receiver):
        await sender.send_messages(AmqpAnnotatedMessage(value_body={"a": [1, 2.5, None]}))
        await sender.send_messages(AmqpAnnotatedMessage(sequence_body=[["x", 1], ["y"]]))
        value, sequence = await receive_one(receiver), await receive_one(receiver)
        assert value.body_type is AmqpMessageBodyType.VALUE
        assert value.body == {b"a": [1, 2.5, None]}
        assert sequence.body_type is AmqpMessageBodyType.SEQUENCE
        assert list(sequence.body) == [[b"x", 1], [b"y"]]


async def test_a_message_without_an_id_is_given_one_that_stays(start: Start) -> None:
    async with opened(start()) as (sender, receiver):
        await sender.send_messages(ServiceBusMessage("no id", subject="kept"))
        first = await receive_one(receiver)
        assert first.message_id
        assert first.subject == "kept"
        await receiver.abandon_message(first)
        assert (await receive_one(receiver)).message_id == first.message_id


async def test_a_message_of_many_frames_arrives_whole(start: Start) -> None:
    large = os.urandom(900_000)
    async with opened(start()) as (sender, receiver):
        await sender.send_messages(ServiceBusMessage(large))
        message = await receive_one(receiver)
        assert b"".join(message.body) == large
        await receiver.complete_message(message)


async def test_a_message_over_the_limit_is_refused_and_the_link_goes_on(start: Start) -> None:
    async with opened(start()) as (sender, receiver):
        with pytest.raises(MessageSizeExceededError):
            await sender.send_messages(ServiceBusMessage(b"x" * 1_100_000))
        await sender.send_messages(ServiceBusMessage("small"))
        assert await bodies(receiver, 1) == ["small"]


async def test_a_batch_arrives_in_order(start: Start) -> None:
    async with opened(start()) as (sender, receiver):
        await sender.send_messages([ServiceBusMessage(f"m{number}") for number in range(50)])
        batch: ServiceBusMessageBatch = await sender.create_message_batch()
        batch.add_message(ServiceBusMessage("last"))
        await sender.send_messages(batch)
        assert await bodies(receiver, 51) == [f"m{number}" for number in range(50)] + ["last"]


async def test_a_missing_queue_is_not_found(start: Start) -> None:
    async with client_of(start()) as client:
        with pytest.raises(MessagingEntityNotFoundError):
            async with client.get_queue_sender("missing") as sender:
                await sender.send_messages(ServiceBusMessage("x"))
        with pytest.raises(MessagingEntityNotFoundError):
            async with client.get_queue_receiver("missing") as receiver:
                await receiver.receive_messages(max_wait_time=1)


async def test_queue_names_ignore_case(start: Start) -> None:
    async with opened(start()) as (sender, _):
        await sender.send_messages(ServiceBusMessage("x"))
        async with client_beside(sender).get_queue_receiver("Q") as receiver:
            assert await bodies(receiver, 1) == ["x"]


async def test_receive_and_delete_leaves_nothing(start: Start) -> None:
    emulator = start()
    mode = ServiceBusReceiveMode.RECEIVE_AND_DELETE
    async with opened(emulator, receive_mode=mode) as (sender, receiver):
        await sender.send_messages([ServiceBusMessage("a"), ServiceBusMessage("b")])
        found = await receiver.receive_messages(max_message_count=2, max_wait_time=PATIENTLY)
        assert [body(message) for message in found] == ["a", "b"]
    emulator.kill()
    emulator.start()
    async with opened(emulator) as (_, receiver):
        await receive_nothing(receiver)


async def test_a_waiting_receiver_is_served_at_once(start: Start) -> None:
    async with opened(start()) as (sender, receiver):
        waiting = asyncio.create_task(receive_one(receiver))
        await asyncio.sleep(0.3)  # let it attach and give credit
        began = time.perf_counter()
        await sender.send_messages(ServiceBusMessage("x"))
        await waiting
        assert time.perf_counter() - began < PATIENTLY / 2


async def test_only_what_was_asked_for_is_locked(start: Start) -> None:
    emulator = start()
    async with opened(emulator) as (sender, first), opened(emulator) as (_, second):
        await sender.send_messages([ServiceBusMessage(text) for text in "abc"])
        assert body(await receive_one(first)) == "a"
        assert await bodies(second, 2) == ["b", "c"]


async def test_every_message_goes_to_one_of_many_receivers(start: Start) -> None:
    emulator = start()
    expected = [f"m{number}" for number in range(150)]
    shares: list[list[str]] = [[], [], []]

    async def drain(receiver: ServiceBusReceiver, share: list[str]) -> None:
        while sum(map(len, shares)) < len(expected):
            for message in await receiver.receive_messages(max_message_count=5, max_wait_time=BRIEFLY):
                share.append(body(message))
                await receiver.complete_message(message)

    async with opened(emulator) as (sender, one), opened(emulator) as (_, two), opened(emulator) as (_, three):
        draining = [drain(receiver, share) for receiver, share in zip((one, two, three), shares, strict=True)]
        draining.append(sender.send_messages([ServiceBusMessage(text) for text in expected]))
        await asyncio.wait_for(asyncio.gather(*draining), 120)
        assert Counter(text for share in shares for text in share) == Counter(expected)
        assert all(shares), "one receiver got nothing"
        await receive_nothing(one)


# ------------------------------------------------------------------------------------------------------- settling


async def test_an_abandoned_message_comes_back_in_its_place_and_counts(start: Start) -> None:
    async with opened(start()) as (sender, receiver):
        await sender.send_messages([ServiceBusMessage("first"), ServiceBusMessage("second")])
        first = await receive_one(receiver)
        await receiver.abandon_message(first)
        again = await receive_one(receiver)
        assert body(again) == "first"
        assert again.delivery_count == 1
        assert again.sequence_number == first.sequence_number
        assert again.lock_token != first.lock_token


async def test_a_dead_letter_has_its_reason_and_can_be_peeked_received_and_completed(start: Start) -> None:
    async with opened(start()) as (sender, receiver):
        await sender.send_messages(ServiceBusMessage("bad", application_properties={"mine": "kept"}))
        message = await receive_one(receiver)
        await receiver.dead_letter_message(message, reason="Poison", error_description="wrong digest")
        await receive_nothing(receiver)
        async with dead_letters(sender) as dead:
            (peeked,) = await dead.peek_messages()
            assert (peeked.dead_letter_reason, body(peeked)) == ("Poison", "bad")
            letter = await receive_one(dead)
            assert letter.dead_letter_reason == "Poison"
            assert letter.dead_letter_error_description == "wrong digest"
            assert letter.application_properties is not None
            assert letter.application_properties[b"mine"] == b"kept"
            assert letter.sequence_number == message.sequence_number
            await dead.complete_message(letter)
            assert await dead.peek_messages(sequence_number=1) == []


async def test_dead_lettering_needs_no_reason(start: Start) -> None:
    async with opened(start()) as (sender, receiver):
        await sender.send_messages(ServiceBusMessage("bad"))
        await receiver.dead_letter_message(await receive_one(receiver))
        async with dead_letters(sender) as dead:
            letter = await receive_one(dead)
            assert letter.dead_letter_reason is None
            await dead.abandon_message(letter)
            assert (await receive_one(dead)).delivery_count == 1


async def test_a_dead_letter_cannot_be_dead_lettered_again(start: Start) -> None:
    async with opened(start()) as (sender, receiver):
        await sender.send_messages(ServiceBusMessage("bad"))
        await receiver.dead_letter_message(await receive_one(receiver), reason="first")
        async with dead_letters(sender) as dead:
            letter = await receive_one(dead)
            with pytest.raises(ServiceBusError):
                await dead.dead_letter_message(letter, reason="second")
            (still,) = await dead.peek_messages(sequence_number=1)
            assert still.dead_letter_reason == "first"


async def test_too_many_deliveries_make_a_dead_letter(start: Start) -> None:
    async with opened(start(MaxDeliveryCount=2)) as (sender, receiver):
        await sender.send_messages(ServiceBusMessage("x"))
        await receiver.abandon_message(await receive_one(receiver))
        await receiver.abandon_message(await receive_one(receiver))
        await receive_nothing(receiver)
        async with dead_letters(sender) as dead:
            assert (await receive_one(dead)).dead_letter_reason == "MaxDeliveryCountExceeded"


async def test_a_deferred_message_comes_only_when_asked_for(start: Start) -> None:
    async with opened(start()) as (sender, receiver):
        await sender.send_messages(ServiceBusMessage("later"))
        message = await receive_one(receiver)
        number = message.sequence_number
        assert number is not None
        await receiver.defer_message(message)
        await receive_nothing(receiver)
        (peeked,) = await receiver.peek_messages(sequence_number=1)
        assert peeked.state is ServiceBusMessageState.DEFERRED
        (again,) = await receiver.receive_deferred_messages(number)
        assert body(again) == "later"
        await receiver.complete_message(again)
        with pytest.raises(MessageNotFoundError):
            await receiver.receive_deferred_messages(number)


async def test_settling_over_the_management_link_works_after_the_link_is_gone(start: Start) -> None:
    emulator = start()
    async with connected(emulator) as (sender, receiver):
        await sender.send_messages([ServiceBusMessage(text) for text in ("complete", "abandon", "bury")])
        held = {}
        while len(held) < 3:
            for message in await receiver.receive_messages(max_message_count=3, max_wait_time=PATIENTLY):
                held[body(message)] = message.lock_token
    async with opened(emulator) as (sender, receiver):
        await receiver._settle_message_via_mgmt_link("completed", [held["complete"]])
        await receiver._settle_message_via_mgmt_link("abandoned", [held["abandon"]])
        details = {"deadletter-reason": "why", "deadletter-description": "because"}
        await receiver._settle_message_via_mgmt_link("suspended", [held["bury"]], details)
        again = await receive_one(receiver)
        assert (body(again), again.delivery_count) == ("abandon", 1)
        await receive_nothing(receiver)
        async with dead_letters(sender) as dead:
            letter = await receive_one(dead)
            assert (letter.dead_letter_reason, letter.dead_letter_error_description) == ("why", "because")
        with pytest.raises(MessageLockLostError):
            await receiver._settle_message_via_mgmt_link("completed", [held["complete"]])


# ---------------------------------------------------------------------------------------------------------- locks


async def test_an_expired_lock_redelivers_and_the_late_settlement_fails(start: Start) -> None:
    async with opened(start(LockDuration="PT2S")) as (sender, receiver):
        await sender.send_messages(ServiceBusMessage("slow"))
        late = await receive_one(receiver)
        again = await receive_one(receiver)
        assert again.message_id == late.message_id
        assert again.delivery_count == 1
        with pytest.raises(MessageLockLostError):
            await receiver.complete_message(unexpired(late))
        await receiver.complete_message(again)
        with pytest.raises(MessageLockLostError):
            await receiver.renew_message_lock(unexpired(late))
        await receive_nothing(receiver)


async def test_a_renewed_lock_outlives_its_duration(start: Start) -> None:
    emulator = start(LockDuration="PT2S")
    async with opened(emulator) as (sender, receiver), opened(emulator) as (_, other):
        await sender.send_messages(ServiceBusMessage("long"))
        message = await receive_one(receiver)
        until = first = message.locked_until_utc
        assert first is not None
        assert until is not None
        rival = asyncio.create_task(other.receive_messages(max_wait_time=3))
        while datetime.now(UTC) < first + timedelta(seconds=0.5):
            renewed = await receiver.renew_message_lock(message)
            assert renewed > until
            until = renewed
            await asyncio.sleep(0.5)
        await receiver.complete_message(message)
        assert await rival == []


async def test_a_lock_outlives_its_connection_until_it_expires(start: Start) -> None:
    emulator = start(LockDuration="PT3S")
    async with opened(emulator) as (_, after), opened(emulator) as (sender, receiver):
        await sender.send_messages(ServiceBusMessage("held"))
        until = (await receive_one(receiver)).locked_until_utc
        receiver._handler._connection._transport.writer.transport.abort()
        await receive_nothing(after)
        again = await receive_one(after)
        assert until is not None
        assert datetime.now(UTC) >= until
        assert again.delivery_count == 1


async def test_locks_and_delivery_counts_survive_a_kill(start: Start) -> None:
    emulator = start()
    async with opened(emulator) as (sender, receiver):
        await sender.send_messages([ServiceBusMessage("a"), ServiceBusMessage("b")])
        await receiver.abandon_message(await receive_one(receiver))
        held = await receive_one(receiver)
        assert body(held) == "a"
        emulator.kill()
    emulator.start()
    async with opened(emulator) as (_, receiver):
        assert body(await receive_one(receiver)) == "b"
        await receiver._settle_message_via_mgmt_link("abandoned", [held.lock_token])
        again = await receive_one(receiver)
        assert (body(again), again.delivery_count) == ("a", 2)


async def test_messages_on_their_way_when_a_receiver_closes_are_free_at_once(start: Start) -> None:
    emulator = start()
    async with connected(emulator, prefetch_count=20) as (sender, receiver):
        await sender.send_messages([ServiceBusMessage(f"{number}") for number in range(20)])
        await receiver.complete_message(await receive_one(receiver))
    async with opened(emulator) as (_, receiver):
        assert len(await bodies(receiver, 19)) == 19


# ----------------------------------------------------------------------------------------------------------- time


async def test_an_expired_message_is_gone(start: Start) -> None:
    async with opened(start()) as (sender, receiver):
        await sender.send_messages(ServiceBusMessage("short", time_to_live=timedelta(milliseconds=300)))
        await asyncio.sleep(0.4)
        await receive_nothing(receiver)
        assert await receiver.peek_messages() == []
        async with dead_letters(sender) as dead:
            assert await dead.peek_messages() == []


async def test_an_expired_message_is_dead_lettered_if_the_queue_says_so(start: Start) -> None:
    settings = {"DefaultMessageTimeToLive": "PT0.3S", "DeadLetteringOnMessageExpiration": True}
    async with opened(start(**settings)) as (sender, _):
        await sender.send_messages(ServiceBusMessage("short", time_to_live=timedelta(hours=1)))
        async with dead_letters(sender) as dead:
            letter = await receive_one(dead)  # arrives by the timer alone
            assert (body(letter), letter.dead_letter_reason) == ("short", "TTLExpiredException")


@pytest.mark.parametrize("how", ["annotation", "operation"])
async def test_a_scheduled_message_comes_when_it_is_due(start: Start, how: str) -> None:
    async with opened(start()) as (sender, receiver):
        due = datetime.now(UTC) + timedelta(seconds=2)
        if how == "annotation":
            await sender.send_messages(ServiceBusMessage("later", scheduled_enqueue_time_utc=due))
        else:
            numbers = await sender.schedule_messages([ServiceBusMessage("later")], due)
            assert len(numbers) == 1
        (peeked,) = await receiver.peek_messages()
        assert peeked.state is ServiceBusMessageState.SCHEDULED
        message = await receive_one(receiver)
        assert datetime.now(UTC) >= due
        assert message.enqueued_time_utc is not None
        assert message.enqueued_time_utc >= due - timedelta(milliseconds=2)


async def test_a_cancelled_schedule_never_comes(start: Start) -> None:
    async with opened(start()) as (sender, receiver):
        due = datetime.now(UTC) + timedelta(seconds=2)
        one, two = await sender.schedule_messages([ServiceBusMessage("one"), ServiceBusMessage("two")], due)
        await sender.cancel_scheduled_messages(one)
        assert await bodies(receiver, 1) == ["two"]
        await receive_nothing(receiver)
        with pytest.raises(MessageNotFoundError):
            await sender.cancel_scheduled_messages(two)


async def test_schedules_survive_a_kill_even_when_they_come_due_meanwhile(start: Start) -> None:
    emulator = start()
    async with opened(emulator) as (sender, _):
        now = datetime.now(UTC)
        await sender.schedule_messages(ServiceBusMessage("soon"), now + timedelta(seconds=0.5))
        await sender.schedule_messages(ServiceBusMessage("later"), now + timedelta(seconds=2))
    emulator.kill()
    await asyncio.sleep(0.6)
    emulator.start()
    async with opened(emulator) as (_, receiver):
        assert await bodies(receiver, 1) == ["soon"]
        assert await bodies(receiver, 1) == ["later"]
        assert datetime.now(UTC) >= now + timedelta(seconds=2)


# ----------------------------------------------------------------------------------------------------- duplicates


async def test_a_duplicate_is_dropped_silently_even_after_a_kill(start: Start) -> None:
    emulator = start(RequiresDuplicateDetection=True)
    async with opened(emulator) as (sender, receiver):
        await sender.send_messages(ServiceBusMessage("first", message_id="same"))
        assert await bodies(receiver, 1) == ["first"]
    emulator.kill()
    emulator.start()
    async with opened(emulator) as (sender, receiver):
        await sender.send_messages(ServiceBusMessage("second", message_id="same"))
        await sender.send_messages([ServiceBusMessage("third", message_id=key) for key in ("same", "other")])
        assert await bodies(receiver, 1) == ["third"]
        await receive_nothing(receiver)


async def test_duplicates_are_forgotten_after_the_window(start: Start) -> None:
    settings = {"RequiresDuplicateDetection": True, "DuplicateDetectionHistoryTimeWindow": "PT0.5S"}
    async with opened(start(**settings)) as (sender, receiver):
        await sender.send_messages(ServiceBusMessage("first", message_id="same"))
        await asyncio.sleep(0.6)
        await sender.send_messages(ServiceBusMessage("second", message_id="same"))
        assert await bodies(receiver, 2) == ["first", "second"]


async def test_without_duplicate_detection_both_come(start: Start) -> None:
    async with opened(start()) as (sender, receiver):
        for text in ("first", "second"):
            await sender.send_messages(ServiceBusMessage(text, message_id="same"))
        assert await bodies(receiver, 2) == ["first", "second"]


# -------------------------------------------------------------------------------------------------------- peeking


async def test_peeking_goes_through_everything_and_locks_nothing(start: Start) -> None:
    async with opened(start()) as (sender, receiver):
        await sender.send_messages([ServiceBusMessage(f"{number}") for number in range(5)])
        held = await receive_one(receiver)
        pages = [await receiver.peek_messages(max_message_count=2, sequence_number=1)]
        while pages[-1]:
            pages.append(await receiver.peek_messages(max_message_count=2))
        assert [[body(message) for message in page] for page in pages] == [["0", "1"], ["2", "3"], ["4"], []]
        assert [m.sequence_number for page in pages for m in page] == [1, 2, 3, 4, 5]
        await receiver.complete_message(held)
        assert await bodies(receiver, 4) == ["1", "2", "3", "4"]


# ----------------------------------------------------------------------------------------------------- durability


async def test_a_kill_under_load_loses_and_repeats_nothing_acknowledged(start: Start) -> None:
    """Six clients send and two receive while the emulator is killed, twice."""
    emulator = start()
    sent: set[str] = set()
    perhaps_sent: set[str] = set()  # the emulator died before it answered
    completed: Counter[str] = Counter()
    perhaps_completed: set[str] = set()

    async def send(stop: asyncio.Event) -> None:
        async with opened(emulator) as (sender, _):
            while not stop.is_set():
                batch = [uuid4().hex for _ in range(3)]
                perhaps_sent.update(batch)
                await sender.send_messages([ServiceBusMessage(text, message_id=text) for text in batch])
                sent.update(batch)

    async def receive(stop: asyncio.Event) -> None:
        async with opened(emulator) as (_, receiver):
            while not stop.is_set():
                for message in await receiver.receive_messages(max_message_count=5, max_wait_time=1):
                    perhaps_completed.add(body(message))
                    await receiver.complete_message(message)
                    completed[body(message)] += 1

    for turn in (1, 2):
        stop = asyncio.Event()
        clients = [asyncio.create_task(send(stop)) for _ in range(6)]
        clients += [asyncio.create_task(receive(stop)) for _ in range(2)]
        async with asyncio.timeout(120):
            while len(sent) < 300 * turn or len(completed) < 30 * turn:  # noqa: ASYNC110 - two conditions at once
                await asyncio.sleep(0.01)
        emulator.kill()
        stop.set()
        await asyncio.wait(clients, timeout=30)
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        emulator.start()

    left: Counter[str] = Counter()
    numbers = [0]
    async with opened(emulator) as (_, receiver):
        while page := await receiver.peek_messages(max_message_count=200, sequence_number=numbers[-1] + 1):
            left.update(body(message) for message in page)
            numbers += [message.sequence_number or 0 for message in page]
    assert not sent - left.keys() - perhaps_completed, "acknowledged messages were lost"
    assert not left.keys() & completed.keys(), "completed messages came back"
    assert set(left.values()) <= {1}
    assert set(completed.values()) <= {1}
    assert left.keys() <= perhaps_sent
    assert numbers == sorted(set(numbers))


async def test_sequence_numbers_go_on_after_a_kill_with_nothing_left(start: Start) -> None:
    emulator = start()
    numbers = []
    for _ in range(3):
        async with opened(emulator) as (sender, receiver):
            await sender.send_messages(ServiceBusMessage("x"))
            message = await receive_one(receiver)
            numbers.append(message.sequence_number)
            await receiver.complete_message(message)
        emulator.kill()
        emulator.start()
    assert numbers == [1, 2, 3]


async def test_new_settings_take_effect_and_messages_stay(tmp_path: Path) -> None:
    with EmulatorProcess(tmp_path, ["q"]) as emulator:
        async with opened(emulator) as (sender, _):
            await sender.send_messages(ServiceBusMessage("kept"))
    with EmulatorProcess(tmp_path, ["q", "another"], MaxDeliveryCount=1) as emulator:
        async with opened(emulator) as (sender, receiver):
            message = await receive_one(receiver)
            assert body(message) == "kept"
            await receiver.abandon_message(message)
            async with dead_letters(sender) as dead:
                assert (await receive_one(dead)).dead_letter_reason == "MaxDeliveryCountExceeded"


# -------------------------------------------------------------------------------------------------------- process


async def test_idle_means_asleep(start: Start) -> None:
    """With a lock and a schedule pending, nothing wakes the process before they are due."""
    emulator = start()
    async with connected(emulator) as (sender, receiver):
        await sender.schedule_messages(ServiceBusMessage("later"), datetime.now(UTC) + timedelta(hours=1))
        await sender.send_messages(ServiceBusMessage("held"))
        await receive_one(receiver)
    for _ in range(60):  # what the client has left to say comes first
        before = times_asleep(emulator.pid)
        await asyncio.sleep(0.5)
        if (woken := times_asleep(emulator.pid) - before) <= 1:
            break
    assert woken <= 1


def times_asleep(pid: int) -> int:
    """How often the main thread has gone to sleep, which is how often it was woken."""
    status = Path(f"/proc/{pid}/task/{pid}/status")
    if not status.exists():
        pytest.skip("needs /proc")
    return int(next(line for line in status.read_text().splitlines() if line.startswith("voluntary")).split()[1])


# ------------------------------------------------------------------------------------------------------- sync SDK


async def test_the_synchronous_sdk_sends_receives_and_settles(start: Start) -> None:
    await asyncio.to_thread(use_the_synchronous_sdk, start())


def use_the_synchronous_sdk(emulator: EmulatorProcess) -> None:
    with (
        SyncClient.from_connection_string(emulator.connection_string) as client,
        client.get_queue_sender("q") as sender,
        client.get_queue_receiver("q") as receiver,
    ):
        sender.send_messages([ServiceBusMessage("complete"), ServiceBusMessage("bury")])
        found: list[ServiceBusReceivedMessage] = []
        while len(found) < 2:
            found += receiver.receive_messages(max_message_count=2, max_wait_time=PATIENTLY)
        complete, bury = found
        receiver.renew_message_lock(complete)
        receiver.complete_message(complete)
        receiver.dead_letter_message(bury, reason="why", error_description="because")
        sender.schedule_messages(ServiceBusMessage("later"), datetime.now(UTC) + timedelta(seconds=0.3))
        (later,) = receiver.receive_messages(max_wait_time=PATIENTLY)
        assert body(later) == "later"
        with client.get_queue_receiver("q", sub_queue=ServiceBusSubQueue.DEAD_LETTER) as dead:
            (peeked,) = dead.peek_messages()
            assert (body(peeked), peeked.dead_letter_reason) == ("bury", "why")
