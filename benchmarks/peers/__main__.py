"""Rounds of Silobus, Flower and NVIDIA FLARE at the same points in the same run, and one table.

    python -m benchmarks.peers --silos 3 --megabytes 1,64 --rounds 5 [--only flwr,nvflare,silobus] [--json]

Server and clients are real processes on this machine, over loopback; training adds one to every weight; FedAvg of all
silos in every round; the first two rounds are left out; the weights that come out are checked. What the peers print is
kept in the folder that is named at the start. docs/performance.md says what each number means.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import rounds
from benchmarks.peers import flare, flower
from benchmarks.peers.environments import python_of
from benchmarks.peers.table import OURS, Outcome, Point, as_json, text
from benchmarks.rounds.floor import Machine
from orchestrator.cli.folder import Folder

PEERS: Final[dict[str, Callable[[Point, Path, float], Outcome]]] = {"flwr": flower.run, "nvflare": flare.run}


def ours(machine: Machine, point: Point, folder: Path, timeout: float) -> Outcome:
    """Silobus, as benchmarks.rounds measures it. Its server is the orchestrator and the bus."""
    row: dict[str, float] = {}
    problem = None
    try:
        asked = rounds.Asked(silos=point.silos, megabytes=point.megabytes, rounds=point.rounds)
        found = rounds.measure(asked, Folder(folder.absolute()), machine)
        row = asyncio.run(asyncio.wait_for(found, timeout))
    except TimeoutError as error:
        problem = str(error) or f"given up after {timeout:g} s"
    except SystemExit as end:
        problem = str(end.code)
    return Outcome(
        who=OURS,
        version="",
        point=point,
        round_s=row.get("round_s"),
        slowest_s=row.get("slowest_s"),
        server_mib=row.get("orchestrator_rss_mib", 0.0) + row.get("bus_rss_mib", 0.0),
        client_mib=row.get("agent_rss_mib", 0.0) + row.get("trainer_rss_mib", 0.0),
        problem=problem,
        floor_s=row.get("floor_s"),
    )


def measure(who: str, point: Point, root: Path, timeout: float, machine: Machine) -> Outcome:
    """One framework at one point; what it wrote but its logs is deleted afterwards."""
    folder = root / f"{who}-{point.silos}-{point.megabytes:g}"
    try:
        return (PEERS | {OURS: partial(ours, machine)})[who](point, folder, timeout)
    finally:
        _keep_logs(folder)


def _keep_logs(folder: Path) -> None:
    """Deletes every file that is not a log: models, environments, journals."""
    for path in [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]:
        if path.suffix not in (".log", ".txt", ".jsonl"):
            path.unlink(missing_ok=True)


def numbers(words: str) -> list[float]:
    """`1,64` as numbers."""
    return [float(word) for word in words.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--silos", type=numbers, default=[3.0], help="one number, or several with commas")
    parser.add_argument("--megabytes", type=numbers, default=[1.0], help="one number, or several with commas")
    parser.add_argument("--rounds", type=int, default=5, help="that count; two more go before them")
    parser.add_argument("--only", default=",".join([OURS, *PEERS]), help="which frameworks, with commas")
    parser.add_argument("--timeout", type=float, default=900, help="seconds after which a point is given up")
    parser.add_argument("--dir", type=Path, help="where logs are kept")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    chosen = [who for who in (OURS, *PEERS) if who in args.only.split(",")]
    # What is started is ended in `finally`, so being asked to end must be an exception like any other.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if unknown := set(args.only.split(",")) - {OURS, *PEERS}:
        parser.error(f"--only knows {', '.join([OURS, *PEERS])}, not {', '.join(sorted(unknown))}")
    for who in chosen:
        if who in PEERS:
            python_of(who)
    if args.dir and args.dir.exists() and any(args.dir.iterdir()):
        parser.error(f"{args.dir} is not empty: name another folder for the logs")
    root = args.dir or Path(tempfile.mkdtemp(prefix="silobus-peers-"))
    before = os.getloadavg()[0]
    print(f"Logs are kept in {root}; load average {before:.1f}, should be near 0", file=sys.stderr)
    root.mkdir(parents=True, exist_ok=True)
    machine = Machine.measured(root, "float32")
    outcomes = []
    for silos in args.silos:
        for megabytes in args.megabytes:
            for who in chosen:
                outcome = measure(who, Point(int(silos), megabytes, args.rounds), root, args.timeout, machine)
                print(json.dumps(outcome.as_json()), file=sys.stderr, flush=True)
                outcomes.append(outcome)
    if args.json:
        load = [round(one, 2) for one in (before, os.getloadavg()[0])]
        told = {"cores": os.cpu_count(), "load_average": load, "outcomes": as_json(outcomes)}
        print(json.dumps(told, indent=2))
    else:
        print(text(outcomes))


if __name__ == "__main__":
    main()
