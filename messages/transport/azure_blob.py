"""A store in Azure Blob Storage. The only file that touches its SDK; containers are made by the deployment, not here.

Conditions do all the work: creation is `If-None-Match: *`, replacing is `If-Match`, reading goes on with the ETag it
began with. Large files travel as blocks in parallel, and go on from the blocks that an earlier try has left. Errors are
told in our words, from status and error code only: the SDK's own texts may hold an address with a signature in it.

What each operation needs, in the words of `messages/rights.yaml`:

    read, open, fetch                       read
    list                                    list
    write, create of what is not there      create, or write; and read, to tell "it is there" from "it is forbidden"
    create of more than 32 MiB              write; and read, to go on where an earlier try stopped
    write over a version                    write
    delete                                  delete
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
from azure.core import MatchConditions
from azure.core.credentials_async import AsyncTokenCredential
from azure.core.exceptions import AzureError, HttpResponseError
from azure.storage.blob import BlobBlock, StorageErrorCode
from azure.storage.blob.aio import BlobClient, BlobServiceClient, ContainerClient

from messages.errors import AlreadyExists, Conflict, Forbidden, NotFound, Poison, SilobusError, Transient
from messages.ports import BlobInfo, Document, Reader
from messages.transport.blob_names import check_blob, check_container, check_prefix, check_range
from messages.transport.local_files import write_part
from messages.transport.parts import hand_out, in_parallel, part_of

_WHOLE: Final = 32 << 20
"""A file of at most so many bytes is sent in one request, for which the right to create is enough; see `create`."""
_BLOCK: Final = 8 << 20
"""Bytes of a block, and of a range of a fetch."""
_MOST_BLOCKS: Final = 50_000
_Service = BlobServiceClient | Mapping[str, BlobServiceClient]
"""For all containers, or one for each."""


def connect(
    *,
    account_url: str | None = None,
    credential: AsyncTokenCredential | None = None,
    sas: str | Mapping[str, str] | None = None,
    connection_string: str | None = None,
    ca_file: Path | None = None,
) -> AzureBlobStore:
    """A store in the account at `account_url`, entered with a credential or a signature, or by a connection string.

    One signature serves every container; or each has its own, and there are no others. Nothing is sent yet. The store
    closes its connections, not the credential. Raises ValueError unless exactly one way in is given.
    """
    options: dict[str, Any] = {"retry_total": 3, "initial_backoff": 1, "increment_base": 2}
    if ca_file is not None:
        options["connection_verify"] = str(ca_file)
    if connection_string is not None and account_url is None and credential is None and sas is None:
        return AzureBlobStore(BlobServiceClient.from_connection_string(connection_string, **options))
    if account_url is not None and connection_string is None and (credential is None) != (sas is None):
        if sas is None or isinstance(sas, str):
            return AzureBlobStore(BlobServiceClient(account_url, credential=credential or sas, **options))
        return AzureBlobStore({c: BlobServiceClient(account_url, credential=s, **options) for c, s in sas.items()})
    raise ValueError("give account_url and either credential or sas; or give connection_string")


class AzureBlobStore:
    """`messages.ports.Store` over an account's blob service."""

    def __init__(self, service: _Service, *, whole: int = _WHOLE, block: int = _BLOCK) -> None:
        self._service, self._whole, self._block = service, whole, block

    async def read(self, container: str, name: str, *, limit: int = 4 << 20) -> Document:
        blob = self._blob(container, name)
        with _in_our_words(f"{container}/{name}", "read"):
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
            if if_match is None:
                return await _create_whole(blob, f"{container}/{name}", data)
            with _in_our_words(f"{container}/{name}", "write"):
                answer = await blob.upload_blob(data, length=len(data), overwrite=True, **_unchanged(if_match))
        except (AlreadyExists, Conflict):
            raise lost from None
        return str(answer["etag"])

    async def create(self, container: str, name: str, source: Path | bytes) -> None:
        """See the port. Beyond `whole` bytes the right to create is not enough: Azure wants `write` for blocks."""
        blob = self._blob(container, name)
        size = len(source) if isinstance(source, bytes) else (await asyncio.to_thread(source.stat)).st_size
        try:
            with _in_our_words(f"{container}/{name}", "create"):
                if not isinstance(source, bytes) and size > self._whole:
                    await _create_from_blocks(blob, source, size, self._block)
                    return
                data = source if isinstance(source, bytes) else await asyncio.to_thread(source.read_bytes)
                await _create_whole(blob, f"{container}/{name}", data)
        except Conflict:
            raise AlreadyExists(f"{container}/{name} is there already.") from None

    async def open(self, container: str, name: str) -> Reader:
        blob = self._blob(container, name)
        with _in_our_words(f"{container}/{name}", "read"):
            properties = await blob.get_blob_properties()
        return _BlobReader(blob, f"{container}/{name}", int(properties.size), str(properties.etag))

    async def fetch(self, container: str, name: str, target: Path) -> None:
        reader = await self.open(container, name)
        partial = target.with_name(f".{target.name}.{secrets.token_hex(6)}")

        async def copy(offset: int) -> None:
            data = await reader.read(offset, min(self._block, reader.size - offset))
            await asyncio.to_thread(write_part, partial, offset, data)

        with _in_our_words(f"{container}/{name}", "read"):
            await asyncio.to_thread(partial.touch, 0o600, exist_ok=False)
            try:
                await in_parallel(copy, range(0, reader.size, self._block))
                await asyncio.to_thread(hand_out, partial, target)
            finally:
                await asyncio.to_thread(partial.unlink, missing_ok=True)

    async def list(self, container: str, prefix: str) -> Sequence[BlobInfo]:
        check_container(container)
        check_prefix(prefix)
        client = self._container(container)
        try:
            with _in_our_words(container, "list"):
                rows = [
                    BlobInfo(str(row.name), int(row.size), _quoted(str(row.etag)), row.last_modified)
                    async for row in client.list_blobs(name_starts_with=prefix or None)
                ]
        except NotFound:
            return []
        return sorted(rows, key=lambda row: row.name)

    async def delete(self, container: str, name: str) -> None:
        blob = self._blob(container, name)
        with contextlib.suppress(NotFound), _in_our_words(f"{container}/{name}", "delete"):
            await blob.delete_blob(delete_snapshots="include")

    async def close(self) -> None:
        for service in self._service.values() if isinstance(self._service, Mapping) else [self._service]:
            await service.close()

    def _blob(self, container: str, name: str) -> BlobClient:
        check_container(container)
        check_blob(name)
        return self._container(container).get_blob_client(name)

    def _container(self, container: str) -> ContainerClient:
        service = self._service.get(container) if isinstance(self._service, Mapping) else self._service
        if service is None:
            raise Forbidden(f"{container}: there is no signature for this container.")
        return service.get_container_client(container)


