"""What only the directory store has to get right: crashes, other processes, links, modes, strange files."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from messages.errors import AlreadyExists, Conflict, Forbidden, NotFound, Transient
from messages.transport import directory, local_files
from messages.transport.directory import DirectoryStore
from messages.transport.directory_versions import Versions


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    return DirectoryStore(root)


async def test_a_blob_lies_at_its_own_path_and_a_document_beside_it_by_version(
    store: DirectoryStore, root: Path
) -> None:
    await store.create("global", "run_1/00001/a.safetensors", b"weights")
    etag = await store.write("state", "runs/a.json", b"one", if_match=None)
    await store.write("state", "runs/a.json", b"two", if_match=etag)
    assert (root / "global/run_1/00001/a.safetensors").read_bytes() == b"weights"
    assert [path.read_bytes() for path in sorted((root / "state/runs/a.json@").iterdir())] == [b"one", b"two"]


async def test_what_the_dead_left_is_no_blob_and_the_next_to_come_removes_it(store: DirectoryStore, root: Path) -> None:
    (root / ".incoming").mkdir(parents=True)
    (root / ".incoming/left").write_bytes(b"half")
    assert await store.list("global", "") == []
    await store.create("global", "a", b"whole")
    assert os.listdir(root / ".incoming") == []


@pytest.mark.parametrize("moment", ["is written", "gets its name", "is copied"])
async def test_what_somebody_still_works_on_is_not_swept_away(
    store: DirectoryStore, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    source: Path | bytes = b"whole"
    if moment == "is copied":
        source = tmp_path / "source"
        source.write_bytes(b"whole")
        monkeypatch.setattr(os, "link", lambda *_: _raise(OSError(errno.EXDEV, "another device")))
    module, name = {
        "is written": (directory, "write_all"),
        "gets its name": (os, "link"),
        "is copied": (local_files.shutil, "copyfileobj"),
    }[moment]
    original = getattr(module, name)
    seen = []

    def meanwhile(*arguments: object) -> None:
        monkeypatch.undo()
        asyncio.run(DirectoryStore(root).create("global", "other", b"the first write of a process sweeps"))
        seen.extend(os.listdir(root / ".incoming"))
        original(*arguments)

    monkeypatch.setattr(module, name, meanwhile)
    await store.create("global", "a", source)
    assert len(seen) == 1
    assert (await store.read("global", "a")).data == b"whole"
    assert os.listdir(root / ".incoming") == []


def _raise(error: OSError) -> None:
    raise error


@pytest.mark.parametrize("source", ["bytes", "a file"])
async def test_what_was_swept_away_before_it_was_locked_is_begun_anew(
    store: DirectoryStore, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (tmp_path / "source").write_bytes(b"whole")

    def too_late(fd: int) -> None:
        monkeypatch.undo()
        asyncio.run(DirectoryStore(root).create("global", "other", b"the first write of a process sweeps"))
        assert os.listdir(root / ".incoming") == []
        local_files.lock_shared(fd)

    monkeypatch.setattr(directory, "lock_shared", too_late)
    await store.create("global", "a", b"whole" if source == "bytes" else tmp_path / "source")
    assert (await store.read("global", "a")).data == b"whole"


async def test_a_death_between_file_and_name_changes_nothing(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    etag = await store.write("state", "a.json", b"before", if_match=None)

    def dies(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "power is out")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", dies)
        with pytest.raises(Transient):
            await store.write("state", "a.json", b"after", if_match=etag)
        with pytest.raises(Transient):
            await store.create("global", "a", b"after")
    assert (await store.read("state", "a.json")).data == b"before"
    assert await store.list("global", "") == []
    await store.write("state", "a.json", b"after", if_match=etag)
    assert (await store.read("state", "a.json")).data == b"after"


async def test_a_file_is_durable_before_its_name_is_and_both_are_before_the_answer(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.write("state", "a.json", b"", if_match=None)
    await store.create("state", "dir/x", b"")
    happened: list[str] = []
    real_link, real_fsync = os.link, os.fsync

    def link(source: Path, target: Path) -> None:
        happened.append("link")
        real_link(source, target)

    def fsync(fd: int) -> None:
        happened.append("fsync directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "fsync file")
        real_fsync(fd)

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "fsync", fsync)
    await store.write("state", "a.json", b"2", if_match="1")
    assert happened == ["fsync file", "link", "fsync directory"]
    happened.clear()
    await store.create("state", "dir/y", b"")
    assert happened == ["fsync file", "link", "fsync directory"]
    happened.clear()
    await store.create("state", "new/y", b"")
    assert happened == ["fsync directory", "fsync file", "link", "fsync directory"]


async def test_a_created_file_is_linked_not_copied_and_loses_only_its_write_rights(
    store: DirectoryStore, root: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"12345")
    source.chmod(0o640)
    await store.create("global", "a", source)
    await store.fetch("global", "a", tmp_path / "target")
    inodes = {path.stat().st_ino for path in (source, root / "global/a", tmp_path / "target")}
    assert len(inodes) == 1
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == 0o440


async def test_a_file_that_an_operator_copied_in_is_handed_out_read_only(
    store: DirectoryStore, root: Path, tmp_path: Path
) -> None:
    (root / "initial").mkdir(parents=True)
    (root / "initial/a").write_bytes(b"12345")
    await store.fetch("initial", "a", tmp_path / "target")
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) & 0o222 == 0


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
async def test_where_no_link_can_be_the_bytes_are_copied(
    store: DirectoryStore, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"12345" * 1000)
    real_link = os.link

    def link(one: Path, other: Path) -> None:
        if (one.parent == tmp_path) != (other.parent == tmp_path):
            raise OSError(code, "no link")
        if one == root / "global/a":
            raise OSError(code, "no link")
        real_link(one, other)

    monkeypatch.setattr(os, "link", link)
    await store.create("global", "a", source)
    await store.fetch("global", "a", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    assert len({path.stat().st_ino for path in (source, root / "global/a", tmp_path / "target")}) == 3
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) & 0o222 == 0
    source.write_bytes(b"changed later")
    assert (await store.read("global", "a")).data == b"12345" * 1000


async def test_a_source_that_is_a_symbolic_link_is_its_file(store: DirectoryStore, root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "source").symlink_to(tmp_path / "file")
    await store.create("global", "a", tmp_path / "source")
    assert not (root / "global/a").is_symlink()
    assert (await store.read("global", "a")).data == b"12345"


async def test_a_source_that_is_not_there_makes_no_blob(store: DirectoryStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await store.create("global", "a", tmp_path / "source")
    assert await store.list("global", "") == []


async def test_symbolic_links_lead_nowhere(store: DirectoryStore, root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "global").mkdir(parents=True)
    (root / "global/a").symlink_to(tmp_path / "secret")
    for attempt in (store.read("global", "a"), store.open("global", "a"), store.fetch("global", "a", tmp_path / "t")):
        with pytest.raises(NotFound):
            await attempt
    assert await store.list("global", "") == []


async def test_strange_files_are_not_listed(store: DirectoryStore, root: Path) -> None:
    await store.create("global", "a", b"1")
    (root / "global/.DS_Store").write_bytes(b"")
    (root / "global/empty@").mkdir()
    (root / "global/b@").mkdir()
    (root / "global/b@/notes.txt").write_bytes(b"")
    os.mkfifo(root / "global/fifo")
    assert [row.name for row in await store.list("global", "")] == ["a"]


async def test_a_reader_refuses_a_file_that_was_cut_or_written_to(store: DirectoryStore, root: Path) -> None:
    for name, meddle in (
        ("cut", lambda path: os.truncate(path, 3)),
        ("longer", lambda path: os.truncate(path, 30)),
        ("written", lambda path: path.write_bytes(b"9876543210")),
    ):
        await store.create("global", name, b"0123456789")
        reader = await store.open("global", name)
        path = root / "global" / name
        path.chmod(0o644)
        await asyncio.sleep(0.01)
        meddle(path)
        with pytest.raises(Conflict):
            await reader.read(0, 2)


async def test_thousands_of_readers_hold_no_descriptors(store: DirectoryStore) -> None:
    await store.create("global", "a", b"0123456789")
    before = len(os.listdir("/proc/self/fd"))
    readers = [await store.open("global", "a") for _ in range(500)]
    assert len(os.listdir("/proc/self/fd")) < before + 20
    assert await readers[-1].read(2, 3) == b"234"


async def test_what_the_system_forbids_is_forbidden_and_a_full_disk_passes(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code, error in (
        (errno.EACCES, Forbidden),
        (errno.EROFS, Forbidden),
        (errno.ENOSPC, Transient),
        (errno.EIO, Transient),
    ):

        def fails(*_: object, code: int = code) -> None:
            raise OSError(code, "said the system")

        with monkeypatch.context() as patch:
            patch.setattr("messages.transport.directory.write_all", fails)
            with pytest.raises(error, match="said the system"):
                await store.create("global", "a", b"x")
    await store.create("global", "a", b"x")


async def test_a_removed_root_is_made_again(store: DirectoryStore, root: Path) -> None:
    import shutil

    await store.create("global", "a", b"x")
    await asyncio.to_thread(shutil.rmtree, root)
    assert await store.list("global", "") == []
    await store.create("global", "a", b"x")
    await store.write("state", "a.json", b"x", if_match=None)


# --- versions ----------------------------------------------------------------------------------------------------


@contextmanager
def a_file(path: Path, data: bytes) -> Iterator[Path]:
    path.write_bytes(data)
    yield path
    path.unlink()


def test_a_writer_that_slept_through_many_versions_cannot_fill_a_freed_number(tmp_path: Path) -> None:
    """It looked at the directory at version 1 and links only when versions up to 30 have come and old ones gone."""
    versions = Versions(tmp_path / "a.json")
    versions.directory.mkdir()
    etag = versions.swap(None, lambda: a_file(tmp_path / "1", b"1"))

    @contextmanager
    def slow() -> Iterator[Path]:
        current = etag
        for number in range(2, 31):
            current = versions.swap(current, lambda n=number: a_file(tmp_path / str(n), b"%d" % n))  # type: ignore[misc]
        with a_file(tmp_path / "late", b"late") as made:
            yield made

    assert versions.swap(etag, slow) is None
    assert versions.newest() == 30
    assert versions.file(30).read_bytes() == b"30"
    # when nobody sleeps any more, the next writes clean up
    versions.swap("30", lambda: a_file(tmp_path / "31", b"31"))
    assert len(os.listdir(versions.directory)) == 2


def test_old_versions_stay_while_somebody_writes(tmp_path: Path) -> None:
    versions = Versions(tmp_path / "a.json")
    versions.directory.mkdir()
    fd = os.open(versions.directory, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    etag = None
    for number in range(20):
        etag = versions.swap(etag, lambda n=number: a_file(tmp_path / str(n), b""))  # type: ignore[misc]
    assert len(os.listdir(versions.directory)) == 20
    os.close(fd)
    versions.swap(etag, lambda: a_file(tmp_path / "last", b""))
    assert len(os.listdir(versions.directory)) == 2


async def test_a_reader_that_was_told_of_a_version_now_removed_looks_again(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    etag = None
    for number in range(12):
        etag = await store.write("state", "a.json", b"%d" % number, if_match=etag)
    told = iter([1, 12, 1, 12, 1, 12])
    monkeypatch.setattr(Versions, "newest", lambda self: next(told))
    assert not Versions(store._files._root / "state/a.json").file(1).exists()
    assert (await store.read("state", "a.json")).data == b"11"
    assert (await (await store.open("state", "a.json")).read(0, 2)) == b"11"
    assert [(row.name, row.etag) for row in await store.list("state", "")] == [("a.json", "12")]


async def test_a_reader_never_misses_a_document_that_is_being_replaced(store: DirectoryStore) -> None:
    await store.write("state", "a.json", b"0", if_match=None)
    stop = threading.Event()
    failed: list[BaseException] = []

    def replace() -> None:
        async def run() -> None:
            etag = "1"
            while not stop.is_set():
                etag = await store.write("state", "a.json", b"x", if_match=etag)

        try:
            asyncio.run(run())
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test fails
            failed.append(error)

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        last, start = 0, time.monotonic()
        while last < 60 and time.monotonic() < start + 120:
            number = int((await store.read("state", "a.json")).etag)
            assert number >= last
            last = number
            assert [row.name for row in await store.list("state", "")] == ["a.json"]
    finally:
        stop.set()
        await asyncio.to_thread(writer.join)
    assert failed == []
    assert last >= 60


async def test_a_deleted_document_leaves_one_mark_and_its_numbers_go_on(store: DirectoryStore, root: Path) -> None:
    etag = await store.write("state", "a.json", b"secret", if_match=None)
    await store.delete("state", "a.json")
    await store.delete("state", "a.json")
    (mark,) = (root / "state/a.json@").iterdir()
    assert mark.is_symlink()
    assert await store.list("state", "") == []
    await store.create("state", "a.json", b"as a blob")
    with pytest.raises(AlreadyExists):
        await store.create("state", "a.json", b"again")
    await store.delete("state", "a.json")
    assert await store.write("state", "a.json", b"new", if_match=None) == "3"
    assert etag == "1"


def test_a_copy_that_fails_leaves_the_error(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"")
    with (tmp_path / "target").open("rb") as file, pytest.raises(FileExistsError):
        local_files.link_or_copy(tmp_path / "target", file.fileno(), tmp_path / "target")
