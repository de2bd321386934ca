"""`silobus-agent check`: tries what the agent will need, and says what to do where it fails.

Here lives the list of what is tried, cheapest first, and which rows cannot be tried without which others. One thing
that is broken is one red row: what only follows from it is shown as not tried.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final, TypeVar, cast

from messages import names
from messages.errors import Transient
from messages.health import HealthSettings, answering
from messages.ports import Bus, Store
from messages.settings import Credential, SettingsError, load_yaml
from messages.transport.connect import open_bus, open_store
from messages.transport.credentials import open_credential
from silo_agent import check_tasks
from silo_agent.app import opened
from silo_agent.check_credentials import credential_rows
from silo_agent.check_exchange import bus_rows, no_bus, no_store, receiving, sending, store_rows
from silo_agent.check_words import Finding, not_tried
from silo_agent.compute import AzureML
from silo_agent.egress import EgressBroken
from silo_agent.home import HomeInUse, HomeUnusable
from silo_agent.runners.azureml_sdk import SdkWorkspace, is_installed
from silo_agent.runners.azureml_workspace import Workspace
from silo_agent.settings import SiloSettings
from silo_agent.silo import Silo

T = TypeVar("T")
_LEAST_FREE: Final = 1_000_000_000
_HOME_FIRST: Final = "the home comes first"


async def check_file(path: Path) -> list[Finding]:
    """Everything that a silo's file asks for, tried once."""
    try:
        settings = await asyncio.to_thread(load_yaml, path, SiloSettings)
    except SettingsError as error:
        first, *rest = str(error).splitlines()
        return [Finding("FAIL", "settings", first, [line.strip() for line in rest])]
    return [Finding("ok", "settings", f"{path} is understood"), *await check(settings)]


async def check(settings: SiloSettings) -> list[Finding]:
    """Everything, tried once."""
    credentials = await credential_rows(settings, _ask)
    broken = {name for name, row in credentials.items() if not row.good}
    bus, no_bus_because = _opened(lambda: open_bus(settings.bus), settings.bus.credential in broken)
    store, no_store_because = _opened(lambda: open_store(settings.store), settings.store.credential in broken)
    try:
        receive = await receiving(settings, bus) if bus is not None else None
        adapters = check_tasks.Adapters(open_store, _workspace, broken)
        needed = {
            name: await check_tasks.needs(settings.silo, name, task, adapters) for name, task in settings.tasks.items()
        }
        ready = [name for name, rows in needed.items() if all(row.good for row in rows)]
        send = not_tried(f"send to {names.from_silo(settings.silo)}", _HOME_FIRST)
        ran = {
            name: not_tried(f"task {name}", _HOME_FIRST if name in ready else "what it needs comes first")
            for name in needed
        }
        # Nothing below uses a bus or a store that could not be opened, or a task that lacks something.
        with_what_is_there = settings.model_copy(update={"tasks": {name: settings.tasks[name] for name in ready}})
        async with _home(with_what_is_there, cast("Bus", bus), cast("Store", store)) as (silo, home):
            health = await _health(settings.health, home)
            exchanged = no_store(settings, no_store_because)
            if store is not None:
                exchanged = await store_rows(settings, store, silo)
            if silo is not None:
                if receive is not None and not isinstance(receive.error, Transient):
                    send = await sending(settings, silo)
                for name in ready:
                    ran[name] = await check_tasks.once(silo, name, settings.tasks[name])
        queues = bus_rows(settings, receive, send) if receive is not None else no_bus(settings, no_bus_because)
    finally:
        for opened_one in (bus, store):
            if opened_one is not None:
                await opened_one.close()
    tasks = [row for name, rows in needed.items() for row in (*rows, ran[name])]
    if not settings.tasks:
        tasks = [Finding("FAIL", "tasks", "silo.yaml offers none; add one under `tasks`")]
    disk = await asyncio.to_thread(_disk, settings.home)
    return [*credentials.values(), *queues, home, disk, *health, *exchanged, *tasks]


async def _ask(name: Credential, scope: str) -> None:
    async with open_credential(name) as credential:
        await credential.get_token(scope)


def _workspace(azureml: AzureML) -> Workspace:
    if not is_installed():
        raise SettingsError("compute.azureml: azure-ai-ml is not installed here; install silobus[azureml].")
    return SdkWorkspace(azureml, open_credential(azureml.credential))


def _opened(what: Callable[[], T], has_no_credential: bool) -> tuple[T | None, str | None]:
    """It, or why not; None: because of what another row says."""
    if has_no_credential:
        return None, None
    try:
        return what(), ""
    except SettingsError as error:
        return None, str(error)


async def _health(settings: HealthSettings | None, home: Finding) -> list[Finding]:
    """Whether the agent could answer where its platform asks; one that runs here does so already."""
    if settings is None:
        return []
    if home.state == "not tried":
        return [not_tried("health", "the agent that is running answers there")]
    try:
        async with answering(settings):
            return [Finding("ok", "health", f"can be answered on port {settings.port}")]
    except SettingsError as error:
        return [Finding("FAIL", "health", str(error))]


@contextlib.asynccontextmanager
async def _home(settings: SiloSettings, bus: Bus, store: Store) -> AsyncIterator[tuple[Silo | None, Finding]]:
    """The silo with its home taken, if it can be; and the row on that."""
    async with contextlib.AsyncExitStack() as stack:
        silo: Silo | None = None
        try:
            silo = await stack.enter_async_context(opened(settings, bus, store))
            row = Finding("ok", "home", f"{settings.home} is ours and its egress log holds")
        except HomeInUse:
            row = not_tried("home", f"an agent is running on {settings.home}; stop it to check the rest")
        except EgressBroken as error:
            told = f"egress.jsonl is not as it was written: {error}; find out who changed it, and move it aside"
            row = Finding("FAIL", "home", told)
        except HomeUnusable as error:
            row = Finding("FAIL", "home", str(error))
        yield silo, row


def _disk(home: Path) -> Finding:
    """Room for a round of the largest model that was seen here: what it is given, and what it makes of that."""
    sizes = [0]
    try:
        for path in home.rglob("*.safetensors"):
            with contextlib.suppress(FileNotFoundError):
                sizes.append(path.stat().st_size)
        there = next((at for at in (home, *home.parents) if at.is_dir()), Path("/"))
        free = shutil.disk_usage(there).free
    except PermissionError as error:
        return not_tried("disk", f"this user may not look at {error.filename}")
    needed = max(_LEAST_FREE, 2 * max(sizes))
    if free < needed:
        told = f"{free / 1e9:.2f} GB are free below `home` ({home}), and a round may need {needed / 1e9:.2f}: make room"
        return Finding("FAIL", "disk", told)
    return Finding("ok", "disk", f"{free / 1e9:.1f} GB are free below `home`")


__all__ = ["Finding", "check", "check_file"]
