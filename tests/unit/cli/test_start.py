"""`silobus start` sends what any queue tool could have posted, and nothing that is not right."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from messages import codec, experiments, names
from orchestrator import cli
from orchestrator.cli import experiments as starting
from tests.unit.cli.conftest import Federation, run

TEN_LINES = {"kind": "start-experiment", "experiment": "bc-1", "task": "breast-cancer", "rounds": 5}

TRAINER = """
import sys
import numpy as np
import silobus
model = {"w": np.arange(4, dtype=np.float32)}
for rnd in silobus.rounds():
    model["w"] *= rnd.params.get("factor", 1)
    rnd.load(model)
"""


@pytest.fixture
def message(tmp_path: Path) -> Path:
    path = tmp_path / "start.json"
    path.write_text(json.dumps(TEN_LINES | {"quorum": {"minimum": 2}}))
    return path


def test_it_posts_what_the_file_says_and_no_defaults(silobus: Federation, message: Path) -> None:
    result = silobus("start", message)

    assert result.exit_code == 0
    [body] = silobus.bodies(names.EXPERIMENTS)
    assert json.loads(body) == TEN_LINES | {"quorum": {"minimum": 2}}
    assert "silobus watch bc-1" in result.stdout


def test_the_same_file_started_again_is_another_message(silobus: Federation, message: Path) -> None:
    silobus("start", message)
    silobus("start", message)

    first, second = silobus.ids(names.EXPERIMENTS)
    assert first != second


def test_print_shows_the_message_and_needs_no_federation(message: Path) -> None:
    result = CliRunner().invoke(cli.app, ["start", str(message), "--print", "--dir", "/nowhere"])

    assert result.exit_code == 0
    assert json.loads(result.stdout)["experiment"] == "bc-1"


def test_yaml_is_as_good_and_its_small_numbers_are_numbers(silobus: Federation, tmp_path: Path) -> None:
    path = tmp_path / "start.yaml"
    path.write_text("experiment: bc-1\ntask: t\nrounds: 2\nhyperparameters: {lr: 1e-3, decay: {by_round: {1: 5E-1}}}\n")

    assert silobus("start", path).exit_code == 0

    [body] = silobus.bodies(names.EXPERIMENTS)
    said = codec.decode(body.encode(), experiments.StartExperiment)
    assert said.hyperparameters["lr"] == 0.001
    assert said.hyperparameters["decay"] == experiments.Schedule(by_round={1: 0.5})


def test_it_reads_standard_input(silobus: Federation) -> None:
    assert silobus("start", "-", stdin=json.dumps(TEN_LINES)).exit_code == 0

    assert len(silobus.bodies(names.EXPERIMENTS)) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"experiment": "bc-1", "task": "t", "rounds": 5, "qorum": {}}', "qorum"),
        ('{"experiment": "Bad Name", "task": "t", "rounds": 5}', "experiment"),
        ('{"experiment": "bc-1", "task": "t"}', "rounds"),
        ('{"experiment": "bc-1", "task": "t", "rounds": 5', "line 1"),
        ('{"experiment": "bc-1", "task": "t",\n"rounds": 5, "rounds": 50}', "line 2: `rounds` is there twice"),
        ("experiment: e\ntask: t\nrounds: 5\nhyperparameters:\n  lr: 1\n  lr: 2\n", "line 6: `lr` is there twice"),
        ("[" * 10_000, "nested too deeply"),
        ("experiment: &e [*e]", "in itself"),
        ("just words", "needs at least experiment, task and rounds"),
        ('{"experiment": "bc-1", "task": "t", "rounds": .inf}', "JSON cannot"),
        ("experiment: 2024-13-45\ntask: t\nrounds: 5\n", "JSON cannot: month must be in 1..12"),
        (f"experiment: e\ntask: t\nrounds: {'9' * 5000}\n", "JSON cannot"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_sent(silobus: Federation, tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "start.yaml"
    path.write_text(text)

    result = silobus("start", path)

    assert result.exit_code == 1
    assert says in result.stderr
    assert str(path) in result.stderr
    assert silobus.bodies(names.EXPERIMENTS) == []


def strategy(name: str, **options: object) -> dict[str, object]:
    return {"strategy": {"name": name, "options": options}}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (strategy("fedadam", server_lr="0.1"), "server_lr is a number above 0, not '0.1'. (invalid-strategy-options)"),
        (strategy("fedadam", server_learning_rate=0.1), "no option 'server_learning_rate'; it has: beta_1, "),
        (strategy("krum", f=1) | {"quorum": {"minimum": 4}}, "needs 5 updates, and a quorum of 4 would close"),
        (strategy("krum", f=1) | {"silos": ["a", "b", "c"]}, "a quorum of 3 would close a round. Set quorum.minimum"),
        (strategy("median") | {"silos": ["a", "b", "c", "d"], "quorum": {"minimum": 0.5}}, "a quorum of 2 would close"),
        (strategy("scaffold") | {"checks": {"max_norm": 5.0}}, "use another strategy. (checks-of-weights-only)"),
        (strategy("fedprox", mu=1) | {"hyperparameters": {"proximal_mu": 2}}, "(hyperparameter-of-strategy)"),
        ({"quorum": {"minimum": 2}, "checks": {"min_cosine": 0.1}}, "quorum of at least 3 updates, and it is 2"),
        ({"share": ["layer.*", "!*"]}, "share: layer.*, !* lets no tensor through, whatever it is called."),
    ],
)
def test_what_the_strategy_would_be_refused_for_is_said_before_anything_is_sent(
    silobus: Federation, tmp_path: Path, asked: dict[str, object], says: str
) -> None:
    path = tmp_path / "start.json"
    path.write_text(json.dumps(TEN_LINES | asked))

    for more in ((), ("--print",)):
        result = silobus("start", path, *more)

        assert result.exit_code == 1
        assert result.stderr.startswith(f"{path}: ")
        assert says in result.stderr
        assert result.stdout == ""
    assert silobus.bodies(names.EXPERIMENTS) == []


@pytest.mark.parametrize(
    "asked",
    [
        strategy("krum", f=1) | {"quorum": {"minimum": 5}},
        strategy("krum", f=1),  # of all: how many that is shows when the run begins
        strategy("krum", f=1) | {"quorum": {"minimum": 0.5}},
        strategy("scaffold") | {"checks": {"measure": True}},
    ],
)
def test_what_may_be_right_is_sent(silobus: Federation, tmp_path: Path, asked: dict[str, object]) -> None:
    path = tmp_path / "start.json"
    path.write_text(json.dumps(TEN_LINES | asked))

    result = silobus("start", path)

    assert (result.exit_code, result.stderr) == (0, "")


def test_a_strategy_that_is_not_installed_here_is_left_to_the_orchestrators_and_that_is_said(
    silobus: Federation, tmp_path: Path
) -> None:
    path = tmp_path / "start.json"
    path.write_text(json.dumps(TEN_LINES | strategy("fedadm", server_lr="0.1")))

    printed = silobus("start", path, "--print")
    sent = silobus("start", path)

    for result in (printed, sent):
        assert result.exit_code == 0
        assert f"{path}: There is no strategy 'fedadm'; there is: fedadagrad, " in result.stderr
        assert "Did you mean `fedadam`?\nIts options could not be checked here." in result.stderr
    assert json.loads(printed.stdout)["strategy"] == {"name": "fedadm", "options": {"server_lr": "0.1"}}
    assert len(silobus.bodies(names.EXPERIMENTS)) == 1


@pytest.mark.parametrize(
    ("name", "meant"),
    [("FedAdam", "fedadam"), ("multi_krum", "multi-krum"), ("Trimmed Mean", "trimmed-mean"), ("FedAvg-M", "fedavgm")],
)
def test_a_name_that_is_nearly_one_says_which(silobus: Federation, tmp_path: Path, name: str, meant: str) -> None:
    path = tmp_path / "start.json"
    path.write_text(json.dumps(TEN_LINES | strategy(name)))

    result = silobus("start", path)

    assert result.exit_code == 1
    assert "strategy.name: String should match the pattern of names: lower-case letters, digits" in result.stderr
    assert result.stderr.endswith(f" between them. Did you mean `{meant}`?\n")


@pytest.mark.parametrize("said", [{"name": "Nothing Like It"}, {"name": 7}, "FedAdam", {"nam": "FedAdam"}])
def test_what_is_near_to_nothing_is_not_guessed(silobus: Federation, tmp_path: Path, said: object) -> None:
    path = tmp_path / "start.json"
    path.write_text(json.dumps(TEN_LINES | {"strategy": said}))

    result = silobus("start", path)

    assert result.exit_code == 1
    assert "Did you mean" not in result.stderr


@pytest.mark.parametrize("number", ["NaN", "nan", ".nan", "Infinity", "-inf", "-.inf", "1e999"])
def test_a_number_that_is_not_finite_is_no_text(silobus: Federation, tmp_path: Path, number: str) -> None:
    path = tmp_path / "start.yaml"
    path.write_text(json.dumps(TEN_LINES).replace("}", f',\n"hyperparameters": {{"lr": [{number}]}}}}'))

    result = silobus("start", path)

    assert result.exit_code == 1
    assert f"{path}, line 2: `{number}` is no finite number, and JSON cannot have it." in result.stderr


def test_in_quotes_it_is_text(silobus: Federation, tmp_path: Path) -> None:
    path = tmp_path / "start.yaml"
    path.write_text("experiment: e\ntask: t\nrounds: 2\nhyperparameters: {missing: 'NaN', inference: inferno}\n")

    assert silobus("start", path).exit_code == 0

    [body] = silobus.bodies(names.EXPERIMENTS)
    assert json.loads(body)["hyperparameters"] == {"missing": "NaN", "inference": "inferno"}


def test_a_missing_file_is_said_plainly(silobus: Federation) -> None:
    result = silobus("start", "/no/such/file")

    assert result.exit_code == 1
    assert result.stderr.strip() == "/no/such/file cannot be read: No such file or directory."


def test_a_missing_federation_is_said_with_what_to_do(tmp_path: Path, message: Path) -> None:
    result = CliRunner().invoke(cli.app, ["start", str(message), "--dir", str(tmp_path / "empty")])

    assert result.exit_code == 1
    assert "silobus up" in result.stderr


def test_init_uploads_the_model_as_the_script_first_makes_it(
    silobus: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    script = tmp_path / "train.py"
    script.write_text(TRAINER)
    path = tmp_path / "start.json"
    path.write_text(json.dumps(TEN_LINES | {"hyperparameters": {"factor": {"by_round": {"1": 3, "4": 5}}}}))

    assert silobus("start", path, "--init", script).exit_code == 0

    [body] = silobus.bodies(names.EXPERIMENTS)
    digest = json.loads(body)["initial"]["sha256"]
    read = run(silobus.store.read(names.INITIAL, names.initial_blob(digest)))
    from safetensors.numpy import load

    assert load(read.data)["w"].tolist() == [0, 3, 6, 9]


def test_a_script_that_fails_is_shown_and_nothing_is_sent(silobus: Federation, message: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("print('before'); raise SystemExit('no such module')")

    result = silobus("start", message, "--init", script)

    assert result.exit_code == 1
    assert "before" in result.stderr
    assert "no such module" in result.stderr
    assert silobus.bodies(names.EXPERIMENTS) == []


def test_a_script_that_reads_data_is_told_that_there_are_none(
    silobus: Federation, message: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    script = tmp_path / "train.py"
    script.write_text(TRAINER.replace("    rnd.load", '    rnd.data["train"]\n    rnd.load'))

    result = silobus("start", message, "--init", script)

    assert result.exit_code == 1
    assert f"{script} failed (exit status 1): KeyError: 'train'" in result.stderr
    assert "gets no data: rnd.load(model) must come before rnd.data is read" in result.stderr


def test_the_script_of_the_tutorial_can_make_initial_weights(
    silobus: Federation, message: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    pytest.importorskip("torch")
    tutorial = (Path(__file__).resolve().parents[3] / "docs" / "tutorial.md").read_text()
    script = tmp_path / "train.py"
    script.write_text(tutorial.split("```python file=mine/train.py\n")[1].split("```")[0])

    result = silobus("start", message, "--init", script)

    assert result.exit_code == 0, result.stderr


def test_a_script_that_never_loads_a_model_is_told_so(silobus: Federation, message: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("pass")

    result = silobus("start", message, "--init", script)

    assert result.exit_code == 1
    assert "rnd.load(model)" in result.stderr


def test_waiting_says_that_nobody_has_taken_the_start(
    silobus: Federation, message: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Enough(Exception):
        pass

    async def sleeps(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) > 2:
            raise Enough

    looks: list[float] = []
    said: list[str] = []
    monkeypatch.setattr(starting, "PATIENCE", -1.0)
    monkeypatch.setattr(starting, "warn", said.append)
    monkeypatch.setattr(asyncio, "sleep", sleeps)

    with pytest.raises(Enough):
        silobus("start", message, "--wait")

    assert said == ["No orchestrator has taken the start yet. It waits in `experiments`, and nothing is lost."]
