"""Every fault the emulator can be asked for: what the SDK makes of it, and how our bus gets over it.

Each is asked for once and for certain, so that the operation after it shows whether the client has recovered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.servicebus import ServiceBusMessage, ServiceBusReceivedMessage
from azure.servicebus import exceptions as sdk
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver, ServiceBusSender
from pydantic import SecretStr

from messages.consumer import Consumer
from messages.errors import Forbidden, LockLost, Poison, SilobusError, Transient
from messages.ports import Delivery, Outgoing
from messages.retry import Waits
from messages.transport.clock import SystemClock
from messages.transport.servicebus import ServiceBus, client_options
from tests.emulator_process import EmulatorProcess

Start = Callable[..., EmulatorProcess]
TO_DETACH, TO_DROP = "1", "2"
"""Seeds with which the answer is lost by the link's end, and by the connection's."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts an emulator with one queue, ``q``, and these faults."""
    started: list[EmulatorProcess] = []

    def begin(*faults: str, seed: str = TO_DETACH, **settings: Any) -> EmulatorProcess:
        options = [option for fault in faults for option in ("--fault", fault)]
        emulator = EmulatorProcess(tmp_path, {"q": settings}, options=[*options, "--seed", seed])
        started.append(emulator.start())
        return emulator

    yield begin
    for emulator in started:
        assert emulator.stop() == 0
        log = emulator.log_file.read_text()
        assert "connection.bug" not in log
        assert "Traceback" not in log


def struck(emulator: EmulatorProcess) -> dict[str, int]:
    """How often which fault struck; stops the emulator."""
    emulator.stop()
    lines = [json.loads(line) for line in emulator.log_file.read_text().splitlines()]
    (counts,) = [line for line in lines if line["event"] == "faults.struck"]
    return {name: count for name, count in counts.items() if name not in ("at", "level", "event")}


# ------------------------------------------------------------------------------------------------------ the SDK alone


class Sdk:
    """One sender and one receiver, and the four operations that faults strike."""

    def __init__(self, emulator: EmulatorProcess) -> None:
        self.client = ServiceBusClient.from_connection_string(emulator.connection_string, retry_total=0)
        self.sender: ServiceBusSender = self.client.get_queue_sender("q")
        self.receiver: ServiceBusReceiver = self.client.get_queue_receiver("q")
        self.message: ServiceBusReceivedMessage | None = None

    async def send(self) -> None:
        await self.sender.send_messages(ServiceBusMessage("x", message_id=uuid.uuid4().hex))

    async def receive(self) -> None:
        (self.message,) = await self.receiver.receive_messages(max_wait_time=10)

    async def renew(self) -> None:
        assert self.message is not None
        await self.receiver.renew_message_lock(self.message)

    async def complete(self) -> None:
        assert self.message is not None
        await self.receiver.complete_message(self.message)

    async def count(self) -> int:
        return len(await self.receiver.peek_messages(max_message_count=10, sequence_number=1))


STEPS = ("send", "receive", "renew", "complete")
RAISED = [
    ("detach@attach=1x", "send", sdk.ServiceBusConnectionError),
    ("detach@send=1x", "send", sdk.ServiceBusConnectionError),
    ("detach@deliver=1x", "receive", sdk.ServiceBusConnectionError),
    ("detach@settle=1x", "complete", None),  # settles again over $management, unasked
    ("detach@request=1x", "renew", sdk.ServiceBusError),
    ("server-busy@attach=1x", "send", sdk.ServiceBusServerBusyError),
    ("server-busy@send=1x", "send", sdk.ServiceBusServerBusyError),
    ("server-busy@settle=1x", "complete", sdk.ServiceBusServerBusyError),
    ("server-busy@request=1x", "renew", sdk.ServiceBusServerBusyError),
    ("drop-connection@attach=1x", "send", sdk.ServiceBusConnectionError),
    ("drop-connection@send=1x", "send", sdk.ServiceBusConnectionError),
    ("drop-connection@deliver=1x", "receive", sdk.ServiceBusConnectionError),
    ("drop-connection@settle=1x", "complete", sdk.ServiceBusConnectionError),
    ("drop-connection@request=1x", "renew", sdk.ServiceBusConnectionError),
    ("token-expired@attach=1x", "send", sdk.ServiceBusAuthorizationError),
    ("token-expired@send=1x", "send", sdk.ServiceBusConnectionError),  # the SDK forgets why the link went
    ("token-expired@deliver=1x", "receive", sdk.ServiceBusAuthorizationError),
    ("token-expired@settle=1x", "complete", sdk.ServiceBusError),
    ("token-expired@request=1x", "renew", sdk.ServiceBusError),
    ("queue-full=1x", "send", sdk.ServiceBusQuotaExceededError),
]


