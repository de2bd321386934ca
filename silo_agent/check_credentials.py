"""Rows of `silobus-agent check` on the credentials that a silo's file names: one token of each, asked for.

They come before all that needs them. Where one credential gives no token, that row alone is red, whatever it is used
for. No row is shown where the file names none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, assert_never

from messages.errors import NoCredential
from messages.settings import Credential, SettingsError
from silo_agent.check_words import Finding
from silo_agent.compute import AzureML
from silo_agent.settings import SiloSettings

Asks = Callable[[Credential, str], Awaitable[object]]
"""Asks for a token for a scope. Raises NoCredential, SettingsError."""
FIRST: Final = "the credential comes first"
_BUS: Final = "https://servicebus.azure.net"
_BLOBS: Final = "https://storage.azure.com"


async def credential_rows(settings: SiloSettings, ask: Asks) -> dict[Credential, Finding]:
    """A row for each, in the order of the file."""
    found: dict[Credential, list[tuple[str, str]]] = {}
    for name, where, resource in _uses(settings):
        found.setdefault(name, []).append((where, resource))
    rows = await asyncio.gather(*(_row(name, uses, ask) for name, uses in found.items()))
    return dict(zip(found, rows, strict=True))


def _uses(settings: SiloSettings) -> Iterator[tuple[Credential, str, str]]:
    """Each credential, the setting that names it, and the resource that it is for."""
    if settings.bus.credential is not None:
        yield settings.bus.credential, "bus.credential", _BUS
    if settings.store.credential is not None:
        yield settings.store.credential, "store.credential", _BLOBS
    for name, task in settings.tasks.items():
        if (azureml := task.compute.azureml) is not None:
            at = f"tasks.{name}.compute.azureml"
            yield azureml.credential, f"{at}.credential", _resource_manager(azureml)
            if (own := azureml.datastore.store.credential) is not None:
                yield own, f"{at}.datastore.store.credential", _BLOBS


def _resource_manager(azureml: AzureML) -> str:
    if azureml.resource_manager is not None:
        return azureml.resource_manager
    match azureml.cloud:
        case "AzureCloud":
            return "https://management.azure.com"
        case "AzureUSGovernment":
            return "https://management.usgovcloudapi.net"
        case "AzureChinaCloud":
            return "https://management.chinacloudapi.cn"
        case _:
            assert_never(azureml.cloud)


async def _row(name: Credential, uses: list[tuple[str, str]], ask: Asks) -> Finding:
    what, wheres = f"credential {name}", ", ".join(where for where, _ in uses)
    try:
        await ask(name, f"{uses[0][1]}/.default")
    except (NoCredential, SettingsError) as error:
        return Finding("FAIL", what, f"{error}; or name another in {wheres}")
    return Finding("ok", what, f"gives tokens, for {wheres}")
