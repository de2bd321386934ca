"""`python -m benchmarks.rounds`: see the package."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.arguments import add_strategy, options_of
from benchmarks.rounds import __doc__ as text
from benchmarks.rounds.floor import DTYPES, Machine
from benchmarks.rounds.measure import WARM_UP, Asked, as_json, measure
from orchestrator.cli.folder import Folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(text or "").splitlines()[0])
    parser.add_argument("--silos", type=int, nargs="+", default=[3])
    parser.add_argument("--megabytes", type=float, nargs="+", default=[1.0], help="10^6 bytes of float32")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="rounds before them that do not count")
    add_strategy(parser, help="one that makes of equal updates what they are")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="in which updates travel")
    parser.add_argument("--form", choices=["weights", "delta"], default="weights")
    parser.add_argument("--memory-budget", type=int, metavar="MIB", help="the orchestrator's")
    parser.add_argument("--streams", action="store_true", help="a trainer that never holds the model")
    parser.add_argument("--dir", type=Path, help="where to keep everything, for a look at the logs")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f}, should be near 0", file=sys.stderr)
    if args.dir is not None:
        args.dir.mkdir(parents=True, exist_ok=True)
    machine = Machine.measured(args.dir or Path(tempfile.gettempdir()), args.dtype)
    rows = []
    for silos in args.silos:
        for megabytes in args.megabytes:
            asked = Asked(
                silos=silos,
                megabytes=megabytes,
                rounds=args.rounds,
                warm_up=args.warm_up,
                strategy=args.strategy,
                options=options_of(args),
                dtype=args.dtype,
                form=args.form,
                memory_budget=args.memory_budget,
                streams=args.streams,
            )
            root = args.dir or Path(tempfile.mkdtemp(prefix="silobus-bench-"))
            folder = Folder(root.absolute() / f"{silos}-{megabytes:g}")
            try:
                rows.append(asyncio.run(measure(asked, folder, machine)))
            finally:
                if args.dir is None:
                    shutil.rmtree(root, ignore_errors=True)
            if not args.json:
                print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if args.json:
        print(as_json(rows))


if __name__ == "__main__":
    main()
