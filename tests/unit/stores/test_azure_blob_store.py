"""What only the Azure Blob store has to get right: conditions, blocks, faults, and that no secret is ever told."""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError
from azure.storage.blob.aio import BlobServiceClient

from messages.errors import AlreadyExists, Conflict, Forbidden, NotFound, SilobusError, Transient
from messages.transport.azure_blob import AzureBlobStore, connect
from tests.fakes.blob_server import Asked, BlobServer

MB = 1 << 20


@pytest.fixture
async def server() -> AsyncIterator[BlobServer]:
    async with BlobServer() as server:
        async with BlobServiceClient.from_connection_string(server.connection_string) as service:
            await service.create_container("place")
        yield server


@pytest.fixture
async def store(server: BlobServer) -> AsyncIterator[AzureBlobStore]:
    """Without the SDK's own retries, so that every fault is seen at once."""
    service = BlobServiceClient.from_connection_string(server.connection_string, retry_total=0)
    store = AzureBlobStore(service, whole=MB, block=2 * MB)
    yield store
    await store.close()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((404, "ContainerNotFound"), NotFound),
        ((403, "AuthorizationPermissionMismatch"), Forbidden),
        ((403, "AuthenticationFailed"), Forbidden),
        ((401, "InvalidAuthenticationInfo"), Forbidden),
        ((429, "TooManyRequests"), Transient),
        ((408, "RequestTimeout"), Transient),
        ((409, "ContainerBeingDeleted"), Transient),
        ((500, "InternalError"), Transient),
        ((503, "ServerBusy"), Transient),
        ((400, "InvalidHeaderValue"), SilobusError),
    ],
)
async def test_every_answer_is_told_in_our_words(
    server: BlobServer, store: AzureBlobStore, tmp_path: Path, answer: tuple[int, str], error: type[SilobusError]
) -> None:
    status, code = answer
    attempts = [
        lambda: store.read("place", "a"),
        lambda: store.write("place", "a", b"", if_match=None),
        lambda: store.write("place", "a", b"", if_match='"0x1"'),
        lambda: store.create("place", "a", b""),
        lambda: store.open("place", "a"),
        lambda: store.fetch("place", "a", tmp_path / "target"),
    ]
    if status != 404:
        attempts += [lambda: store.list("place", ""), lambda: store.delete("place", "a")]
    for attempt in attempts:
        server.fail(status, code)
        with pytest.raises(error) as caught:
            await attempt()
        assert type(caught.value) is error
        if not (status == 404 and "HEAD" in {asked.method for asked in server.asked[-1:]}):
            assert code in str(caught.value)
    assert os.listdir(tmp_path) == []


async def test_a_server_that_is_gone_is_transient(tmp_path: Path) -> None:
    async with BlobServer() as server:
        connection_string = server.connection_string
    store = AzureBlobStore(BlobServiceClient.from_connection_string(connection_string, retry_total=0))
    for attempt in (
        store.read("place", "a"),
        store.create("place", "a", b""),
        store.fetch("place", "a", tmp_path / "t"),
    ):
        with pytest.raises(Transient):
            await attempt
    await store.close()


async def test_a_token_that_cannot_be_had_is_transient(server: BlobServer) -> None:
    class Broken:
        async def get_token(self, *scopes: str, **options: object) -> AccessToken:
            raise ClientAuthenticationError("the identity endpoint does not answer")

        async def close(self) -> None: ...

        async def __aenter__(self) -> Broken:
            return self

        async def __aexit__(self, *_: object) -> None: ...

    url = server.url.replace("http://", "https://")  # the SDK gives no token to a server without TLS
    store = AzureBlobStore(BlobServiceClient(url, credential=Broken(), retry_total=0))
    with pytest.raises(Transient):
        await store.read("place", "a")
    await store.close()


