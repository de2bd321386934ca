"""One training process and the socket it talks to its agent through (docs/training-contract.md, "Warm processes").

Here lives the protocol's agent side and the process's life. Which round is run when, and what its result is worth, is
decided elsewhere. The socket stays open for as long as the agent wants the process: when it closes, the script ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, final

from silo_agent.runners.capture import Capture
from silo_agent.runners.processes import Records, kill_whole

_LONGEST_SOCKET_PATH: Final = 100
"""Bytes; the kernels take 104 or 108."""


@final
class Trainer:
    """A running script. Make it with `start`; end it with `end` or `kill`."""

    def __init__(self, capture: Capture, records: Records) -> None:
        self.capture = capture
        self._records = records
        self._ranks: dict[int, asyncio.StreamWriter] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self._world_size = 1
        self._wanted: str | None = None
        self._done: set[int] = set()
        self._changed = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._server: asyncio.Server | None = None
        self._marker = ""
        self._own_directory: Path | None = None

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        sockets: Path,
        capture: Capture,
        records: Records,
    ) -> Self:
        """Starts the command with SILOBUS_SOCKET in its environment. Raises OSError when it cannot be started."""
        trainer = cls(capture, records)
        try:
            await trainer._start(command, directory, environment, sockets)
        except BaseException:
            await asyncio.shield(trainer.kill())
            raise
        finally:
            capture.started()
        return trainer

    async def _start(
        self, command: Sequence[str], directory: Path, environment: Mapping[str, str], sockets: Path
    ) -> None:
        path = await asyncio.to_thread(self._socket_path, sockets)
        self._server = await asyncio.start_unix_server(self._connected, path)
        self._marker = f"SILOBUS_SOCKET={path}"
        self._process = await asyncio.create_subprocess_exec(
            *command,
            cwd=directory,
            env={**environment, "SILOBUS_SOCKET": str(path)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self.capture.write_end,
            stderr=self.capture.write_end,
            start_new_session=True,
        )
        await asyncio.to_thread(self._records.add, self._process.pid, self._marker)

    def _socket_path(self, sockets: Path) -> Path:
        name = f"{secrets.token_hex(6)}.sock"
        if len(os.fsencode(sockets / name)) > _LONGEST_SOCKET_PATH:
            sockets = self._own_directory = Path(tempfile.mkdtemp(prefix="silobus-"))
        sockets.mkdir(parents=True, exist_ok=True)
        return sockets / name

    @property
    def status(self) -> int | None:
        """The exit status, once it has ended."""
        return self._process.returncode if self._process else None

    async def exited(self) -> int:
        """The exit status, when it has ended."""
        assert self._process is not None  # noqa: S101  # it was started
        return await self._process.wait()

    async def round(self, source: Path, target: Path) -> bool:
        """Has a warm process run one round. True: every rank is done; False: the process ended before."""
        exited = asyncio.create_task(self.exited())
        self._wanted, self._done = None, set()
        try:
            await self._until(lambda: len(self._ranks) >= self._world_size, exited)
            if not exited.done():
                self._wanted = str(target)
                await self._tell({"round": {"input": str(source), "output": str(target)}})
                await self._until(lambda: len(self._done) >= self._world_size, exited)
            return self._wanted is not None and len(self._done) >= self._world_size
        finally:
            exited.cancel()

    async def end(self, grace: float = 5.0) -> None:
        """Lets a warm process finish as if alone; kills what is left of it after a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._tell({"end": True})
                await self.exited()
        await self.kill()

    async def kill(self) -> None:
        """Ends the process and everything it started, and gives back what it held."""
        process = self._process
        if process is not None:
            # Its group may outlive it: as long as one of them lives, the id is taken and cannot be a stranger's.
            await asyncio.to_thread(kill_whole, process.pid, self._marker)
            await process.wait()
            await asyncio.to_thread(self._records.remove, process.pid)
        for writer in self._writers:
            writer.close()
        if self._server is not None:
            self._server.close()
        await asyncio.to_thread(self._remove_socket)

    def _remove_socket(self) -> None:
        if self._marker:
            Path(self._marker.partition("=")[2]).unlink(missing_ok=True)
        if self._own_directory is not None:
            shutil.rmtree(self._own_directory, ignore_errors=True)

    # --- the socket --------------------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        rank: int | None = None
        with contextlib.suppress(OSError, ValueError):
            while raw := await reader.readline():
                rank = self._heard(json.loads(raw), rank, writer)
                self._changed.set()
        if rank is not None and self._ranks.get(rank) is writer:
            del self._ranks[rank]
            self._changed.set()
        writer.close()
        self._writers.discard(writer)

    def _heard(self, line: Any, rank: int | None, writer: asyncio.StreamWriter) -> int | None:
        match line:
            case {"hello": {"rank": int(number), "world_size": int(size)}} if 0 <= number < size:
                self._ranks[number], self._world_size = writer, size
                return number
            case {"done": str(target)} if target == self._wanted and rank is not None:
                self._done.add(rank)
        return rank

    async def _tell(self, line: dict[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        for writer in list(self._ranks.values()):
            with contextlib.suppress(OSError):
                writer.write(data)
                await writer.drain()

    async def _until(self, condition: Callable[[], bool], exited: asyncio.Task[int]) -> None:
        while not condition() and not exited.done():
            self._changed.clear()
            changed = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait((changed, exited), return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
