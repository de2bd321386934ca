"""What each operation of the Blob store needs, and that every role of `messages/rights.yaml` gets by with its verbs.

Signatures are real ones, for one container each. Azurite checks them; the fake server obeys the verbs that they name.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import generate_container_sas
from azure.storage.blob.aio import BlobServiceClient

from messages import names
from messages.errors import AlreadyExists, Conflict, Forbidden
from messages.rights import Verb, principals
from messages.settings import SettingsError, StoreSettings
from messages.transport.azure_blob import AzureBlobStore
from messages.transport.connect import open_store
from tests.fakes import azurite, blob_server
from tests.fakes.blob_server import BlobServer

MB = 1 << 20
SILOS = ["north", "south"]
KINDS = ["blob-fake"] if azurite.left_out() else ["blob-fake", "blob-azurite"]
LETTERS = {Verb.READ: "r", Verb.LIST: "l", Verb.CREATE: "c", Verb.WRITE: "w", Verb.DELETE: "d"}


@dataclass(frozen=True)
class Account:
    """A federation's containers, in each of them a document `there`, and the key to them all."""

    kind: str
    name: str
    key: str
    url: str
    service: BlobServiceClient

    def sas(self, container: str, verbs: frozenset[Verb]) -> str:
        """A signature for one container."""
        letters = "".join(letter for verb, letter in LETTERS.items() if verb in verbs)
        until = datetime.now(UTC) + timedelta(hours=1)
        return generate_container_sas(self.name, container, account_key=self.key, permission=letters, expiry=until)

    @asynccontextmanager
    async def store(self, verbs: dict[str, frozenset[Verb]]) -> AsyncIterator[AzureBlobStore]:
        """With a signature for each container that exactly these verbs are good for."""
        services = {c: BlobServiceClient(self.url, credential=self.sas(c, v)) for c, v in verbs.items()}
        store = AzureBlobStore(services, whole=MB, block=MB)
        yield store
        await store.close()

    async def etag(self, container: str) -> str:
        return str((await self.service.get_blob_client(container, "there").get_blob_properties()).etag)


@pytest.fixture(params=KINDS)
async def account(request: pytest.FixtureRequest) -> AsyncIterator[Account]:
    async with BlobServer() as server:
        told = (blob_server.ACCOUNT, blob_server.KEY, server.url, server.connection_string)
        if request.param == "blob-azurite":
            told = (azurite.ACCOUNT, azurite.KEY, azurite.azurite().url, azurite.azurite().connection_string)
        async with BlobServiceClient.from_connection_string(told[3]) as service:
            for container in names.containers(SILOS):
                await service.create_container(container)
                await service.get_blob_client(container, "there").upload_blob(b"12345")
            yield Account(request.param, *told[:3], service)
            if request.param == "blob-azurite":
                for container in names.containers(SILOS):
                    await service.delete_container(container)


Operation = Callable[[AzureBlobStore, str, str, Path], Awaitable[Any]]
"""Of a store, on a container, with an ETag of `there` and an empty directory that holds a `large` file."""
OPERATIONS: dict[str, tuple[frozenset[Verb], Operation]] = {
    "read": (frozenset({Verb.READ}), lambda store, c, etag, d: store.read(c, "there")),
    "open": (frozenset({Verb.READ}), lambda store, c, etag, d: store.open(c, "there")),
    "fetch": (frozenset({Verb.READ}), lambda store, c, etag, d: store.fetch(c, "there", d / c)),
    "list": (frozenset({Verb.LIST}), lambda store, c, etag, d: store.list(c, "")),
    "write anew": (
        frozenset({Verb.CREATE, Verb.WRITE}),
        lambda store, c, etag, d: store.write(c, "new", b"1", if_match=None),
    ),
    "replace": (frozenset({Verb.WRITE}), lambda store, c, etag, d: store.write(c, "there", b"2", if_match=etag)),
    "create": (frozenset({Verb.CREATE, Verb.WRITE}), lambda store, c, etag, d: store.create(c, "small", b"1")),
    "create from blocks": (frozenset({Verb.WRITE}), lambda store, c, etag, d: store.create(c, "big", d / "large")),
    "delete": (frozenset({Verb.DELETE}), lambda store, c, etag, d: store.delete(c, "there")),
}
"""Which verbs are enough, each alone."""


