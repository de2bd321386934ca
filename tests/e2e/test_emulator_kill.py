"""kill -9 of the emulator at random moments under load: what it said stays true.

Senders, schedulers and receivers that lock, renew, complete, abandon, dead-letter, defer or forget go on all the while,
through the adapter's links to the real SDK. `tests/emulator_history.py` holds what they were told, and judges it.
Quick by default; `make soak` kills 100 times.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from azure.servicebus import ServiceBusMessage, ServiceBusReceivedMessage, ServiceBusReceiveMode, ServiceBusSubQueue
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver, ServiceBusSender
from azure.servicebus.exceptions import MessageLockLostError, MessageNotFoundError

from messages.transport.servicebus_links import ReceiverLink, SenderLink, trust_the_broker
from tests.emulator_history import Answer, Found, History, Lock, Sent
from tests.emulator_process import EmulatorProcess

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("SILOBUS_KILLS", "25"))
SEED = int(os.environ.get("SILOBUS_SEED", "0"))
LONGEST_LIFE = 0.5
LOCK = 2.0
QUEUES = {
    "plain": {"LockDuration": "PT2S", "MaxDeliveryCount": 4},
    "patient": {"LockDuration": "PT2S", "MaxDeliveryCount": 100},
    "once": {"LockDuration": "PT2S", "MaxDeliveryCount": 100, "RequiresDuplicateDetection": True},
    "empty": {"LockDuration": "PT2S", "MaxDeliveryCount": 100},
}
PAUSE = {"plain": 0.03, "patient": 0.03, "once": 0.03, "empty": 0.3}
ACTIONS = {"complete": 10, "renew": 4, "abandon": 3, "dead-letter": 1, "defer": 2, "forget": 2}


Link = SenderLink | ReceiverLink
ESSENTIAL = ("acknowledged", "scheduled", "held over a kill", "completed", "abandoned", "deferred", "not answered")


class Load:
    """Everything that clients do, until told to stop."""

    def __init__(self, emulator: EmulatorProcess, history: History) -> None:
        self.history = history
        self.up = asyncio.Event()
        self.stop = asyncio.Event()
        self.deferred: dict[str, list[int]] = {queue: [] for queue in QUEUES}
        self.client = client_of(emulator)
        self._handling: set[asyncio.Task[None]] = set()
        self._failed: dict[Link, float] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.up.set()
        links: list[Link] = []
        loops = []
        for queue in QUEUES:
            for act in (self.send, self.schedule):
                rng = random.Random(f"{SEED} {queue} {act.__name__}")
                sender = SenderLink(partial(self.client.get_queue_sender, queue))
                loops.append(act(queue, sender, rng, f"{act.__name__}-{queue}"))
                links.append(sender)
            for number in range(2):
                receiver = ReceiverLink(partial(self.client.get_queue_receiver, queue))
                loops.append(self.receive(queue, receiver, random.Random(f"{SEED} {queue} {number}")))
                links.append(receiver)
        tasks = [asyncio.create_task(loop) for loop in loops]
        try:
            yield
            self.stop.set()
            await asyncio.gather(*tasks, *self._handling)
        finally:
            for task in (*tasks, *self._handling):
                task.cancel()
            await asyncio.gather(*(link.close() for link in links))
            await self.client.close()

    async def _ask(self, link: Link, operation: Callable[[Any], Awaitable[object]]) -> Answer:
        """Asks once, when there is a connection to ask on."""
        asked = False

        async def ask(sdk: Any) -> None:
            nonlocal asked
            asked = True
            await operation(sdk)

        while True:
            await self.up.wait()
            answer = await self._try(link, link.perform(ask))
            if asked:
                return answer

    async def _try(self, link: Link, operation: Awaitable[object]) -> Answer:
        """What became of it. A link may fail once for each kill, with all that was asked on it by then."""
        begun = time.time()
        try:
            await operation
        except MessageLockLostError:
            return Answer.LOST
        except Exception as error:  # noqa: BLE001 - it was killed, in whatever words
            if max(self.history.kills, default=0.0) < self._failed.get(link, 0.0) < begun:
                self.history.problems.append(f"an operation failed without a kill: {error!r}")
            self._failed[link] = time.time()
            await asyncio.sleep(0.01)
            return Answer.NONE
        return Answer.YES

    # -------------------------------------------------------------------------------------------------- sending

    async def send(self, queue: str, link: SenderLink, rng: random.Random, name: str) -> None:
        """Batches. Where duplicates are dropped, again until there is an answer, and now and then once more."""
        number = 0
        while not self.stop.is_set():
            texts = [f"{name}-{number + offset}" for offset in range(rng.choice((1, 1, 3, 10)))]
            number += len(texts)
            batch = [ServiceBusMessage(text, message_id=text) for text in texts]
            await self.up.wait()
            messages = self.history.sends(queue, texts)
            times = rng.choice((1, 1, 2)) if queue == "once" else 1
            while times:
                answer = await self._ask(link, partial(send, batch))
                if answer is Answer.YES and messages[0].answered is None:
                    for message in messages:
                        message.answered = time.time()
                if answer is Answer.YES or queue != "once":
                    times -= 1
            await asyncio.sleep(rng.uniform(0, PAUSE[queue]))

    async def schedule(self, queue: str, link: SenderLink, rng: random.Random, name: str) -> None:
        """One at a time; some are called off again."""
        number = 0
        while not self.stop.is_set():
            await self.up.wait()
            due = int((time.time() + rng.uniform(0.1, 2.0)) * 1000) / 1000
            (message,) = self.history.sends(queue, [f"{name}-{number}"], due)
            number += 1
            await self._schedule(link, message)
            if message.scheduled_as is not None and rng.random() < 0.2:
                await self._cancel(link, message, message.scheduled_as)
            await asyncio.sleep(rng.uniform(0, 4 * PAUSE[queue]))

    async def _schedule(self, link: SenderLink, message: Sent) -> None:
        async def schedule(sdk: ServiceBusSender) -> None:
            out = ServiceBusMessage(message.text, message_id=message.text)
            (message.scheduled_as,) = await sdk.schedule_messages(out, datetime.fromtimestamp(message.due, UTC))
            message.answered = time.time()

        await self._ask(link, schedule)

    async def _cancel(self, link: SenderLink, message: Sent, sequence: int) -> None:
        async def cancel(sdk: ServiceBusSender) -> None:
            message.cancelled = Answer.NONE
            try:
                await sdk.cancel_scheduled_messages(sequence)
            except MessageNotFoundError:
                message.cancelled = None  # it has come up, so it stays
            else:
                message.cancelled = Answer.YES

        await self._ask(link, cancel)

    # ------------------------------------------------------------------------------------------------ receiving

    async def receive(self, queue: str, link: ReceiverLink, rng: random.Random) -> None:
        while not self.stop.is_set():
            await self.up.wait()
            found: list[ServiceBusReceivedMessage] = []

            async def get(found: list[ServiceBusReceivedMessage] = found) -> None:
                if self.deferred[queue] and rng.random() < 0.2:
                    sequence = self.deferred[queue].pop(rng.randrange(len(self.deferred[queue])))
                    with suppress(MessageNotFoundError):  # another has it, or it was settled without an answer
                        found += await link.perform(lambda sdk: sdk.receive_deferred_messages(sequence))
                elif rng.random() < 0.2:
                    found += await link.perform(lambda sdk: sdk.receive_messages(5, max_wait_time=0.05))
                elif (message := await link.receive(0.3)) is not None:
                    found.append(message)

            await self._try(link, get())
            for message in found:
                lock = lock_of(queue, message)
                self.history.receives(lock)
                trust_the_broker(message)
                task = asyncio.create_task(self._handle(link, lock, message, rng))
                self._handling.add(task)
                task.add_done_callback(self._handling.discard)
            if len(self._handling) > 200:
                await asyncio.sleep(0.05)

    async def _handle(
        self, link: ReceiverLink, lock: Lock, message: ServiceBusReceivedMessage, rng: random.Random
    ) -> None:
        """At once or after a while, with a lock that is perhaps renewed, perhaps too late."""
        what = rng.choices(list(ACTIONS), list(ACTIONS.values()))[0] if lock.queue != "empty" else "complete"
        if rng.random() < 0.3 and lock.queue != "empty":
            await asyncio.sleep(rng.uniform(0, 1.1 * LOCK))
        if what == "forget":
            return
        if what == "renew":
            for _ in range(rng.randrange(3)):
                await self._renew(link, lock, message)
                await asyncio.sleep(rng.uniform(0, 0.9 * LOCK))
            what = "complete"

        async def settle(sdk: ServiceBusReceiver) -> None:
            self.history.settles(lock, what)
            await SETTLE[what](sdk, message)

        answer = await self._ask(link, settle)
        self.history.settled(lock, what, answer)
        if what == "defer" and answer is not Answer.LOST:
            self.deferred[lock.queue].append(lock.sequence)

    async def _renew(self, link: ReceiverLink, lock: Lock, message: ServiceBusReceivedMessage) -> None:
        asked, until = 0.0, lock.until

        async def renew(sdk: ServiceBusReceiver) -> None:
            nonlocal asked, until
            asked = time.time()
            until = (await sdk.renew_message_lock(message)).timestamp()

        answer = await self._ask(link, renew)
        trust_the_broker(message)
        self.history.renewed(lock, asked, answer, until)


def client_of(emulator: EmulatorProcess) -> ServiceBusClient:
    """With a context that is not used: else every link reads all authorities, which takes longer than opening it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return ServiceBusClient.from_connection_string(emulator.connection_string, retry_total=0, ssl_context=context)


