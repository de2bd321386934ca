"""The silo's own datastore, as the AzureML runner uses it: directories put there, results taken from there.

    <folder>/<silo>/lib/<digest>/        silobus for scripts, and what a job runs first
    <folder>/<silo>/code/<digest>/       code as its owner approved it
    <folder>/<silo>/rounds/<run>/<round>/<digest>/in/         what the script is given; the digest is of what it is
    <folder>/<silo>/rounds/<run>/<round>/<digest>/out/<n>/    what the n-th job on it wrote

Here live names and copying. Every input lies under its digest and is never changed; a directory that a killed agent
left half is made whole by the next. What a job wrote is not trusted: only names of the contract are taken, each with
the digest that the job's process gave for it, and no more than there is room for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, final

from messages.errors import AlreadyExists, NotFound, Poison, SilobusError
from messages.ports import Store
from silo_agent.compute import Datastore
from silo_agent.runners.azureml_verdict import Left

_LONGEST: Final = 4 << 20
_MOST_FILES: Final = 10_000
"""Of a private state."""
_MOST_PRINTED: Final = 16
"""Processes of a job whose output is taken: those that failed first."""
_ROOM: Final = 1_000_000_000
"""Bytes that stay free on the agent's disk, whatever a job left."""
_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@ -]*")
_PAYLOADS: Final = ("update.safetensors", "control.safetensors")
_LAUNCHER: Final = "azureml_job.py"


class Incomplete(SilobusError):
    """What a job left is not what its own process says it wrote. The text names files: it stays in the silo."""


@dataclass(frozen=True, slots=True)
class Folder:
    """Files to be put somewhere, by name, and the digest of all of them."""

    files: Mapping[str, Path]
    digest: str


def folder(top: Path) -> Folder:
    """The regular files at or below `top`; links are followed nowhere. Blocks: use it in a thread."""
    if top.is_file():
        return _folder({top.name: top})
    found = {}
    for where, folders, names in os.walk(top):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in names:
            path = Path(where) / name
            if path.is_file() and not path.is_symlink():
                found[path.relative_to(top).as_posix()] = path
    return _folder(found)


def brought_along() -> Folder:
    """What a job needs of ours: the package `silobus`, and the launcher. Blocks: use it in a thread."""
    spec = find_spec("silobus")
    if spec is None or spec.origin is None:  # pragma: no cover - it is in the same distribution
        raise RuntimeError("the package silobus is not installed beside the agent")
    ours = {f"silobus/{name}": path for name, path in folder(Path(spec.origin).parent).files.items()}
    return _folder({**ours, _LAUNCHER: Path(__file__).with_name(_LAUNCHER)})


def _folder(files: Mapping[str, Path]) -> Folder:
    sha = hashlib.sha256()
    for name in sorted(files):
        sha.update(f"{_digest(files[name])}  {name}\n".encode())
    return Folder(files, sha.hexdigest())