async def test_a_container_that_is_not_there_is_not_found(store: AzureBlobStore) -> None:
    with pytest.raises(NotFound):
        await store.write("elsewhere", "a", b"", if_match=None)
    with pytest.raises(NotFound):
        await store.create("elsewhere", "a", b"")


# --- secrets -----------------------------------------------------------------------------------------------------

SIGNATURE = "c2VjcmV0LXNpZ25hdHVyZQ"


def a_signature(rights: str) -> str:
    return f"sv=2024-11-04&sr=c&sp={rights}&sig={SIGNATURE}"


async def test_the_right_to_create_is_enough_for_what_is_sent_whole_and_blocks_need_the_right_to_write(
    server: BlobServer, tmp_path: Path
) -> None:
    content = os.urandom(9 * MB)
    (tmp_path / "source").write_bytes(content)
    creates, writes = (BlobServiceClient(server.url, credential=a_signature(rights)) for rights in ("c", "cw"))
    async with creates, writes:
        whole, blocks = AzureBlobStore(creates), AzureBlobStore(creates, whole=MB)
        await whole.create("place", "whole", tmp_path / "source")
        with pytest.raises(AlreadyExists):
            await whole.create("place", "whole", tmp_path / "source")
        with pytest.raises(Forbidden, match="travels in blocks"):
            await blocks.create("place", "blocks", tmp_path / "source")
        for attempt in (whole.read("place", "whole"), whole.open("place", "whole"), whole.delete("place", "whole")):
            with pytest.raises(Forbidden):
                await attempt
        await AzureBlobStore(writes, whole=MB).create("place", "blocks", tmp_path / "source")
    assert {blob.data for blob in server.containers["place"].blobs.values()} == {content}


async def test_no_error_tells_a_signature_or_a_key(server: BlobServer, tmp_path: Path) -> None:
    by_signature = connect(account_url=server.url, sas=a_signature("r"))
    gone = connect(account_url="http://127.0.0.1:1/account", sas=a_signature("r"))
    gone._service._config.retry_policy.total_retries = 0
    told = ""
    for store in (by_signature, gone):
        for status, code in ((403, "AuthorizationFailure"), (400, "InvalidUri"), (404, "BlobNotFound")):
            server.fail(status, code)
            with pytest.raises(SilobusError) as caught:
                await store.read("place", "a")
            told += str(caught.value) + "".join(traceback.format_exception(caught.value))
            if store is gone:
                break
        await store.close()
    assert "place/a" in told
    assert SIGNATURE not in told
    assert "sig=" not in told


@pytest.mark.parametrize(
    "ways",
    [
        {},
        {"account_url": "https://a.example"},
        {"sas": "sig=x"},
        {"account_url": "https://a.example", "sas": "sig=x", "connection_string": "x"},
        {"connection_string": "x", "sas": "sig=x"},
    ],
)
def test_there_is_exactly_one_way_in(ways: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="give account_url and either credential or sas"):
        connect(**ways)  # type: ignore[arg-type]


# --- conditions --------------------------------------------------------------------------------------------------


async def test_a_blob_is_never_written_without_a_condition(
    server: BlobServer, store: AzureBlobStore, tmp_path: Path
) -> None:
    (tmp_path / "large").write_bytes(bytes(5 * MB))
    (tmp_path / "small").write_bytes(bytes(20))
    await store.create("place", "a", b"1")
    await store.create("place", "b", tmp_path / "small")
    await store.create("place", "c", tmp_path / "large")
    etag = await store.write("place", "d", b"1", if_match=None)
    await store.write("place", "d", b"2", if_match=etag)
    writes = [asked for asked in server.asked if asked.method == "PUT" and asked.query.get("comp") != "block"][1:]
    assert len(writes) == 5
    assert [asked.headers.get("if-none-match") for asked in writes] == ["*", "*", "*", "*", None]
    assert writes[-1].headers["if-match"] == etag