class _BlobReader(Reader):
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
            with _in_our_words(self._label, "read"):
                condition = _unchanged(self._etag)
                download = await self._blob.download_blob(offset=offset, length=length, max_concurrency=1, **condition)
                return bytes(await download.readall())
        except (NotFound, Conflict):
            raise Conflict(f"{self._label} has changed since it was opened.") from None

    async def close(self) -> None:
        """Nothing is held."""


async def _create_whole(blob: BlobClient, label: str, data: bytes) -> str:
    try:
        with _in_our_words(label, "create (and it must not be there yet)"):
            answer = await blob.upload_blob(data, length=len(data), overwrite=False)
    except Forbidden:  # one who may create and not replace may be told no more, and looks for it
        await _see_that_it_is_not_there(blob, label)
        raise
    return str(answer["etag"])


async def _create_from_blocks(blob: BlobClient, source: Path, size: int, block: int) -> None:
    """Sends the file in parallel. Blocks count for nothing until they are listed, and that happens only once."""
    label = f"{blob.container_name}/{blob.blob_name}"
    await _see_that_it_is_not_there(blob, label)
    length = max(block, -(-size // _MOST_BLOCKS))
    there = await _staged(blob, label)
    made: dict[int, str] = {}

    async def stage(offset: int) -> None:
        name, data = await asyncio.to_thread(part_of, source, offset, min(length, size - offset), offset // length)
        if there.get(name) != len(data):
            with _in_our_words(label, f"write (for a file of {size} bytes, which travels in blocks)"):
                await blob.stage_block(name, data, length=len(data))
        made[offset] = name

    await in_parallel(stage, range(0, size, length))
    try:
        with _in_our_words(label, "write"):
            blocks = [BlobBlock(made[offset]) for offset in sorted(made)]
            await blob.commit_block_list(blocks, match_condition=MatchConditions.IfMissing)
    except Transient:  # perhaps somebody else was first, and with the blob made our blocks are gone
        await _see_that_it_is_not_there(blob, label)
        raise


async def _see_that_it_is_not_there(blob: BlobClient, label: str) -> None:
    """An identity that may not read cannot ask, and need not."""
    with contextlib.suppress(NotFound, Forbidden), _in_our_words(label, "read"):
        await blob.get_blob_properties()
        raise AlreadyExists(f"{label} is there already.")


async def _staged(blob: BlobClient, label: str) -> dict[str, int]:
    """Names and sizes of the blocks that earlier tries have left; Azure keeps them for a week."""
    with contextlib.suppress(NotFound, Forbidden), _in_our_words(label, "read"):
        _, uncommitted = await blob.get_block_list("uncommitted")
        return {str(block.id): int(block.size) for block in uncommitted}
    return {}


def _unchanged(etag: str) -> dict[str, Any]:
    return {"etag": etag, "match_condition": MatchConditions.IfNotModified}


def _quoted(etag: str) -> str:
    """As every other answer has it; a listing leaves the quotation marks out."""
    return etag if etag.startswith('"') else f'"{etag}"'


@contextlib.contextmanager
def _in_our_words(about: str, verb: str) -> Iterator[None]:
    """Tells the SDK's errors as ours; `verb` is what was needed. Their texts may hold an address with a signature."""
    try:
        yield
    except HttpResponseError as error:
        raise _translated(about, verb, error) from None
    except (AzureError, aiohttp.ClientError, OSError, TimeoutError) as error:
        raise Transient(f"{about}: {type(error).__name__} while talking to the storage account.") from None


def _translated(about: str, verb: str, error: HttpResponseError) -> SilobusError:
    code = getattr(error, "error_code", None)
    said = f"{about}: status {error.status_code}, {getattr(code, 'value', code) or 'no error code'}"
    match error.status_code:
        case None:  # nothing was asked: no token could be had
            return Transient(f"{about}: {type(error).__name__} before the storage account was asked.")
        case 404:
            return NotFound(f"{said}.")
        case 409 if code == StorageErrorCode.BLOB_ALREADY_EXISTS:
            return AlreadyExists(f"{said}.")
        case 403 if code == StorageErrorCode.UNAUTHORIZED_BLOB_OVERWRITE and verb.startswith("create"):
            return AlreadyExists(f"{said}.")
        case 400 if code == StorageErrorCode.INVALID_BLOCK_LIST:
            return Transient(f"{said}.")
        case 412 | 416:
            return Conflict(f"{said}.")
        case 401 | 403:
            return Forbidden(f"{said}. The identity in use needs a role, or a signature that is good, for: {verb}.")
        case status if status in (408, 409, 429) or status >= 500:
            return Transient(f"{said}.")
        case _:
            return SilobusError(f"{said}: the storage account does not understand the request.")
