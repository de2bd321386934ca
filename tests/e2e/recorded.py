"""Service Bus, Blob and AzureML on this machine, which write down who asked each of them for what.

Every key and every signature opens everything here, so that what a federation does shows whole, whatever the table of
rights says. Who asks is told by the key's or the signature's own name.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

from pydantic import SecretStr

from servicebus_emulator.addresses import parse_address
from servicebus_emulator.administration import Administration
from servicebus_emulator.config import read_config
from servicebus_emulator.connection import Connection
from servicebus_emulator.door import Door
from servicebus_emulator.journal import GroupCommit
from servicebus_emulator.links import ReceivingLink, SendingLink
from servicebus_emulator.namespace import LiveQueue, Namespace
from servicebus_emulator.nodes import Node, Reply, Request, RequestLink
from servicebus_emulator.performatives import Attach
from servicebus_emulator.places import NamespacePlaces
from servicebus_emulator.rights import Claims
from servicebus_emulator.session import Session
from servicebus_emulator.store import Store
from tests.fakes import azureml, blob_server
from tests.fakes.blob_server import Blob

MIB: Final = 1 << 20
TEST: Final = "test"
"""Who asks for the test itself; what it does is not written down."""


@dataclass(frozen=True, order=True, slots=True)
class Operation:
    """Somebody asked a service for something."""

    who: str
    """`orchestrator`, `agent-north`."""
    kind: str
    """queue, container, workspace: as in `tests/unit/deploy/azure.py`."""
    place: str
    what: str


Done = set[Operation]


# --- Service Bus ---------------------------------------------------------------------------------------------------


def open_to_all(file: Path, keys: Mapping[str, SecretStr]) -> None:
    """Changes the emulator's configuration: each key may send and listen everywhere."""
    config = json.loads(file.read_text())
    rules = [{"Name": n, "Rights": ["Listen", "Send"], "PrimaryKey": k.get_secret_value()} for n, k in keys.items()]
    for queue in config["UserConfig"]["Namespaces"][0]["Queues"]:
        queue["AuthorizationRules"] = rules
    file.write_text(json.dumps(config))


@contextlib.asynccontextmanager
async def bus(config: Path, data: Path, done: Done) -> AsyncIterator[int]:
    """The embedded Service Bus in this process, on the port that this gives."""

    def fail(error: BaseException) -> None:
        raise AssertionError from error

    store = Store(data)
    journal = GroupCommit(store, fail)
    namespace = Namespace(store, journal, read_config(config))
    places = _Places(namespace, done)
    connections: set[Connection] = set()

    def connect() -> Connection:
        connections.add(made := Connection(places, connections.discard))
        return made

    door = Door(connect, Administration(namespace, places.keyring, MIB), None, plain_anywhere=False)
    try:
        yield await door.open("127.0.0.1", 0)
    finally:
        door.shut()
        namespace.close()
        for connection in list(connections):
            connection.close()
        door.clear()
        await journal.close()
        await asyncio.sleep(0)
        store.close()


class _Places(NamespacePlaces):
    """Writes down links as they are opened, and what management nodes are asked for."""

    def __init__(self, namespace: Namespace, done: Done) -> None:
        super().__init__(namespace, MIB)
        self._done = done
        self._names: dict[Claims, str] = {}
        """Whose key signed the tokens of a connection."""

    def sending_link(self, session: Session, attach: Attach, address: str | None) -> SendingLink:
        link = super().sending_link(session, attach, address)
        self._link(session, address, "link that receives")
        return link

    def receiving_link(self, session: Session, attach: Attach, address: str | None) -> ReceivingLink:
        link = super().receiving_link(session, attach, address)
        self._link(session, address, "link that sends")
        return link

    def _link(self, session: Session, address: str | None, what: str) -> None:
        place = parse_address(address or "")
        if not place.is_cbs and not place.management:  # those carry requests, each of which is looked at
            self._note(session.claims, place.queue, what)

    def _request_link(
        self, session: Session, attach: Attach, place: Any, node: Node, live: LiveQueue | None = None
    ) -> RequestLink:
        def asked(request: Request) -> None:
            if place.is_cbs:
                [self._names[session.claims]] = parse_qs(str(request.value))["skn"]
            else:
                self._note(session.claims, place.queue, request.operation)

        return super()._request_link(session, attach, place, _Overheard(node, asked), live)

    def _note(self, claims: Claims, queue: str, what: str) -> None:
        if (who := self._names[claims]) != TEST:
            self._done.add(Operation(who, "queue", queue, what))