async def test_every_range_is_pinned_to_the_etag(server: BlobServer, store: AzureBlobStore, tmp_path: Path) -> None:
    await store.create("place", "a", bytes(5 * MB))
    server.asked.clear()
    await store.fetch("place", "a", tmp_path / "target")
    ranges = [asked for asked in server.asked if asked.method == "GET"]
    assert len(ranges) == 3
    assert {asked.headers.get("if-match") for asked in ranges} == {server.containers["place"].blobs["a"].etag}


async def test_a_blob_that_changes_during_a_fetch_leaves_no_file(
    server: BlobServer, store: AzureBlobStore, tmp_path: Path
) -> None:
    await store.create("place", "a", bytes(5 * MB))
    seen = 0

    async def meddle(asked: Asked) -> None:
        nonlocal seen
        seen += asked.method == "GET"
        if seen == 3:
            server.containers["place"].blobs["a"].etag = '"0xOTHER"'

    server.before = meddle
    with pytest.raises(Conflict):
        await store.fetch("place", "a", tmp_path / "target")
    assert os.listdir(tmp_path) == []


async def test_a_fetch_that_is_cancelled_leaves_no_file(
    server: BlobServer, store: AzureBlobStore, tmp_path: Path
) -> None:
    await store.create("place", "a", bytes(9 * MB))
    reached, over = asyncio.Event(), asyncio.Event()

    async def stall(asked: Asked) -> None:
        if asked.headers.get("x-ms-range", "").startswith(f"bytes={2 * MB}"):
            reached.set()
            await over.wait()

    server.before = stall
    task = asyncio.create_task(store.fetch("place", "a", tmp_path / "target"))
    await asyncio.wait_for(reached.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    over.set()
    assert os.listdir(tmp_path) == []


async def test_a_write_whose_answer_was_lost_is_a_conflict_to_look_into(
    server: BlobServer, store: AzureBlobStore
) -> None:
    etag = await store.write("place", "a", b"1", if_match=None)
    server.containers["place"].blobs["a"].etag = '"0xWRITTEN"'  # ours took place, its answer did not arrive
    with pytest.raises(Conflict):
        await store.write("place", "a", b"2", if_match=etag)


# --- blocks ------------------------------------------------------------------------------------------------------


async def test_a_large_file_travels_as_blocks_and_is_looked_for_first(
    server: BlobServer, store: AzureBlobStore, tmp_path: Path
) -> None:
    content = os.urandom(5 * MB + 1)
    (tmp_path / "source").write_bytes(content)
    server.asked.clear()
    await store.create("place", "a", tmp_path / "source")
    assert server.asked[0].method == "HEAD"
    assert [asked.query.get("comp") for asked in server.asked].count("block") == 3
    assert server.containers["place"].blobs["a"].data == content
    server.asked.clear()
    with pytest.raises(AlreadyExists):
        await store.create("place", "a", tmp_path / "source")
    assert [asked.method for asked in server.asked] == ["HEAD"]


async def test_blocks_of_an_attempt_that_died_are_not_in_the_way(
    server: BlobServer, store: AzureBlobStore, tmp_path: Path
) -> None:
    content = os.urandom(5 * MB)
    (tmp_path / "source").write_bytes(content)

    async def die(asked: Asked) -> None:
        if asked.query.get("comp") == "blocklist":
            server.before = None
            server.fail(503, "ServerBusy")

    server.before = die
    with pytest.raises(Transient):
        await store.create("place", "a", tmp_path / "source")
    assert "a" not in server.containers["place"].blobs
    await store.create("place", "a", tmp_path / "source")
    assert server.containers["place"].blobs["a"].data == content


async def test_a_passing_fault_is_retried_by_the_sdk_below_us(server: BlobServer) -> None:
    store = connect(connection_string=server.connection_string)
    retry = store._service._config.retry_policy
    retry.initial_backoff, retry.random_jitter_range, retry.increment_base = 0, 0, 0
    await store.create("place", "a", b"1")
    server.fail(503, "ServerBusy", times=2)
    assert (await store.read("place", "a")).data == b"1"
    await store.close()
