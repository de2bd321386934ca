"""Every role against every operation on every queue of a local federation: allowed or refused as the table says.

One bus with the configuration and the keys that `silobus up` writes, and azure-servicebus as it is. Those who are
refused try first, at what lies there as bait; then those who may do everything they may; then everything is counted.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import certifi
import pytest
from azure.servicebus import ServiceBusMessage, ServiceBusReceivedMessage, ServiceBusReceiveMode, ServiceBusSubQueue
from azure.servicebus._common import mgmt_handlers
from azure.servicebus.aio import ServiceBusClient, ServiceBusReceiver, ServiceBusSender
from azure.servicebus.exceptions import ServiceBusAuthenticationError, ServiceBusAuthorizationError
from pydantic import SecretStr

from messages import names
from messages.errors import Forbidden
from messages.ports import Outgoing
from messages.rights import OPERATOR, Right, principals
from messages.transport.servicebus import ServiceBus, client_options
from orchestrator.cli.keys import connection_string
from tests.federation import THREE, Federation

pytestmark = pytest.mark.slow

SILOS = [silo.name for silo in THREE]
QUEUES = names.queues(SILOS)
EVERYBODY = {who.name: who for who in principals(SILOS)}
REFUSED = (ServiceBusAuthorizationError, ServiceBusAuthenticationError)
LATER = timedelta(hours=1)
AT_ONCE = 150
"""Links that open at the same time."""
Link = TypeVar("Link", ServiceBusSender, ServiceBusReceiver)
Bait = ServiceBusReceivedMessage
Asked = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    """A bus, and nobody on it."""
    made = Federation(THREE, lock=300)
    try:
        made.lay_out()
        made.start("bus")
        yield made
    finally:
        made.__exit__(None, None, None)


@pytest.fixture
def one_authority(tmp_path: Path) -> Path:
    """A small file of certificates: the SDK reads them all for each link, without TLS too, and does little else."""
    pem, end, _ = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----")
    (tmp_path / "authority.pem").write_text(f"{pem[pem.index('-----BEGIN') :]}{end}\n")
    return tmp_path / "authority.pem"


def connections(federation: Federation) -> dict[str, str]:
    """What is in everybody's file."""
    return {
        who.name: federation.folder.connection(who.role, who.silo).read_text().strip() for who in EVERYBODY.values()
    }


def strangers(federation: Federation) -> dict[str, str]:
    """A made-up key; and right keys, under names that they do not belong to."""

    def called(name: str, key: str) -> str:
        return connection_string(federation.port, name, SecretStr(key)).get_secret_value()

    norths = federation.keys["agent-north"].get_secret_value()
    operators = federation.keys[OPERATOR].get_secret_value()
    return {
        "stranger": called("stranger", "made-up"),
        "north as south": called("agent-south", norths),
        "north as operator": called(OPERATOR, norths),
        "operator as root": called("RootManageSharedAccessKey", operators),
    }


def may(who: str, right: Right, queue: str) -> bool:
    return who in EVERYBODY and EVERYBODY[who].may(right, queue)


# --- what can be done -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A queue or its dead-letter queue."""

    queue: str
    dead: bool

    def __str__(self) -> str:
        return names.dead_letters_of(self.queue) if self.dead else self.queue

    def sender(self, bus: ServiceBusClient) -> ServiceBusSender:
        return bus.get_queue_sender(str(self))

    def receiver(self, bus: ServiceBusClient, **more: Any) -> ServiceBusReceiver:
        sub_queue = ServiceBusSubQueue.DEAD_LETTER if self.dead else None
        return bus.get_queue_receiver(self.queue, sub_queue=sub_queue, prefetch_count=0, **more)


PLACES = [Place(queue, dead) for queue in QUEUES for dead in (False, True)]
DELETING = {"receive_mode": ServiceBusReceiveMode.RECEIVE_AND_DELETE}


@asynccontextmanager
async def closing(link: Link) -> AsyncIterator[Link]:
    """Not the SDK's own block, which opens the link before anything is asked of it."""
    try:
        yield link
    finally:
        await link.close()


async def take(link: ServiceBusReceiver) -> ServiceBusReceivedMessage:
    [message] = await link.receive_messages(max_message_count=1, max_wait_time=60)
    return message


async def send(link: ServiceBusSender, label: str) -> None:
    await link.send_messages(ServiceBusMessage("m", message_id=f"{label}: sent"))