class _Overheard:
    """A node, and somebody who is told of each request."""

    def __init__(self, node: Node, tell: Callable[[Request], None]) -> None:
        self._node, self._tell = node, tell
        self.after_commit, self.render = node.after_commit, node.render

    def answer(self, request: Request) -> Reply:
        self._tell(request)
        return self._node.answer(request)


# --- Blob ----------------------------------------------------------------------------------------------------------


def signature(who: str) -> str:
    """Opens everything, and says whose it is."""
    return f"sv=2025-01-05&sr=c&sp=rlcwd&sig={who}"


def blob_operation(asked: blob_server.Asked) -> Operation | None:
    """A request by the name that the Blob service's REST reference gives it; None for the test's own."""
    _, _, container, *_ = asked.path.split("/", 3)
    who = asked.query["sig"]
    match asked.method, asked.query.get("restype"), asked.query.get("comp"):
        case "GET", "container", "list":
            what = "List Blobs"
        case "PUT", None, "block":
            what = "Put Block"
        case "PUT", None, "blocklist":
            what = "Put Block List"
        case "GET", None, "blocklist":
            what = "Get Block List"
        case "PUT", None, None:
            what = "Put Blob, a new one" if asked.headers.get("if-none-match") == "*" else "Put Blob"
        case "GET", None, None:
            what = "Get Blob"
        case "HEAD", None, None:
            what = "Get Blob Properties"
        case "DELETE", None, None:
            what = "Delete Blob"
        case other:
            raise AssertionError(f"the test knows no request {other}")
    return None if who == TEST else Operation(who, "container", container, what)


class Mounted(MutableMapping[str, Blob]):
    """The blobs of a container that AzureML's compute has mounted: files, for whoever looks from there."""

    def __init__(self, top: Path) -> None:
        self._top = top

    def __getitem__(self, name: str) -> Blob:
        try:
            data, stat = (self._top / name).read_bytes(), (self._top / name).stat()
        except (FileNotFoundError, IsADirectoryError):
            raise KeyError(name) from None
        return Blob(data, f'"0x{stat.st_mtime_ns:X}"', datetime.fromtimestamp(stat.st_mtime, UTC))

    def __setitem__(self, name: str, blob: Blob) -> None:
        (self._top / name).parent.mkdir(parents=True, exist_ok=True)
        (self._top / name).write_bytes(blob.data)

    def __delitem__(self, name: str) -> None:
        (self._top / name).unlink()

    def __iter__(self) -> Iterator[str]:
        return (path.relative_to(self._top).as_posix() for path in self._top.rglob("*") if path.is_file())

    def __len__(self) -> int:
        return sum(1 for _ in self)


# --- AzureML -------------------------------------------------------------------------------------------------------


def azureml_operation(who: str, asked: azureml.Asked) -> Operation | None:
    """A request by its method and the types of what it is on; None where it is a token that was asked for."""
    if asked.path.startswith("/msi/"):
        return None
    found = re.fullmatch(r"(/history/v1\.0)?/.*/workspaces/([^/]+)/(.+)", asked.path)
    assert found, asked.path
    types = "/".join(found[3].split("/")[::2])
    if re.fullmatch(r"jobs/[^/]+/\w+", found[3]):
        types = f"jobs/{found[3].rpartition('/')[2]}"
    return Operation(who, "workspace", found[2], f"{asked.method} {'history ' if found[1] else ''}{types}")
