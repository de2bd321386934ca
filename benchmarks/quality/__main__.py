"""`python -m benchmarks.quality`: see the package."""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.quality import __doc__ as text
from benchmarks.quality import real, report
from benchmarks.quality.study import ROUNDS, study

DOCS = Path(__file__).resolve().parents[2] / "docs"
CLOSE = 1e-5
"""Of what the study and a federation make, how far two numbers may lie apart: float32, added up in another order."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(text or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true", help="everything, with curves and all that was tried")
    parser.add_argument("--write-docs", action="store_true", help="into docs/quality.md and docs/quality.svg")
    parser.add_argument("--check", action="store_true", help="against real federations, instead of the study")
    args = parser.parse_args()
    if args.check:
        sys.exit(asyncio.run(check()))
    # For matrices as small as these a second thread only takes time. Workers that are spawned read it.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.processes, mp_context=spawn) as workers:
        results = study(workers, args.rounds, lambda line: print(line, file=sys.stderr, flush=True))
    if args.write_docs:
        report.write(DOCS, results)
    print(json.dumps(report.as_json(results), indent=1) if args.json else report.text(results))


async def check() -> int:
    """The exit status: 0 when all models are the study's."""
    wrong = 0
    async for strategy, apart, moved in real.differences():
        wrong += apart > CLOSE
        print(f"{strategy}: at most {apart:.1e} from the study's model, which moved by up to {moved:.2f}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    main()
