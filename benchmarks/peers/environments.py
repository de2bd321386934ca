"""An environment of its own for each peer, from pinned versions, in `.peers/`.

    python -m benchmarks.peers.environments     # builds those that are missing

Versions are the newest that Python 3.11 could install on the day of the date beside them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
ENVIRONMENTS: Final = ROOT / ".peers"
INSIDE: Final = Path(__file__).with_name("inside").resolve()

# 2026-11. Flower 1.42.0 asks for a certifi that was not published yet; the two differ in agents and tracing only.
PINS: Final[Mapping[str, tuple[str, ...]]] = {
    "flwr": ("flwr==1.41.0", "numpy==2.4.6"),
    "nvflare": ("nvflare==2.9.0", "numpy==2.4.6"),
}


def version(peer: str) -> str:
    """Which version of a peer is measured."""
    return PINS[peer][0].partition("==")[2]


def folder_of(peer: str) -> Path:
    """Where its environment is. The pins are in the name, so that others are installed anew."""
    return ENVIRONMENTS / "-".join(pin.replace("==", "-") for pin in PINS[peer])


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment, which is made first if it is missing.

    Raises SystemExit when it cannot be installed.
    """
    folder = folder_of(peer)
    python = folder / "bin" / "python"
    if not (folder / ".installed").exists():
        print(f"Installing {', '.join(PINS[peer])} into {folder}", file=sys.stderr)
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PINS[peer]])
        (folder / ".installed").touch()
    return python


def _run(command: list[str]) -> None:
    if (code := subprocess.run(command, check=False).returncode) != 0:
        raise SystemExit(f"{' '.join(command)} ended with {code}: see above, then run it again")


if __name__ == "__main__":
    for name in PINS:
        print(python_of(name))
