"""Transfers that are interrupted: they go on from where they were, mix nothing, and leave nothing half behind.

Over a proxy that cuts connections in the middle, before the fake server and before Azurite; and with processes that are
killed, over the directory too, where a creation is a link or a copy of which nobody sees the beginning.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import time
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import pytest
from azure.storage.blob.aio import BlobServiceClient

from messages.errors import AlreadyExists, Conflict, NotFound, Transient
from messages.transport.azure_blob import AzureBlobStore
from messages.transport.directory import DirectoryStore
from tests.fakes import azurite
from tests.fakes.blob_server import Asked, BlobServer
from tests.fakes.cutting_proxy import CuttingProxy

MB = 1 << 20
BLOCK = MB
SIZE = 24 * MB + 13
KINDS = ["blob-fake"] if azurite.left_out() else ["blob-fake", "blob-azurite"]


class Line:
    """A container, and two ways to it: through a proxy that cuts, and straight."""

    def __init__(self, proxy: CuttingProxy, container: str, through: str, straight: str) -> None:
        self.proxy, self.container, self.through = proxy, container, through
        self.cut_service = BlobServiceClient.from_connection_string(through, retry_total=0)
        self.service = BlobServiceClient.from_connection_string(straight, retry_total=0)
        self.cut_store = AzureBlobStore(self.cut_service, whole=BLOCK, block=BLOCK)
        self.store = AzureBlobStore(self.service, whole=BLOCK, block=BLOCK)

    async def staged(self) -> int:
        """Bytes in blocks of a blob that is not there yet."""
        blob = self.service.get_blob_client(self.container, "a.bin")
        return sum(block.size for block in (await blob.get_block_list("uncommitted"))[1])


@pytest.fixture(params=KINDS)
async def line(request: pytest.FixtureRequest) -> AsyncIterator[Line]:
    container = f"silobus-test-{uuid4().hex}"
    server = BlobServer()
    async with server:
        straight, port = server.connection_string, server.port
        if request.param == "blob-azurite":
            straight, port = azurite.azurite().connection_string, azurite.azurite().port
        async with CuttingProxy(port) as proxy:
            through = straight.replace(f":{port}/", f":{proxy.port}/")
            line = Line(proxy, container, through, straight)
            await line.service.create_container(container)
            yield line
            await line.cut_service.close()
            await line.service.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(os.urandom(SIZE))
    return tmp_path / "source"


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def content(path: Path) -> bytes:
    return path.read_bytes()


# --- cut in the middle -------------------------------------------------------------------------------------------


async def test_an_upload_over_a_line_that_breaks_goes_on_with_what_is_there(
    line: Line, source: Path, tmp_path: Path
) -> None:
    line.proxy.cut_every(5.5 * MB)
    await line.cut_store.create(line.container, "a.bin", source)
    line.proxy.go_on()
    assert line.proxy.cuts >= 4
    assert SIZE < line.proxy.up < 2 * SIZE  # four blocks at most are on their way when it breaks
    await line.store.fetch(line.container, "a.bin", tmp_path / "target")
    assert digest(tmp_path / "target") == digest(source)


async def test_a_download_over_a_line_that_breaks_goes_on_with_what_is_there(
    line: Line, source: Path, tmp_path: Path
) -> None:
    await line.store.create(line.container, "a.bin", source)
    line.proxy.cut_every(5.5 * MB)
    await line.cut_store.fetch(line.container, "a.bin", tmp_path / "target")
    assert line.proxy.cuts >= 4
    assert SIZE < line.proxy.down < 2 * SIZE
    assert digest(tmp_path / "target") == digest(source)
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


async def test_an_upload_given_up_is_taken_up_by_the_next_which_sends_the_rest(
    line: Line, source: Path, tmp_path: Path
) -> None:
    await _given_up(line, source)
    there = await line.staged()
    assert there >= 8 * BLOCK
    before = line.proxy.up
    await line.cut_store.create(line.container, "a.bin", source)
    assert line.proxy.up - before < SIZE - there + MB // 2  # requests have headers
    await line.store.fetch(line.container, "a.bin", tmp_path / "target")
    assert digest(tmp_path / "target") == digest(source)


async def test_another_file_under_the_same_name_uses_none_of_the_blocks_that_are_there(
    line: Line, source: Path, tmp_path: Path
) -> None:
    await _given_up(line, source)
    other = tmp_path / "other"
    other.write_bytes(content(source)[:BLOCK] + os.urandom(SIZE - BLOCK))
    await line.store.create(line.container, "a.bin", other)
    await line.store.fetch(line.container, "a.bin", tmp_path / "target")
    assert digest(tmp_path / "target") == digest(other)


async def test_a_line_that_stays_dead_is_told_and_leaves_no_file(line: Line, source: Path, tmp_path: Path) -> None:
    await line.store.create(line.container, "a.bin", source)
    line.proxy.die_after(5.5 * MB)
    with pytest.raises(Transient):
        await asyncio.wait_for(line.cut_store.fetch(line.container, "a.bin", tmp_path / "target"), 60)
    assert line.proxy.dead.is_set()
    assert os.listdir(tmp_path) == ["source"]


async def test_a_download_never_mixes_two_versions(line: Line, source: Path, tmp_path: Path) -> None:
    await line.store.create(line.container, "a.bin", source)
    line.proxy.die_after(5.5 * MB)
    task = asyncio.create_task(line.cut_store.fetch(line.container, "a.bin", tmp_path / "target"))
    await asyncio.wait_for(line.proxy.dead.wait(), 60)
    other = tmp_path / "other"
    other.write_bytes(os.urandom(SIZE))
    await line.service.get_blob_client(line.container, "a.bin").upload_blob(content(other), overwrite=True)
    line.proxy.go_on()
    with pytest.raises(Conflict):
        await asyncio.wait_for(task, 60)
    assert sorted(os.listdir(tmp_path)) == ["other", "source"]


async def _given_up(line: Line, source: Path) -> None:
    line.proxy.die_after(12.5 * MB)
    with pytest.raises(Transient):
        await asyncio.wait_for(line.cut_store.create(line.container, "a.bin", source), 60)
    line.proxy.go_on()
    with pytest.raises(NotFound):
        await line.store.open(line.container, "a.bin")


# --- killed ------------------------------------------------------------------------------------------------------


def _create(connection_string: str, container: str, source: Path) -> None:
    async def create() -> None:
        service = BlobServiceClient.from_connection_string(connection_string, retry_total=0)
        await AzureBlobStore(service, whole=BLOCK, block=BLOCK).create(container, "a.bin", source)

    asyncio.run(create())


async def test_the_blocks_of_a_killed_process_are_used_by_the_next(line: Line, source: Path, tmp_path: Path) -> None:
    line.proxy.stop_after(12.5 * MB)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_create, args=(line.through, line.container, source))
    process.start()
    await asyncio.wait_for(line.proxy.stopped.wait(), 60)
    process.kill()
    await asyncio.to_thread(process.join, 20)
    line.proxy.go_on()
    there = await line.staged()
    assert there >= 8 * BLOCK
    before = line.proxy.up
    await line.cut_store.create(line.container, "a.bin", source)
    assert line.proxy.up - before < SIZE - there + MB // 2
    await line.store.fetch(line.container, "a.bin", tmp_path / "target")
    assert digest(tmp_path / "target") == digest(source)


def _create_here(root: Path, source: Path) -> None:
    """As far as its first piece; there it waits to be killed."""

    def first_piece(source: BinaryIO, copy: BinaryIO, length: int) -> None:
        copy.write(source.read(length))
        copy.flush()
        time.sleep(600)

    shutil.copyfileobj = first_piece  # type: ignore[assignment]
    asyncio.run(DirectoryStore(root).create("place", "a.bin", source))


def test_nobody_sees_what_a_killed_process_had_begun_to_copy_into_a_directory(tmp_path: Path) -> None:
    source = Path("/dev/shm") / f"silobus-{uuid4().hex}"  # another file system: it is copied
    if not source.parent.is_dir() or source.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is only one file system here, on which a creation is a link")
    with source.open("wb") as file:
        file.truncate(4 * MB)
    try:
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_create_here, args=(tmp_path, source))
        process.start()
        while process.is_alive() and not any(path.stat().st_size for path in tmp_path.glob(".incoming/*")):
            time.sleep(0.001)
        process.kill()
        process.join(20)
        begun = list(tmp_path.glob(".incoming/*"))
        assert len(begun) == 1
        assert begun[0].stat().st_size < 4 * MB
        store = DirectoryStore(tmp_path)
        assert asyncio.run(store.list("place", "")) == []
        asyncio.run(store.create("place", "a.bin", source))
        assert asyncio.run(store.open("place", "a.bin")).size == 4 * MB
    finally:
        source.unlink()


# --- one thing at a time -----------------------------------------------------------------------------------------


@pytest.fixture
async def fake() -> AsyncIterator[tuple[BlobServer, AzureBlobStore]]:
    async with BlobServer() as server:
        service = BlobServiceClient.from_connection_string(server.connection_string, retry_total=0)
        await service.create_container("place")
        yield server, AzureBlobStore(service, whole=BLOCK, block=BLOCK)
        await service.close()


async def test_a_block_of_another_size_is_sent_again(fake: tuple[BlobServer, AzureBlobStore], source: Path) -> None:
    server, store = fake
    await _stage_only(server, store, source)
    blocks = server.containers["place"].uncommitted["a.bin"]
    half = next(iter(blocks))
    blocks[half] = blocks[half][:1000]
    server.asked.clear()
    await store.create("place", "a.bin", source)
    assert server.containers["place"].blobs["a.bin"].data == content(source)
    assert [asked.query.get("comp") for asked in server.asked].count("block") == 1


@pytest.mark.parametrize("made_by_another", [True, False])
async def test_blocks_that_vanish_before_they_are_listed(
    fake: tuple[BlobServer, AzureBlobStore], source: Path, made_by_another: bool
) -> None:
    server, store = fake

    async def forget(asked: Asked) -> None:
        if asked.method == "PUT" and asked.query.get("comp") == "blocklist":
            server.before = None
            server.containers["place"].uncommitted.clear()
            server.fail(400, "InvalidBlockList")  # what Azure looks at first, it does not say
            if made_by_another:
                server.put("place", "a.bin", b"theirs")

    server.before = forget
    with pytest.raises(AlreadyExists if made_by_another else Transient):
        await store.create("place", "a.bin", source)
    if not made_by_another:
        await store.create("place", "a.bin", source)
        assert server.containers["place"].blobs["a.bin"].data == content(source)


async def test_a_blob_is_listed_once_and_never_again(fake: tuple[BlobServer, AzureBlobStore], source: Path) -> None:
    server, store = fake
    await _stage_only(server, store, source)
    server.asked.clear()
    await store.create("place", "a.bin", source)
    parts = [(asked.method, asked.query.get("comp")) for asked in server.asked]
    assert parts == [("HEAD", None), ("GET", "blocklist"), ("PUT", "blocklist")]


async def test_what_is_missing_of_a_range_is_asked_for(
    fake: tuple[BlobServer, AzureBlobStore], source: Path, tmp_path: Path
) -> None:
    server, store = fake
    await store.create("place", "a.bin", source)
    server.short = 3
    await store.fetch("place", "a.bin", tmp_path / "target")
    assert server.short == 0
    assert digest(tmp_path / "target") == digest(source)


async def _stage_only(server: BlobServer, store: AzureBlobStore, source: Path) -> None:
    async def die(asked: Asked) -> None:
        if asked.method == "PUT" and asked.query.get("comp") == "blocklist":
            server.before = None
            server.fail(503, "ServerBusy")

    server.before = die
    with pytest.raises(Transient):
        await store.create("place", "a.bin", source)
