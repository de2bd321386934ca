"""`python -m benchmarks.chaos`: the command, and the order of things.

First everything is started; then, for as long as asked, experiments run and the plan is carried out; then the faults
stop, everything is started again, and what was begun must end; then everything is stopped and judged.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.chaos.dead_letters import Collection
from benchmarks.chaos.director import Director
from benchmarks.chaos.disks import enter_namespace
from benchmarks.chaos.judge import Judge
from benchmarks.chaos.leftovers import left_over
from benchmarks.chaos.load import Load, Operator
from benchmarks.chaos.plan import EVERY, KILLS, Action, Kind, plan
from benchmarks.chaos.stage import SILOS, Stage
from messages import names
from orchestrator.cli.federation import Federation, reach
from silo_agent.home import Home
from silo_agent.settings import SiloSettings

FAULTS = ("all=0.5%", "ack-lost=1%", "duplicate=3%", "delay=3%:80ms", "idle-detach=10%:1s", "lock-max-age=6s")
"""What the emulator does besides, all the time."""
STARTUP = 30.0
SETTLING = 20.0
"""Seconds in which messages must be done with, and what retention does not keep be gone, after the last run's end."""


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for."""

    seconds: float
    seed: int
    orchestrators: int
    load: Load
    floats: int
    lock: float
    faults: Sequence[str]
    actions: Sequence[Action]
    patience: float
    """Seconds after the faults in which every experiment must end."""
    least_kills: int
    """With fewer nothing was shown."""


async def run(options: Options, root: Path, *, small_disks: bool) -> tuple[dict[str, Any], Stage]:
    """One performance; the report, and the stage with nothing running on it."""
    stage = Stage(
        root,
        orchestrators=options.orchestrators,
        at_once=options.load.at_once,
        floats=options.floats,
        lock=options.lock,
        small_disks=small_disks,
    )
    try:
        await stage.start()
        async with reach(root, None) as federation:
            return await _perform(options, stage, federation), stage
    finally:
        await stage.end()


async def _perform(options: Options, stage: Stage, federation: Federation) -> dict[str, Any]:
    await _ready(federation)
    operator = Operator(federation, options.load, options.seed)
    letters = Collection(federation)
    director = Director(stage, stage.folder.root / "actions.jsonl", options.faults, letters.look)
    stage.faults = options.faults
    await stage.ask_for_faults(options.faults, options.seed)
    began = time.monotonic()
    working = asyncio.create_task(operator.run())
    directing = asyncio.create_task(director.carry_out(options.actions))
    await asyncio.sleep(options.seconds)
    rounds_in_time = len(await federation.store.list(names.STATE, "rounds/"))
    operator.stop()
    await directing
    director.note("faults stop")
    stage.faults = ()
    await _calm(stage)
    stuck = await _wait(working, operator, options.patience)
    ended_after = time.monotonic() - began
    for _ in range(3):
        if await letters.look():
            break
    judge = Judge(federation.store, operator.asked)
    settled_by = time.monotonic() + SETTLING
    while left := [*await judge.beyond_retention(), *await left_over(federation)]:
        if time.monotonic() > settled_by:
            break
        await asyncio.sleep(0.5)
    await stage.end()
    director.close()
    stage.messages += stage.messages_there()
    judge.violations += left
    for name in stuck:
        judge.say(f"{name} had not ended {options.patience:g} s after the faults")
    judge.homes({s.name: Home(stage.folder.home(s.name)) for s in SILOS}, keep=_keep_rounds())
    await judge.experiments()
    judge.logs(stage.folder.root / "logs", stage.departures)
    judge.dead_letters(letters.letters.values())
    judge.disk(stage.folder.root / "scratch", stage.folder.store / ".incoming")
    for pid in await stage.trainers():
        judge.say(f"process {pid} trains, and its agent has ended")
    counts = director.counts
    if judge.completed == 0:
        judge.say("no experiment completed, so nothing was shown")
    if counts["kills"] < options.least_kills:
        judge.say(f"{counts['kills']} kills are fewer than {options.least_kills}, so little was shown")
    return {
        "seed": options.seed,
        "minutes": round(options.seconds / 60, 2),
        "orchestrators": options.orchestrators,
        "kills": counts["kills"],
        "stops": counts["stops"],
        "disk_full": counts["disk_full"],
        "connections_broken": counts["connections_broken"],
        "queues_emptied": counts["queues_emptied"],
        "ended_by_themselves": len(stage.departures),
        "experiments": judge.completed,
        "rounds": sum(len(records) for records in judge.records.values()),
        "rounds_per_minute": round(rounds_in_time / options.seconds * 60, 1),
        "messages": stage.messages,
        "dead_letters": len(letters.letters),
        "seconds": round(ended_after, 1),
        "violations": judge.violations,
    }


async def _ready(federation: Federation) -> None:
    deadline = time.monotonic() + STARTUP
    while len(await federation.store.list(names.STATE, "presence/")) < len(SILOS):
        if time.monotonic() > deadline:
            raise SystemExit("The federation did not start. --dir keeps its logs for a look.")
        await asyncio.sleep(0.1)


async def _calm(stage: Stage) -> None:
    """No faults any more, and everything runs."""
    for _ in range(50):
        for name in ("bus", *stage.orchestrators, *stage.agents):
            await stage.raise_up(name)
        if await stage.ask_for_faults((), 0):
            return
        await asyncio.sleep(0.2)
    raise SystemExit("The emulator does not answer, though nothing is done to it any more.")


async def _wait(working: asyncio.Task[None], operator: Operator, patience: float) -> list[str]:
    """Experiments that have not ended after so many seconds."""
    await asyncio.wait({working}, timeout=patience)
    if not working.done():
        working.cancel()
        await asyncio.wait({working})
        return sorted(operator.waiting)
    working.result()
    return []


def _keep_rounds() -> int:
    return int(SiloSettings.model_fields["keep_rounds"].default)


def options_from(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, Options]:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description="Rounds survive anything.")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long things go wrong")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--orchestrators", type=int, default=2)
    parser.add_argument("--experiments", type=int, default=8, help="at once")
    parser.add_argument("--rounds", type=int, default=5, help="of an experiment, give or take two")
    parser.add_argument("--delay", type=float, default=0.6, help="seconds that a silo trains, at most")
    parser.add_argument("--floats", type=int, default=20_000, help="numbers in the model")
    parser.add_argument("--lock", type=float, default=4.0, help="seconds that a message stays locked")
    parser.add_argument("--fault", action="append", help="of the emulator, instead of its usual ones; `none`: no fault")
    parser.add_argument("--only", action="append", choices=[str(kind) for kind in Kind], help="nothing else goes wrong")
    for kind, every in EVERY.items():
        parser.add_argument(f"--{kind}-every", type=float, default=every, metavar="SECONDS", help="on average")
    at_least = "fewer are a violation; 1 unless nothing that kills was asked for"
    parser.add_argument("--at-least-kills", type=int, metavar="N", help=at_least)
    compare = (
        "one orchestrator, then two; status 1 when two are not faster. With --only kill-orchestrator, if none is given"
    )
    parser.add_argument("--compare", action="store_true", help=compare)
    parser.add_argument("--patience", type=float, default=180.0, help="seconds until all must have ended")
    parser.add_argument("--dir", type=Path, help="an empty folder for everything; it is kept")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    if args.compare and args.only is None:
        args.only = [Kind.KILL_ORCHESTRATOR]
    wanted = args.only or list(Kind)
    every_of = {kind: getattr(args, f"{kind}-every".replace("-", "_")) for kind in Kind if kind in wanted}
    actions = plan(args.seed, args.minutes * 60, every_of)
    kills = any(action.kind in KILLS for action in actions)
    options = Options(
        seconds=args.minutes * 60,
        seed=args.seed,
        orchestrators=args.orchestrators,
        load=Load(args.experiments, args.rounds, args.delay, partial=True),
        floats=args.floats,
        lock=args.lock,
        faults=[fault for fault in args.fault or (FAULTS if args.only is None else ()) if fault != "none"],
        actions=actions,
        patience=args.patience,
        least_kills=int(kills) if args.at_least_kills is None else args.at_least_kills,
    )
    return args, options


def main() -> int:
    """The exit status: 1 with violations, and where two orchestrators are not faster than one."""
    args, options = options_from()
    fills_disks = any(action.kind is Kind.FILL_DISK for action in options.actions)
    small_disks = fills_disks and enter_namespace()
    if fills_disks and not small_disks:
        print("No disk was filled: this machine lets nobody mount a file system of their own.", file=sys.stderr)
    if not args.compare:
        report = _performed(options, args.dir, small_disks=small_disks)
        _print(report, as_json=args.json)
        return 1 if report["violations"] else 0
    reports = []
    for orchestrators in (1, 2):
        folder = args.dir and args.dir / f"orchestrators-{orchestrators}"
        reports.append(_performed(replace(options, orchestrators=orchestrators), folder, small_disks=small_disks))
        if not args.json:
            _print(reports[-1], as_json=False)
    wrong = compared(*reports)
    if args.json:
        print(json.dumps({"runs": reports, "violations": wrong}, indent=2))
    else:
        one, two = (report["rounds_per_minute"] for report in reports)
        print(f"One orchestrator made {one} rounds per minute, two made {two}.")
    return 1 if wrong else 0


def compared(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """The violations of both, and that two orchestrators are not faster, if they are not."""
    wrong = [*one["violations"], *two["violations"]]
    slow, fast = one["rounds_per_minute"], two["rounds_per_minute"]
    if fast <= slow:
        wrong.append(f"two orchestrators made {fast} rounds per minute, which is no more than the {slow} of one")
    return wrong


def _performed(options: Options, folder: Path | None, *, small_disks: bool) -> dict[str, Any]:
    """The report of one performance, whose folder is kept if it was named, or if something is wrong."""
    root = (folder or Path(tempfile.mkdtemp(prefix="silobus-chaos-"))).absolute()
    report, stage = asyncio.run(run(options, root, small_disks=small_disks))
    keep = bool(folder or report["violations"])
    stage.forget(keep=keep)
    if keep:
        print(f"Everything is in {root}: actions.jsonl, logs/, store/, silos/.", file=sys.stderr)
    return report


def _print(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))
        return
    for name, value in report.items():
        if name != "violations":
            print(f"{name.replace('_', ' '):>20}  {value}")
    for violation in report["violations"]:
        print(f"VIOLATION  {violation}")
    print("No violations." if not report["violations"] else f"{len(report['violations'])} violations.")


if __name__ == "__main__":
    sys.exit(main())