async def send(batch: list[ServiceBusMessage], sdk: ServiceBusSender) -> None:
    await sdk.send_messages(batch)


SETTLE: dict[str, Callable[[ServiceBusReceiver, ServiceBusReceivedMessage], Awaitable[None]]] = {
    "complete": lambda sdk, message: sdk.complete_message(message),
    "abandon": lambda sdk, message: sdk.abandon_message(message),
    "dead-letter": lambda sdk, message: sdk.dead_letter_message(message, reason="asked"),
    "defer": lambda sdk, message: sdk.defer_message(message),
}


def lock_of(queue: str, message: ServiceBusReceivedMessage) -> Lock:
    assert message.locked_until_utc is not None
    return Lock(
        queue,
        text_of(message),
        str(message.lock_token),
        message.sequence_number or 0,
        message.delivery_count or 0,
        received=time.time(),
        told_until=message.locked_until_utc.timestamp(),
    )


def text_of(message: ServiceBusReceivedMessage) -> str:
    return b"".join(message.body).decode()


async def what_is_there(client: ServiceBusClient, *, drain: bool) -> list[Found]:
    """Peeked at, then, with `drain`, taken away."""

    async def look(queue: str, *, dead: bool) -> list[Found]:
        receiver = client.get_queue_receiver(
            queue,
            sub_queue=ServiceBusSubQueue.DEAD_LETTER if dead else None,
            receive_mode=ServiceBusReceiveMode.RECEIVE_AND_DELETE,
        )
        async with receiver:
            found: list[Found] = []
            while page := await receiver.peek_messages(200, sequence_number=found[-1].sequence + 1 if found else 1):
                found += [found_in(queue, message, dead=dead) for message in page]
            if drain:
                await take(receiver, found)
        return found

    found = await asyncio.gather(*(look(queue, dead=dead) for queue in QUEUES for dead in (False, True)))
    return [each for some in found for each in some]


