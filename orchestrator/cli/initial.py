"""`silobus start --init`: the model as a training script first constructs it, uploaded as a run's initial weights.

The script runs here, on the operator's machine, by the training contract with purpose `initialise`; no data are used.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from messages import names
from messages.errors import AlreadyExists
from messages.fields import SCHEMA_VERSION
from messages.ports import Store
from orchestrator.cli.processes import die_with_parent, terminate
from orchestrator.cli.terminal import Complaint

SHOWN = 20
"""Last lines of a failed script's output that are shown."""


async def upload(store: Store, script: Path, task: str, experiment: str, hyperparameters: Mapping[str, Any]) -> str:
    """Runs the script, puts its model into `initial` under its digest, and returns the digest."""
    if not script.is_file():  # noqa: ASYNC240  (a command of one task: nothing else waits)
        raise Complaint(
            f"{script} is not there. --init takes a training script, such as examples/breast_cancer/train.py."
        )
    with tempfile.TemporaryDirectory(prefix="silobus-init-") as scratch:
        given, output = _directories(Path(scratch), _round(task, experiment, hyperparameters))
        await _run(script, given, output)
        weights = output / "update.safetensors"
        digest = await asyncio.to_thread(_checked, weights, output / "report.json", script)
        with suppress(AlreadyExists):  # named by content: it is there already
            await store.create(names.INITIAL, names.initial_blob(digest), weights)
    return digest


def _directories(scratch: Path, said: Mapping[str, Any]) -> tuple[Path, Path]:
    given, output = scratch / "in", scratch / "out"
    (given / "state").mkdir(parents=True)
    output.mkdir()
    (given / "round.json").write_text(json.dumps(said), encoding="utf-8")
    return given, output


def _round(task: str, experiment: str, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "experiment": experiment,
        "run": f"{experiment}_00000000",
        "round": 0,
        "task": task,
        "purpose": "initialise",
        "share": ["*"],
        "transfer": {"form": "weights", "dtype": None},
        "hyperparameters": dict(hyperparameters),
        "data": {},
        "seed": 0,
        "weights": None,
    }


async def _run(script: Path, given: Path, output: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        script.name,
        cwd=script.parent,
        env={**os.environ, "SILOBUS_INPUT": str(given), "SILOBUS_OUTPUT": str(output)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        preexec_fn=die_with_parent,
    )
    try:
        said, _ = await process.communicate()
    finally:
        await terminate(process)
    if process.returncode != 0:
        lines = said.decode("utf-8", "replace").rstrip().splitlines()[-SHOWN:]
        last = lines[-1] if lines else "it printed nothing"
        raise Complaint(
            "\n".join(
                [
                    *lines,
                    "",
                    f"{script} failed (exit status {process.returncode}): {last}",
                    "With --init a script gets no data: rnd.load(model) must come before rnd.data is read,",
                    "and rnd.data be read only if rnd.evaluates or rnd.trains.",
                ]
            )
        )


def _checked(weights: Path, report: Path, script: Path) -> str:
    try:
        claimed = json.loads(report.read_text())["update"]["sha256"]
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, KeyError, TypeError):
        raise Complaint(f"{script} left no model: does it call rnd.load(model) in every round?") from None
    if claimed != digest:
        raise Complaint(f"{script} changed its model after reporting it; write update.safetensors before report.json.")
    return digest
