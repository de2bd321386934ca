"""Which federation a command speaks to, and as whom: the one in a folder, or the one that a settings file names.

Commands are the operator's, but for those that do the orchestrator's work. They reach everything through the same ports
as everybody else; nothing here starts anything (that is `local`).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import Annotated

import typer

from messages import names
from messages.ports import Bus, Store
from messages.rights import OPERATOR, ORCHESTRATOR
from messages.settings import load_yaml
from messages.transport.connect import open_bus, open_store
from orchestrator.cli.folder import Folder, read_card
from orchestrator.cli.terminal import Complaint
from orchestrator.settings import OrchestratorSettings

DEFAULT_FOLDER = Path(".silobus")

Dir = Annotated[
    Path | None,
    typer.Option("--dir", envvar="SILOBUS_DIR", help="Folder of a local federation.", show_default=".silobus"),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", envvar="SILOBUS_CONFIG", help="A settings file like the orchestrator's, for Azure."),
]


def _name(value: str | None) -> str | None:
    if value is not None and not re.match(names.NAME_PATTERN, value):
        raise typer.BadParameter(f"{value!r} is no name; 1 to 40 small letters, digits and inner hyphens are.")
    return value


def run_id(value: str | None) -> str | None:
    """A run's id as it must be, or None. Raises BadParameter."""
    if value is not None and not re.fullmatch(names.RUN_PATTERN, value):
        raise typer.BadParameter(f"{value!r} is no run; `silobus status EXPERIMENT` shows it, as bc-1_0123abcd.")
    return value


Experiment = Annotated[str, typer.Argument(callback=_name, help="The experiment's name.")]
AnyExperiment = Annotated[str | None, typer.Argument(callback=_name, help="Only this one, in detail.")]


class Federation:
    """Where the queues and blobs are, opened when first used: what only reads the store loads no SDK for the bus."""

    def __init__(self, chosen: OrchestratorSettings) -> None:
        self._settings = chosen
        self.silos = list(chosen.silos)
        self.watch_interval = 0.1 if chosen.store.directory else 2.0
        """Seconds between looks at the store: short for a directory, longer where each look is paid for."""

    @cached_property
    def bus(self) -> Bus:
        return open_bus(self._settings.bus)

    @cached_property
    def store(self) -> Store:
        return open_store(self._settings.store)

    async def close(self) -> None:
        """Closes what was opened."""
        for name in {"bus", "store"} & self.__dict__.keys():
            await getattr(self, name).close()

    def queues(self) -> list[str]:
        """Every queue."""
        return names.queues(self.silos)

    def known_queue(self, queue: str) -> str:
        """`queue`, if there is one of that name. Raises Complaint with those there are."""
        if queue not in self.queues():
            raise Complaint(f"There is no queue {queue!r}. There are: {', '.join(self.queues())}.")
        return queue


def settings_file(directory: Path | None, config: Path | None, *, role: str = OPERATOR) -> Path:
    """The settings file of the federation meant. In a folder each role has its own; one named is taken as it is."""
    if config is not None and directory is None:
        return config
    folder = Folder((directory or DEFAULT_FOLDER).absolute())
    if read_card(folder) is None:
        raise Complaint(
            f"There is no federation in {folder.root}. Start one with `silobus up`, name its folder with --dir,\n"
            f"or name a settings file of a federation on Azure with --config."
        )
    return folder.orchestrator if role == ORCHESTRATOR else folder.operator


def settings(directory: Path | None, config: Path | None, *, role: str = OPERATOR) -> OrchestratorSettings:
    """Read and checked."""
    return load_yaml(settings_file(directory, config, role=role), OrchestratorSettings)


@asynccontextmanager
async def reach(directory: Path | None, config: Path | None, *, role: str = OPERATOR) -> AsyncIterator[Federation]:
    """The federation meant, for as long as the block runs. Connects at the first use."""
    federation = Federation(settings(directory, config, role=role))
    try:
        yield federation
    finally:
        await federation.close()