@pytest.mark.parametrize(("fault", "step", "raised"), RAISED, ids=[fault for fault, _, _ in RAISED])
async def test_what_the_sdk_makes_of_it(start: Start, fault: str, step: str, raised: type[Exception] | None) -> None:
    emulator = start(fault)
    client = Sdk(emulator)
    async with client.client:
        for each in STEPS[: STEPS.index(step)]:
            await getattr(client, each)()
        before = await client.count() if step == "complete" else 0
        if raised is None:
            await client.complete()
        else:
            with pytest.raises(raised) as caught:
                await getattr(client, step)()
            assert type(caught.value) is raised
        # What was struck was not done, and the client goes on.
        assert (
            await client.count() == {"send": 0, "receive": 1, "renew": 1, "complete": before - (raised is None)}[step]
        )
    assert struck(emulator) == {fault.partition("@")[0].partition("=")[0]: 1}


LOST = [
    ("send", TO_DETACH, sdk.ServiceBusConnectionError, 1),
    ("send", TO_DROP, sdk.ServiceBusConnectionError, 1),
    ("settle", TO_DETACH, sdk.MessageLockLostError, 0),  # settles again over $management: it was settled already
    ("settle", TO_DROP, sdk.ServiceBusConnectionError, 0),
    ("request", TO_DETACH, sdk.ServiceBusError, 1),
    ("request", TO_DROP, sdk.ServiceBusConnectionError, 1),
]


@pytest.mark.parametrize(("operation", "seed", "raised", "left"), LOST)
async def test_an_operation_whose_answer_is_lost_was_done(
    start: Start, operation: str, seed: str, raised: type[Exception], left: int
) -> None:
    emulator = start(f"ack-lost@{operation}=1x", seed=seed, LockDuration="PT20S")
    client = Sdk(emulator)
    async with client.client:
        step = {"send": "send", "settle": "complete", "request": "renew"}[operation]
        for each in STEPS[: STEPS.index(step)]:
            await getattr(client, each)()
        await asyncio.sleep(1 if operation == "request" else 0)
        with pytest.raises(raised) as caught:
            await getattr(client, step)()
        assert type(caught.value) is raised
    emulator.kill()
    after = Sdk(start(LockDuration="PT20S"))
    async with after.client:
        peeked = await after.receiver.peek_messages(sequence_number=1)
        assert len(peeked) == left
        if operation == "request":
            assert client.message is not None
            assert client.message.locked_until_utc is not None
            assert peeked[0].locked_until_utc is not None
            assert peeked[0].locked_until_utc > client.message.locked_until_utc, "the lock was not renewed"


async def test_a_link_on_which_nothing_moves_is_detached_and_one_in_use_is_not(start: Start) -> None:
    emulator = start("idle-detach@attach=1x:1s")
    client = Sdk(emulator)
    async with client.client:
        await client.send()
        begun, sent = time.monotonic(), 1
        while time.monotonic() - begun < 1.6:
            await asyncio.sleep(0.2)
            await client.send()
            sent += 1
        await asyncio.sleep(2.2)
        with pytest.raises(sdk.ServiceBusConnectionError):
            await client.send()
        await client.send()
        assert await client.count() == sent + 1


@pytest.mark.parametrize(("detects", "count"), [(False, 2), (True, 1)])
async def test_a_message_sent_twice_arrives_twice_unless_the_queue_detects_it(
    start: Start, detects: bool, count: int
) -> None:
    client = Sdk(start("duplicate=1x", RequiresDuplicateDetection=detects))
    async with client.client:
        await client.send()
        assert await client.count() == count


async def test_a_delayed_answer_holds_up_nobody_else(start: Start) -> None:
    emulator = start("delay@send=1x:4s")
    slow, other = Sdk(emulator), Sdk(emulator)
    async with slow.client, other.client:
        for client in (slow, other):
            await client.sender._open_with_retry()
        await other.receiver._open_with_retry()
        begun = time.monotonic()
        sending = asyncio.create_task(slow.send())
        await asyncio.sleep(0.2)
        await other.send()
        await other.receive()
        assert not sending.done()
        await sending
        assert time.monotonic() - begun >= 4
        assert await other.count() == 2


