"""What the outcome of the suite is worth: it is what `known.toml` says, or it is not."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

Outcomes = Mapping[str, tuple[str, str]]
"""By test: passed, failed or skipped, and why in the words of the test."""


def read_known(path: Path) -> dict[str, str]:
    """By test, why it does not pass. A reason stands once, for all tests that it is the reason of."""
    known: dict[str, str] = {}
    for entry in tomllib.loads(path.read_text(encoding="utf-8"))["known"]:
        for test in entry["tests"]:
            if test in known:
                raise ValueError(f"{path}: {test} is listed twice")
            known[test] = entry["why"]
    return known


def surprises(outcomes: Outcomes, known: Mapping[str, str], *, whole: bool = True) -> list[str]:
    """Sentences; none when all is as it is known. `whole`: the whole suite ran, so a missing test is a surprise too."""
    found = []
    for test, (outcome, why) in sorted(outcomes.items()):
        if outcome != "passed" and test not in known:
            found.append(f"{test} {outcome}: {why}")
        if outcome == "passed" and test in known:
            found.append(f"{test} passed, and is listed: {known[test]}")
    if whole:
        found += [f"{test} is listed, and did not run" for test in sorted(known.keys() - outcomes.keys())]
    if not outcomes:
        found.append("no test ran")
    return found
