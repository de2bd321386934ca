"""Scripts as people have them, federated by a few lines: alone, one job per round, kept warm, in several processes.

The agent here is this file: it makes directories and speaks the socket's lines as the training contract says.
"""

import difflib
import json
import os
import random
import re
import runpy
import socket
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.silobus.by_hand import RoundByHand, make_round

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
KINDS = ("plain_loop", "trainer", "lightning", "ddp")
IN_ONE_PROCESS = ("plain_loop", "trainer", "lightning")
PATIENCE = 120.0

Given = Callable[..., RoundByHand]


@pytest.fixture(autouse=True)
def _one_thread_and_no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("SILOBUS_INPUT", "SILOBUS_OUTPUT", "SILOBUS_SOCKET", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def given(tmp_path: Path) -> Given:
    numbers = count(1)
    return lambda *args, **kwargs: make_round(tmp_path / f"round-{next(numbers)}", *args, **kwargs)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A table for the scripts that predict a number, and a text for the language model."""
    where = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    rows = [[rng.gauss(0, 1) for _ in range(4)] for _ in range(96)]
    lines = [",".join(f"{cell:.4f}" for cell in [*row, row[0] - 2 * row[1] + row[3]]) for row in rows]
    (where / "rows.csv").write_text("\n".join(["a,b,c,d,y", *lines]) + "\n")
    (where / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    return {kind: str(where / ("text.txt" if kind == "trainer" else "rows.csv")) for kind in KINDS}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a script in this process, where torch is already loaded, and gives what it printed."""

    def here(script: Path, *args: str, **environment: str) -> str:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", [str(script), *args])
            patched.setattr(sys, "path", [str(script.parent), *sys.path])
            for name, value in environment.items():
                patched.setenv(name, value)
            capsys.readouterr()
            runpy.run_path(str(script), run_name="__main__")
            return capsys.readouterr().out

    return here


def torchrun(script: Path, *args: str) -> list[str]:
    """Two ranks. Its exit status is not asserted on: now and then gloo aborts a process that is exiting."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*launch, str(script), *args]


def alive(**environment: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **environment}


# --- what it takes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_at_most_eight_lines_change(kind: str) -> None:
    before, after = ((EXAMPLES / kind / f"{name}.py").read_text().splitlines() for name in ("before", "after"))
    changed = [line for line in difflib.ndiff(before, after) if line.startswith(("+ ", "- "))]
    assert 5 <= len(changed) <= 8, "\n".join(changed)
    assert not any("silobus" in line for line in before)


# --- alone -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", IN_ONE_PROCESS)
def test_a_script_runs_alone_before_and_after(kind: str, data: Mapping[str, str], here: Callable[..., str]) -> None:
    before = here(EXAMPLES / kind / "before.py", "--train", data[kind])
    after = here(EXAMPLES / kind / "after.py", "--train", data[kind])
    assert "loss " in before
    assert "trained   on" in after
    assert "at the end: received  loss" in after


@pytest.mark.slow
def test_a_script_of_several_processes_runs_alone_before_and_after(data: Mapping[str, str]) -> None:
    lines = []
    for name in ("before", "after"):
        command = torchrun(EXAMPLES / "ddp" / f"{name}.py", "--train", data["ddp"], "--epochs", "2")
        environment = alive(PYTHONUNBUFFERED="1")
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        lines.append(done.stdout)
    before, after = lines
    assert "rank 0: loss" in before
    assert after.count("round 1 of 2: trained   on 96 samples in 6 steps") == 1  # by one of the two
    losses = [re.findall(r"rank 1: loss (\d+\.\d+)", printed) for printed in (before, after)]
    assert len(losses[0]) == 2
    assert losses[1][:2] == losses[0]


# --- one job per round -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", IN_ONE_PROCESS)
def test_a_script_runs_one_job_per_round(
    kind: str, data: Mapping[str, str], here: Callable[..., str], given: Given
) -> None:
    script, args = EXAMPLES / kind / "after.py", ("--train", data[kind])
    first = given("initialise")
    here(script, *args, **first.environment)
    second = given("train", weights=first.target / "update.safetensors")
    here(script, *args, **second.environment)
    state = second.target / "state"
    third = given("evaluate", weights=second.target / "update.safetensors", state=state if state.exists() else None)
    here(script, *args, **third.environment)

    assert first.report["metrics"] == []
    assert second.report["samples"] > 0
    assert second.report["steps"] > 0
    assert second.update.keys() == first.update.keys()
    assert third.report["update"] is None
    (before,), (after,) = second.report["metrics"], third.report["metrics"]
    assert after["value"] < before["value"]


def test_tied_weights_travel_once_and_a_private_head_does_not(
    data: Mapping[str, str], here: Callable[..., str], given: Given
) -> None:
    tied, headed = given("initialise"), given("initialise")
    here(EXAMPLES / "trainer" / "after.py", "--train", data["trainer"], **tied.environment)
    assert "embed.weight" in tied.update
    assert "head.weight" not in tied.update
    here(EXAMPLES / "lightning" / "after.py", "--train", data["lightning"], **headed.environment)
    assert {name.split(".")[0] for name in headed.update} == {"body"}
    trained = given("train", weights=headed.target / "update.safetensors")
    here(EXAMPLES / "lightning" / "after.py", "--train", data["lightning"], **trained.environment)
    assert load_file(trained.target / "state" / "model.safetensors").keys() == {"head.weight", "head.bias"}


@pytest.mark.slow
def test_of_several_processes_one_writes(data: Mapping[str, str], given: Given) -> None:
    weights = {
        "0.weight": torch.zeros(8, 4),
        "0.bias": torch.zeros(8),
        "2.weight": torch.rand(1, 8),
        "2.bias": torch.zeros(1),
    }
    made = given("train", weights=weights)
    command = torchrun(EXAMPLES / "ddp" / "after.py", "--train", data["ddp"])
    subprocess.run(command, env=alive(**made.environment), check=False, capture_output=True)
    assert made.report["samples"] == 96
    assert made.update.keys() == weights.keys()  # without DistributedDataParallel's prefix
    assert not torch.equal(made.update["2.weight"], weights["2.weight"])


SPLITS = {
    "breast_cancer": {"train": "north/train.csv", "test": "test.csv"},
    "digits": {"train": "silo-0.safetensors", "test": "test.safetensors"},
}


IN_FULL = {"roles": ["weights", "control"], "hyperparameters": {"proximal_mu": 0.01}}
"""What FedProx and SCAFFOLD ask of a script: it fails where it does not do its part."""


@pytest.mark.parametrize("example", SPLITS)
def test_an_example_learns_alone_and_federated(
    example: str, tmp_path: Path, here: Callable[..., str], given: Given
) -> None:
    rounds = 3
    where = tmp_path / "data"
    here(EXAMPLES / example / "make_data.py", str(where))
    paths = {name: str(where / path) for name, path in SPLITS[example].items()}
    script = EXAMPLES / example / "train.py"
    printed = here(script, "--train", paths["train"], "--test", paths["test"], "--rounds", "1")
    assert "at the end: received  loss" in printed

    done = given("initialise", data=paths)
    here(script, **done.environment)
    accuracy = []
    for number in range(1, rounds + 2):
        purpose = "train" if number <= rounds else "evaluate"
        asked = IN_FULL if number == rounds else {}
        after = given(purpose, weights=done.target / "update.safetensors", data=paths, round=number, **asked)
        here(script, **after.environment)
        assert (after.target / "control.safetensors").exists() is bool(asked)
        accuracy += [metric["value"] for metric in after.report["metrics"] if metric["name"] == "accuracy"]
        done = after
    assert len(accuracy) == rounds + 1
    assert accuracy[-1] > accuracy[0] + 0.2


# --- kept warm ---------------------------------------------------------------------------------------------------


class Agent:
    """Listens, gives rounds to every process that connects, and can vanish."""

    def __init__(self, resources: ExitStack) -> None:
        self._resources = resources
        self.path = Path(resources.enter_context(tempfile.TemporaryDirectory())) / "agent"  # short: it has to fit
        self._listener = resources.enter_context(socket.socket(socket.AF_UNIX))
        self._listener.settimeout(PATIENCE)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._connections: list[tuple[socket.socket, Any]] = []

    def start(self, command: list[str], **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command, env=alive(SILOBUS_SOCKET=str(self.path), **environment), stdout=subprocess.PIPE, text=True
        )
        self._resources.callback(process.wait)
        self._resources.callback(process.kill)
        return process

    def accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(PATIENCE)
        self._resources.callback(connection.close)
        self._connections.append((connection, self._resources.enter_context(connection.makefile("rw"))))

    def hear(self) -> list[dict[str, Any]]:
        """A line of each process."""
        return [json.loads(lines.readline()) for _, lines in self._connections]

    def say(self, **line: Any) -> None:
        for _, lines in self._connections:
            lines.write(json.dumps(line) + "\n")
            lines.flush()

    def ask(self, made: RoundByHand) -> RoundByHand:
        self.say(round={"input": str(made.source), "output": str(made.target)})
        return made

    def run(self, made: RoundByHand) -> RoundByHand:
        self.ask(made)
        for line in self.hear():
            assert line == {"done": str(made.target)}
        return made

    def vanish(self) -> None:
        for connection, lines in self._connections:
            connection.shutdown(socket.SHUT_RDWR)
            lines.close()
            connection.close()


@pytest.fixture
def agent() -> Iterator[Agent]:
    with ExitStack() as resources:
        yield Agent(resources)


def test_a_process_kept_warm_runs_round_after_round(data: Mapping[str, str], agent: Agent, given: Given) -> None:
    process = agent.start(
        [sys.executable, str(EXAMPLES / "trainer" / "after.py"), "--train", data["trainer"]], RANK="0", WORLD_SIZE="1"
    )
    agent.accept()
    assert agent.hear() == [{"hello": {"rank": 0, "world_size": 1, "pid": process.pid}}]
    agent.say(word_of_a_later_version=1)
    done = agent.run(given("initialise"))
    for number in (1, 2):
        done = agent.run(given("train", weights=done.target / "update.safetensors", round=number))
        assert done.report["steps"] > 0
        assert "sha256" not in done.report["update"], "the agent beside it makes the digest"
    agent.run(given("evaluate", weights=done.target / "update.safetensors", round=3))
    agent.say(end=True)
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert printed.startswith("loss ")  # the script's last line, as if alone
    assert "received" not in printed


LEAKY = """
import torch, silobus
from torch import nn
torch.manual_seed(0)
model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
count = {"n": 0, "sum": torch.zeros(1)}
average = nn.Linear(1, 1)
for rnd in silobus.rounds():
    rnd.load(model, share=["body.*"])
    rnd.keep("optimizer", optimizer)
    rnd.keep("count", count)
    rnd.keep("average", average)
    if rnd.trains:
        for _ in range(3):
            optimizer.zero_grad()
            model["head"](model["body"](torch.ones(4, 2))).square().sum().backward()
            optimizer.step()
            count["n"] += 1
            count["sum"] += 1  # in place
            average.weight.data += 1
        rnd.submit(model, samples=4, steps=3)
"""


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def made(round_: RoundByHand) -> tuple[dict[str, Any], bytes]:
    return round_.report, (round_.target / "update.safetensors").read_bytes()


def test_what_was_not_committed_does_not_reach_the_next_try(tmp_path: Path, agent: Agent, given: Given) -> None:
    script = tmp_path / "script.py"
    script.write_text(LEAKY)
    agent.start([sys.executable, str(script)])
    agent.accept()
    agent.hear()
    weights = {"body.weight": torch.eye(2), "body.bias": torch.zeros(2)}
    first = agent.run(given("train", weights=weights))
    again = agent.run(given("train", weights=weights))
    assert made(again) == made(first)
    assert files(again.target / "state") == files(first.target / "state")

    committed = first.target / "state"
    second = agent.run(given("train", weights=weights, state=committed))
    again = agent.run(given("train", weights=weights, state=committed))
    assert made(second) != made(first)
    assert made(again) == made(second)
    assert files(again.target / "state") == files(second.target / "state")

    from_the_start = agent.run(given("train", weights=weights))
    assert made(from_the_start) == made(first)
    assert files(from_the_start.target / "state") == files(first.target / "state")

    cold = given("train", weights=weights, state=committed)  # and a process of its own comes to the same
    subprocess.run([sys.executable, str(script)], env=alive(**cold.environment), check=True)
    assert made(cold)[1] == made(second)[1]
    assert files(cold.target / "state") == files(second.target / "state")


@pytest.mark.slow
def test_every_rank_of_a_warm_script_connects_and_answers(data: Mapping[str, str], agent: Agent, given: Given) -> None:
    process = agent.start(torchrun(EXAMPLES / "ddp" / "after.py", "--train", data["ddp"]))
    agent.accept()
    agent.accept()
    hellos = [line["hello"] for line in agent.hear()]
    assert {(hello["rank"], hello["world_size"]) for hello in hellos} == {(0, 2), (1, 2)}
    done = agent.run(given("initialise"))
    done = agent.run(given("train", weights=done.target / "update.safetensors"))
    assert done.report["samples"] == 96
    agent.say(end=True)
    process.wait(PATIENCE)


def test_a_warm_rank_other_than_0_answers_and_writes_nothing(tmp_path: Path, agent: Agent, given: Given) -> None:
    script = tmp_path / "script.py"
    script.write_text("import silobus\nfor rnd in silobus.rounds():\n    rnd.score(a=silobus.mean(1, 1))\n")
    agent.start([sys.executable, str(script)], RANK="1", WORLD_SIZE="2")
    agent.accept()
    assert agent.hear()[0]["hello"].items() >= {"rank": 1, "world_size": 2}.items()
    assert agent.run(given("evaluate", weights=WEIGHTS)).written == set()


# --- when the agent is gone --------------------------------------------------------------------------------------

STUCK = """
import sys, time, numpy as np, silobus
for rnd in silobus.rounds():
    rnd.load({"w": np.zeros(1, dtype=np.float32)})
    print("training", flush=True)
    while True:
        time.sleep(3600)
"""
WEIGHTS = {"w": torch.ones(1)}


@pytest.fixture
def stuck(tmp_path: Path) -> list[str]:
    (tmp_path / "stuck.py").write_text(STUCK)
    return [sys.executable, str(tmp_path / "stuck.py")]


def test_a_warm_process_ends_with_its_agent_in_the_middle_of_training(
    stuck: list[str], agent: Agent, given: Given
) -> None:
    process = agent.start(stuck)
    agent.accept()
    agent.hear()
    made = agent.ask(given("train", weights=WEIGHTS))
    assert process.stdout is not None
    assert process.stdout.readline() == "training\n"
    agent.vanish()
    assert process.wait(PATIENCE) == 75
    assert made.written == set()


def test_a_warm_process_ends_with_its_agent_though_nobody_reads_what_it_prints_any_more(
    stuck: list[str], agent: Agent
) -> None:
    process = agent.start(["sh", "-c", 'exec "$0" "$@" 2>&1', *stuck])
    agent.accept()
    agent.hear()
    assert process.stdout is not None
    process.stdout.close()
    agent.vanish()
    assert process.wait(PATIENCE) == 75


def test_a_warm_process_ends_with_its_agent_while_it_waits(stuck: list[str], agent: Agent) -> None:
    process = agent.start(stuck)
    agent.accept()
    agent.hear()
    agent.vanish()
    assert process.wait(PATIENCE) == 75


def test_after_the_end_a_script_finishes_whether_its_agent_is_there_or_not(tmp_path: Path, agent: Agent) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import time, silobus\nfor rnd in silobus.rounds():\n    pass\ntime.sleep(0.5)\nprint('finished')\n"
    )
    process = agent.start([sys.executable, str(script)])
    agent.accept()
    agent.hear()
    agent.say(end=True)
    agent.vanish()
    printed, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, printed) == (0, "finished\n")


def test_a_job_for_one_round_ends_with_its_agent(stuck: list[str], agent: Agent, given: Given) -> None:
    process = agent.start(stuck, **given("train", weights=WEIGHTS).environment)
    agent.accept()
    assert process.stdout is not None
    assert process.stdout.readline() == "training\n"
    agent.vanish()
    assert process.wait(PATIENCE) == 75


def test_a_job_for_one_round_says_nothing_on_the_socket(tmp_path: Path, agent: Agent, given: Given) -> None:
    script = tmp_path / "script.py"
    script.write_text("import silobus\nfor rnd in silobus.rounds():\n    rnd.score(a=silobus.mean(1, 1))\n")
    made = given("evaluate", weights=WEIGHTS)
    process = agent.start([sys.executable, str(script)], **made.environment)
    agent.accept()
    connection, _ = agent._connections[0]
    assert connection.recv(1) == b""  # until the script's own end
    assert process.wait(PATIENCE) == 0
    assert made.report["metrics"]


def test_a_worker_that_a_dead_script_has_forked_does_not_keep_the_connection(
    tmp_path: Path, agent: Agent, given: Given
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time, silobus\nfor rnd in silobus.rounds():\n"
        "    if os.fork() == 0:\n        time.sleep(40)\n        os._exit(0)\n"
        "    os._exit(9)\n"
    )
    process = agent.start([sys.executable, str(script)])
    agent.accept()
    agent.hear()
    agent.ask(given("evaluate", weights=WEIGHTS))
    assert process.wait(PATIENCE) == 9
    connection, _ = agent._connections[0]
    connection.settimeout(20.0)
    assert connection.recv(1) == b""


def test_a_script_whose_agent_is_gone_already_does_not_start(stuck: list[str], agent: Agent) -> None:
    agent._listener.close()
    assert agent.start(stuck).wait(PATIENCE) == 75


def test_a_script_that_fails_dies_with_its_own_error(tmp_path: Path, agent: Agent, given: Given) -> None:
    script = tmp_path / "script.py"
    script.write_text("import silobus\nfor rnd in silobus.rounds():\n    raise SystemExit(3)\n")
    process = agent.start([sys.executable, str(script)])
    agent.accept()
    agent.hear()
    made = agent.ask(given("evaluate", weights=WEIGHTS))
    assert process.wait(PATIENCE) == 3
    assert "report.json" not in made.written
    assert agent._connections[0][1].readline() == ""  # and no "done"


def test_a_process_that_has_trained_cannot_initialise(tmp_path: Path, agent: Agent, given: Given) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np, silobus\nmodel = {'w': np.zeros(1, dtype=np.float32)}\n"
        "for rnd in silobus.rounds():\n    rnd.load(model)\n"
    )
    process = agent.start([sys.executable, str(script)])
    agent.accept()
    agent.hear()
    agent.run(given("evaluate", weights=WEIGHTS))
    made = agent.ask(given("initialise"))
    assert process.wait(PATIENCE) == 1
    assert made.written == set()


# --- what it needs -----------------------------------------------------------------------------------------------

NEEDED = ("safetensors",)
TORCH_NEEDS = (
    *("torch", "torchgen", "functorch", "numpy", "numpy.libs", "filelock", "fsspec", "jinja2", "markupsafe"),
    *("mpmath", "networkx", "sympy", "typing_extensions.py"),
)


def environment_with(where: Path, packages: tuple[str, ...]) -> Path:
    """A virtual environment that has silobus and these, and nothing else."""
    venv.create(where, with_pip=False, symlinks=True)
    (site,) = where.glob("lib/python*/site-packages")
    installed = Path(torch.__file__).parents[1]
    (site / "silobus").symlink_to(ROOT / "silobus")
    for name in packages:
        (site / name).symlink_to(installed / name)
    return where / "bin" / "python"


def in_it(python: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(python), *command],
        env={**clean, **environment},
        cwd=python.parent,  # this repository's packages are not to be found by standing in it
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_example_runs_where_nothing_of_ours_but_silobus_is_installed(
    tmp_path: Path, here: Callable[..., str], given: Given
) -> None:
    here(EXAMPLES / "breast_cancer" / "make_data.py", str(tmp_path / "data"))
    paths = {"train": str(tmp_path / "data/island/train.csv"), "test": str(tmp_path / "data/test.csv")}
    python = environment_with(tmp_path / "venv", (*NEEDED, *TORCH_NEEDS))
    for module in ("azure", "pydantic", "messages", "silo_agent", "sklearn"):
        assert f"No module named '{module}'" in in_it(python, "-c", f"import {module}").stderr

    made = given("initialise", data=paths)
    done = in_it(python, str(EXAMPLES / "breast_cancer" / "train.py"), **made.environment)
    assert done.returncode == 0, done.stderr
    assert made.update.keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert made.report["update"]


def test_importing_silobus_needs_neither_torch_nor_numpy_and_loads_neither(tmp_path: Path) -> None:
    python = environment_with(tmp_path / "venv", NEEDED)
    program = "import silobus; print(silobus.roc([0, 1], [0.2, 0.7], bins=4).body); import torch"
    done = in_it(python, "-c", program)
    assert "No module named 'torch'" in done.stderr
    assert done.stdout == "{'positive': [0, 0, 1, 0], 'negative': [1, 0, 0, 0]}\n"
    loaded = "import silobus, sys; print(sorted({'torch', 'numpy', 'pydantic', 'azure'} & set(sys.modules)))"
    full = subprocess.run([sys.executable, "-c", loaded], env=alive(), capture_output=True, text=True, check=True)
    assert full.stdout == "[]\n"
