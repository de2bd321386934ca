"""What a silo keeps of a run and never gives away: versions of a directory, one per round that committed one.

Here lives how a version comes to be: whole or not at all, once per round. What is in it is the script's business. Of a
run, the last two versions stay until its owner deletes them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final, final

from silo_agent.journal import make_durable

_KEPT: Final = 2


@final
class PrivateState:
    """The versions under `root`, as `<run>/<round>/`. Blocks: use it in a thread."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def version(self, run: str, *, before: int) -> int | None:
        """The round whose commit a round starts from: the last one before it."""
        return max((number for number in self._versions(run) if number < before), default=None)

    def copy(self, run: str, version: int | None, target: Path) -> None:
        """Puts a version at `target`, which must not exist; an empty directory when there is none."""
        if version is None:
            target.mkdir()
        else:
            shutil.copytree(self._path(run, version), target, symlinks=True)

    def commit(self, run: str, round_number: int, source: Path) -> None:
        """Makes the directory `source` the version of this round, unless it has one; durable on return.

        Nothing happens when `source` is not there: the round has kept the old version. What an agent that died in the
        middle of this had begun is brought to its end.
        """
        target = self._path(run, round_number)
        if not target.exists():
            if source.is_symlink() or not source.is_dir():
                return
            for path in [*source.rglob("*"), source]:
                if not path.is_symlink() and (path.is_file() or path.is_dir()):
                    make_durable(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
        make_durable(target.parent)
        make_durable(target.parent.parent)
        for old in sorted(self._versions(run))[:-_KEPT]:
            shutil.rmtree(self._path(run, old), ignore_errors=True)

    def _versions(self, run: str) -> list[int]:
        top = self._root / run
        return [int(path.name) for path in top.iterdir() if path.name.isdigit()] if top.is_dir() else []

    def _path(self, run: str, version: int) -> Path:
        return self._root / run / f"{version:05d}"
