"""benchmarks.quality: its silos' arithmetic is the product's, its divisions and its tables say what they claim."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from benchmarks.quality import report, train
from benchmarks.quality.data import FEWEST, SILOS, TESTS, divided
from benchmarks.quality.federation import Curve, Method, models, run, sample
from benchmarks.quality.plot import Band, draw
from benchmarks.quality.real import difference
from benchmarks.quality.study import SEEDS, SETTINGS, Difference, Result, first, grid
from messages import names
from tests.scenario.whole import Whole

STEPS, ROUNDS, LR = 2, 2, 0.3
TWO = SILOS[:2]
METHODS = (
    Method("fedavg", LR),
    Method("fedprox", LR, {"mu": 0.5}),
    Method("scaffold", LR),
    Method("fedadam", LR, {"server_lr": 0.03}),
)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.strategy)
async def test_the_study_makes_the_models_of_a_federation_with_silobus_in_its_silos(
    method: Method, tmp_path: Path
) -> None:
    division = divided(3, silos=TWO)
    model = train.build(division)
    bodies = {
        silo: partial(train.one_round, model=model, division=division, number=number, lr=LR, steps=STEPS)
        for number, silo in enumerate(TWO)
    }
    whole = Whole(tmp_path, bodies, roles=["weights", "control"], max_bytes=100_000)
    asked = {"name": method.strategy, "options": dict(method.options)}
    name = await whole.run(rounds=ROUNDS, strategy=asked)
    ours = list(models(method, division, ROUNDS, asked=2, steps=STEPS))
    for number, expected in enumerate(ours, start=1):
        record = whole.record(name, number)
        assert record.model is not None
        made = load(whole.blob(names.GLOBAL, name, number, record.model.sha256))
        assert difference(made, expected) < 1e-6, number
        files = 2 if method.strategy == "scaffold" else 1
        for update in record.updates:
            assert update.bytes == pytest.approx(files * len(save(expected)), rel=0.02)
    if method.strategy != "fedavg":
        *_, plain = models(METHODS[0], division, ROUNDS, asked=2, steps=STEPS)
        assert difference(ours[-1], plain) > 1e-3, "the comparison would see a method that does nothing"


def test_what_a_run_moves_is_what_its_silos_send_and_are_given() -> None:
    division = divided(0)
    size = len(save(division.initial()))
    assert run(METHODS[0], division, 2).moved == (20 * size, 40 * size)
    assert run(METHODS[2], division, 2, asked=3).moved == (9 * size, 21 * size), "no control variate before the second"


def test_silos_that_are_not_asked_keep_their_control_variates() -> None:
    """Against the paper's algorithm, one silo after the other, in float64."""
    division = divided(1)
    found = list(models(METHODS[2], division, 3, asked=3, steps=2))
    x = {name: value.astype(np.float64) for name, value in division.initial().items()}
    c = {name: np.zeros_like(value) for name, value in x.items()}
    own = [dict(c) for _ in SILOS]
    for number, model in enumerate(found, start=1):
        asked = sample(1, number, len(SILOS), 3)
        assert len(set(asked)) == 3
        made, renewed = [], {}
        for silo in asked:
            y = dict(x)
            for rows in division.batches(number, 2)[silo]:
                gradients = _gradients(y, division.images[rows].astype(np.float64), division.labels[rows])
                y = {name: y[name] - LR * (gradients[name] + c[name] - own[silo][name]) for name in y}
            made.append(y)
            renewed[silo] = {name: own[silo][name] - c[name] + (x[name] - y[name]) / (2 * LR) for name in y}
        changes = [{name: renewed[silo][name] - own[silo][name] for name in c} for silo in asked]
        c = {name: c[name] + sum(change[name] for change in changes) / len(SILOS) for name in c}
        x = {name: sum(one[name] for one in made) / 3 for name in x}
        for silo in asked:
            own[silo] = renewed[silo]
        assert difference(model, x) < 1e-5, number


