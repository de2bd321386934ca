"""What a job runs first, as AzureML runs it: a process by itself, of the standard library alone."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from silo_agent.runners import azureml_job

REPORT = "import os, pathlib; pathlib.Path(os.environ['SILOBUS_OUTPUT'], 'report.json').write_text('{}')"


@pytest.fixture
def node(tmp_path: Path) -> Path:
    (tmp_path / "round").mkdir()
    (tmp_path / "round" / "round.json").write_text(json.dumps({"purpose": "train", "data": {}}))
    return tmp_path


def launched(node: Path, *command: str, rank: int | None = None) -> int:
    environment = {"PATH": "/usr/bin:/bin", **({} if rank is None else {"RANK": str(rank)})}
    places = ["--lib", str(node / "lib"), "--round", str(node / "round"), "--result", str(node / "result")]
    launcher = [sys.executable, "-I", azureml_job.__file__, *places, "--", *command]
    return subprocess.run(launcher, cwd=node, env=environment, check=False, capture_output=True).returncode


def told(node: Path, rank: int = 0) -> dict[str, object]:
    said: dict[str, object] = json.loads((node / "result" / "ranks" / f"{rank}.json").read_text())
    return said


def test_a_job_that_begins_again_leaves_nothing_of_before(node: Path) -> None:
    """AzureML itself puts a job that was preempted back into its queue."""
    for name in ("report.json", "update.safetensors", "control.safetensors", "state/old", "ranks/1.json"):
        (node / "result" / name).parent.mkdir(parents=True, exist_ok=True)
        (node / "result" / name).write_text("of before")
    assert launched(node, "false") == 1
    left = sorted(p.relative_to(node / "result").as_posix() for p in (node / "result").rglob("*") if p.is_file())
    assert left == ["ranks/0.json", "ranks/0.txt"]
    assert told(node)["status"] == 1


def test_everything_that_the_agent_gave_is_there(node: Path) -> None:
    (node / "round" / "state").mkdir()
    given = ("weights.safetensors", "control.safetensors", "state/control.safetensors")
    for name in given:
        (node / "round" / name).write_text(name)
    reads = "".join(f"; assert (pathlib.Path(os.environ['SILOBUS_INPUT']) / {n!r}).read_text() == {n!r}" for n in given)
    assert launched(node, sys.executable, "-c", REPORT + reads) == 0


def test_only_rank_0_hands_in(node: Path) -> None:
    assert launched(node, sys.executable, "-c", REPORT, rank=1) == 0
    assert not (node / "result" / "report.json").exists()
    assert launched(node, sys.executable, "-c", REPORT, rank=0) == 0
    assert (node / "result" / "report.json").exists()


@pytest.mark.parametrize("at", ["update.safetensors", "ranks/0.txt", "ranks/0.json"])
def test_the_report_comes_last_and_not_at_all_where_something_before_it_went_wrong(node: Path, at: str) -> None:
    """What the agent takes to count is not there before everything that belongs to it."""
    more = "; pathlib.Path(os.environ['SILOBUS_OUTPUT'], 'update.safetensors').write_text('u')"
    in_the_way = f"; os.mkdir({str(node / 'result' / at)!r})"
    assert launched(node, sys.executable, "-c", REPORT + more + in_the_way) != 0
    assert not (node / "result" / "report.json").exists()


def test_the_sign_of_life_is_at_rest_before_the_report_comes(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written to the result any more once it counts."""
    seen = []

    def slowly(target: Path, result: Path, over: threading.Event) -> None:
        over.wait()
        time.sleep(0.2)
        seen.append((result / "report.json").exists())

    monkeypatch.setattr(azureml_job, "copy_progress", slowly)
    monkeypatch.setattr(azureml_job.signal, "signal", lambda *_: None)
    places = ["--lib", str(node / "lib"), "--round", str(node / "round"), "--result", str(node / "result")]
    monkeypatch.setattr(sys, "argv", ["azureml_job.py", *places, "--", sys.executable, "-c", REPORT])
    assert azureml_job.main() == 0
    assert seen == [False]
    assert (node / "result" / "report.json").exists()


@pytest.mark.parametrize(
    ("command", "code", "status"),
    [(["sh", "-c", "exit 3"], 3, 3), (["sh", "-c", "kill -9 $$"], 137, -9), (["no-such-command"], 127, 127)],
)
def test_the_exit_status_is_the_commands(node: Path, command: list[str], code: int, status: int) -> None:
    assert launched(node, *command) == code
    assert told(node)["status"] == status
