"""Flower as its deployment runtime runs: a SuperLink, one SuperNode per silo, and `flwr run` to submit the app.

The SuperLink starts the ServerApp, and each SuperNode a ClientApp for every message, as processes of their own. All
settings are Flower's defaults: state in memory, arrays in chunks (so no limit on a message is met), SuperNodes and the
server's grid ask every 3 s, executors every 1 s. No TLS; telemetry and the look for updates are off.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Final

from benchmarks.peers.environments import INSIDE, python_of
from benchmarks.peers.marks import WARM_UP
from benchmarks.peers.measured import Stage, measure, staged
from benchmarks.peers.table import Outcome, Point

_SETTINGS: Final = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
_START: Final = 60.0


def run(point: Point, folder: Path, timeout: float) -> Outcome:
    """One federation, one run of the app."""
    with staged("flwr", folder, _SETTINGS) as stage:
        return measure(point, stage, role, lambda: _begin(stage, point), timeout)


def role(command: str) -> str | None:
    """Whose process it is. What a SuperNode or the SuperLink starts belongs to it."""
    if "flower-superlink" in command:
        return "server"
    supernode = re.search(r"flower-supernode .*--port (\d+)", command)
    return f"client-{supernode[1]}" if supernode else None


def _begin(stage: Stage, point: Point) -> subprocess.Popen[bytes]:
    binaries = python_of("flwr").parent
    home = stage.folder / "flwr"
    home.mkdir()
    settings = {"FLWR_HOME": str(home)}
    server = free_port()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "127.0.0.1:{server}"\ninsecure = true\n'
    )
    superlink = [
        *(str(binaries / "flower-superlink"), "--insecure", "--disable-runtime-dependency-installation"),
        *("--host", "127.0.0.1", "--port", str(server)),
    ]
    stage.start("superlink", superlink, **settings)
    _wait_for(server)
    for number in range(point.silos):
        supernode = [
            *(str(binaries / "flower-supernode"), "--insecure"),
            *("--superlink", f"127.0.0.1:{server}", "--port", str(free_port())),
        ]
        stage.start(f"supernode-{number + 1}", supernode, **settings)
    app = stage.folder / "app"
    shutil.copytree(INSIDE / "flower_app", app, ignore=shutil.ignore_patterns("__pycache__"))
    config = {
        "floats": round(point.megabytes * 1_000_000 / 4) // 8 * 8,
        "rounds": point.rounds + WARM_UP,
        "silos": point.silos,
        "marks": f'"{stage.marks}"',
    }
    words = " ".join(f"{key}={value}" for key, value in config.items())
    return stage.start("run", [str(binaries / "flwr"), "run", str(app), "bench", "--run-config", words], **settings)


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    give_up = time.monotonic() + _START
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > give_up:
            raise SystemExit(f"Flower's SuperLink does not listen after {_START:g} s: see logs/superlink.log")
        time.sleep(0.2)
