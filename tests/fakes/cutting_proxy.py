"""A TCP proxy that cuts connections in the middle, between an adapter and a server that knows nothing of it.

It can also stop passing anything on, as a line does that hangs. It counts what went through each way, so that a test
sees how much was sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self


class CuttingProxy:
    """`async with CuttingProxy(port) as proxy:` then speak to `proxy.port`. It cuts only when it is told to."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._left: float = float("inf")
        self._every: float = float("inf")
        self._connections: set[asyncio.Task[None]] = set()
        self._refuses = False
        self._dies = False
        self.dead = asyncio.Event()
        self._goes = asyncio.Event()
        self._goes.set()
        self.stopped = asyncio.Event()
        self.cuts = 0
        self.up = self.down = 0
        """Bytes that were passed on."""

    def cut_every(self, size: float) -> None:
        """All connections are cut whenever so many more bytes have gone through, both ways together."""
        self._left = self._every = size

    def die_after(self, size: float) -> None:
        """All connections are cut after so many more bytes, and new ones are refused; `dead` is set then."""
        self._left, self._dies = size, True
        self.dead.clear()

    def stop_after(self, size: float) -> None:
        """Passes nothing on after so many more bytes, until `go_on`; `stopped` is set then."""
        self._left = size
        self._goes.clear()

    def go_on(self) -> None:
        """Passes everything on again."""
        self._left = self._every = float("inf")
        self._dies = self._refuses = False
        self._goes.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._cut()

    async def _cut(self) -> None:
        me = asyncio.current_task()
        others = [task for task in self._connections if task is not me]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if self._refuses:
                return
            onward = await asyncio.open_connection("127.0.0.1", self._target)
            try:
                pipes = (self._pipe(reader, onward[1], True), self._pipe(onward[0], writer, False))
                tasks = [asyncio.create_task(pipe) for pipe in pipes]
                try:
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pipe in tasks:
                        pipe.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                onward[1].transport.abort()
        except asyncio.CancelledError:
            pass  # it was cut
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                self._left -= len(data)
                if self._left < 0 and not self._goes.is_set():
                    self.stopped.set()
                    await self._goes.wait()
                elif self._left < 0:
                    self._left = self._every
                    self.cuts += 1
                    if self._dies:
                        self._refuses = True
                        self.dead.set()
                    for task in self._connections:
                        task.cancel()
                    return
                if up:
                    self.up += len(data)
                else:
                    self.down += len(data)
                writer.write(data)
                await writer.drain()