async def _does_exactly(
    account: Account, store: AzureBlobStore, container: str, verbs: frozenset[Verb], d: Path
) -> None:
    """Every operation that these verbs are enough for works, and every other is Forbidden, and says what is missing."""
    for what, (enough, operation) in OPERATIONS.items():
        etag = await account.etag(container)
        if verbs & enough:
            await operation(store, container, etag, d)
        else:
            with pytest.raises(Forbidden) as caught:
                await operation(store, container, etag, d)
            assert any(verb in str(caught.value).rpartition("good, for:")[2] for verb in enough), what


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "large").write_bytes(os.urandom(3 * MB))
    return tmp_path


@pytest.mark.parametrize("verb", list(Verb))
async def test_each_operation_needs_one_verb_and_gets_by_with_it(account: Account, place: Path, verb: Verb) -> None:
    verbs = frozenset({verb})
    async with account.store({names.GLOBAL: verbs}) as store:
        await _does_exactly(account, store, names.GLOBAL, verbs, place)


@pytest.mark.parametrize("who", principals(SILOS), ids=lambda who: who.name)
async def test_a_role_does_what_its_verbs_say_and_nothing_else(account: Account, place: Path, who: Any) -> None:
    async with account.store(dict(who.containers)) as store:
        for container in names.containers(SILOS):
            if container in who.containers:
                await _does_exactly(account, store, container, who.containers[container], place)
                continue
            for _, operation in OPERATIONS.values():
                with pytest.raises(Forbidden, match="no signature for this container"):
                    await operation(store, container, '"0x1"', place)


async def test_what_is_there_is_there_for_one_who_may_not_replace_it(account: Account) -> None:
    async with account.store({names.INITIAL: frozenset({Verb.READ, Verb.CREATE})}) as store:
        await store.create(names.INITIAL, "a", b"1")
        with pytest.raises(AlreadyExists):
            await store.create(names.INITIAL, "a", b"2")
        with pytest.raises(Conflict):
            await store.write(names.INITIAL, "a", b"2", if_match=None)
    blob = account.service.get_blob_client(names.INITIAL, "a")
    assert await (await blob.download_blob()).readall() == b"1"


async def test_one_who_may_neither_replace_nor_read_is_told_that_it_may_be_there(account: Account) -> None:
    async with account.store({names.INITIAL: frozenset({Verb.CREATE})}) as store:
        await store.create(names.INITIAL, "a", b"1")
        # Azure, and the fake server, say what Azurite does not: that it would be an overwrite.
        with pytest.raises((AlreadyExists, Forbidden), match=r"Overwrite|must not be there yet"):
            await store.create(names.INITIAL, "a", b"2")


async def test_blocks_that_may_not_be_sent_are_told_with_the_verb(account: Account, place: Path) -> None:
    async with account.store({names.INITIAL: frozenset({Verb.READ, Verb.LIST, Verb.CREATE})}) as store:
        with pytest.raises(
            Forbidden, match=r"good, for: write \(for a file of 3145728 bytes, which travels in blocks\)"
        ):
            await store.create(names.INITIAL, "a", place / "large")


async def test_settings_name_a_signature_for_each_container(account: Account, tmp_path: Path) -> None:
    files = {c: tmp_path / f"{c}.sas" for c in (names.GLOBAL, names.updates_of("north"))}
    files[names.GLOBAL].write_text(account.sas(names.GLOBAL, frozenset({Verb.READ})))
    with pytest.raises(ValueError, match="set exactly one of `credential`"):
        StoreSettings(account_url=account.url, sas_files=files, credential="default")
    settings = StoreSettings(account_url=account.url, sas_files=files)
    with pytest.raises(SettingsError, match=r"store\.sas_files\.updates-north: .*cannot be read"):
        open_store(settings)
    files[names.updates_of("north")].write_text(account.sas(names.updates_of("north"), frozenset({Verb.CREATE})))
    store = open_store(settings)
    assert (await store.read(names.GLOBAL, "there")).data == b"12345"
    await store.create(names.updates_of("north"), "a", b"1")
    for refused in (store.create(names.GLOBAL, "a", b"1"), store.read(names.updates_of("north"), "there")):
        with pytest.raises(Forbidden):
            await refused
    await store.close()
