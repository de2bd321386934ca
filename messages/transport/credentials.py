"""The ways to prove to Azure who this process is: the only place that opens one, and says what it lacks.

Whatever goes wrong on the way to a token is told as NoCredential, before any service is asked. What azure-identity says
of it is not repeated: it speaks of every way that it tried, and its texts can name tenants and applications.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Self, assert_never, final

from messages.errors import NoCredential
from messages.log import leave_credentials_to_us
from messages.settings import Credential, SettingsError

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken
    from azure.core.credentials_async import AsyncTokenCredential

_PATIENCE: Final = 20.0
"""Seconds for one token. Where there is no managed identity, azure-identity alone would look for it for longer."""
_CODE: Final = re.compile(r"AADSTS\d+")
_WORKLOAD: Final = "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_FEDERATED_TOKEN_FILE"
_NEEDS: Final[Mapping[Credential, str]] = {
    "managed-identity": "is an identity assigned to this machine? A user-assigned one is named by AZURE_CLIENT_ID",
    "workload-identity": f"it needs {_WORKLOAD}, and its service account federated with the identity",
    "azure-cli": "is the Azure CLI installed here, and did you `az login`?",
    "environment": "set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET or AZURE_CLIENT_CERTIFICATE_PATH",
    "default": "`az login` is enough on a laptop; elsewhere name the credential that is meant",
}


def open_credential(name: Credential) -> AsyncTokenCredential:
    """The way to prove who this process is to Azure. Raises SettingsError when this machine does not offer it.

    Its tokens raise NoCredential when they cannot be had.
    """
    from azure.identity import aio

    leave_credentials_to_us()
    found: AsyncTokenCredential
    try:
        match name:
            case "managed-identity":
                found = aio.ManagedIdentityCredential(client_id=os.environ.get("AZURE_CLIENT_ID"))
            case "workload-identity":
                found = aio.WorkloadIdentityCredential()
            case "azure-cli":
                found = aio.AzureCliCredential()
            case "environment":
                found = aio.EnvironmentCredential()
            case "default":
                found = aio.DefaultAzureCredential()
            case _:
                assert_never(name)
    except ValueError:
        raise SettingsError(f"credential: {name} is not set up for this process; it needs {_WORKLOAD}") from None
    return _InOurWords(name, found)


@final
class _InOurWords:
    """A credential whose tokens come soon, or raise NoCredential."""

    def __init__(self, name: Credential, credential: AsyncTokenCredential) -> None:
        self._name = name
        self._credential = credential

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        try:
            async with asyncio.timeout(_PATIENCE):
                return await self._credential.get_token(*scopes, **options)
        except Exception as error:  # noqa: BLE001  # this is where its exceptions end, whatever they are
            code = _CODE.search(str(error))
            why = f"Microsoft Entra ID says {code[0]}" if code else type(error).__name__
            raise NoCredential(f"no token can be had with {self._name} ({why}): {_NEEDS[self._name]}") from None

    async def close(self) -> None:
        await self._credential.close()

    async def __aenter__(self) -> Self:
        await self._credential.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._credential.__aexit__(*error)