async def schedule(link: ServiceBusSender, label: str) -> None:
    message = ServiceBusMessage("m", message_id=f"{label}: scheduled")
    await link.schedule_messages(message, datetime.now(UTC) + LATER)


async def cancel(link: ServiceBusSender, label: str) -> None:
    message = ServiceBusMessage("m", message_id=f"{label}: scheduled to be cancelled")
    await link.cancel_scheduled_messages(await link.schedule_messages(message, datetime.now(UTC) + LATER))


SENDING: dict[str, Callable[[ServiceBusSender, str], Awaitable[None]]] = {
    "send": send,
    "schedule": schedule,
    "cancel": cancel,
}
"""Done by those who may; tried by those who may not. What is cancelled has to be scheduled first."""


async def peek(link: ServiceBusReceiver) -> None:
    assert await link.peek_messages()


async def complete(link: ServiceBusReceiver) -> None:
    await link.complete_message(await take(link))


async def renew(link: ServiceBusReceiver) -> None:
    message = await take(link)
    await link.renew_message_lock(message)
    await link.complete_message(message)


async def abandon(link: ServiceBusReceiver) -> None:
    await link.abandon_message(await take(link))
    await link.complete_message(await take(link))


async def defer(link: ServiceBusReceiver) -> None:
    message = await take(link)
    await link.defer_message(message)
    [again] = await link.receive_deferred_messages([message.sequence_number or 0])
    await link.complete_message(again)


async def dead_letter(link: ServiceBusReceiver) -> None:
    await link.dead_letter_message(await take(link), reason="a test")


LISTENING: dict[str, Callable[[ServiceBusReceiver], Awaitable[None]]] = {
    "peek": peek,
    "complete": complete,
    "renew": renew,
    "abandon": abandon,
    "defer": defer,
}
"""Done by those who may. Each but the first takes a message away, and so does to receive and delete."""
TAKEN = len(LISTENING)

TRYING: dict[str, Callable[[ServiceBusReceiver, Bait], Awaitable[Any]]] = {
    "receive": lambda link, bait: take(link),
    "peek": lambda link, bait: link.peek_messages(),
    "receive deferred": lambda link, bait: link.receive_deferred_messages([bait.sequence_number or 0]),
}
"""Tried by those who may not listen. What the SDK itself keeps to a receiver that is open, they ask for as `Asked`."""


SETTLED = ("completed", "abandoned", "suspended", "defered")
"""As the protocol says: completed, abandoned, dead-lettered and deferred."""


def sending_asked(label: str) -> list[Asked]:
    """What needs the right to send, for a management node that was reached as a receiver."""
    message = {"message": b"\x00\x53\x75\xa0\x01m", "message-id": f"{label}: asked"}
    return [
        ("schedule-message", {"messages": [message]}),
        ("cancel-scheduled-message", {"sequence-numbers": _longs(1)}),
    ]


def listening_asked(bait: Bait) -> list[Asked]:
    """What needs the right to listen, for one that was reached as a sender."""
    tokens = {"TYPE": "ARRAY", "VALUE": [{"TYPE": "UUID", "VALUE": bait.lock_token}]}
    numbers, locked = _longs(bait.sequence_number or 0), {"TYPE": "UINT", "VALUE": 1}
    return [
        ("renew-lock", {"lock-tokens": tokens}),
        ("peek-message", {"from-sequence-number": _long(1), "message-count": {"TYPE": "INT", "VALUE": 1}}),
        ("receive-by-sequence-number", {"sequence-numbers": numbers, "receiver-settle-mode": locked}),
        *(("update-disposition", {"disposition-status": word, "lock-tokens": tokens}) for word in SETTLED),
    ]


def _long(value: int) -> dict[str, Any]:
    return {"TYPE": "LONG", "VALUE": value}


def _longs(value: int) -> dict[str, Any]:
    return {"TYPE": "ARRAY", "VALUE": [_long(value)]}


async def ask(link: ServiceBusSender | ServiceBusReceiver, asked: Asked) -> None:
    """A request to the management node beside a link: a sender's can be asked for what a receiver does, and so on."""
    operation = f"com.microsoft:{asked[0]}".encode()
    await link._mgmt_request_response_with_retry(operation, asked[1], mgmt_handlers.default)


# --- the matrix -------------------------------------------------------------------------------------------------------


