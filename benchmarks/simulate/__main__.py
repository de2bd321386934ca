"""What rounds cost, for so many silos; and whether a late round costs more than an early one.

    python -m benchmarks.simulate --silos 30,100,300 --rounds 50
    python -m benchmarks.simulate --silos 30 --rounds 1000

The real `step` and the real shell, as production wires them, over a bus and a store in memory and a clock that jumps
from one thing that happens to the next; silos pretend (`fleet`). Everything but CPU and wall time is the same each
time for a seed. From 100 rounds on, round 10 stands beside the next and the last round in which the same happened to
every silo.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from typing import Any, Final

from benchmarks.simulate.fleet import Weather
from benchmarks.simulate.world import Outcome, simulate
from messages.experiments import Quorum
from orchestrator.experiment.state import RoundRecord

EARLY: Final = 10
WINDOW: Final = 5
"""CPU time is compared over so many rounds, up to each of these: of one round alone it is mostly noise."""
BLOBS: Final = ("read", "write", "create", "open", "range", "list", "delete")
QUEUES: Final = ("experiments", "work", "to", "from")


def measured(outcome: Outcome, rounds: range) -> dict[str, Any]:
    """What these rounds cost, by round and by silo and round."""
    tally, number = outcome.meters.total(rounds), len(rounds)
    records = [outcome.records[r] for r in rounds]
    events = _events(tally.counts)

    def per_round(name: str) -> float:
        return round(tally.counts[name] / number, 2)

    def operations(counts: Counter[str], *names: str) -> float:
        return round(sum(counts[name] for name in names) / number / outcome.silos, 2)

    billed = ("message.settled", "message.dead-lettered", "message.renewed", *_all("message.sent", "message.received"))
    return {
        "silos": outcome.silos,
        "rounds": number,
        "virtual_min_per_round": round(statistics.fmean(map(_seconds, records)) / 60, 2),
        "updates_per_round": round(statistics.fmean(len(record.updates) for record in records), 1),
        "stragglers_per_round": round(statistics.fmean(_others(record, "had not") for record in records), 2),
        "failed_per_round": round(statistics.fmean(_others(record, "failed") for record in records), 2),
        "events_per_round": round(events / number, 1),
        "cpu_ms_per_event": round(1000 * tally.cpu / events, 3),
        "wall_s": round(outcome.wall, 1),
        "document_bytes_median": round(statistics.median(tally.documents)),
        "document_bytes_max": max(tally.documents),
        "state_kb_written_per_round": round(per_round("bytes.written.state") / 1000, 1),
        "state_kb_read_per_round": round(per_round("bytes.read.state") / 1000, 1),
        "blobs_per_round": {kind: per_round(f"blob.{kind}") for kind in BLOBS},
        "blobs_per_silo_and_round": operations(tally.counts, *(f"blob.{kind}" for kind in BLOBS)),
        "received_per_round": {queue: per_round(f"message.received.{queue}") for queue in QUEUES},
        "sent_per_round": {queue: per_round(f"message.sent.{queue}") for queue in QUEUES},
        "heartbeats_per_round": per_round("kind.silo-heartbeat"),
        "bus_operations_per_silo_and_round": operations(tally.counts, *billed),
        "agents_blobs_per_silo_and_round": {
            kind: operations(tally.agents, f"blob.{kind}") for kind in BLOBS if tally.agents[f"blob.{kind}"]
        },
        "agents_bus_operations_per_silo_and_round": operations(tally.agents, *billed),
    }


def compared(outcome: Outcome, alike: list[int]) -> dict[str, Any]:
    """The counts of rounds in which the same happened to every silo, and the ratio of what is not counted."""
    tallies = [outcome.meters.rounds[number] for number in alike]
    names = sorted({name for tally in tallies for name in tally.counts if not name.startswith("bytes.")})
    cpu = [measured(outcome, range(at - WINDOW + 1, at + 1))["cpu_ms_per_event"] for at in alike]
    return {
        "alike": alike,
        "counts": {name: [tally.counts[name] for tally in tallies] for name in names},
        "differ": [name for name in names if len({tally.counts[name] for tally in tallies}) > 1],
        "differ_later": [name for name in names if len({tally.counts[name] for tally in tallies[1:]}) > 1],
        "document_bytes_median": [round(statistics.median(tally.documents)) for tally in tallies],
        "document_bytes_max": [max(tally.documents) for tally in tallies],
        "state_kb_written": [round(tally.counts["bytes.written.state"] / 1000, 1) for tally in tallies],
        "cpu_ms_per_event": cpu,
    }


def _events(counts: Counter[str]) -> int:
    return sum(counts[f"message.received.{queue}"] for queue in QUEUES)


def _all(*prefixes: str) -> list[str]:
    return [f"{prefix}.{queue}" for prefix in prefixes for queue in QUEUES]


def _seconds(record: RoundRecord) -> float:
    return (record.over_at - record.opened_at).total_seconds()


def _others(record: RoundRecord, how: str) -> int:
    return sum(reason.startswith(how) for reason in record.others.values())


def table(rows: list[dict[str, Any]]) -> str:
    """One column per number of silos."""
    lines = []
    for name in rows[0]:
        values = [row[name] for row in rows]
        if isinstance(values[0], dict):
            kinds = [kind for kind in values[0] if any(value.get(kind) for value in values)]
            lines += [(f"{name}: {kind}", [value.get(kind, 0) for value in values]) for kind in kinds]
        else:
            lines.append((name, values))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}" + "".join(f"{value:>12,}" for value in values) for name, values in lines)


def comparison(found: dict[str, Any]) -> str:
    """The rounds side by side."""
    lines = [("", [f"round {number}" for number in found["alike"]])]
    lines += [(name, [f"{value:,}" for value in values]) for name, values in found["counts"].items()]
    for name in ("document_bytes_median", "document_bytes_max", "state_kb_written", "cpu_ms_per_event"):
        lines.append((name, [f"{value:,}" for value in found[name]]))
    width = max(len(name) for name, _ in lines)
    rows = [f"{name:<{width}}" + "".join(f"{value:>14}" for value in values) for name, values in lines]
    return "\n".join([*rows, f"counts that differ: {', '.join(found['differ']) or 'none'}"])


def main() -> None:
    parser = argparse.ArgumentParser(description="What rounds cost an orchestrator, on a virtual clock.")
    parser.add_argument("--silos", default="30", help="how many; several with commas between them")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--heartbeat", type=float, default=15.0, help="seconds between a silo's signs of life")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    weather = Weather(seed=args.seed, heartbeat=args.heartbeat)
    quorum = Quorum(minimum=0.8, grace=60, deadline=600)
    rows, late_rounds = [], []
    for silos in map(int, args.silos.split(",")):
        outcome = simulate(silos, args.rounds, weather, quorum)
        rows.append(measured(outcome, range(1, args.rounds + 1)))
        alike = list(range(EARLY, args.rounds + 1, weather.period))
        if len(alike) > 1:
            late_rounds.append({"silos": silos, **compared(outcome, sorted({*alike[:2], alike[-1]}))})
        if not args.json:
            print(f"{silos} silos: {args.rounds} rounds in {outcome.wall:.0f} s", file=sys.stderr)
    if args.json:
        print(json.dumps({"rounds": rows, "early_and_late": late_rounds}, indent=2))
        return
    print(table(rows))
    for found in late_rounds:
        print(f"\n{found['silos']} silos")
        print(comparison(found))


if __name__ == "__main__":
    main()
