"""One measurement of a peer: started, watched until its server noted the last round, and ended whatever happens."""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers import marks
from benchmarks.peers.environments import python_of, version
from benchmarks.peers.marks import WARM_UP, Marks
from benchmarks.peers.processes import MARK, Role, Watch, end
from benchmarks.peers.table import Outcome, Point

GLANCE = 0.5


@dataclass(slots=True)
class Stage:
    """Where a peer's processes live: a folder, an environment, and a mark by which they are found."""

    peer: str
    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def marks(self) -> Path:
        """What its server writes down."""
        return self.folder / "marks.jsonl"

    def environment(self) -> dict[str, str]:
        """All that its processes see: little of ours, so that they behave the same everywhere."""
        binaries = python_of(self.peer).parent
        home = self.folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        return {
            "PATH": f"{binaries}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "TMPDIR": os.environ.get("TMPDIR", "/tmp"),  # noqa: S108  where temporary files go, as everywhere
            "PYTHONUNBUFFERED": "1",
            MARK: self.mark,
            **self.settings,
        }

    def start(self, name: str, command: list[str], **more: str) -> subprocess.Popen[bytes]:
        """Starts a process in a group of its own, with its output in `logs/<name>.log`."""
        logs = self.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**self.environment(), **more},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def end(self) -> None:
        """Ends everything, and takes what `start` began off the table of processes."""
        try:
            end(self.mark)
        finally:
            for process in self.started:
                process.poll()


@contextmanager
def staged(peer: str, folder: Path, settings: Mapping[str, str]) -> Iterator[Stage]:
    """A stage on which nothing is left afterwards."""
    folder.mkdir(parents=True)
    stage = Stage(peer, folder.absolute(), settings)
    try:
        yield stage
    finally:
        stage.end()


def measure(
    point: Point, stage: Stage, role: Role, begin: Callable[[], subprocess.Popen[bytes]], timeout: float
) -> Outcome:
    """Begins, and waits until the last round is over, the process begun has failed, or `timeout` seconds are over."""
    rounds = point.rounds + WARM_UP
    give_up = time.monotonic() + timeout
    with Watch(stage.mark, role) as watch:
        job = begin()
        seen = Marks([])
        while seen.wrong is None and time.monotonic() < give_up and job.poll() in (None, 0):
            time.sleep(GLANCE)
            seen = marks.read(stage.marks)
        failed = seen.wrong is None and job.poll() not in (None, 0)
    problem = seen.problem(rounds)
    if problem is not None and seen.wrong is None:
        how = "its job failed, see its logs" if failed else f"given up after {timeout:g} s"
        problem = f"{problem}: {how}"
    return Outcome(
        who=stage.peer,
        version=version(stage.peer),
        point=point,
        round_s=None if problem else seen.median(),
        slowest_s=None if problem else max(seen.seconds),
        server_mib=watch.peak("server"),
        client_mib=watch.peak("client"),
        problem=problem,
    )
