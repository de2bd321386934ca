"""The silo's own directory: where rounds, private state, budget, egress log and runtime files lie. It never leaves.

    agent.lock  paused  budget.jsonl  node-hours.jsonl  egress.jsonl  egress.head
    rounds/<run>/<round>/in/                   what the script is given; with tries/<n>/out/ a round to be run again
    rounds/<run>/<round>/tries/<n>/            out/, output.txt, failed.json when it has failed
    rounds/<run>/<round>/ended.json            how it ended
    state/<run>/<round>/                       private state as that round committed it
    runtime/                                   silobus for scripts, sockets, what processes are running

Here live names and what a round's directory remembers; what is decided on it does not.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from messages.errors import SilobusError
from messages.schemas import FailureCategory

ENDED: Final = "ended.json"
_KEPT_WITH: Final = {"declined": "failed", "closed": "unfinished"}
"""Ways to end that are counted together when old rounds make room."""
_LEAVING: Final = 2.0
"""Seconds that a lock may outlive its agent: a process that it was just starting has it until it is its own program."""


class HomeInUse(Exception):
    """Another agent works in this directory."""


class HomeUnusable(SilobusError):
    """The directory cannot be made, read or written."""


class HomeGone(SilobusError):
    """The directory was deleted or moved away while the agent was running."""


@dataclass(frozen=True, slots=True)
class TryDirectory:
    """One try of a round."""

    path: Path

    @property
    def output(self) -> Path:
        """What the script writes."""
        return self.path / "out"

    @property
    def log(self) -> Path:
        """What the script prints."""
        return self.path / "output.txt"

    @property
    def started(self) -> Path:
        """A file as old as the try."""
        return self.path / "started"

    @property
    def has_report(self) -> bool:
        """Whether its output counts."""
        return (self.output / "report.json").is_file()

    @property
    def is_whole(self) -> bool:
        """Whether its output counts, and is all there.

        An update need not be durable before it is published: a power cut may have taken what was in it, though its
        name is there. So what was made before this machine was last started is made again.
        """
        try:
            return self.has_report and self.started.read_text() == _boot() != ""
        except OSError:
            return False

    def start(self) -> None:
        """Makes the directories, empty."""
        shutil.rmtree(self.path, ignore_errors=True)
        make_directory(self.output)
        self.started.write_text(_boot())

    def mark_failed(self, category: FailureCategory, announcement: int, notes: tuple[str, ...] = ()) -> None:
        """Remembers that it failed, so that a restarted agent does not try for ever."""
        entry = {"category": category, "announcement": announcement, "notes": notes}
        (self.path / "failed.json").write_text(json.dumps(entry))

    def failure(self, announcement: int) -> FailureCategory | None:
        """How it failed, if it did under this announcement; a later announcement gives every silo new tries."""
        entry = read_json(self.path / "failed.json")
        return FailureCategory(entry["category"]) if entry and entry["announcement"] == announcement else None

    @property
    def has_failed(self) -> bool:
        """Whether it failed under any announcement."""
        return (self.path / "failed.json").exists()


@dataclass(frozen=True, slots=True)
class RoundDirectory:
    """Everything of one round."""

    path: Path

    @property
    def input(self) -> Path:
        """What the script is given."""
        return self.path / "in"

    def attempt(self, number: int) -> TryDirectory:
        """The directory of a try."""
        return TryDirectory(self.path / "tries" / str(number))

    def attempts(self) -> list[int]:
        """The numbers of all tries so far."""
        tries = self.path / "tries"
        return sorted(int(p.name) for p in tries.iterdir() if p.name.isdigit()) if tries.is_dir() else []

    def mark_ended(self, entry: dict[str, Any]) -> None:
        """Remembers how the round ended, for listings and for what may be deleted."""
        make_directory(self.path)
        (self.path / ENDED).write_text(json.dumps(entry))

    def reopen(self) -> None:
        """Forgets that the round had ended: it is worked on again, and must not make room for others meanwhile."""
        (self.path / ENDED).unlink(missing_ok=True)

    @property
    def ended(self) -> dict[str, Any] | None:
        """How it ended; None: it has not."""
        return read_json(self.path / ENDED)


@final
class Home:
    """The directory, taken by one agent at a time. Blocks: use it in a thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._ending = threading.Lock()

    def take(self) -> None:
        """Makes this process the only one to work here, and its user the only one who may look.

        Raises HomeInUse, after two seconds in which nobody left, and HomeUnusable.
        """
        if self.path.is_dir() and self.path.stat().st_mode & stat.S_ISVTX:
            raise HomeUnusable(f"home {self.path} is a directory for everybody; name one of the agent's own")
        for name in ("rounds", "state", "runtime"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)
        lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        until = time.monotonic() + _LEAVING
        while not _locked(lock):
            if time.monotonic() > until:
                os.close(lock)
                raise HomeInUse(f"another agent is running on {self.path}; a silo runs one agent per home")
            time.sleep(0.02)
        self._lock = lock

    def leave(self) -> None:
        """Gives it back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def is_gone(self) -> bool:
        """Whether the directory that was taken was deleted or moved away, even if there is another in its place."""
        return self._lock is not None and (not self._lock_file.exists() or os.fstat(self._lock).st_nlink == 0)

    @property
    def _lock_file(self) -> Path:
        return self.path / "agent.lock"

    @property
    def budget(self) -> Path:
        """The ledger of rounds."""
        return self.path / "budget.jsonl"

    @property
    def node_hours(self) -> Path:
        """The ledger of jobs on AzureML."""
        return self.path / "node-hours.jsonl"

    @property
    def egress(self) -> Path:
        """The log of all that left."""
        return self.path / "egress.jsonl"

    @property
    def state(self) -> Path:
        """Private state of all runs."""
        return self.path / "state"

    @property
    def runtime(self) -> Path:
        """What only matters while an agent runs."""
        return self.path / "runtime"

    @property
    def pause_file(self) -> Path:
        """While this is there, the owner takes part in nothing."""
        return self.path / "paused"

    def round(self, run: str, round_number: int) -> RoundDirectory:
        """The directory of a round."""
        return RoundDirectory(self.path / "rounds" / run / f"{round_number:05d}")

    def rounds(self) -> list[tuple[str, int, RoundDirectory]]:
        """Every round that is still there, by run and number."""
        found = []
        top = self.path / "rounds"
        for run in sorted(top.iterdir()) if top.is_dir() else ():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # cleared away since, or none of ours
                found += [path for path in sorted(run.iterdir()) if path.name.isdecimal()]
        return [(path.parent.name, int(path.name), RoundDirectory(path)) for path in found]

    def end(self, run: str, round_number: int, entry: dict[str, Any], keep: int) -> None:
        """Remembers how a round ended, and forgets those that need not be kept. Of several threads one at a time: what
        one is about to write, another may be about to delete."""
        with self._ending:
            self.round(run, round_number).mark_ended(entry)
            self.forget_ended(keep)

    def forget_ended(self, keep: int) -> None:
        """Deletes the directories of rounds that are over, all but the last `keep` that were published, as many that
        failed or were declined, and as many that were closed or left unfinished: what went well never makes what went
        wrong unreadable.

        A round that was left unfinished is over when its run has come to a later one.
        """
        rounds = self.rounds()
        latest = {run: number for run, number, _ in rounds}
        over: dict[str, list[Path]] = {}
        for run, number, at in rounds:
            ended = at.ended
            if number < latest[run] or ended is not None:
                how = str(ended["how"]) if ended else "unfinished"
                over.setdefault(_KEPT_WITH.get(how, how), []).append(at.path)
        for paths in over.values():
            paths.sort(key=_modified)
            for path in paths[: max(0, len(paths) - keep)]:
                shutil.rmtree(path, ignore_errors=True)
                with contextlib.suppress(OSError):  # the run has other rounds
                    path.parent.rmdir()

    def write_fault(self, name: str, text: str) -> Path:
        """Keeps what must not get into the shared log: a bug's whole story."""
        path = self.path / "faults" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path


def make_directory(path: Path) -> None:
    """Makes a directory and those above it, also while another round's end clears away those that are empty."""
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            path.mkdir(parents=True, exist_ok=True)
            return
    path.mkdir(parents=True, exist_ok=True)


def _locked(file: int) -> bool:
    """Takes the lock, unless somebody has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _boot() -> str:
    """Another one whenever the machine was started anew; nothing where that cannot be told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return ""


def _modified(path: Path) -> int:
    """When it was last written to; a directory that another round's end has just deleted is the oldest."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def read_json(path: Path) -> dict[str, Any] | None:
    """A small JSON file of our own; None when it is not there, or was cut off by a crash."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
