"""What every store promises, over all of them: memory, directory, and Azure Blob through its real SDK.

Azure Blob runs over a fake server; over Azurite, where it is installed (`make test-azurite`); and over the account in
SILOBUS_TEST_BLOB (a connection string), in containers of its own that it deletes afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from azure.core.exceptions import HttpResponseError
from azure.storage.blob.aio import BlobServiceClient

from messages.errors import AlreadyExists, Conflict, NotFound, Poison
from messages.ports import Store
from messages.transport.azure_blob import AzureBlobStore
from messages.transport.directory import DirectoryStore
from messages.transport.memory_store import MemoryStore
from messages.weights import scan_blob, scan_file
from tests.fakes.azurite import azurite, left_out
from tests.fakes.blob_server import BlobServer

ACCOUNT = os.environ.get("SILOBUS_TEST_BLOB")
KINDS = ["memory", "directory", "blob-fake"]
KINDS += [] if left_out() else ["blob-azurite"]  # that it is left out is said once, in tests/e2e/test_azurite.py
KINDS += ["blob-account"] if ACCOUNT else []
LARGE = 5 * 1024 * 1024 + 13
"""Bytes that need several blocks and ranges."""


@pytest.fixture(params=KINDS)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Store, str]]:
    """A store, and a container in it that is empty."""
    match request.param:
        case "memory":
            yield MemoryStore(), "place"
        case "directory":
            yield DirectoryStore(tmp_path / "store"), "place"
        case "blob-fake":
            async with BlobServer(page_size=3) as server, _account(server.connection_string) as place:
                yield place
        case "blob-azurite":
            async with _account(azurite().connection_string) as place:
                yield place
        case _:
            async with _account(str(ACCOUNT)) as place:
                yield place


class _account:
    """A container of its own in an account, deleted afterwards."""

    def __init__(self, connection_string: str) -> None:
        self.service = BlobServiceClient.from_connection_string(connection_string, retry_total=0)
        self.name = f"silobus-test-{uuid4().hex}"

    async def __aenter__(self) -> tuple[Store, str]:
        await self.service.create_container(self.name)
        return AzureBlobStore(self.service, whole=1 << 20, block=2 << 20), self.name

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(HttpResponseError):  # the fake server deletes none
            await self.service.delete_container(self.name)
        await self.service.close()


# --- documents ---------------------------------------------------------------------------------------------------


async def test_a_document_is_read_back_with_the_etag_its_write_returned(place: tuple[Store, str]) -> None:
    store, container = place
    etag = await store.write(container, "runs/a.json", b"{}", if_match=None)
    document = await store.read(container, "runs/a.json")
    assert (document.data, document.etag) == (b"{}", etag)


async def test_a_write_with_the_current_etag_replaces_the_document(place: tuple[Store, str]) -> None:
    store, container = place
    first = await store.write(container, "a.json", b"1", if_match=None)
    second = await store.write(container, "a.json", b"2", if_match=first)
    assert second != first
    assert (await store.read(container, "a.json")).data == b"2"


async def test_a_write_with_an_old_etag_is_a_conflict_and_changes_nothing(place: tuple[Store, str]) -> None:
    store, container = place
    first = await store.write(container, "a.json", b"1", if_match=None)
    second = await store.write(container, "a.json", b"2", if_match=first)
    with pytest.raises(Conflict):
        await store.write(container, "a.json", b"3", if_match=first)
    document = await store.read(container, "a.json")
    assert (document.data, document.etag) == (b"2", second)


async def test_an_old_etag_is_a_conflict_however_many_writes_have_passed(place: tuple[Store, str]) -> None:
    store, container = place
    etags = [await store.write(container, "a.json", b"0", if_match=None)]
    for number in range(1, 40):
        etags.append(await store.write(container, "a.json", b"%d" % number, if_match=etags[-1]))
    assert len(set(etags)) == 40
    for old in etags[:-1]:
        with pytest.raises(Conflict):
            await store.write(container, "a.json", b"late", if_match=old)
    assert (await store.read(container, "a.json")).data == b"39"


async def test_creating_a_document_that_is_there_is_a_conflict(place: tuple[Store, str]) -> None:
    store, container = place
    await store.write(container, "a.json", b"1", if_match=None)
    with pytest.raises(Conflict):
        await store.write(container, "a.json", b"2", if_match=None)


@pytest.mark.parametrize("etag", ['"0x8D0000000000001"', "1", "anything"])
async def test_replacing_a_document_that_is_not_there_is_a_conflict(place: tuple[Store, str], etag: str) -> None:
    store, container = place
    with pytest.raises(Conflict):
        await store.write(container, "a.json", b"2", if_match=etag)
    with pytest.raises(NotFound):
        await store.read(container, "a.json")


async def test_of_writers_with_the_same_etag_exactly_one_wins(place: tuple[Store, str]) -> None:
    store, container = place
    first = await store.write(container, "a.json", b"start", if_match=None)
    writes = [store.write(container, "a.json", b"%d" % n, if_match=first) for n in range(12)]
    results = await asyncio.gather(*writes, return_exceptions=True)
    won = [number for number, result in enumerate(results) if isinstance(result, str)]
    assert len(won) == 1
    assert all(isinstance(result, str | Conflict) for result in results)
    assert (await store.read(container, "a.json")).data == b"%d" % won[0]


async def test_after_a_deletion_an_old_etag_is_a_conflict_and_a_new_document_has_a_new_one(
    place: tuple[Store, str],
) -> None:
    store, container = place
    old = await store.write(container, "a.json", b"1", if_match=None)
    await store.delete(container, "a.json")
    with pytest.raises(NotFound):
        await store.read(container, "a.json")
    with pytest.raises(Conflict):
        await store.write(container, "a.json", b"2", if_match=old)
    new = await store.write(container, "a.json", b"3", if_match=None)
    assert new != old
    with pytest.raises(Conflict):
        await store.write(container, "a.json", b"4", if_match=old)
    assert (await store.read(container, "a.json")).data == b"3"


async def test_a_document_over_the_limit_is_poison(place: tuple[Store, str]) -> None:
    store, container = place
    await store.write(container, "a.json", b"12345", if_match=None)
    assert (await store.read(container, "a.json", limit=5)).data == b"12345"
    with pytest.raises(Poison) as caught:
        await store.read(container, "a.json", limit=4)
    assert caught.value.reason == "too-large"


async def test_an_empty_document_is_a_document(place: tuple[Store, str]) -> None:
    store, container = place
    etag = await store.write(container, "a.json", b"", if_match=None)
    document = await store.read(container, "a.json")
    assert (document.data, document.etag) == (b"", etag)


# --- blobs -------------------------------------------------------------------------------------------------------


async def test_a_blob_is_created_once(place: tuple[Store, str]) -> None:
    store, container = place
    await store.create(container, "r/1/a.safetensors", b"first")
    with pytest.raises(AlreadyExists):
        await store.create(container, "r/1/a.safetensors", b"second")
    assert (await store.read(container, "r/1/a.safetensors")).data == b"first"


@pytest.mark.parametrize("size", [0, 1, LARGE])
async def test_a_file_becomes_a_blob_and_a_blob_a_file(place: tuple[Store, str], tmp_path: Path, size: int) -> None:
    store, container = place
    content = _pattern(size)
    (tmp_path / "source").write_bytes(content)
    await store.create(container, "a.bin", tmp_path / "source")
    await store.fetch(container, "a.bin", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == content
    assert sorted(set(os.listdir(tmp_path)) - {"store"}) == ["source", "target"]


async def test_a_large_blob_is_created_once(place: tuple[Store, str], tmp_path: Path) -> None:
    store, container = place
    for number in (1, 2):
        (tmp_path / f"source{number}").write_bytes(_pattern(LARGE, number))
    await store.create(container, "a.bin", tmp_path / "source1")
    with pytest.raises(AlreadyExists):
        await store.create(container, "a.bin", tmp_path / "source2")
    reader = await store.open(container, "a.bin")
    assert await reader.read(0, 100) == _pattern(LARGE, 1)[:100]
    await reader.close()


async def test_of_creators_at_the_same_time_exactly_one_wins(place: tuple[Store, str], tmp_path: Path) -> None:
    store, container = place
    sources = [tmp_path / f"source{number}" for number in range(4)]
    for number, source in enumerate(sources):
        source.write_bytes(_pattern(3 << 20, number))
    creations = [store.create(container, "a.bin", source) for source in sources]
    results = await asyncio.gather(*creations, return_exceptions=True)
    won = [number for number, result in enumerate(results) if result is None]
    assert len(won) == 1
    assert all(result is None or isinstance(result, AlreadyExists) for result in results)
    await store.fetch(container, "a.bin", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == sources[won[0]].read_bytes()


async def test_a_document_and_a_blob_exclude_each_other(place: tuple[Store, str]) -> None:
    store, container = place
    await store.write(container, "document", b"1", if_match=None)
    await store.create(container, "blob", b"1")
    with pytest.raises(AlreadyExists):
        await store.create(container, "document", b"2")
    with pytest.raises(Conflict):
        await store.write(container, "blob", b"2", if_match=None)


async def test_a_fetched_file_is_read_only(place: tuple[Store, str], tmp_path: Path) -> None:
    store, container = place
    await store.create(container, "a.bin", b"12345")
    await store.fetch(container, "a.bin", tmp_path / "target")
    assert not (tmp_path / "target").stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)


async def test_a_fetch_replaces_no_file(place: tuple[Store, str], tmp_path: Path) -> None:
    store, container = place
    await store.create(container, "a.bin", b"12345")
    (tmp_path / "target").write_bytes(b"mine")
    with pytest.raises(ValueError, match="exists already"):
        await store.fetch(container, "a.bin", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"mine"


async def test_ranges_are_exact(place: tuple[Store, str]) -> None:
    store, container = place
    await store.create(container, "a.bin", b"0123456789")
    reader = await store.open(container, "a.bin")
    assert reader.size == 10
    assert await reader.read(0, 10) == b"0123456789"
    assert await reader.read(3, 4) == b"3456"
    assert await reader.read(10, 0) == b""
    for offset, length in ((0, 11), (10, 1), (-1, 1), (0, -1)):
        with pytest.raises(ValueError, match="inside"):
            await reader.read(offset, length)
    await reader.close()


async def test_a_reader_has_the_etag_of_what_it_reads(place: tuple[Store, str]) -> None:
    store, container = place
    await store.create(container, "a.bin", b"0123456789")
    etags = {(await store.open(container, "a.bin")).etag for _ in range(3)}
    assert etags == {blob.etag for blob in await store.list(container, "a.bin")}
    await store.delete(container, "a.bin")
    await store.create(container, "a.bin", b"9876543210")
    assert (await store.open(container, "a.bin")).etag not in etags


async def test_a_reader_refuses_a_document_that_has_changed(place: tuple[Store, str]) -> None:
    store, container = place
    etag = await store.write(container, "a.json", b"0", if_match=None)
    reader = await store.open(container, "a.json")
    for number in range(30):  # the directory keeps a few versions, so one change may go unnoticed there
        etag = await store.write(container, "a.json", b"%d" % (number % 10), if_match=etag)
    with pytest.raises(Conflict):
        await reader.read(0, 1)
    await reader.close()


async def test_a_reader_refuses_a_blob_that_is_gone(place: tuple[Store, str]) -> None:
    store, container = place
    await store.create(container, "a.bin", b"0123456789")
    reader = await store.open(container, "a.bin")
    await store.delete(container, "a.bin")
    with pytest.raises(Conflict):
        await reader.read(0, 10)
    await reader.close()


async def test_a_scan_of_a_blob_is_the_scan_of_its_file(place: tuple[Store, str], tmp_path: Path) -> None:
    import numpy as np

    from messages.weights import write_file

    store, container = place
    numbers = np.random.default_rng(0).normal(size=2_500_001).astype(np.float32)
    written = write_file(tmp_path / "a.safetensors", {"big": numbers, "odd": numbers[:3].astype(np.float16)})
    await store.create(container, "a.safetensors", tmp_path / "a.safetensors")
    reader = await store.open(container, "a.safetensors")
    assert await scan_blob(reader) == scan_file(tmp_path / "a.safetensors") == written
    await reader.close()


# --- both --------------------------------------------------------------------------------------------------------


async def test_a_listing_has_blobs_and_documents_by_prefix_and_in_order(place: tuple[Store, str]) -> None:
    store, container = place
    etags = {}
    for name in ("rounds/a_1/00002.json", "rounds/a_1/00001.json", "rounds/a_10/00001.json", "top.json"):
        etags[name] = await store.write(container, name, b"12", if_match=None)
    await store.create(container, "rounds/a_1/00003.bin", b"123")
    await store.write(container, "rounds/a_1/gone.json", b"12", if_match=None)
    await store.delete(container, "rounds/a_1/gone.json")

    rows = await store.list(container, "rounds/a_1/")
    assert [(row.name, row.size) for row in rows] == [
        ("rounds/a_1/00001.json", 2),
        ("rounds/a_1/00002.json", 2),
        ("rounds/a_1/00003.bin", 3),
    ]
    assert rows[0].etag == etags["rounds/a_1/00001.json"]
    assert abs(rows[0].modified.timestamp() - time.time()) < 60
    assert [row.name for row in await store.list(container, "rounds/a_1")][-1] == "rounds/a_10/00001.json"
    assert [row.name for row in await store.list(container, "rounds/a_1/00002")] == ["rounds/a_1/00002.json"]
    assert len(await store.list(container, "")) == 5
    assert await store.list(container, "nothing/") == []


async def test_an_unknown_container_is_empty(place: tuple[Store, str]) -> None:
    store, _ = place
    assert await store.list("never-made", "") == []


async def test_what_is_not_there_is_not_found(place: tuple[Store, str], tmp_path: Path) -> None:
    store, container = place
    await store.create(container, "folder/a.bin", b"1")
    for name in ("a.bin", "folder", "folder/a", "folder/a.bin/b"):
        with pytest.raises(NotFound):
            await store.read(container, name)
        with pytest.raises(NotFound):
            await store.open(container, name)
        with pytest.raises(NotFound):
            await store.fetch(container, name, tmp_path / "target")
        await store.delete(container, name)
    assert not (tmp_path / "target").exists()
    assert (await store.read(container, "folder/a.bin")).data == b"1"


@pytest.mark.parametrize(
    "name",
    ["", "/a", "a/", "a//b", "..", "a/../b", "../a", ".hidden", "a/.b", "a b", "a\\b", "a\x00", "a@", "é", "a" * 201],
)
async def test_a_name_that_could_lead_astray_is_refused(place: tuple[Store, str], tmp_path: Path, name: str) -> None:
    store, container = place
    with pytest.raises(ValueError, match="not a blob's name"):
        await store.read(container, name)
    with pytest.raises(ValueError, match="not a blob's name"):
        await store.write(container, name, b"", if_match=None)
    with pytest.raises(ValueError, match="not a blob's name"):
        await store.create(container, name, b"")
    with pytest.raises(ValueError, match="not a blob's name"):
        await store.open(container, name)
    with pytest.raises(ValueError, match="not a blob's name"):
        await store.fetch(container, name, tmp_path / "target")
    with pytest.raises(ValueError, match="not a blob's name"):
        await store.delete(container, name)


@pytest.mark.parametrize("container", ["", "ab", "..", "Upper", "a/b", "a--b", "-ab", "ab-", "a" * 64, ".incoming"])
async def test_a_container_that_could_lead_astray_is_refused(place: tuple[Store, str], container: str) -> None:
    store, _ = place
    with pytest.raises(ValueError, match="not a container's name"):
        await store.read(container, "a")
    with pytest.raises(ValueError, match="not a container's name"):
        await store.list(container, "")


@pytest.mark.parametrize("prefix", ["/", "..", "a/../", "a//", ".", "a/."])
async def test_a_prefix_that_could_lead_astray_is_refused(place: tuple[Store, str], prefix: str) -> None:
    store, container = place
    with pytest.raises(ValueError, match="beginning of a blob's name"):
        await store.list(container, prefix)


# --- many processes ----------------------------------------------------------------------------------------------

PROCESSES, INCREMENTS = 6, 60


async def _increment(root: Path) -> None:
    store = DirectoryStore(root)
    for _ in range(INCREMENTS):
        while True:
            document = await store.read("state", "counter.json")
            try:
                await store.write("state", "counter.json", b"%d" % (int(document.data) + 1), if_match=document.etag)
                break
            except Conflict:
                continue


def _process(root: Path) -> None:
    asyncio.run(_increment(root))


async def test_no_increment_of_many_processes_is_lost(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    await store.write("state", "counter.json", b"0", if_match=None)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_process, args=(tmp_path,)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        await asyncio.to_thread(process.join, 300)
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    document = await store.read("state", "counter.json")
    assert (int(document.data), document.etag) == (PROCESSES * INCREMENTS, str(PROCESSES * INCREMENTS + 1))
    assert len(list((tmp_path / "state/counter.json@").iterdir())) <= 12
    assert list((tmp_path / ".incoming").iterdir()) == []


def _pattern(size: int, seed: int = 0) -> bytes:
    block = bytes((index * 7 + index // 251 + seed) % 256 for index in range(65_521))
    return (block * (size // len(block) + 1))[:size]