def found_in(queue: str, message: ServiceBusReceivedMessage, *, dead: bool) -> Found:
    return Found(
        queue,
        text_of(message),
        message.sequence_number or 0,
        dead,
        message.state.name,
        message.delivery_count or 0,
        message.dead_letter_reason,
    )


async def take(receiver: ServiceBusReceiver, peeked: list[Found]) -> None:
    """Everything that was peeked at comes, in order; nothing else does."""
    deferred = [each.sequence for each in peeked if each.state == "DEFERRED"]
    for start in range(0, len(deferred), 100):
        await receiver.receive_deferred_messages(deferred[start : start + 100])
    free = [each.sequence for each in peeked if each.state != "DEFERRED"]
    came: list[int] = []
    while len(came) < len(free):
        messages = await receiver.receive_messages(200, max_wait_time=60)
        assert messages, f"{sorted(set(free) - set(came))} is there and does not come"
        came += [message.sequence_number or 0 for message in messages]
    assert came == free


def enough(history: History) -> bool:
    """Whether everything has happened that this test is about."""
    happened = history.counts()
    return all(happened[what] for what in ESSENTIAL)


async def test_whatever_it_said_before_a_kill_is_true_after_it(tmp_path: Path) -> None:
    history = History({queue: int(str(settings["MaxDeliveryCount"])) for queue, settings in QUEUES.items()})
    rng = random.Random(SEED)
    with EmulatorProcess(tmp_path, QUEUES) as emulator:
        load = Load(emulator, history)
        async with load.running():
            for number in range(8 * KILLS):
                if number >= KILLS and enough(history):
                    break  # on a slow machine a life may be over before anybody has asked for anything
                await asyncio.sleep(rng.uniform(0.02, LONGEST_LIFE))
                load.up.clear()
                history.kills.append(time.time())
                await asyncio.to_thread(emulator.kill)
                await asyncio.to_thread(emulator.start)
                load.up.set()
        await asyncio.sleep(LOCK + 0.1)  # locks lapse, and whatever was scheduled is due
        async with client_of(emulator) as client:
            found = await what_is_there(client, drain=True)
            assert await what_is_there(client, drain=False) == []
        log = emulator.log_file.read_text()
    print(history.counts() | {"there in the end": len(found)})
    problems = history.judge(found)
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems[:20])
    assert "connection.bug" not in log
    assert "store.failed" not in log
    assert enough(history), f"not much of a test: {history.counts()}"
