"""A token that cannot be had is told as that, in our words, soon, whoever asked for it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import aio
from azure.servicebus.exceptions import ServiceBusError

from messages.errors import NoCredential, Transient
from messages.settings import StoreSettings
from messages.transport import credentials
from messages.transport.connect import open_store
from messages.transport.servicebus import _translate

SECRET = "tenant-canary-1f"


def answers(monkeypatch: pytest.MonkeyPatch, get_token: Any) -> None:
    monkeypatch.setattr(aio.AzureCliCredential, "get_token", get_token)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ClientAuthenticationError(f"AADSTS7000215: Invalid client secret for {SECRET}"), "says AADSTS7000215"),
        (ClientAuthenticationError(f"{SECRET} is not logged in"), "ClientAuthenticationError"),
        (OSError(SECRET), "OSError"),
    ],
)
async def test_it_is_told_without_azures_words(monkeypatch: pytest.MonkeyPatch, error: Exception, why: str) -> None:
    async def get_token(*_: object, **__: object) -> None:
        raise error

    answers(monkeypatch, get_token)
    async with credentials.open_credential("azure-cli") as credential:
        with pytest.raises(NoCredential, match=r"with azure-cli.*az login") as told:
            await credential.get_token("https://storage.azure.com/.default")
    assert why in str(told.value)
    assert SECRET not in str(told.value)
    assert isinstance(told.value, Transient)


async def test_it_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    async def get_token(*_: object, **__: object) -> None:
        await asyncio.sleep(2)

    answers(monkeypatch, get_token)
    monkeypatch.setattr(credentials, "_PATIENCE", 0.01)
    with pytest.raises(NoCredential, match="TimeoutError"):
        await credentials.open_credential("azure-cli").get_token("https://storage.azure.com/.default")


async def test_azures_own_warnings_of_it_are_not_repeated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    logging.getLogger("azure.identity").setLevel(logging.NOTSET)  # as it is in a fresh process
    with pytest.raises(NoCredential, match="AZURE_CLIENT_SECRET"):
        await credentials.open_credential("environment").get_token("https://storage.azure.com/.default")
    assert not caplog.records


async def test_the_store_tells_it_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async def get_token(*_: object, **__: object) -> None:
        raise ClientAuthenticationError("not logged in")

    answers(monkeypatch, get_token)
    store = open_store(StoreSettings(account_url="https://nowhere.invalid", credential="azure-cli"))
    with pytest.raises(NoCredential):
        await store.read("global", "a")
    await store.close()


def test_the_bus_tells_it_as_it_is() -> None:
    wrapped = ServiceBusError("handler failed", error=NoCredential("no token"))
    assert isinstance(_translate(wrapped, "cannot peek"), NoCredential)
