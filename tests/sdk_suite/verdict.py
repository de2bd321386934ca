"""What the outcome of the suite is worth: it is what `known.toml` says, or it is not."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Outcomes = Mapping[str, tuple[str, str]]
"""By test: passed, failed or skipped, and why in the words of the test."""


@dataclass(frozen=True)
class Known:
    """Why a test does not pass; `sometimes`: or does, depending on the machine."""

    why: str
    sometimes: bool = False


def read_known(path: Path) -> dict[str, Known]:
    """By test. A reason stands once, for all tests that it is the reason of."""
    known: dict[str, Known] = {}
    for entry in tomllib.loads(path.read_text(encoding="utf-8"))["known"]:
        for test in entry["tests"]:
            if test in known:
                raise ValueError(f"{path}: {test} is listed twice")
            known[test] = Known(entry["why"], entry.get("sometimes", False))
    return known


def surprises(outcomes: Outcomes, known: Mapping[str, Known], *, whole: bool = True) -> list[str]:
    """Sentences; none when all is as it is known. `whole`: the whole suite ran, so a missing test is a surprise too."""
    found = []
    for test, (outcome, why) in sorted(outcomes.items()):
        if outcome != "passed" and test not in known:
            found.append(f"{test} {outcome}: {why}")
        if outcome == "passed" and test in known and not known[test].sometimes:
            found.append(f"{test} passed, and is listed: {known[test].why}")
    if whole:
        found += [f"{test} is listed, and did not run" for test in sorted(known.keys() - outcomes.keys())]
    if not outcomes:
        found.append("no test ran")
    return found
