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
from messages.ports import Bus, Store
from messages.settings import SettingsError, load_yaml
from messages.transport.connect import open_bus, open_credential, open_store
from silo_agent import check_tasks
from silo_agent.app import opened
from silo_agent.check_exchange import bus_rows, no_store, receiving, sending, store_rows
from silo_agent.check_words import Finding, not_tried
from silo_agent.compute import AzureML
from silo_agent.egress import EgressBroken
from silo_agent.home import HomeInUse
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
    bus, no_bus = _opened(lambda: open_bus(settings.bus))
    store, no_store_because = _opened(lambda: open_store(settings.store))
    try:
        receive = await receiving(settings, bus) if bus is not None else None
        adapters = check_tasks.Adapters(open_store, _workspace)
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
            exchanged = no_store(settings, no_store_because)
            if store is not None:
                exchanged = await store_rows(settings, store, silo)
            if silo is not None:
                if receive is not None:
                    send = await sending(settings, silo)
                for name in ready:
                    ran[name] = await check_tasks.once(silo, name, settings.tasks[name])
        if receive is None:
            blind = not_tried(f"read {names.to_silo(settings.silo)}", "the bus comes first")
            queues = [Finding("FAIL", "bus", no_bus), blind, not_tried(send.what, "the bus comes first")]
        else:
            queues = bus_rows(settings, receive, send)
    finally:
        for opened_one in (bus, store):
            if opened_one is not None:
                await opened_one.close()
    tasks = [row for name, rows in needed.items() for row in (*rows, ran[name])]
    if not settings.tasks:
        tasks = [Finding("FAIL", "tasks", "silo.yaml offers none; add one under `tasks`")]
    return [*queues, home, await asyncio.to_thread(_disk, settings.home), *exchanged, *tasks]


def _workspace(azureml: AzureML) -> Workspace:
    if not is_installed():
        raise SettingsError("compute.azureml: azure-ai-ml is not installed here; install silobus[azureml].")
    return SdkWorkspace(azureml, open_credential(azureml.credential))


def _opened(what: Callable[[], T]) -> tuple[T | None, str]:
    try:
        return what(), ""
    except SettingsError as error:
        return None, str(error)


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
        except OSError as error:
            told = f"{settings.home} cannot be used ({error.strerror}); make it this user's, or change `home`"
            row = Finding("FAIL", "home", told)
        yield silo, row


def _disk(home: Path) -> Finding:
    """Room for a round of the largest model that was seen here: what it is given, and what it makes of that."""
    sizes = [0]
    for path in home.rglob("*.safetensors"):
        with contextlib.suppress(OSError):
            sizes.append(path.stat().st_size)
    needed = max(_LEAST_FREE, 2 * max(sizes))
    there = next((at for at in (home, *home.parents) if at.is_dir()), Path("/"))
    free = shutil.disk_usage(there).free
    if free < needed:
        told = f"{free / 1e9:.2f} GB are free below `home` ({home}), and a round may need {needed / 1e9:.2f}: make room"
        return Finding("FAIL", "disk", told)
    return Finding("ok", "disk", f"{free / 1e9:.1f} GB are free below `home`")


__all__ = ["Finding", "check", "check_file"]
