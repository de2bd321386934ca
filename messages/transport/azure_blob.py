"""A store in Azure Blob Storage. The only file that touches its SDK; containers are made by the deployment, not here.

Conditions do all the work: creation is `If-None-Match: *`, replacing is `If-Match`, reading goes on with the ETag it
began with. Large files travel as blocks in parallel. Errors are told in our words, from status and error code only: the
SDK's own texts may hold an address with a signature in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
from azure.core import MatchConditions
from azure.core.credentials_async import AsyncTokenCredential
from azure.core.exceptions import AzureError, HttpResponseError
from azure.storage.blob import BlobBlock, StorageErrorCode
from azure.storage.blob.aio import BlobClient, BlobServiceClient

from messages.errors import AlreadyExists, Conflict, Forbidden, NotFound, Poison, SilobusError, Transient
from messages.ports import BlobInfo, Document, Reader
from messages.transport.blob_names import check_blob, check_container, check_prefix, check_range
from messages.transport.local_files import read_part, write_part

_WHOLE: Final = 32 << 20
"""A file of at most so many bytes is sent in one request, for which the right to create is enough; see `create`."""
_BLOCK: Final = 8 << 20
"""Bytes of a block, and of a range of a fetch."""
_MOST_BLOCKS: Final = 50_000
_IN_PARALLEL: Final = 4


def connect(
    *,
    account_url: str | None = None,
    credential: AsyncTokenCredential | None = None,
    sas: str | None = None,
    connection_string: str | None = None,
    ca_file: Path | None = None,
) -> AzureBlobStore:
    """A store in the account at `account_url`, entered with a credential or a signature, or by a connection string.

    Nothing is sent yet. The store closes its connections, not the credential. Raises ValueError unless exactly one
    way in is given.
    """
    options: dict[str, Any] = {"retry_total": 3, "initial_backoff": 1, "increment_base": 2}
    if ca_file is not None:
        options["connection_verify"] = str(ca_file)
    if connection_string is not None and account_url is None and credential is None and sas is None:
        return AzureBlobStore(BlobServiceClient.from_connection_string(connection_string, **options))
    if account_url is not None and connection_string is None and (credential is None) != (sas is None):
        return AzureBlobStore(BlobServiceClient(account_url, credential=credential or sas, **options))
    raise ValueError("give account_url and either credential or sas; or give connection_string")


class AzureBlobStore:
    """`messages.ports.Store` over an account's blob service."""

    def __init__(self, service: BlobServiceClient, *, whole: int = _WHOLE, block: int = _BLOCK) -> None:
        self._service, self._whole, self._block = service, whole, block

    async def read(self, container: str, name: str, *, limit: int = 4 << 20) -> Document:
        blob = self._blob(container, name)
        with _in_our_words(f"{container}/{name}"):
            try:
                download = await blob.download_blob(offset=0, length=limit + 1, max_concurrency=1)
            except HttpResponseError as error:
                if error.status_code != 416:
                    raise
                return Document(b"", str((await blob.get_blob_properties()).etag))  # an empty blob has no ranges
            if download.size > limit:
                raise Poison("too-large", f"{container}/{name} has more than {limit} bytes, which is the most.")
            return Document(await download.readall(), str(download.properties.etag))

    async def write(self, container: str, name: str, data: bytes, *, if_match: str | None) -> str:
        blob = self._blob(container, name)
        lost = Conflict(f"{container}/{name} was written by somebody else; read it again.")
        try:
            with _in_our_words(f"{container}/{name}"):
                if if_match is None:
                    answer = await blob.upload_blob(data, length=len(data), overwrite=False)
                else:
                    answer = await blob.upload_blob(data, length=len(data), overwrite=True, **_unchanged(if_match))
        except (AlreadyExists, Conflict):
            raise lost from None
        return str(answer["etag"])

    async def create(self, container: str, name: str, source: Path | bytes) -> None:
        """See the port. Azure lets an identity with no more than the right to create send one request, but no blocks:
        beyond `whole` bytes the identity needs the right to write."""
        blob = self._blob(container, name)
        size = len(source) if isinstance(source, bytes) else (await asyncio.to_thread(source.stat)).st_size
        try:
            with _in_our_words(f"{container}/{name}"):
                if not isinstance(source, bytes) and size > self._whole:
                    await _create_from_blocks(blob, source, size, self._block)
                    return
                data = source if isinstance(source, bytes) else await asyncio.to_thread(source.read_bytes)
                await blob.upload_blob(data, length=len(data), overwrite=False)
        except Conflict:
            raise AlreadyExists(f"{container}/{name} is there already.") from None

    async def open(self, container: str, name: str) -> Reader:
        blob = self._blob(container, name)
        with _in_our_words(f"{container}/{name}"):
            properties = await blob.get_blob_properties()
        return _BlobReader(blob, f"{container}/{name}", int(properties.size), str(properties.etag))

    async def fetch(self, container: str, name: str, target: Path) -> None:
        reader = await self.open(container, name)
        partial = target.with_name(f".{target.name}.{secrets.token_hex(6)}")

        async def copy(offset: int) -> None:
            data = await reader.read(offset, min(self._block, reader.size - offset))
            await asyncio.to_thread(write_part, partial, offset, data)

        with _in_our_words(f"{container}/{name}"):
            await asyncio.to_thread(partial.touch, 0o600, exist_ok=False)
            try:
                await _in_parallel(copy, range(0, reader.size, self._block))
                await asyncio.to_thread(_hand_out, partial, target)
            finally:
                await asyncio.to_thread(partial.unlink, missing_ok=True)

    async def list(self, container: str, prefix: str) -> Sequence[BlobInfo]:
        check_container(container)
        check_prefix(prefix)
        client = self._service.get_container_client(container)
        try:
            with _in_our_words(container):
                rows = [
                    BlobInfo(str(row.name), int(row.size), _quoted(str(row.etag)), row.last_modified)
                    async for row in client.list_blobs(name_starts_with=prefix or None)
                ]
        except NotFound:
            return []
        return sorted(rows, key=lambda row: row.name)

    async def delete(self, container: str, name: str) -> None:
        blob = self._blob(container, name)
        with contextlib.suppress(NotFound), _in_our_words(f"{container}/{name}"):
            await blob.delete_blob(delete_snapshots="include")

    async def close(self) -> None:
        await self._service.close()

    def _blob(self, container: str, name: str) -> BlobClient:
        check_container(container)
        check_blob(name)
        return self._service.get_blob_client(container, name)


