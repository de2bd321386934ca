"""`silobus demo`: one command, real processes, real numbers, and nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from tests.e2e.command import environment, eventually, processes_of, run, start

SILOS = ("north", "south", "island")


@dataclass
class Done:
    """A demo that is over."""

    folder: Path
    temporary: Path
    said: Any


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("demo")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("temporary")))
    done = run("demo", "--dir", folder, "--json")
    temporary = Path(os.environ["TMPDIR"])
    monkeypatch.undo()
    assert done.returncode == 0, done.stderr
    return Done(folder, temporary, json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_the_federated_model_is_nearly_as_good_as_one_on_pooled_data(demo: Done) -> None:
    said = demo.said
    assert said["status"] == "completed"
    assert [row["round"] for row in said["rounds"]] == [1, 2, 3, 4, 5]
    assert all(row["updates"] == 3 and row["seconds"] > 0 for row in said["rounds"])

    final = said["final"]
    federated = final["federated"]["accuracy"]
    alone = [final["alone"][silo]["accuracy"] for silo in SILOS]
    assert list(final["alone"]) == list(SILOS)
    assert federated >= final["pooled"]["accuracy"] - 0.02
    assert federated > statistics.mean(alone) + 0.02
    # Two ways to the same number: pooled from what each hospital measured on its part of the held-out patients, and
    # evaluated here, on all of them, from the file.
    assert said["rounds"][-1]["metrics"]["accuracy"] == pytest.approx(federated, abs=1e-6)
    assert said["rounds"][-1]["metrics"]["loss"] == pytest.approx(final["federated"]["loss"], rel=1e-4)

    assert {name: tensor.shape for name, tensor in load_file(said["model"]).items()}["0.weight"] == (16, 30)
    assert sum(said["data"].values()) + said["held_out"] == 569
    assert processes_of(demo.folder) == set()


@pytest.mark.slow
def test_no_patient_of_a_hospital_leaves_it(demo: Done) -> None:
    rows = (demo.folder / "silos" / "north" / "data" / "breast-cancer" / "train.csv").read_text().splitlines()[1:]
    number = rows[0].split(",")[3].encode()  # an area: five or six digits that nothing else has
    outside = [
        path
        for top in ("bus", "store", "logs")
        for path in (demo.folder / top).rglob("*")
        if path.is_file() and number in path.read_bytes()
    ]
    assert outside == []
    assert [p for p in (demo.folder / "silos" / "north").rglob("*.csv") if number in p.read_bytes()]


@pytest.mark.slow
def test_nothing_of_the_comparison_stays_behind(demo: Done) -> None:
    assert list(demo.temporary.glob("silobus-*")) == []
    assert list(demo.folder.glob("baselines-*")) == []


@pytest.mark.slow
def test_stopped_by_ctrl_c_in_the_middle_it_leaves_no_process(tmp_path: Path) -> None:
    demo = start("demo", "--dir", tmp_path, "--silos", 2, "--rounds", 1000)
    try:
        store = tmp_path / "store" / "state" / "rounds"
        eventually("rounds are over", lambda: store.exists() and len(list(store.glob("*/*"))) > 2)
        assert len(processes_of(tmp_path)) >= 6, "bus, orchestrator, agents, trainers"

        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=120)
    finally:
        demo.kill()

    assert demo.returncode == 130
    assert "Traceback" not in errors
    assert list(tmp_path.glob("baselines-*")) == []
    assert eventually("nothing is left", lambda: not processes_of(tmp_path))


@pytest.mark.slow
def test_killed_outright_it_leaves_no_process_either(tmp_path: Path) -> None:
    demo = start("demo", "--dir", tmp_path, "--silos", 1, "--rounds", 1000)
    try:
        store = tmp_path / "store" / "state" / "rounds"
        eventually("rounds are over", lambda: store.exists() and len(list(store.glob("*/*"))) > 1)
    finally:
        demo.kill()
        demo.communicate()

    assert eventually("nothing is left", lambda: not processes_of(tmp_path))


INTERRUPTED = """
import os, signal, sys
class Interrupts:
    def find_spec(self, name, *rest):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs these tests may have had it ignored
sys.meta_path.insert(0, Interrupts())
wanted, sys.argv = sys.argv[1], ["silobus", *sys.argv[2:]]
from orchestrator.cli import main
main()
"""


@pytest.mark.parametrize("module", ["typer", "yaml", "orchestrator.cli.demo"])
def test_ctrl_c_while_it_is_still_being_imported_is_no_traceback(tmp_path: Path, module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module, "demo", "--dir", str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
        check=False,
    )

    assert (done.returncode, done.stderr) == (130, "Stopped.\n")


def test_an_unknown_task_is_said_plainly(tmp_path: Path) -> None:
    done = run("demo", "--task", "cats", "--dir", tmp_path)

    assert done.returncode == 1
    assert done.stderr.strip() == "There is no demo task 'cats'. There are: breast-cancer, digits."
