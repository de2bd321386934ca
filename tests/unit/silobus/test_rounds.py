"""The loop and its rules: alone, for an agent, and what is refused in either."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import silobus
from silobus.federated import SignOfLife
from tests.unit.silobus.by_hand import RoundByHand

Given = Callable[..., RoundByHand]
Run = Callable[..., RoundByHand]
Alone = Callable[..., None]
WEIGHTS = {"w": torch.tensor([1.0, 2.0])}


def model() -> dict[str, torch.Tensor]:
    return {"w": torch.zeros(2)}


def well_behaved(rnd: silobus.Round) -> None:
    mine = model()
    rnd.load(mine)
    rnd.score(loss=silobus.mean(6.0, 4))
    if rnd.trains:
        rnd.submit(mine, samples=3, steps=2)


# --- alone -------------------------------------------------------------------------------------------------------


def test_alone_the_loop_trains_so_many_rounds_and_then_evaluates(capsys: pytest.CaptureFixture[str]) -> None:
    mine = model()
    seen = []
    for rnd in silobus.rounds(rounds=2, params={"lr": 0.5}, data={"train": "a.csv"}):
        rnd.load(mine)
        rnd.keep("state", {"n": 1})
        rnd.score(loss=silobus.mean(6.0, 4), auroc=silobus.roc([0, 1], [0.2, 0.7]))
        if rnd.trains:
            mine["w"] += 1
            rnd.progress()
            rnd.submit(mine, samples=3, steps=2)
        seen.append((rnd.round, rnd.purpose, rnd.trains, rnd.evaluates, rnd.alone, rnd.params, rnd.data))
    assert seen == [
        (1, "train", True, True, True, {"lr": 0.5}, {"train": "a.csv"}),
        (2, "train", True, True, True, {"lr": 0.5}, {"train": "a.csv"}),
        (3, "evaluate", False, True, True, {"lr": 0.5}, {"train": "a.csv"}),
    ]
    assert mine["w"].tolist() == [2.0, 2.0]  # load() left it alone
    assert capsys.readouterr().out.splitlines() == [
        "round 1 of 2: received  loss 1.5  auroc 1",
        "round 1 of 2: trained   on 3 samples in 2 steps",
        "round 2 of 2: received  loss 1.5  auroc 1",
        "round 2 of 2: trained   on 3 samples in 2 steps",
        "at the end: received  loss 1.5  auroc 1",
    ]


def test_alone_under_torchrun_one_rank_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    for rnd in silobus.rounds():
        well_behaved(rnd)
    assert capsys.readouterr().out == ""


def test_alone_a_pattern_that_shares_nothing_is_refused_already(alone: Alone) -> None:
    with pytest.raises(ValueError, match="none is shared"):
        alone(lambda rnd: rnd.load(model(), share=["body.*"]))


def test_alone_there_is_at_least_one_round() -> None:
    with pytest.raises(ValueError, match="rounds=0"):
        next(iter(silobus.rounds(rounds=0)))


# --- for an agent ------------------------------------------------------------------------------------------------


def test_a_round_is_what_the_agent_says(given: Given, run: Run) -> None:
    seen: list[Any] = []

    def body(rnd: silobus.Round) -> None:
        seen.append((rnd.experiment, rnd.run, rnd.task, rnd.round, rnd.seed, rnd.data, rnd.params, rnd.alone))
        well_behaved(rnd)

    made = given(weights=WEIGHTS, hyperparameters={"lr": 0.5}, data={"train": "/data/a"}, a_later_field=1)
    run(made, body, rounds=9, params={"lr": 0.1, "epochs": 2}, data={"train": "ignored"})
    expected = ("bc-1", "bc-1_3fa91c2e", "breast-cancer", 1, 7, {"train": "/data/a"}, {"lr": 0.5, "epochs": 2}, False)
    assert seen == [expected]  # and once


@pytest.mark.parametrize(
    ("purpose", "trains", "evaluates"), [("initialise", False, False), ("train", True, True), ("evaluate", False, True)]
)
def test_a_purpose_says_what_is_wanted(given: Given, run: Run, purpose: str, trains: bool, evaluates: bool) -> None:
    wanted = []

    def body(rnd: silobus.Round) -> None:
        wanted.append((rnd.purpose, rnd.trains, rnd.evaluates))
        well_behaved(rnd)

    done = run(given(purpose, weights=None if purpose == "initialise" else WEIGHTS), body)
    assert wanted == [(purpose, trains, evaluates)]
    assert bool(done.report["metrics"]) == evaluates
    assert bool(done.report["update"]) == (purpose != "evaluate")


def test_metrics_of_both_phases_are_reported(given: Given, run: Run) -> None:
    def body(rnd: silobus.Round) -> None:
        well_behaved(rnd)
        rnd.score("trained", loss=silobus.mean(2.0, 4), seen=silobus.sum(4, 4))

    assert run(given(weights=WEIGHTS), body).report["metrics"] == [
        {"name": "loss", "phase": "received", "kind": "mean", "count": 4, "value": 1.5},
        {"name": "loss", "phase": "trained", "kind": "mean", "count": 4, "value": 0.5},
        {"name": "seen", "phase": "trained", "kind": "sum", "count": 4, "value": 4.0},
    ]


def test_nothing_is_reported_before_the_body_has_returned(given: Given, run: Run) -> None:
    made = given(weights=WEIGHTS)

    def body(rnd: silobus.Round) -> None:
        well_behaved(rnd)
        assert made.written == {"update.safetensors"}

    run(made, body)
    assert made.written == {"update.safetensors", "report.json"}


def test_a_body_that_fails_leaves_no_report(given: Given, run: Run) -> None:
    made = given(weights=WEIGHTS)

    def body(rnd: silobus.Round) -> None:
        well_behaved(rnd)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(made, body)
    assert made.written == {"update.safetensors"}


def test_running_a_round_again_takes_the_old_report_away_first(given: Given, run: Run) -> None:
    made = given(weights=WEIGHTS)

    def first(rnd: silobus.Round) -> None:
        rnd.keep("it", {})
        well_behaved(rnd)

    run(made, first)
    assert len(made.written) == 4
    with pytest.raises(RuntimeError):
        run(made, lambda rnd: None)
    assert made.written == set()


def test_the_same_round_twice_gives_the_same_bytes(given: Given, run: Run) -> None:
    made = given(weights=WEIGHTS)
    first = run(made, well_behaved).report
    assert run(made, well_behaved).report == first


def test_other_ranks_load_and_write_nothing(given: Given, run: Run) -> None:
    mine = model()

    def body(rnd: silobus.Round) -> None:
        rnd.load(mine)
        rnd.keep("it", {})
        rnd.progress()
        rnd.score(loss=silobus.mean(1, 1))
        rnd.submit(mine, samples=1, steps=1)

    assert run(given(weights=WEIGHTS), body, rank=1).written == set()
    assert torch.equal(mine["w"], WEIGHTS["w"])


def test_rank_1_does_not_take_away_what_rank_0_has_written(given: Given, run: Run) -> None:
    made = run(given(weights=WEIGHTS), well_behaved)
    run(made, well_behaved, rank=1)
    assert made.written == {"update.safetensors", "report.json"}


# --- what is refused ---------------------------------------------------------------------------------------------


def twice(rnd: silobus.Round) -> None:
    well_behaved(rnd)
    rnd.submit(model(), samples=1, steps=1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda rnd: rnd.load(model()), r"returned without submit\(\)"),
        (lambda rnd: None, r"returned without submit\(\)"),
        (twice, "a silo has one update"),
        (lambda rnd: rnd.submit(model(), samples=1, steps=1), r"submit\(\) came before load\(\)"),
        (lambda rnd: [rnd.load(model()), rnd.load(model())], "put several models into one"),
        (lambda rnd: [rnd.score(a=silobus.mean(1, 1)) for _ in "12"], "the received a was scored before"),
    ],
)
def test_a_call_out_of_order_says_so(given: Given, run: Run, alone: Alone, body: Any, message: str) -> None:
    made = given(weights=WEIGHTS)
    with pytest.raises(RuntimeError, match=message):
        run(made, body)
    assert "report.json" not in made.written
    with pytest.raises(RuntimeError, match=message):  # alone as well
        alone(body)


@pytest.mark.parametrize(("samples", "steps"), [(0, 1), (-1, 1), (1, 0)])
def test_an_update_of_nothing_is_refused(given: Given, run: Run, samples: int, steps: int) -> None:
    def body(rnd: silobus.Round) -> None:
        rnd.load(model())
        rnd.submit(model(), samples=samples, steps=steps)

    with pytest.raises(ValueError, match="both are at least 1"):
        run(given(weights=WEIGHTS), body)


def test_a_plain_number_is_no_metric(given: Given, run: Run) -> None:
    with pytest.raises(TypeError, match=r"score\(loss=…\) is float.*silobus\.mean\(total, n\)"):
        run(given(weights=WEIGHTS), lambda rnd: rnd.score(loss=0.5))  # type: ignore[arg-type]


def test_a_metric_has_a_name_that_the_messages_take(given: Given, run: Run) -> None:
    with pytest.raises(ValueError, match="'my loss' is no name"):
        run(given(weights=WEIGHTS), lambda rnd: rnd.score(**{"my loss": silobus.mean(1, 1)}))


def test_an_unknown_phase_is_refused(given: Given, run: Run) -> None:
    with pytest.raises(ValueError, match="not 'after'"):
        run(given(weights=WEIGHTS), lambda rnd: rnd.score("after", loss=silobus.mean(1, 1)))


def test_a_round_to_evaluate_takes_no_update_and_no_trained_score(given: Given, run: Run) -> None:
    with pytest.raises(RuntimeError, match=r"only if rnd\.trains"):
        run(given("evaluate", weights=WEIGHTS), twice)
    with pytest.raises(RuntimeError, match="no trained weights"):
        run(given("evaluate", weights=WEIGHTS), lambda rnd: rnd.score("trained", a=silobus.mean(1, 1)))


def test_initialise_needs_the_model(given: Given, run: Run) -> None:
    with pytest.raises(RuntimeError, match=r"returned without load\(\)"):
        run(given("initialise"), lambda rnd: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "schema version 2"),
        ({"purpose": "dream"}, "the purpose 'dream'"),
        ({"weights": None}, "a round to train comes without weights"),
        ({"purpose": "initialise"}, "a round to initialise comes with weights"),
        ({"share": "*"}, "not one string"),
    ],
)
def test_a_round_that_makes_no_sense_is_refused(given: Given, run: Run, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        run(given(**{"weights": WEIGHTS} | changes), well_behaved)


@pytest.mark.parametrize("name", ["SILOBUS_INPUT", "SILOBUS_OUTPUT"])
def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setenv(name, str(tmp_path))
    with pytest.raises(RuntimeError, match="go together"):
        next(iter(silobus.rounds()))


# --- progress ----------------------------------------------------------------------------------------------------


def test_progress_is_written_at_once_and_then_at_most_once_a_second(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    sign = SignOfLife(path, clock=iter([100.0, 100.2, 100.99, 101.0, 101.5, 103.0]).__next__)
    on_disk = []
    for _ in range(6):
        sign.note(None)
        on_disk.append(json.loads(path.read_text())["steps"])
    assert on_disk == [1, 1, 1, 4, 4, 6]


def test_progress_takes_the_scripts_own_count(given: Given, run: Run) -> None:
    def body(rnd: silobus.Round) -> None:
        rnd.progress(torch.tensor(40))
        well_behaved(rnd)

    done = run(given(weights=WEIGHTS), body)
    assert json.loads((done.target / "progress.json").read_text()) == {"steps": 40}
