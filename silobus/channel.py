"""The socket between a script and its agent: the agent's rounds come in, and its end is noticed.

Here lives the line protocol of the contract's warm processes, and the watch that ends this process with status 75
when the agent is gone: no orphan trains on. What a round is, is none of its business.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

AGENT_IS_GONE = 75  # EX_TEMPFAIL: not the script's fault, try again


class Channel:
    """A connection to the agent. A thread of its own reads it: the agent's end is seen in mid-training too."""

    def __init__(self, path: str) -> None:
        self._lines: queue.SimpleQueue[dict[str, object]] = queue.SimpleQueue()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(path)
        except OSError as error:
            _leave(f"no agent listens on {path}: {error}")
        # Workers that a data loader forks must not hold the connection open after this process has died.
        os.register_at_fork(after_in_child=lambda: os.close(self._socket.detach()))
        threading.Thread(target=self._watch, name="silobus-agent-watch", daemon=True).start()

    def rounds(self, *, rank: int, world_size: int) -> Iterator[tuple[Path, Path]]:
        """The input and output directory of each round the agent asks for, until it says that this is the end."""
        self._send({"hello": {"rank": rank, "world_size": world_size, "pid": os.getpid()}})
        while True:
            line = self._lines.get()
            if "end" in line:
                return
            match line.get("round"):
                case {"input": str(source), "output": str(target)}:
                    yield Path(source), Path(target)
                    self._send({"done": target})
                case _:
                    pass  # a word of a later version

    def _send(self, line: dict[str, object]) -> None:
        try:
            self._socket.sendall(json.dumps(line).encode() + b"\n")
        except OSError as error:
            _leave(f"the agent is gone: {error}")

    def _watch(self) -> None:
        try:
            with self._socket.makefile("rb") as lines:
                for raw in lines:
                    line = json.loads(raw)
                    self._lines.put(line)
                    if "end" in line:
                        return
        except (OSError, ValueError, TypeError) as error:
            _leave(f"the connection to the agent broke: {error}")
        _leave("the agent is gone")


def _leave(why: str) -> NoReturn:
    """End the process from whichever thread, whatever the others are in the middle of."""
    with contextlib.suppress(Exception):  # the agent read what is printed here: its pipe may be gone with it
        sys.stderr.write(f"silobus: {why}; this process ends with it\n")
        sys.stderr.flush()
    os._exit(AGENT_IS_GONE)
