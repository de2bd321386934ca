"""Removes each guard in a copy of the repository and sees that its test fails: `python -m tests.guards`.

The working tree is never touched. Exit status 1 when a test stays green without its guard, or is red with it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.guards import ROOT, Guard, guards, mutated, sets

_FAILURE = re.compile(r"^E\s+((?:assert|[\w.]*(?:Error|Exception|Failed)\b).*)")


@dataclass(frozen=True, slots=True)
class Result:
    """What pytest said."""

    status: int | None
    """None: it did not come to an end in time."""
    seconds: float
    said: str

    @property
    def red(self) -> bool:
        """Whether a test failed; anything else that is not green (nothing collected, no end) shows nothing."""
        return self.status == 1


@dataclass(frozen=True, slots=True)
class Bench:
    """A copy of the repository as it was when all this began, and how long one test may take."""

    tree: Path
    limit: float

    def run(self, test: Sequence[str], without: Guard | None = None) -> Result:
        """Runs the test in a copy of its own."""
        with tempfile.TemporaryDirectory(prefix="guard-") as directory:
            copy = Path(directory) / "copy"
            shutil.copytree(self.tree, copy)
            for name, text in (mutated(without, copy) if without else {}).items():
                (copy / name).write_text(text)
            command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *test]
            environment = {**os.environ, "PYTHONPATH": str(copy), "SILOBUS_SHRINK": "0"}
            began = time.monotonic()
            try:
                done = subprocess.run(
                    command, cwd=copy, env=environment, capture_output=True, text=True, timeout=self.limit, check=False
                )
            except subprocess.TimeoutExpired:
                return Result(None, self.limit, f"no end within {self.limit:.0f} s")
            return Result(done.returncode, time.monotonic() - began, first_failure(done.stdout) or done.stderr[-300:])


def copy_tree(target: Path) -> None:
    """The tracked files, as they are in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)


def first_failure(output: str) -> str:
    """The first error that pytest shows, and the line it comes from."""
    line = ""
    for shown in output.splitlines():
        if shown.startswith(">"):
            line = shown[1:].strip()
        elif found := _FAILURE.match(shown):
            return f"{found[1].strip()} ({line})" if line else found[1].strip()
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.guards", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--file", choices=sets(), action="append", help="only this set of guards")
    parser.add_argument("--only", metavar="TEXT", default="", help="only guards with this in their name")
    parser.add_argument("-n", metavar="JOBS", type=int, default=1, help="how many at the same time")
    parser.add_argument("--limit", metavar="SECONDS", type=float, default=600, help="how long one may take")
    options = parser.parse_args(arguments)
    chosen = [g for name in options.file or sets() for g in guards(name) if options.only in g.name]
    tests = sorted({guard.test for guard in chosen})
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="guards-") as directory, ThreadPoolExecutor(options.n) as pool:
        bench = Bench(Path(directory), options.limit)
        copy_tree(bench.tree)
        for test, result in zip(tests, pool.map(bench.run, tests), strict=True):
            wrong += result.status != 0
            tell("green" if result.status == 0 else "NOT GREEN", result, f"with every guard: {' '.join(test)}")
        for guard, result in zip(chosen, pool.map(lambda g: bench.run(g.test, g), chosen), strict=True):
            wrong += not result.red
            tell("red" if result.red else "STILL GREEN" if result.status == 0 else "NO ANSWER", result, guard.name)
    print(f"{len(chosen)} guards, {wrong} wrong")
    return 1 if wrong else 0


def tell(word: str, result: Result, name: str) -> None:
    """One line."""
    said = f": {result.said[:200]}" if result.status else ""
    print(f"{word:<12}{result.seconds:6.1f} s  {name}{said}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