async def test_a_lock_is_lost_at_its_age_although_it_was_renewed(start: Start) -> None:
    client = Sdk(start("lock-max-age=2s", LockDuration="PT60S"))
    async with client.client:
        await client.send()
        begun = time.monotonic()
        await client.receive()
        message = client.message
        assert message is not None
        await client.renew()
        assert message.locked_until_utc is not None
        assert message.locked_until_utc - datetime.now(UTC) > timedelta(seconds=50), "renewal answers as usual"
        await client.receive()  # it comes again
        assert time.monotonic() - begun >= 2
        assert client.message is not None
        assert client.message.delivery_count == 1
        for settle in (client.receiver.renew_message_lock, client.receiver.complete_message):
            with pytest.raises(sdk.MessageLockLostError):
                await settle(message)
        await client.complete()


# ------------------------------------------------------------------------------------------------------------ our bus


class Ours:
    def __init__(self, emulator: EmulatorProcess, *, websocket: bool = False) -> None:
        text = SecretStr(emulator.connection_string)
        options = client_options(websocket=websocket)
        if websocket:
            options["custom_endpoint_address"] = f"sb://localhost:{emulator.port}"
        self.bus = ServiceBus.from_connection_string(text, **options)
        self.delivery: Delivery | None = None

    async def send(self) -> None:
        await self.bus.send("q", Outgoing(body=b"{}", message_id=uuid.uuid4().hex, subject="s"))

    async def receive(self) -> None:
        self.delivery = await self.bus.receive("q", wait=10)
        assert self.delivery is not None

    async def renew(self) -> None:
        assert self.delivery is not None
        await self.bus.renew(self.delivery)

    async def complete(self) -> None:
        assert self.delivery is not None
        await self.bus.complete(self.delivery)


OUTCOMES = [
    *((fault, step, Transient if raised else None, None) for fault, step, raised in RAISED if "@attach" not in fault),
    ("detach@attach=1x", "send", Transient, None),
    ("server-busy@attach=1x", "send", Transient, None),
    ("drop-connection@attach=1x", "send", Transient, None),
    ("token-expired@attach=1x", "send", Forbidden, None),
    ("ack-lost@send=1x", "send", Transient, None),
    ("ack-lost@settle=1x", "complete", LockLost, LockLost),
    ("ack-lost@request=1x", "renew", Transient, None),
]


@pytest.mark.parametrize(("fault", "step", "outcome", "again"), OUTCOMES, ids=[fault for fault, *_ in OUTCOMES])
async def test_our_bus_says_the_right_thing_and_the_next_operation_works(
    start: Start, fault: str, step: str, outcome: type[SilobusError] | None, again: type[SilobusError] | None
) -> None:
    emulator = start(fault, LockDuration="PT30S")
    ours = Ours(emulator)
    for each in STEPS[: STEPS.index(step)]:
        await getattr(ours, each)()
    begun = time.monotonic()
    assert await outcome_of(getattr(ours, step)) is outcome
    if outcome is not None:
        assert await outcome_of(getattr(ours, step)) is again
    if step == "complete":
        assert await ours.bus.peek("q", count=10) == []
    for each in STEPS[STEPS.index(step) + 1 :]:
        await getattr(ours, each)()
    assert time.monotonic() - begun < 20, "recovery is quick"
    await ours.bus.close()
    assert struck(emulator) == {fault.partition("@")[0].partition("=")[0]: 1}


async def outcome_of(operation: Callable[[], Awaitable[None]]) -> type[Exception] | None:
    try:
        await operation()
    except SilobusError as error:
        return type(error)
    return None


async def test_our_bus_learns_after_a_dropped_answer_that_the_message_is_settled(start: Start) -> None:
    ours = Ours(start("ack-lost@settle=1x", seed=TO_DROP))
    await ours.send()
    await ours.receive()
    assert await outcome_of(ours.complete) is Transient
    assert await outcome_of(ours.complete) is LockLost
    assert await ours.bus.peek("q", count=10) == []
    await ours.bus.close()


async def test_our_bus_waits_through_idle_detaches(start: Start) -> None:
    ours = Ours(start("idle-detach@attach=100%:1s"))
    await ours.send()
    await ours.receive()
    await asyncio.sleep(2.5)
    assert await outcome_of(ours.complete) is None
    assert await outcome_of(ours.send) is Transient
    assert await outcome_of(ours.send) is None
    await ours.bus.close()


async def until_done(operation: Callable[[], Awaitable[Any]]) -> Any:
    while True:
        try:
            return await operation()
        except (Transient, Forbidden):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("websocket", [False, True], ids=["tcp", "websocket"])
