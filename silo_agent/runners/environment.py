"""What a training process gets to see of the world: a list of what is allowed, never the agent's own environment.

The agent's credentials are in its environment. Nothing is passed on but PATH and LANG; added are a home of its own,
where `silobus` is, the contract's SILOBUS_ variables, and what the owner's file says.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from silo_agent.policy import Task


def environment(task: Task, own: Mapping[str, str], *, runtime: Path, contract: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a training process. `own` is the agent's, of which almost nothing is taken.

    The directory of the agent's interpreter comes first in PATH, so that `python` in a command is this Python even when
    its virtual environment was not activated.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", os.defpath)])
    allowed = {"PATH": path, "LANG": own.get("LANG", "C.UTF-8"), "HOME": str(runtime / "home")}
    allowed["PYTHONDONTWRITEBYTECODE"] = "1"  # compiled files beside the code are not part of its digest
    allowed.update(task.environment)
    theirs = task.environment.get("PYTHONPATH")
    allowed["PYTHONPATH"] = os.pathsep.join(filter(None, [str(runtime / "lib"), theirs]))
    allowed.update(contract)
    return allowed


def lay_out(runtime: Path) -> None:
    """Makes the directories that `environment` speaks of: a home, and `silobus` alone in a directory. Blocks."""
    (runtime / "home").mkdir(parents=True, exist_ok=True)
    spec = find_spec("silobus")
    if spec is None or spec.origin is None:  # pragma: no cover - it is in the same distribution
        raise RuntimeError("the package silobus is not installed beside the agent")
    fresh, target = runtime / "lib.new", runtime / "lib"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(Path(spec.origin).parent, fresh / "silobus", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
