"""How fast one file goes up and comes down, and how much memory the process needs for it.

    python -m benchmarks.blobs --json

Our adapter, the plain calls of azure-storage-blob (`upload_blob`, `download_blob`) and the directory store, each in a
process of its own, one after the other, with a file of random bytes, 1 GB unless told otherwise. The server is Azurite,
which `make azurite` installs. With `--fake` it is the fake server of the tests, which keeps everything in memory: that
compares the clients alone. Each row says which. What comes down is compared with what went up, after the clock has
stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from azure.storage.blob.aio import BlobServiceClient  # noqa: TID251  # it is what ours is compared with

from benchmarks.rounds import peak_mib
from messages.settings import StoreSettings
from messages.transport.connect import open_store
from tests.fakes.azurite import Azurite, left_out
from tests.fakes.blob_server import BlobServer

MB = 1_000_000
CONTAINER = "benchmark"
AT_ONCE = 4
"""Requests at a time: what our adapter does, and what the plain calls are told."""
WAYS = ("silobus", "azure-storage-blob", "directory")


async def with_ours(settings: StoreSettings, up: bool, blob: str, file: Path) -> None:
    """Through our store."""
    store = open_store(settings)
    await (store.create(CONTAINER, blob, file) if up else store.fetch(CONTAINER, blob, file))
    await store.close()


async def with_plain_calls(connection_string: str, up: bool, blob: str, file: Path) -> None:
    """As the SDK's examples do it."""
    async with BlobServiceClient.from_connection_string(connection_string) as service:
        client = service.get_blob_client(CONTAINER, blob)
        if up:
            with file.open("rb") as source:
                await client.upload_blob(source, max_concurrency=AT_ONCE)
        else:
            with file.open("wb") as target:
                await (await client.download_blob(max_concurrency=AT_ONCE)).readinto(target)


def transfer(way: str, server: str, up: bool, file: Path, directory: Path) -> dict[str, Any]:
    """One transfer in this process: how long it took, and the most memory this process ever had."""
    work: Callable[[], Awaitable[None]]
    match way:
        case "silobus":
            settings = StoreSettings(connection_string_env="BENCHMARK_BLOBS")
            work = lambda: with_ours(settings, up, way, file)  # noqa: E731
        case "azure-storage-blob":
            work = lambda: with_plain_calls(os.environ["BENCHMARK_BLOBS"], up, way, file)  # noqa: E731
        case _:
            settings = StoreSettings(directory=directory)
            work = lambda: with_ours(settings, up, way, file)  # noqa: E731
    idle = peak_mib(os.getpid())
    begun = time.monotonic()
    asyncio.run(_awaited(work))
    seconds = time.monotonic() - begun
    size = file.stat().st_size / MB
    return {
        "way": way,
        "server": server if way != "directory" else "a link",
        "direction": "up" if up else "down",
        "megabytes": round(size),
        "seconds": round(seconds, 3),
        "mb_per_s": round(size / seconds, 1),
        "idle_rss_mib": round(idle, 1),
        "peak_rss_mib": round(peak_mib(os.getpid()), 1),
    }


async def _awaited(work: Callable[[], Awaitable[None]]) -> None:
    await work()


@contextmanager
def a_server(*, fake: bool) -> Iterator[tuple[str, str]]:
    """What it is, and a connection string for it."""
    if not fake:
        if left_out() is not None:
            raise SystemExit("Azurite is not installed: run `make azurite`, or compare the clients alone with --fake")
        azurite = Azurite()
        try:
            yield "Azurite", azurite.connection_string
        finally:
            azurite.stop()
        return
    code = "import asyncio\nfrom benchmarks.blobs import serve\nasyncio.run(serve())"
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield "fake server", server.stdout.readline().strip()
    finally:
        server.kill()
        server.wait(20)


async def serve() -> None:
    """The fake server, in a process of its own until it is killed."""
    async with BlobServer() as server:
        print(server.connection_string, flush=True)
        await asyncio.Event().wait()


async def _make_container(connection_string: str) -> None:
    async with BlobServiceClient.from_connection_string(connection_string) as service:
        await service.create_container(CONTAINER)


def measure(megabytes: float, folder: Path, *, fake: bool) -> Iterator[dict[str, Any]]:
    """A row for each way and direction."""
    source = folder / "source"
    with source.open("wb") as file:
        for _ in range(round(megabytes)):
            file.write(os.urandom(MB))
    expected = _digest(source)
    with a_server(fake=fake) as (server, connection_string):
        asyncio.run(_make_container(connection_string))
        for way in WAYS:
            for up in (True, False):
                file_of_it = source if up else folder / f"{way}.down"
                arguments = [way, server, "up" if up else "down", str(file_of_it), str(folder / "store")]
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.blobs", "--one", *arguments],
                    env={**os.environ, "BENCHMARK_BLOBS": connection_string},
                    stdout=subprocess.PIPE,
                    check=True,
                )
                if not up and _digest(file_of_it) != expected:
                    raise SystemExit(f"{way}: what came down is not what went up")
                yield json.loads(done.stdout)
            (folder / f"{way}.down").unlink()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=1000, help="size of the file (1000)")
    parser.add_argument("--fake", action="store_true", help="the fake server of the tests, in place of Azurite")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        way, server, direction, file, directory = arguments.one
        print(json.dumps(transfer(way, server, direction == "up", Path(file), Path(directory))))
        return
    with tempfile.TemporaryDirectory(prefix="silobus-benchmark-") as folder:
        rows = list(measure(arguments.megabytes, Path(folder), fake=arguments.fake))
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print("  ".join(f"{name:>18}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value:>18}" for value in row.values()))


if __name__ == "__main__":
    main()
