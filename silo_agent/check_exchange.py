"""Rows of `silobus-agent check` on the bus and the store: each right of the agent's in `messages/rights.yaml`, tried.

Here lives how a right is tried, and which row is to blame when several fail for one reason. What is said is in
`check_words`.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Sequence

from messages import names
from messages.errors import Forbidden, NotFound, SilobusError, Transient
from messages.ports import BlobInfo, Bus, Store
from messages.rights import Right, Verb
from messages.schemas import Offer, SiloHello
from messages.settings import StoreSettings
from silo_agent.approval import measured
from silo_agent.check_credentials import FIRST
from silo_agent.check_words import (
    Finding,
    bus_setting,
    container_trouble,
    not_tried,
    queue_trouble,
    store_setting,
    unreachable_bus,
    unreachable_store,
)
from silo_agent.settings import SiloSettings
from silo_agent.silo import Silo

_NOWHERE = "check/nothing-is-here"
_MOST_SKEW = 60.0


async def tried(what: str, attempt: Callable[[], Awaitable[str]], told: Callable[[SilobusError], str]) -> Finding:
    """One thing, tried once."""
    try:
        return Finding("ok", what, await attempt())
    except SilobusError as error:
        return Finding("FAIL", what, told(error), error=error)


# --- the bus ----------------------------------------------------------------------------------------------------------


async def receiving(settings: SiloSettings, bus: Bus) -> Finding:
    """Whether announcements reach the agent; nothing is taken."""
    queue = names.to_silo(settings.silo)

    async def peek() -> str:
        waiting = await bus.peek(queue, count=1)
        return "can be read, messages are waiting" if waiting else "can be read, nothing is waiting"

    return await tried(f"read {queue}", peek, lambda e: queue_trouble(e, settings.silo, queue, Right.LISTEN))


async def sending(settings: SiloSettings, silo: Silo) -> Finding:
    """Says hello as the agent would, which is logged as everything that leaves."""
    queue = names.from_silo(silo.name)

    async def hello() -> str:
        offers = [
            Offer(task=name, code=task.code.sha256)
            for name, task in settings.tasks.items()
            if await asyncio.to_thread(measured, task.code) == task.code.sha256
        ]
        said = SiloHello(
            instance=uuid.uuid4().hex,
            agent_version="check",
            policy=settings.policy().digest(),
            offers=offers,
            at=silo.clock.now(),
        )
        await silo.voice.say(said)
        return f"said hello, offering {', '.join(o.task for o in offers) or 'nothing'}"

    return await tried(f"send to {queue}", hello, lambda e: queue_trouble(e, silo.name, queue, Right.SEND))


def bus_rows(settings: SiloSettings, receive: Finding, send: Finding) -> list[Finding]:
    """Both queues, and the bus itself, which is to blame where neither can be used for the same reason."""
    errors = (receive.error, send.error)
    blame: str | None = None
    if isinstance(receive.error, Transient):
        blame = unreachable_bus(receive.error, settings.bus)
    elif all(isinstance(error, Forbidden) for error in errors):
        blame = (
            f"lets this silo do nothing: the key or identity in {bus_setting(settings.bus)} is not the one that "
            f"agent {settings.silo} was given, it is over, or this machine's clock is far off"
        )
    elif all(isinstance(error, NotFound) for error in errors):
        blame = f"knows no queue of `silo: {settings.silo}`; ask the operator to enrol this silo under this very name"
    if blame is None:
        return [Finding("ok", "bus", f"answers to {bus_setting(settings.bus)}"), receive, send]
    return [Finding("FAIL", "bus", blame), *(not_tried(row.what, "the bus comes first") for row in (receive, send))]


def no_bus(settings: SiloSettings, because: str | None) -> list[Finding]:
    """Rows for a bus that could not even be opened; None: for want of a credential, which has a row of its own."""
    bus, first = Finding("FAIL", "bus", because or ""), "the bus comes first"
    if because is None:
        bus, first = not_tried("bus", FIRST), FIRST
    queues = (f"read {names.to_silo(settings.silo)}", f"send to {names.from_silo(settings.silo)}")
    return [bus, *(not_tried(what, first) for what in queues)]


# --- the store --------------------------------------------------------------------------------------------------------


async def store_rows(settings: SiloSettings, store: Store, silo: Silo | None) -> list[Finding]:
    """The store, its two containers verb by verb, and the clock. Without a home nothing may leave: nothing is made."""
    own = names.updates_of(settings.silo)
    make, read, find, clock = f"create in {own}", f"read {own}", f"list {own}", "clock"
    directory = settings.store.directory
    if directory is not None and not await asyncio.to_thread(directory.is_dir):
        missing = Finding("FAIL", "store", f"there is no directory {directory}; look at store.directory")
        return [missing, *(not_tried(what, "the store comes first") for what in _whats(settings))]
    rows = [await _reading(settings, store, names.GLOBAL)]
    if isinstance(rows[0].error, Transient):
        away = Finding("FAIL", "store", unreachable_store(rows[0].error, settings.store))
        return [away, *(not_tried(what, "the store comes first") for what in _whats(settings))]
    if silo is None:
        rows += [not_tried(what, "the home comes first") for what in (make, read, find, clock)]
    else:
        blob = f"check/{uuid.uuid4().hex}.json"
        made = await _creating(settings.store, store, silo, blob)
        rows.append(made)
        if isinstance(made.error, NotFound | Transient):
            rows += [not_tried(what, f"`{make}` comes first") for what in (read, find, clock)]
        else:
            rows.append(await _reading(settings, store, own))
            found: list[BlobInfo] = []
            listed = await _listing(settings, store, own, blob, found)
            rows.append(listed)
            good = made.good and listed.good
            before = make if listed.good else find
            rows.append(_clocks(silo, found) if good else not_tried(clock, f"`{before}` comes first"))
    return _blamed(settings.store, rows)


def no_store(settings: SiloSettings, because: str | None) -> list[Finding]:
    """As `no_bus`."""
    store, first = Finding("FAIL", "store", because or ""), "the store comes first"
    if because is None:
        store, first = not_tried("store", FIRST), FIRST
    return [store, *(not_tried(what, first) for what in _whats(settings))]


def _whats(settings: SiloSettings) -> list[str]:
    own = names.updates_of(settings.silo)
    return [f"read {names.GLOBAL}", f"create in {own}", f"read {own}", f"list {own}", "clock"]


def _blamed(settings: StoreSettings, rows: Sequence[Finding]) -> list[Finding]:
    """The store itself is to blame where no verb at all is allowed."""
    verbs = [row for row in rows if row.what != "clock" and row.state != "not tried"]
    if len(verbs) > 1 and all(isinstance(row.error, Forbidden) for row in verbs):
        told = f"lets this silo do nothing: {store_setting(settings)} is not what it was given, or it is over"
        return [Finding("FAIL", "store", told), *(not_tried(row.what, "the store comes first") for row in rows)]
    return [Finding("ok", "store", f"answers to {store_setting(settings)}"), *rows]


async def _reading(settings: SiloSettings, store: Store, container: str) -> Finding:
    async def read() -> str:
        try:
            await store.read(container, _NOWHERE)
        except NotFound as missing:
            if "ContainerNotFound" in str(missing):
                raise
        return "can be read"

    return await tried(
        f"read {container}", read, lambda e: container_trouble(e, settings.store, settings.silo, container, Verb.READ)
    )


async def _creating(settings: StoreSettings, store: Store, silo: Silo, blob: str) -> Finding:
    container = names.updates_of(silo.name)

    async def create() -> str:
        body = json.dumps({"check": silo.clock.now().isoformat()}).encode()
        entry = {"what": "check", "asked": None, "to": [container], "bytes": len(body)}
        await asyncio.to_thread(silo.egress.append, silo.clock.now(), entry)
        await store.create(container, blob, body)
        return "a blob can be created"

    return await tried(
        f"create in {container}", create, lambda e: container_trouble(e, settings, silo.name, container, Verb.CREATE)
    )


async def _listing(settings: SiloSettings, store: Store, container: str, blob: str, found: list[BlobInfo]) -> Finding:
    async def find() -> str:
        found.extend(await store.list(container, blob))
        return "can be listed"

    return await tried(
        f"list {container}", find, lambda e: container_trouble(e, settings.store, settings.silo, container, Verb.LIST)
    )


def _clocks(silo: Silo, found: Sequence[BlobInfo]) -> Finding:
    if not found:
        return not_tried("clock", "unknown: what was created is not listed")
    skew = (silo.clock.now() - found[0].modified).total_seconds()
    if abs(skew) > _MOST_SKEW:
        told = f"this machine's clock is off by {skew:.0f} s from the store's; have it set over the network (NTP)"
        return Finding("FAIL", "clock", told)
    return Finding("ok", "clock", f"within {abs(skew):.1f} s of the store's")
