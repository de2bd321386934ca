"""Azurite, Microsoft's own Blob service for one machine, as a process for tests and benchmarks.

`make test-azurite` installs it, with npm, into `.azurite/`. Where it is not, tests run without it and one line says so.
"""

from __future__ import annotations

import atexit
import base64
import os
import queue
import shutil
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path

from orchestrator.cli.processes import die_with_parent

ACCOUNT = "silobustest"
KEY = base64.b64encode(b"a key that only these tests know, of sixty-four bytes or about it").decode()
PROGRAM = Path(__file__).parents[2] / ".azurite/node_modules/azurite/dist/src/blob/main.js"
STARTUP = 60.0
"""Seconds until it listens, on a machine that is busy."""


def left_out() -> str | None:
    """Why Azurite cannot be used, and what to do; None when it can. With SILOBUS_AZURITE=required that is an error."""
    missing = None if shutil.which("node") else "Node is not installed"
    if missing is None and not PROGRAM.is_file():
        missing = "it is not installed here"
    if missing is None:
        return None
    reason = f"Azurite is left out ({missing}): the Blob store ran over the fake server only. Run: make test-azurite"
    if os.environ.get("SILOBUS_AZURITE") == "required":
        raise RuntimeError(reason)
    return reason


class Azurite:
    """A running one, with an empty account of its own. With a certificate it speaks TLS and takes tokens."""

    def __init__(self, *, cert: Path | None = None, key: Path | None = None) -> None:
        self._data = Path(tempfile.mkdtemp(prefix="silobus-azurite-"))
        options = ["--blobHost", "127.0.0.1", "--blobPort", "0", "--location", str(self._data), "--silent"]
        options += ["--skipApiVersionCheck", "--disableTelemetry"]
        if cert is not None:
            options += ["--cert", str(cert), "--key", str(key), "--oauth", "basic"]
        self._process = subprocess.Popen(
            ["node", str(PROGRAM), *options],
            env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,  # noqa: PLW1509  # it calls prctl and nothing else
        )
        self.scheme = "http" if cert is None else "https"
        self.port = self._port()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def url(self) -> str:
        return url(self.port, self.scheme)

    @property
    def connection_string(self) -> str:
        return connection_string(self.port, self.scheme)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(20)
        shutil.rmtree(self._data, ignore_errors=True)

    def _port(self) -> int:
        """Reads what it prints, for as long as it runs: a pipe that nobody reads would stop it."""
        told: queue.SimpleQueue[int | None] = queue.SimpleQueue()

        def read() -> None:
            assert self._process.stdout is not None
            for line in self._process.stdout:
                if b"successfully listens on " in line:
                    told.put(int(line.rpartition(b":")[2]))
            told.put(None)

        threading.Thread(target=read, daemon=True).start()
        try:
            port = told.get(timeout=STARTUP)
        except queue.Empty:
            port = None
        if port is None:
            self.stop()
            raise RuntimeError("Azurite did not start")
        return port


def url(port: int, scheme: str = "http") -> str:
    """The account behind a port, which may be a proxy's."""
    return f"{scheme}://127.0.0.1:{port}/{ACCOUNT}"


def connection_string(port: int, scheme: str = "http") -> str:
    """The account's own key, at a port."""
    at = url(port, scheme)
    return f"DefaultEndpointsProtocol={scheme};AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={at};"


@cache
def azurite() -> Azurite:
    """One for all tests of this process, without TLS; it ends with the process."""
    started = Azurite()
    atexit.register(started.stop)
    return started