def _gradients(model: dict[str, np.ndarray], x: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    before = x @ model["0.weight"].T + model["0.bias"]
    logits = np.maximum(before, 0) @ model["2.weight"].T + model["2.bias"]
    error = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error[np.arange(len(labels)), labels] -= 1
    error /= len(labels)
    back = (error @ model["2.weight"]) * (before > 0)
    return {
        "0.weight": back.T @ x,
        "0.bias": back.sum(0),
        "2.weight": error.T @ np.maximum(before, 0),
        "2.bias": error.sum(0),
    }


def test_no_image_is_in_two_places_and_tuning_never_sees_a_test_image() -> None:
    tests = {tuple(image) for image in divided(0).test_images}
    for seed in range(3):
        for division in (divided(seed), divided(seed, tuning=True)):
            rows = np.concatenate(division.silos)
            assert len(set(rows.tolist())) == len(rows)
            assert min(division.samples) >= FEWEST
            assert not tests & {tuple(image) for image in division.images[rows]}
            for silo, batch in zip(division.silos, division.batches(1, 4), strict=True):
                assert set(batch.reshape(-1)) <= set(silo)
        assert len(division.test_labels) + len(rows) == 1797 - TESTS, "the last is the one for tuning"
        assert not tests & {tuple(image) for image in division.test_images}
    assert not np.array_equal(divided(0).silos[0], divided(1).silos[0])


def test_a_run_that_is_not_finite_has_failed_from_then_on() -> None:
    assert run(Method("fedavg", 1e30), divided(0), 3).accuracy[-1] == 0


def made_up(strategy: str, *accuracies: tuple[float, ...]) -> Result:
    curves = [Curve(one, tuple(1000 * number for number in range(1, len(one) + 1))) for one in accuracies]
    method = Method(strategy, 0.2)
    return Result(SETTINGS[0], method, [(replace(method, lr=lr), 0.5) for lr in (0.1, 0.2, 0.3)], curves)


def test_a_difference_counts_only_when_it_is_clear_over_the_seeds_and_unreached_is_said() -> None:
    assert first(Curve((0.5, 0.9, 0.8), (1, 2, 3)), 0.9) == 2
    base = made_up("fedavg", *((0.5, 0.80 + seed / 100, 0.95) for seed in SEEDS))
    better = made_up("fedprox", *((0.5, 0.91 + seed / 100, 0.97 + seed / 1000) for seed in SEEDS))
    mixed = made_up("fedadam", *((0.5, 0.82, 0.95 + (-1) ** seed / 50) for seed in SEEDS[:-1]), (0.5, 0.8, 0.85))
    lines = report.rows([base, better, mixed])
    assert [line[-1] for line in lines] == ["", "more accurate, sooner", "no difference shown"]
    assert [line[5] for line in lines] == ["3.0 ± 0.0", "2.0 ± 0.0", "4 of 5 seeds: 3.0"]
    assert lines[2][6] == "not all reached it"
    assert "edge" in report.rows([base, replace(better, method=Method("fedprox", 0.3))])[1][2]
    assert Difference([1, 1, 1, 1, 2]).half_width == pytest.approx(0.555, abs=0.001)
    assert sum(line.startswith("| ") for line in report.markdown([base]).splitlines()) == 5, "two tables' heads, a line"
    assert report.as_json([base])[0]["reached"] == [3] * 5


def test_every_strategy_is_tried_with_each_learning_rate_and_each_option() -> None:
    assert len(list(grid("scaffold"))) == 7
    assert len({(one.lr, one.options["mu"]) for one in grid("fedprox")}) == 28


def test_the_plot_is_svg_with_a_line_for_each_method() -> None:
    from xml.etree import ElementTree

    band = Band([0.4, 0.7, 0.9], [0.1, 0.1, 0.05])
    root = ElementTree.fromstring(draw({"one": {"a": band, "b < c": band}, "two": {"a": band}}, low=0.5, mark=0.9))  # noqa: S314  # our own
    lines = [element for element in root.iter() if element.tag.endswith("polyline")]
    assert len(lines) == 3
    assert all(len((line.get("points") or "").split()) == 3 for line in lines)


def test_the_page_holds_what_the_command_writes_between_its_marks(tmp_path: Path) -> None:
    page = Path(__file__).parents[3] / "docs" / "quality.md"
    (tmp_path / "quality.md").write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    base = made_up("fedavg", *((0.5, 0.9, 0.95) for _ in SEEDS))
    report.write(tmp_path, [base])
    written = (tmp_path / "quality.md").read_text(encoding="utf-8")
    assert report.markdown([base]) in written
    assert written.split(report.BEGIN)[0] == page.read_text(encoding="utf-8").split(report.BEGIN)[0]
    assert (tmp_path / "quality.svg").read_text(encoding="utf-8").startswith("<svg")