@dataclass
class Matrix:
    """Who tries what where, and what becomes of it."""

    clients: dict[str, ServiceBusClient]
    tried: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    bait: dict[Place, Bait] = field(default_factory=dict)
    """A message in each place, deferred, and locked by the operator."""
    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    async def lay_bait(self) -> None:
        async with asyncio.TaskGroup() as group:
            for queue in QUEUES:
                group.create_task(self._lay_bait(queue))

    async def all_refused(self) -> None:
        """Everything that somebody may not do, all at the same time."""
        async with asyncio.TaskGroup() as group:
            for who in self.clients:
                for place in PLACES:
                    if not may(who, Right.SEND, place.queue):
                        self._cannot_send(group, who, place)
                    if not may(who, Right.LISTEN, place.queue):
                        self._cannot_listen(group, who, place)

    async def all_allowed(self) -> None:
        """Everything that somebody may do; in one queue one after the other, so that nobody takes what is another's."""
        async with asyncio.TaskGroup() as group:
            for queue in QUEUES:
                group.create_task(self._in_turn(queue))

    async def take_bait(self) -> None:
        """The operator still holds it, and nobody has settled it meanwhile."""

        async def one(place: Place) -> None:
            async with self.gate, closing(place.receiver(self.clients[OPERATOR])) as link:
                await peek(link)  # opens it
                await link.complete_message(self.bait[place])

        await asyncio.gather(*(one(place) for place in PLACES))

    async def left(self) -> dict[str, set[str]]:
        """The ids of what is in every queue and dead-letter queue."""

        async def one(place: Place) -> set[str]:
            async with self.gate, closing(place.receiver(self.clients[OPERATOR])) as link:
                return {str(message.message_id) for message in await link.peek_messages(1000)}

        return dict(zip(map(str, PLACES), await asyncio.gather(*map(one, PLACES)), strict=True))

    async def _lay_bait(self, queue: str) -> None:
        """One message stays in the queue, one among its dead letters."""
        await self._seed(queue, 2)
        operator = self.clients[OPERATOR]
        async with self.gate, closing(Place(queue, False).receiver(operator)) as link:
            await dead_letter(link)
        for place in (Place(queue, False), Place(queue, True)):
            async with self.gate, closing(place.receiver(operator)) as link:
                message = await take(link)
                await link.defer_message(message)
                [self.bait[place]] = await link.receive_deferred_messages([message.sequence_number or 0])

    async def _seed(self, queue: str, count: int) -> None:
        who = next(who for who in EVERYBODY if may(who, Right.SEND, queue))
        async with self.gate, closing(Place(queue, False).sender(self.clients[who])) as link:
            await link.send_messages([ServiceBusMessage("seed", message_id=f"seed {n}") for n in range(count)])

    def _cannot_send(self, group: asyncio.TaskGroup, who: str, place: Place) -> None:
        label, bus = f"{who} in {place}", self.clients[who]
        for name, operation in (SENDING if not place.dead else {"send": send}).items():
            group.create_task(self._refused(f"{label}: {name}", place.sender(bus), operation, label))
        if may(who, Right.LISTEN, place.queue):
            for asked in sending_asked(label):
                group.create_task(self._refused(f"{label}: {asked[0]} of a receiver", place.receiver(bus), ask, asked))

    def _cannot_listen(self, group: asyncio.TaskGroup, who: str, place: Place) -> None:
        label, bus, bait = f"{who} in {place}", self.clients[who], self.bait[place]
        deleting = place.receiver(bus, **DELETING)
        group.create_task(self._refused(f"{label}: receive and delete", deleting, lambda link, _: take(link), None))
        for name, operation in TRYING.items():
            group.create_task(self._refused(f"{label}: {name}", place.receiver(bus), operation, bait))
        sends = may(who, Right.SEND, place.queue) and not place.dead
        for asked in listening_asked(bait)[: None if not place.dead else 2]:
            link = place.sender(bus) if sends else place.receiver(bus)
            group.create_task(self._refused(f"{label}: {asked[0]}", link, ask, asked))

    async def _refused(self, what: str, link: Any, operation: Callable[[Any, Any], Awaitable[Any]], about: Any) -> None:
        async with self.gate, closing(link):
            await self._try(False, what, partial(operation, link, about))

    async def _in_turn(self, queue: str) -> None:
        for who in (who for who in EVERYBODY if may(who, Right.LISTEN, queue)):
            await self._seed(queue, 2 * TAKEN)
            async with self.gate, closing(Place(queue, False).receiver(self.clients[who])) as link:
                for _ in range(TAKEN):
                    await self._try(True, f"{who} in {queue}: dead-letter", partial(dead_letter, link))
            await self._can_listen(who, Place(queue, False))
            await self._can_listen(who, Place(queue, True))
        for who in (who for who in EVERYBODY if may(who, Right.SEND, queue)):
            async with self.gate, closing(Place(queue, False).sender(self.clients[who])) as sender:
                for name, operation in SENDING.items():
                    await self._try(True, f"{who} in {queue}: {name}", partial(operation, sender, who))

    async def _can_listen(self, who: str, place: Place) -> None:
        async with self.gate, closing(place.receiver(self.clients[who])) as link:
            for name, operation in LISTENING.items():
                await self._try(True, f"{who} in {place}: {name}", partial(operation, link))
        async with self.gate, closing(place.receiver(self.clients[who], **DELETING)) as link:
            await self._try(True, f"{who} in {place}: receive and delete", partial(take, link))

    async def _try(self, allowed: bool, what: str, operation: Callable[[], Awaitable[Any]]) -> None:
        try:
            async with asyncio.timeout(180):
                await operation()
        except REFUSED as refusal:
            if allowed:
                self.wrong.append(f"{what}: refused: {refusal}")
        except Exception as error:  # noqa: BLE001  # whatever it is, it is not what was expected
            self.wrong.append(f"{what}: {type(error).__name__}: {error}")
        else:
            if not allowed:
                self.wrong.append(f"{what}: allowed")
        self.tried["allowed" if allowed else "refused"] += 1


