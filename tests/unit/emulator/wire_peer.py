"""A client made of frames, wired to a connection without sockets: it can say what no SDK would."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from servicebus_emulator.codec import Described, ULong, encode
from servicebus_emulator.config import Config, QueueSettings
from servicebus_emulator.connection import Connection
from servicebus_emulator.frames import AMQP_HEADER, FrameReader, write_frame
from servicebus_emulator.journal import GroupCommit
from servicebus_emulator.namespace import Namespace
from servicebus_emulator.performatives import SOURCE, TARGET, Attach, Begin, Flow, Open, Performative, Transfer
from servicebus_emulator.places import NamespacePlaces
from servicebus_emulator.store import Store

P = TypeVar("P", bound=Performative)


class Wire(asyncio.Transport):
    """What the connection wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False
        self.reading = True
        self.wrote = asyncio.Event()

    def write(self, data: Any) -> None:
        self.written += data
        self.wrote.set()

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Peer:
    def __init__(self, places: NamespacePlaces, journal: GroupCommit) -> None:
        self.wire = Wire()
        self.connection = Connection(places, lambda _: None)
        self.connection.connection_made(self.wire)
        self.heard: list[tuple[Performative | None, bytes]] = []
        self._journal = journal
        self._reader = FrameReader(1 << 20)
        self._header_is_due = True

    async def say(self, *performatives: Performative, payload: bytes = b"", channel: int = 1) -> None:
        """All of them in one piece, and time for the answer."""
        self.connection.data_received(b"".join(write_frame(channel, each, payload) for each in performatives))
        await self.listen()

    async def listen(self) -> None:
        for _ in range(3):
            await self._journal.drained()
            await asyncio.sleep(0)
        self._reader.feed(bytes(self.wire.written))
        self.wire.written.clear()
        if self._header_is_due and self._reader.next_header() is not None:
            self._header_is_due = False
        while (frame := self._reader.next_frame()) is not None:
            self.heard.append((frame.body, frame.payload))

    def take(self, kind: type[P]) -> list[P]:
        """Everything of this kind that was heard, which is then forgotten."""
        taken = [body for body, _ in self.heard if isinstance(body, kind)]
        self.heard = [entry for entry in self.heard if not isinstance(entry[0], kind)]
        return taken

    async def open(self, *, incoming_window: int = 1000, max_frame_size: int = 65536, **options: Any) -> None:
        self.connection.data_received(AMQP_HEADER)
        await self.say(Open(container_id="peer", max_frame_size=max_frame_size, **options), channel=0)
        await self.say(Begin(next_outgoing_id=0, incoming_window=incoming_window, outgoing_window=1000))
        self.heard.clear()

    async def attach_receiver(self, handle: int = 0, address: str = "q", **options: Any) -> None:
        source = Described(ULong(SOURCE), [address])
        target = Described(ULong(TARGET), [options.pop("reply_to", "here")])
        await self.say(Attach(name=f"r{handle}", handle=handle, role=True, source=source, target=target, **options))

    async def attach_sender(self, handle: int = 0, address: str = "q") -> None:
        source, target = Described(ULong(SOURCE), ["here"]), Described(ULong(TARGET), [address])
        await self.say(
            Attach(
                name=f"s{handle}",
                handle=handle,
                role=False,
                source=source,
                target=target,
                initial_delivery_count=0,
            )
        )

    async def credit(self, credit: int, *, handle: int = 0, delivery_count: int = 0, **options: Any) -> None:
        await self.say(flow(handle=handle, delivery_count=delivery_count, link_credit=credit, **options))

    async def send(self, text: str, *, handle: int = 0, delivery_id: int = 0) -> None:
        await self.say(
            Transfer(handle=handle, delivery_id=delivery_id, delivery_tag=b"t", message_format=0),
            payload=message(text),
        )


def flow(*, next_incoming_id: int = 0, incoming_window: int = 1000, **options: Any) -> Flow:
    return Flow(
        next_incoming_id=next_incoming_id,
        incoming_window=incoming_window,
        next_outgoing_id=0,
        outgoing_window=1000,
        **options,
    )


def message(text: str) -> bytes:
    return encode(Described(ULong(0x75), text.encode()))


class Bench:
    """A whole emulator but for its sockets."""

    def __init__(self, directory: Path, max_message_size: int, settings: QueueSettings) -> None:
        self._store = Store(directory)
        self.journal = GroupCommit(self._store, _fail)
        self.namespace = Namespace(self._store, self.journal, Config({"q": settings}))
        self.places = NamespacePlaces(self.namespace, max_message_size)
        self._peers: list[Peer] = []

    async def peer(self, **options: Any) -> Peer:
        peer = Peer(self.places, self.journal)
        self._peers.append(peer)
        await peer.open(**options)
        return peer

    def unopened(self) -> Peer:
        peer = Peer(self.places, self.journal)
        self._peers.append(peer)
        return peer

    def locked(self) -> list[str]:
        """The texts that are locked, as the queue sees it."""
        return [text for text, locked in self._contents() if locked]

    def texts(self) -> list[str]:
        return [text for text, _ in self._contents()]

    def _contents(self) -> list[tuple[str, bool]]:
        live = self.namespace.find("q")
        assert live is not None
        messages = live.queue.peek(0, 1000)
        return [(m.payload.rpartition(b"\x75")[2][2:].decode(), m.lock is not None) for m in messages]

    async def close(self) -> None:
        self.namespace.close()
        for peer in self._peers:
            peer.connection.connection_lost(None)
        await self.journal.close()
        self._store.close()


def _fail(error: BaseException) -> None:
    raise AssertionError from error


@asynccontextmanager
async def bench(
    directory: Path, *, max_message_size: int = 1000, settings: QueueSettings | None = None
) -> AsyncIterator[Bench]:
    made = Bench(directory, max_message_size, settings or QueueSettings())
    try:
        yield made
    finally:
        await made.close()
