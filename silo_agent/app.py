"""Wiring: the one place that builds adapters and hands them to the agent. Nothing is decided here."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from messages.health import answering
from messages.log import configure
from messages.ports import Bus, Clock, Store
from messages.settings import SettingsError, load_yaml
from messages.transport.clock import SystemClock
from messages.transport.connect import open_bus, open_store
from messages.transport.credentials import open_credential
from silo_agent.budget import Budget
from silo_agent.compute import AzureML
from silo_agent.egress import EgressLog
from silo_agent.home import Home, HomeUnusable
from silo_agent.node_hours import NodeHours
from silo_agent.private_state import PrivateState
from silo_agent.runners.azureml import AzureMLRunner, Site
from silo_agent.runners.azureml_sdk import SdkWorkspace, is_installed
from silo_agent.runners.dispatch import Dispatcher
from silo_agent.runners.local import LocalRunner
from silo_agent.runners.port import Runner
from silo_agent.service import Agent
from silo_agent.settings import SiloSettings
from silo_agent.silo import Silo
from silo_agent.voice import Voice


@contextlib.asynccontextmanager
async def opened(
    settings: SiloSettings, bus: Bus, store: Store, *, clock: Clock | None = None, local: Runner | None = None
) -> AsyncIterator[Silo]:
    """The silo with its home taken. `local`: who trains here; None: processes.

    Raises HomeInUse, HomeUnusable, EgressBroken.
    """
    home = Home(settings.home)
    policy, clock = settings.policy(), clock or SystemClock()
    with contextlib.ExitStack() as closing:
        with _usable(home):
            await asyncio.to_thread(home.take)
            closing.callback(home.leave)
            egress = await asyncio.to_thread(EgressLog, home.egress)
            closing.callback(egress.close)
            budget = await asyncio.to_thread(Budget, home.budget)
            closing.callback(budget.close)
            if local is None:
                processes = local = LocalRunner(home.runtime)
                await processes.prepare()
            runner = Dispatcher(local, await _azureml(settings, home, clock, closing))
        silo = Silo(
            name=settings.silo,
            policy=policy,
            policy_digest=policy.digest(),
            home=home,
            budget=budget,
            egress=egress,
            state=PrivateState(home.state),
            runner=runner,
            store=store,
            voice=Voice(settings.silo, bus, clock, egress),
            clock=clock,
            heartbeat=settings.heartbeat,
            stalled_after=settings.stalled_after or 2 * settings.heartbeat,
            keep_rounds=settings.keep_rounds,
        )
        try:
            yield silo
        finally:
            await runner.close()


@contextlib.contextmanager
def _usable(home: Home) -> Iterator[None]:
    """Says of the home what the system says of a file in it."""
    try:
        yield
    except OSError as error:
        of = f" on {error.filename}" if error.filename else ""
        told = f"home {home.path} cannot be used ({error.strerror or error}{of})"
        raise HomeUnusable(f"{told}: this user must be able to write there; or change `home`") from error


async def _azureml(
    settings: SiloSettings, home: Home, clock: Clock, closing: contextlib.ExitStack
) -> AzureMLRunner | None:
    """The runner for tasks that ask for it; None when none does. Nothing is sent yet."""
    found = ((name, task.compute.where) for name, task in settings.tasks.items())
    asked = {name: where for name, where in found if isinstance(where, AzureML)}
    if not asked:
        return None
    if not is_installed():
        raise SettingsError("compute.azureml: azure-ai-ml is not installed here; install silobus[azureml].")
    sites = {
        name: Site(SdkWorkspace(where, open_credential(where.credential)), open_store(where.datastore.store))
        for name, where in asked.items()
    }
    hours = await asyncio.to_thread(NodeHours, home.node_hours)
    closing.callback(hours.close)
    return AzureMLRunner(settings.silo, tasks=settings.tasks, sites=sites, hours=hours, clock=clock)


async def run(config: Path) -> None:
    """Runs the agent until it is told to stop.

    Raises SettingsError, HomeInUse, HomeUnusable, EgressBroken, HomeGone.
    """
    settings = load_yaml(config, SiloSettings)
    configure(f"agent {settings.silo}")
    hide_from_others()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    bus, store = open_bus(settings.bus), open_store(settings.store)
    try:
        async with answering(settings.health), opened(settings, bus, store) as silo:
            await Agent(silo, bus).run(stop)
    finally:
        await bus.close()
        await store.close()


def hide_from_others() -> None:
    """On Linux, keeps other processes of the same user, trainers among them, from reading this one's environment."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(4, 0)  # PR_SET_DUMPABLE
