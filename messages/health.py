"""Whether a process is alive, for whoever runs its container: `GET /healthz` on one port, answered by its event loop.

An answer means that the loop turns; none, that it hangs and should be started again. A bus or a store that is away is
no reason for that: the loops wait for them. `python -m messages.health PORT` asks, on this machine, and is the exit
status.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import sys
from collections.abc import AsyncIterator
from typing import Annotated, Final, Literal

from pydantic import Field

from messages.settings import Settings, SettingsError

PATH: Final = "/healthz"
_PATIENCE: Final = 5.0
_LONGEST: Final = 8192
"""Bytes of a request that are read."""


class HealthSettings(Settings):
    """Where to answer: on loopback, or on the pod's address, which nobody but its own platform can reach."""

    port: Annotated[int, Field(ge=1, le=65535)]
    host: Literal["127.0.0.1", "0.0.0.0", "::"] = "127.0.0.1"  # noqa: S104  # a pod has no other way to be probed


@contextlib.asynccontextmanager
async def answering(settings: HealthSettings | None) -> AsyncIterator[None]:
    """Answers for as long as the block runs; nothing listens without settings. Raises SettingsError: it is taken."""
    if settings is None:
        yield
        return
    try:
        server = await asyncio.start_server(_answer, settings.host, settings.port, limit=_LONGEST)
    except OSError as error:
        told = f"health: cannot listen on {settings.host}:{settings.port}: {os.strerror(error.errno or 0)}"
        raise SettingsError(f"{told}; change health.port, or stop what listens there.") from None
    try:
        yield
    finally:
        server.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        async with asyncio.timeout(_PATIENCE):
            asked = await reader.readuntil(b"\r\n\r\n")
            good = asked.startswith(f"GET {PATH} ".encode())
            status, text = ("200 OK", b"ok\n") if good else ("404 Not Found", b"")
            head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\n"
            writer.write(head.encode() + b"Connection: close\r\n\r\n" + text)
            await writer.drain()
    writer.close()


def main(arguments: list[str]) -> int:
    """Asks the process on this machine's port. 0: it is alive."""
    connection = http.client.HTTPConnection("127.0.0.1", int(arguments[0]), timeout=_PATIENCE)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", PATH)
        return 0 if connection.getresponse().status == http.client.OK else 1
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
