"""Some seconds of `benchmarks.chaos`. The minutes that prove something are run by hand (docs/testing.md)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.chaos.plan import EVERY, Kind, plan
from tests.e2e.command import ROOT, environment


def test_the_same_seed_makes_the_same_plan_and_leaving_a_kind_out_moves_no_other() -> None:
    whole = plan(1, 600, EVERY)
    assert plan(1, 600, EVERY) == whole
    assert plan(2, 600, EVERY) != whole
    assert {action.kind for action in whole} == set(Kind)
    assert sum(action.kind.startswith("kill") for action in whole) > 100
    alone = plan(1, 600, {Kind.KILL_ORCHESTRATOR: 10.0})
    assert alone == [action for action in whole if action.kind is Kind.KILL_ORCHESTRATOR]
    assert [action.at for action in alone] == [10.0 * n for n in range(1, 60)]


@pytest.mark.slow
def test_some_seconds_of_chaos_leave_everything_right(tmp_path: Path) -> None:
    often = {"kill-orchestrator": 2, "kill-agent": 3, "kill-trainer": 2, "kill-bus": 4, "stop": 3, "empty-queues": 3}
    arguments = ["--minutes=0.08", "--experiments=3", "--rounds=2", "--lock=2", "--fill-disk-every=0"]
    arguments += [f"--{kind}-every={seconds}" for kind, seconds in often.items()]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", *arguments, "--json", f"--dir={tmp_path / 'chaos'}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
        timeout=300,
        check=False,
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert found["violations"] == []
    assert done.returncode == 0
    assert found["kills"] >= 4
    assert found["experiments"] >= 3
    assert (tmp_path / "chaos" / "actions.jsonl").read_text().count("kill") >= 4