class _BlobReader:
    """Pinned to the ETag the blob had when opened."""

    def __init__(self, blob: BlobClient, label: str, size: int, etag: str) -> None:
        self._blob, self._label, self._size, self._etag = blob, label, size, etag

    @property
    def size(self) -> int:
        return self._size

    @property
    def etag(self) -> str:
        return self._etag

    async def read(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self._size)
        if not length:
            return b""
        try:
            with _in_our_words(self._label):
                condition = _unchanged(self._etag)
                download = await self._blob.download_blob(offset=offset, length=length, max_concurrency=1, **condition)
                return bytes(await download.readall())
        except (NotFound, Conflict):
            raise Conflict(f"{self._label} has changed since it was opened.") from None

    async def close(self) -> None:
        """Nothing is held."""


async def _create_from_blocks(blob: BlobClient, source: Path, size: int, block: int) -> None:
    """Sends the file in parallel. Blocks count for nothing until they are listed, and that happens only once."""
    with contextlib.suppress(NotFound, Forbidden), _in_our_words(str(blob.blob_name)):
        await blob.get_blob_properties()  # an identity that may not read cannot ask, and need not
        raise AlreadyExists(f"{blob.container_name}/{blob.blob_name} is there already.")
    length = max(block, -(-size // _MOST_BLOCKS))
    attempt = secrets.token_hex(8)  # so that nobody else's blocks are listed

    async def stage(offset: int) -> None:
        data = await asyncio.to_thread(read_part, source, offset, min(length, size - offset))
        await blob.stage_block(_block_id(attempt, offset // length), data, length=len(data))

    try:
        with _in_our_words(f"{blob.container_name}/{blob.blob_name}"):
            await _in_parallel(stage, range(0, size, length))
    except Forbidden as error:
        raise Forbidden(
            f"{error} A file of {size} bytes travels in blocks, for which creating is not enough."
        ) from None
    blocks = [BlobBlock(_block_id(attempt, number)) for number in range(-(-size // length))]
    await blob.commit_block_list(blocks, match_condition=MatchConditions.IfMissing)


def _block_id(attempt: str, number: int) -> str:
    return f"{attempt}-{number:05d}"


async def _in_parallel(work: Callable[[int], Awaitable[None]], offsets: Iterable[int]) -> None:
    """Does the work at every offset, a few at a time. When one fails the others are stopped first."""
    waiting = iter(offsets)

    async def go_on() -> None:
        for offset in waiting:
            await work(offset)

    tasks = [asyncio.create_task(go_on()) for _ in range(_IN_PARALLEL)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _unchanged(etag: str) -> dict[str, Any]:
    return {"etag": etag, "match_condition": MatchConditions.IfNotModified}


def _quoted(etag: str) -> str:
    """As every other answer has it; a listing leaves the quotation marks out."""
    return etag if etag.startswith('"') else f'"{etag}"'


def _hand_out(partial: Path, target: Path) -> None:
    partial.chmod(0o444)
    try:
        os.link(partial, target)
    except FileExistsError:
        raise ValueError(f"{target} exists already") from None


@contextlib.contextmanager
def _in_our_words(about: str) -> Iterator[None]:
    """Tells the SDK's errors as ours. Their texts are left out: an address in one may hold a signature."""
    try:
        yield
    except HttpResponseError as error:
        raise _translated(about, error) from None
    except (AzureError, aiohttp.ClientError, OSError, TimeoutError) as error:
        raise Transient(f"{about}: {type(error).__name__} while talking to the storage account.") from None


def _translated(about: str, error: HttpResponseError) -> SilobusError:
    code = getattr(error, "error_code", None)
    said = f"{about}: status {error.status_code}, {getattr(code, 'value', code) or 'no error code'}"
    match error.status_code:
        case None:  # nothing was asked: no token could be had
            return Transient(f"{about}: {type(error).__name__} before the storage account was asked.")
        case 404:
            return NotFound(f"{said}.")
        case 409 if code == StorageErrorCode.BLOB_ALREADY_EXISTS:
            return AlreadyExists(f"{said}.")
        case 412 | 416:
            return Conflict(f"{said}.")
        case 401 | 403:
            return Forbidden(f"{said}. The identity in use needs a role, or a signature, that allows this.")
        case 408 | 409 | 429:
            return Transient(f"{said}.")
        case status if status >= 500:
            return Transient(f"{said}.")
        case _:
            return SilobusError(f"{said}: the storage account does not understand the request.")
