"""The `silobus` command as a process of its own, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SILOBUS = [sys.executable, "-c", "from orchestrator.cli import main; main()"]


def environment() -> dict[str, str]:
    """Ours, without what could lead the command elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SILOBUS_")}
    return {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}


def start(*arguments: object, more: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """The command, going on; `more` is for its environment."""
    return subprocess.Popen(
        [*SILOBUS, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment() | dict(more or {}),
        start_new_session=True,  # Ctrl-C in the terminal of the tests is not meant
    )


def run(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    return subprocess.run(
        [*SILOBUS, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=timeout,
        check=False,
    )


def ask(*arguments: object) -> Any:
    """What the command prints as JSON."""
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def processes_of(folder: Path) -> set[int]:
    """Every process that has to do with a federation's folder, by id, trainers included."""
    mark = str(folder).encode()
    return {
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and int(entry.name) != os.getpid() and mark in _what_is_known_of(entry)
    }


def _what_is_known_of(entry: Path) -> bytes:
    known = b""
    for part in ("cmdline", "environ"):  # an agent hides its environment, a trainer shows whose it is nowhere else
        with contextlib.suppress(OSError):
            known += (entry / part).read_bytes()
    return known


def eventually(what: str, holds: Callable[[], Any], seconds: float = 120) -> Any:
    """What `holds` gives, as soon as that is true."""
    until = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < until, f"it never came true: {what}"
        time.sleep(0.05)
    return value
