"""Tries every crash point: `python -m tests.crash_points [--pairs [SHARE]] [--seed N] [--json]`; one with `--point`.

Exit status 1 when a run comes to anything else than the undisturbed one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from tests.crash_points.points import parse
from tests.crash_points.shapes import SHAPES
from tests.crash_points.survey import WHOLE, Finding, Part, each_pair, each_single, examined, points_of, undisturbed

SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash_points", description=(__doc__ or "").split(chr(10))[0])
    parser.add_argument("--shape", choices=SHAPES, action="append", help="only this run; all but small are, by default")
    parser.add_argument(
        "--pairs",
        type=float,
        nargs="?",
        const=1.0,
        metavar="SHARE",
        help="two things in one small run, instead: whatever is first, then a death",
    )
    parser.add_argument("--point", metavar="WHO:CALL:KIND", help="only this; two with + in between")
    parser.add_argument("--count", type=int, metavar="N", help="only so many points of each run, spread evenly")
    parser.add_argument("--who", metavar="WHO", help="only points of this process: ORCH, NORTH …")
    parser.add_argument("--part", type=Part.parse, default=WHOLE, metavar="K/N", help="only the K-th of N parts of all")
    parser.add_argument("--seed", type=int, default=0, help="which share of the pairs")
    parser.add_argument("-n", type=int, default=min(2, os.cpu_count() or 1), metavar="JOBS", help="processes")
    parser.add_argument("--stop", action="store_true", help="at the first that differs")
    parser.add_argument("--json", action="store_true", help="one object instead of lines")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    told: dict[str, object] = {}
    found: Iterable[Finding]
    if options.point is not None:
        found = [examined(shape, parse(options.point)) for shape in options.shape or ["run"]]
    elif options.pairs:
        shapes = options.shape or ["small"]
        found = _each(each_pair(shape, options.n, options.pairs, options.seed, options.part) for shape in shapes)
    else:
        shapes = options.shape or [shape for shape in SHAPES if shape != "small"]
        counted = {shape: points_of(undisturbed(shape).plan) for shape in shapes}
        told["points"] = {shape: points.count for shape, points in counted.items()}
        told["the same run as another point"] = {shape: points.same for shape, points in counted.items()}
        found = _each(each_single(shape, options.n, options.count, options.who, options.part) for shape in shapes)
    runs, pairs, differing = 0, 0, []
    for finding in found:
        runs += 1
        pairs += finding.calls_after if "+" not in finding.points else 0
        if finding.differences:
            differing.append(finding)
            if not options.json and len(differing) <= SHOWN:
                print(f"{finding.again}\n  at {finding.at}\n  " + "\n  ".join(finding.differences), flush=True)
            if options.stop:
                break
    seconds = round(time.monotonic() - began, 1)
    if options.pairs:
        told["pairs there are"] = pairs
    told |= {"runs": runs, "seconds": seconds, "differing": [{**asdict(f), "again": f.again} for f in differing]}
    if options.json:
        print(json.dumps(told, indent=1))
    else:
        for key in ("points", "the same run as another point", "pairs there are"):
            if key in told:
                print(f"{key}: {told[key]}")
        print(f"{runs} runs in {seconds} s: {f'{len(differing)} differ' if differing else 'all equal'}")
    return 1 if differing else 0


def _each(surveys: Iterable[Iterator[Finding]]) -> Iterator[Finding]:
    for survey in surveys:
        yield from survey


if __name__ == "__main__":
    sys.exit(main())
