"""`silobus demo`: hospitals train one model through real processes; then it is compared with what each has alone.

Here lives the demo's course. All its numbers come from the training script itself: the federated model's, those of
hospitals alone and that of pooled data are its own evaluation on the same held-out patients (`baselines`).
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from messages.experiments import Metric, Quorum, StartExperiment
from orchestrator.cli import experiments, hospitals, status, watch
from orchestrator.cli.federation import DEFAULT_FOLDER, Dir, Federation, reach
from orchestrator.cli.folder import Folder, make, write_silo
from orchestrator.cli.local import Local, running
from orchestrator.cli.patients import read_rows
from orchestrator.cli.processes import die_with_parent, ends_on_signals, terminate
from orchestrator.cli.standing import Reader, Standing
from orchestrator.cli.terminal import Complaint, Json, command, console, say, say_json, table, warn
from orchestrator.cli.wording import history, models, reason_of, status_of

POOLED = "pooled data"  # no silo's name


@command
async def demo(
    *,
    silos: Annotated[int, typer.Option("--silos", min=1, max=20, help="Hospitals.")] = 3,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=1000, help="Rounds of training.")] = 5,
    task: Annotated[str, typer.Option("--task", help="breast-cancer or digits.")] = "breast-cancer",
    seed: Annotated[int, typer.Option("--seed", help="Another seed shares the patients out differently.")] = 0,
    directory: Dir = None,
    as_json: Json = False,
) -> None:
    """Trains one model over hospitals that keep their data, and compares it with what each has alone."""
    course = _Course(
        Folder((directory or DEFAULT_FOLDER).absolute()),
        hospitals.silo_names(silos),
        hospitals.task_named(task),
        rounds,
        seed,
        as_json=as_json,
    )
    with ends_on_signals() as signals:
        try:
            result = await course.run()
        except asyncio.CancelledError:
            if not signals:
                raise
            warn("Stopped.")
            raise typer.Exit(128 + signals[0]) from None
    if as_json:
        say_json(result, indent=None)
    else:
        _tell(result, course)
    if result["status"] != "completed":
        warn(f"The run {result['status']}: {result['reason']}\nLook into the logs in {course.folder.root / 'logs'}.")
        raise typer.Exit(1)


class _Course:
    """One demo, from its first process to its last number."""

    def __init__(
        self, folder: Folder, silos: list[str], task: hospitals.Task, rounds: int, seed: int, *, as_json: bool
    ) -> None:
        self.folder = folder
        self.silos = silos
        self.task = task
        self.rounds = rounds
        self.seed = seed
        self.as_json = as_json
        self._data = hospitals.Data(folder, task)
        self._began = time.monotonic()

    async def run(self) -> dict[str, Any]:
        """The result, when every process has ended."""
        script = hospitals.script(self.task)
        make(self.folder)
        noun = "hospital" if len(self.silos) == 1 else "hospitals"
        self._say(f"{len(self.silos)} {noun}, {self.task.name}; starting bus, orchestrator and agents …")
        async with (
            comparing(script, self.task, self.folder) as compare,
            running(self.folder, self.silos, warn) as local,
        ):
            await hospitals.admit(self.task, self.folder, self.silos, seed=self.seed)
            for silo in self.silos:
                write_silo(self.folder, silo, hospitals.policy(self.task, self.folder, silo, len(self.silos)))
            await local.start_agents()
            baselines = asyncio.create_task(compare.ask(self._baselines()))
            try:
                standing, final = await self._federated(local, compare)
                alone = await baselines
            finally:
                baselines.cancel()
        return self._result(standing, final, alone)

    async def _federated(self, local: Local, compare: Comparison) -> tuple[Standing, Any]:
        await local.ready()
        async with reach(self.folder.root, None) as federation:
            reader = Reader(federation.store)
            message = self._start(await _free_name(reader))
            self._say(f"All are up; posting to the queue: {experiments.body_of(message).decode()}")
            # The id makes the run's name, and that the seeds of training: a demo can be repeated, number for number.
            sent = await experiments.send(federation.bus, message, message_id=f"{message.experiment}-{self.seed}")
            await experiments.accepted(federation, message, sent)
            standing = await watch.show(
                lambda: reader.read(message.experiment), 0.05, line_by_line=warn if self.as_json else None
            )
            final = await self._evaluated(federation, standing, compare)
        return standing, final

    async def _evaluated(self, federation: Federation, standing: Standing, compare: Comparison) -> Any:
        found = models(standing.run).get("last")
        if status_of(standing) != "completed" or found is None:
            return None
        model = self.folder.model(standing.experiment)
        model.parent.mkdir(exist_ok=True)
        await status.download(federation.store, found["blob"], found["sha256"], model)
        return await compare.ask({"weights": str(model), "test": str(self._data.held_out)})

    def _start(self, experiment: str) -> StartExperiment:
        quorum = Quorum(minimum=2) if len(self.silos) > 2 else Quorum()
        return StartExperiment(
            experiment=experiment,
            task=self.task.name,
            rounds=self.rounds,
            quorum=quorum,
            metric=Metric(name="accuracy"),
            hyperparameters=dict(self.task.hyperparameters),
        )

    def _baselines(self) -> dict[str, Any]:
        trains = {silo: str(self._data.train(silo)) for silo in self.silos} | {POOLED: str(self._data.pooled)}
        return {"trains": trains, "test": str(self._data.held_out), "rounds": self.rounds}

    def _result(self, standing: Standing, federated: Any, alone: Mapping[str, Any]) -> dict[str, Any]:
        rows = [
            {key: row[key] for key in ("round", "updates", "metrics", "seconds")}
            for row in history(standing)
            if row["round"] > 0
        ]
        return {
            "experiment": standing.experiment,
            "status": status_of(standing),
            "reason": reason_of(standing),
            "rounds": rows,
            "final": {
                "federated": federated,
                "alone": {silo: alone[silo] for silo in self.silos},
                "pooled": alone[POOLED],
            },
            "data": {silo: len(read_rows(self._data.train(silo))) for silo in self.silos},
            "held_out": len(read_rows(self._data.held_out)),
            "model": str(self.folder.model(standing.experiment)),
            "seconds": round(time.monotonic() - self._began, 2),
        }

    def _say(self, line: str) -> None:
        (warn if self.as_json else say)(line)


class Comparison:
    """The process that runs the training script outside of the federation."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log
        self._turn = asyncio.Lock()

    async def ask(self, job: Mapping[str, Any]) -> Any:
        """A job's answer; jobs wait for each other."""
        given, taken = self._process.stdin, self._process.stdout
        if given is None or taken is None:
            raise RuntimeError("the comparison was started without pipes")
        async with self._turn:
            given.write(json.dumps(job).encode() + b"\n")
            line = await taken.readline()
        if not line:
            raise Complaint(f"The comparison failed. Look into {self._log}.")
        return json.loads(line)


