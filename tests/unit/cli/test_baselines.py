"""The comparison runs the script itself, round after round, from one set of first weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from orchestrator.cli.baselines import Trainer, answer

SCRIPT = """
import numpy as np
import silobus
model = {"w": np.zeros(2, np.float32)}
for rnd in silobus.rounds():
    rnd.load(model)
    if rnd.evaluates:
        rnd.score(level=silobus.mean(float(model["w"][0]) * 10, 10), auroc=silobus.roc([0, 1], [0.2, 0.8]))
    if rnd.trains:
        model["w"] += rnd.params["step"] * float(open(rnd.data["train"]).read())
        rnd.submit(model, samples=1, steps=1)
"""


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    for variable in ("SILOBUS_INPUT", "SILOBUS_OUTPUT"):
        monkeypatch.setenv(variable, "")  # so that they are what they were before, afterwards
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    for name, text in (("one", "1"), ("two", "2"), ("test", "0")):
        (tmp_path / name).write_text(text)
    return Trainer(script, {"step": 10}, tmp_path / "scratch")


def test_each_trains_its_own_data_for_all_rounds(trainer: Trainer, tmp_path: Path) -> None:
    job = {
        "trains": {"one": str(tmp_path / "one"), "two": str(tmp_path / "two")},
        "test": str(tmp_path / "test"),
        "rounds": 3,
    }

    assert answer(trainer, job) == {"one": {"level": 30.0, "auroc": 1.0}, "two": {"level": 60.0, "auroc": 1.0}}


def test_given_weights_are_evaluated_as_they_are(trainer: Trainer, tmp_path: Path) -> None:
    weights = trainer.train(trainer.initialise(), str(tmp_path / "two"), str(tmp_path / "test"), 1)
    assert load_file(weights)["w"].tolist() == [20, 20]

    assert answer(trainer, {"weights": str(weights), "test": str(tmp_path / "test")})["level"] == 20.0


def test_an_answer_is_a_line_of_json(trainer: Trainer, tmp_path: Path) -> None:
    weights = trainer.initialise()

    said = json.dumps(answer(trainer, {"weights": str(weights), "test": str(tmp_path / "test")}))

    assert "\n" not in said