async def test_everybody_may_do_what_the_table_says_and_nothing_else(
    federation: Federation, one_authority: Path
) -> None:
    outsiders = {"north as south": strangers(federation)["north as south"]}
    matrix = Matrix(
        {
            who: ServiceBusClient.from_connection_string(text, retry_total=0, connection_verify=str(one_authority))
            for who, text in (connections(federation) | outsiders).items()
        }
    )
    await matrix.lay_bait()

    await matrix.all_refused()
    await matrix.all_allowed()

    assert matrix.wrong == []
    await matrix.take_bait()
    sent = {
        queue: {f"{who}: {how}" for who in EVERYBODY if may(who, Right.SEND, queue) for how in ("sent", "scheduled")}
        for queue in QUEUES
    }
    assert await matrix.left() == sent | {names.dead_letters_of(queue): set() for queue in QUEUES}
    assert matrix.tried["refused"] > 500
    assert matrix.tried["allowed"] > 300


def test_no_key_is_shared_and_every_file_holds_its_owners(federation: Federation) -> None:
    found = connections(federation)

    assert len(set(found.values())) == len(EVERYBODY)
    for who, text in found.items():
        assert f"SharedAccessKeyName={who};" in text
        assert [key for key in federation.secrets if key in text] == [federation.keys[who].get_secret_value()]


async def test_a_silo_is_kept_to_its_own_by_our_adapter_too(federation: Federation) -> None:
    """It can neither read another's queue, nor send as another, nor post an experiment; it is told where."""
    silo = {"agent-north": connections(federation)["agent-north"]}
    buses = {
        who: ServiceBus.from_connection_string(SecretStr(text), **client_options())
        for who, text in (silo | strangers(federation)).items()
    }
    forged = Outgoing(body=b"{}", message_id="forged", subject="silo-hello")

    async def refused(queue: str, operation: Awaitable[Any]) -> None:
        with pytest.raises(Forbidden, match=re.escape(repr(queue))) as refusal:
            await operation
        assert not [key for key in federation.secrets if key in str(refusal.value)]

    async def is_kept(who: str, bus: ServiceBus) -> None:
        sends = [queue for queue in QUEUES if not may(who, Right.SEND, queue)]
        listens = [queue for queue in QUEUES if not may(who, Right.LISTEN, queue)]
        dead = map(names.dead_letters_of, listens)
        assert len(sends) >= 7
        assert len(listens) >= 7
        await asyncio.gather(*(refused(queue, bus.send(queue, forged)) for queue in sends))
        await asyncio.gather(*(refused(queue, bus.receive(queue, wait=1)) for queue in listens))
        await asyncio.gather(*(refused(queue, bus.peek(queue, count=1)) for queue in dead))
        await bus.close()

    await asyncio.gather(*(is_kept(who, bus) for who, bus in buses.items()))