@asynccontextmanager
async def comparing(script: Path, task: hospitals.Task, folder: Folder) -> AsyncIterator[Comparison]:
    """Starts `baselines`, which imports torch while everything else starts."""
    log = folder.log("baselines")
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="baselines-", dir=folder.root, ignore_cleanup_errors=True) as scratch:
        arguments = ["-m", "orchestrator.cli.baselines", str(script), json.dumps(dict(task.hyperparameters)), scratch]
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        try:
            yield Comparison(process, log)
        finally:
            await asyncio.shield(terminate(process))


async def _free_name(reader: Reader) -> str:
    taken = set(await reader.experiments())
    return next(name for n in range(1, 100_000) if (name := f"demo-{n}") not in taken)


def _tell(result: Mapping[str, Any], course: _Course) -> None:
    final = result["final"]
    if final["federated"] is None:
        return
    metrics = [name for name in ("accuracy", "auroc", "loss") if name in final["federated"]]
    rows = [
        ("federated", sum(result["data"].values()), "stays where it is", final["federated"]),
        *((f"{silo} alone", result["data"][silo], "its own", final["alone"][silo]) for silo in course.silos),
        ("pooled", sum(result["data"].values()), "all in one place", final["pooled"]),
    ]
    cells = [(name, patients, data, *(f"{numbers[m]:.3f}" for m in metrics)) for name, patients, data, numbers in rows]
    title = f"On the same {result['held_out']} held-out {course.task.rows}, after {course.rounds} rounds:"
    columns = ("model", course.task.rows, "which", *metrics)
    say("")
    console().print(table(columns, cells, numbers=(course.task.rows, *metrics), title=title))
    say(f"The federated model: {result['model']}")
    say(f"Everything took {result['seconds']:.1f} s. Logs, queues and blobs are in {course.folder.root}.")