@final
class Files:
    """One silo's part of its datastore."""

    def __init__(self, store: Store, datastore: Datastore, silo: str) -> None:
        self._store = store
        self._datastore = datastore
        self._top = f"{datastore.folder}/{silo}"

    def place(self, *parts: str) -> str:
        """The path of a directory on the datastore."""
        return "/".join((self._top, *parts))

    def uri(self, place: str) -> str:
        """The same, as AzureML knows it."""
        return f"azureml://datastores/{self._datastore.name}/paths/{place}/"

    async def put(self, place: str, content: Folder) -> None:
        """Makes a directory whole. Raises what a store raises."""
        rows = await self._store.list(self._datastore.container, f"{place}/")
        there = {row.name: row.size for row in rows}
        for name, path in content.files.items():
            blob = f"{place}/{name}"
            size = (await asyncio.to_thread(path.stat)).st_size
            if there.get(blob) == size:
                continue
            if blob in there:
                await self._store.delete(self._datastore.container, blob)
            with contextlib.suppress(AlreadyExists):
                await self._store.create(self._datastore.container, blob, path)

    async def progress(self, result: str, target: Path) -> None:
        """Copies the sign of life of a job that runs, if there is a new one."""
        with contextlib.suppress(SilobusError):
            document = await self._store.read(self._datastore.container, f"{result}/progress.json", limit=10_000)
            await asyncio.to_thread(_write_if_new, target / "progress.json", document.data)

    async def left(self, result: str) -> list[Left]:
        """What the processes of a job left: first those that failed, the one that ended first at the head."""
        rows = await self._store.list(self._datastore.container, f"{result}/ranks/")
        found = []
        for row in rows:
            if row.name.endswith(".json"):
                ended = await self._json(row.name)
                if isinstance(status := ended.get("status"), int):
                    at = ended.get("at")
                    found.append((status == 0, at if isinstance(at, float) else 0.0, status, row.name))
        return [
            Left(status, await self._small(f"{name.removesuffix('.json')}.txt") if number < _MOST_PRINTED else b"")
            for number, (_, _, status, name) in enumerate(sorted(found))
        ]

    async def has_report(self, result: str) -> bool:
        """Whether a job has finished its work."""
        name = f"{result}/report.json"
        return any(row.name == name for row in await self._store.list(self._datastore.container, name))

    async def take(self, result: str, target: Path) -> None:
        """Fetches what a job wrote, its report last. Raises Incomplete, and what a store raises."""
        ended = await self._json(f"{result}/ranks/0.json")
        files = ended.get("files")
        if ended.get("state") is True:  # an empty one, too: a store knows no empty directories
            await asyncio.to_thread((target / "state").mkdir, parents=True, exist_ok=True)
        if not isinstance(files, dict):
            raise Incomplete("the job's process does not say what it wrote")
        wanted = {n: d for n, d in sorted(files.items()) if n in _PAYLOADS or n.startswith("state/")}
        await self._see_that_there_is_room(result, [*wanted, "report.json"], target)
        for name, digest in wanted.items():
            if not isinstance(digest, str):
                raise Incomplete(f"the job's process does not say what is in {name}")
            if not all(_PART.fullmatch(part) for part in name.split("/")):
                raise Incomplete(f"{name} is no name for a file of the private state on AzureML")
            await self._fetch(f"{result}/{name}", target / name, digest)
        await self._fetch(f"{result}/report.json", target / "report.json", None)

    async def _see_that_there_is_room(self, result: str, names: Collection[str], target: Path) -> None:
        if len(names) > _MOST_FILES:
            raise Incomplete(f"the job left {len(names)} files, and {_MOST_FILES} are taken at most")
        blobs = {f"{result}/{name}" for name in names}
        rows = await self._store.list(self._datastore.container, f"{result}/")
        needed, free = sum(row.size for row in rows if row.name in blobs), await asyncio.to_thread(_free, target)
        if needed + _ROOM > free:
            told = f"the job left {needed / 1e9:.2f} GB, and {free / 1e9:.2f} are free below `home`"
            raise Incomplete(f"{told}, of which {_ROOM / 1e9:.0f} stays free")

    async def _fetch(self, blob: str, target: Path, digest: str | None) -> None:
        await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
        await asyncio.to_thread(target.unlink, missing_ok=True)
        try:
            await self._store.fetch(self._datastore.container, blob, target)
        except NotFound:
            raise Incomplete(f"{blob} is not on the datastore") from None
        if digest is not None and await asyncio.to_thread(_digest, target) != digest:
            await asyncio.to_thread(target.unlink)
            raise Incomplete(f"{blob} is not as the job's process wrote it")

    async def _small(self, blob: str) -> bytes:
        try:
            return (await self._store.read(self._datastore.container, blob, limit=_LONGEST)).data
        except (NotFound, Poison):
            return b""

    async def _json(self, blob: str) -> dict[str, Any]:
        try:
            value = json.loads(await self._small(blob))
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


def _free(path: Path) -> int:
    return shutil.disk_usage(next(at for at in (path, *path.parents) if at.is_dir())).free


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_if_new(path: Path, data: bytes) -> None:
    with contextlib.suppress(OSError):
        if not path.exists() or path.read_bytes() != data:
            fresh = path.with_name("progress.json.new")
            fresh.write_bytes(data)
            fresh.replace(path)