async def test_our_bus_gets_everything_through_all_faults_at_once(start: Start, websocket: bool) -> None:
    """Tried again on Transient, every message arrives, whatever strikes."""
    emulator = start(
        "all=4%", "delay=5%:20ms", "idle-detach=5%:0.3s", seed="3", LockDuration="PT2S", MaxDeliveryCount=99
    )
    ours = Ours(emulator, websocket=websocket)
    sent = {f"m{number}" for number in range(60)}
    received: set[str] = set()

    async def send_all() -> None:
        for name in sorted(sent):
            message = Outgoing(body=b"{}", message_id=name, subject="s")
            await until_done(lambda message=message: ours.bus.send("q", message))  # type: ignore[misc]

    async def receive_all() -> None:
        while received != sent:
            delivery = await until_done(lambda: ours.bus.receive("q", wait=1))
            if delivery is None:
                continue
            received.add(delivery.message_id)
            with contextlib.suppress(LockLost):  # it was settled before, or comes again
                await until_done(lambda delivery=delivery: ours.bus.complete(delivery))  # type: ignore[misc]

    async with asyncio.timeout(180):
        await asyncio.gather(send_all(), receive_all())
    await ours.bus.close()
    assert sum(struck(emulator).values()) > 10


async def test_our_consumer_gets_through_all_faults_and_lost_locks(start: Start) -> None:
    """A message whose lock is lost while it is worked on comes again, and joins that work; in the end all are handled
    and none is left."""
    faults = ("all=3%", "delay=5%:20ms", "idle-detach=5%:0.3s", "lock-max-age=1s")
    emulator = start(*faults, seed="5", LockDuration="PT5S", MaxDeliveryCount=99)
    worker, sender = Ours(emulator), Ours(emulator)
    names = [f"m{number}" for number in range(30)]
    handled: Counter[str] = Counter()
    came_again = asyncio.Event()
    receive = worker.bus.receive

    async def receiving(queue: str, *, wait: float) -> Delivery | None:
        delivery = await receive(queue, wait=wait)
        if delivery is not None and delivery.message_id == "m0" and delivery.delivery_count > 1:
            came_again.set()
        return delivery

    async def handler(delivery: Delivery) -> None:
        handled[delivery.message_id] += 1
        if delivery.message_id == "m0":
            await came_again.wait()  # longer than any lock

    async def on_poison(delivery: Delivery, poison: Poison) -> None:
        raise AssertionError(poison)

    worker.bus.receive = receiving  # type: ignore[method-assign]
    waits = Waits(first=0.02, most=0.2)
    clock = SystemClock()
    consumer = Consumer(
        worker.bus, "q", handler, on_poison=on_poison, clock=clock, max_delivery_count=99, waits=waits, receive_wait=1
    )
    stop = asyncio.Event()
    running = asyncio.create_task(consumer.run(stop))
    async with asyncio.timeout(180):
        for name in names:
            message = Outgoing(body=b"{}", message_id=name, subject="s")
            await until_done(lambda message=message: sender.bus.send("q", message))  # type: ignore[misc]
        while handled.keys() != set(names) or await until_done(lambda: sender.bus.peek("q", count=1)):
            await clock.sleep(0.1)
        stop.set()
        await running
    assert came_again.is_set()
    assert await until_done(lambda: sender.bus.peek("q/$deadletterqueue", count=1)) == []
    await asyncio.gather(worker.bus.close(), sender.bus.close())


# -------------------------------------------------------------------------------------------------------- the process


async def test_faults_are_switched_while_it_runs(start: Start) -> None:
    emulator = start(LockDuration="PT30S")
    client = Sdk(emulator)

    def switch(method: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{emulator.port}/$faults", body, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return json.load(answer)

    async with client.client:
        await client.send()
        await asyncio.to_thread(switch, "PUT", b'{"faults": ["server-busy@send=1x"], "seed": 4}')
        with pytest.raises(sdk.ServiceBusServerBusyError):
            await client.send()
        await client.send()
        told = await asyncio.to_thread(switch, "GET")
        assert told == {"faults": ["server-busy@send=1x"], "seed": 4, "struck": {"server-busy": 1}}


async def test_faults_are_announced_and_nonsense_is_refused(start: Start) -> None:
    emulator = start("detach=2%")
    line = next(line for line in emulator.log_file.read_text().splitlines() if "faults.on" in line)
    assert json.loads(line) | {"level": "warning", "faults": ["detach=2%"], "seed": 1} == json.loads(line)
    emulator.stop()
    with pytest.raises(RuntimeError, match="'flood' is not a fault"):
        start("flood=2%")
