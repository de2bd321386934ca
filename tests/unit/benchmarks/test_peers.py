"""benchmarks.peers without any peer: the table, what a server wrote down, whose process is whose, and its end."""

from __future__ import annotations

import os
import resource
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.peers import cases, equality, flare, flower, marks, processes, recorded
from benchmarks.peers.cases import CASES, Case, Difference
from benchmarks.peers.marks import Marks
from benchmarks.peers.plot import draw
from benchmarks.peers.table import Outcome, Point, as_json, ratio, rows, text

SMALL = Point(3, 1, 5)
LARGE = Point(3, 64, 5)


def outcome(who: str, point: Point = SMALL, round_s: float | None = 0.2, problem: str | None = None) -> Outcome:
    return Outcome(who, "1.0", point, round_s, round_s, 100.4, 50.6, problem)


def test_each_point_is_one_line_with_ours_first_and_how_many_times_longer_the_others_take() -> None:
    ours = replace(outcome("silobus"), floor_s=0.05)
    found = rows([outcome("nvflare", round_s=2.5), outcome("flwr", round_s=6.0), ours])

    assert [heading for heading in found[0] if "MiB" not in heading] == [
        *("silos", "MB", "floor s", "silobus s", "flwr s", "nvflare s", "of floor", "flwr times", "nvflare times")
    ]
    assert found[1:] == [
        [*("3", "1", "0.05", "0.20", "6.00", "2.50", "4.0", "30.0", "12.5"), *["100"] * 3, *["51"] * 3],
    ]


def test_a_point_without_a_result_has_no_ratio_and_its_reason_below_the_table() -> None:
    outcomes = [
        outcome("silobus"),
        outcome("flwr", round_s=None, problem="ended 0 of 7 rounds: given up after 900 s"),
        outcome("silobus", LARGE, 1.0),
    ]

    table = text(outcomes).splitlines()

    assert [line.split()[:4] for line in table[1:3]] == [["3", "1", "0.20", "none"], ["3", "64", "1.00", "100"]]
    assert table[3:] == ["flwr with 3 silos, 1 MB: ended 0 of 7 rounds: given up after 900 s"]
    assert ratio(outcomes[1], outcomes[0]) is None
    assert [row["times"] for row in as_json(outcomes)] == [1.0, None, 1.0]


def test_a_peer_that_is_measured_alone_is_compared_with_nothing() -> None:
    assert "times" not in " ".join(rows([outcome("flwr")])[0])
    assert as_json([outcome("flwr")])[0]["times"] is None


def test_the_first_two_rounds_do_not_count() -> None:
    assert Marks([0, 100, 200, 201, 203, 206], wrong=0.0).median() == 2


def test_what_a_server_has_not_finished_writing_is_left_for_later(tmp_path: Path) -> None:
    path = tmp_path / "marks.jsonl"
    assert marks.read(path) == Marks([])

    path.write_text('{"at": 1.5, "round": 0}\n{"at": 2.5, "round": 1}\n{"at": 2.6, "wro')
    assert marks.read(path) == Marks([1.5, 2.5])

    path.write_text('{"at": 1.5, "round": 0}\n{"at": 2.5, "round": 1}\n{"at": 2.6, "wrong": 0.25}\n')
    assert marks.read(path) == Marks([1.5, 2.5], 0.25)


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (Marks([0.0, 1.0, 2.0]), "ended 2 of 7 rounds"),
        (Marks([]), "ended 0 of 7 rounds"),
        (Marks([0.0, 1.0], wrong=1.0), "the weights are wrong by 1"),
        (Marks([0.0, 1.0], wrong=float("nan")), "the weights are wrong by nan"),
        (Marks([0.0, 1.0], wrong=0.0001), None),
    ],
)
def test_only_right_weights_after_the_last_round_are_a_result(found: Marks, problem: str | None) -> None:
    assert found.problem(7) == problem


def test_whose_process_it_is_follows_from_its_command() -> None:
    assert flower.role("/x/bin/python /x/bin/flower-superlink --insecure --port 9000 ") == "server"
    assert flower.role("/x/bin/python /x/bin/flower-supernode --superlink 127.0.0.1:9000 --port 9001 ") == "client-9001"
    assert flower.role("/x/bin/python /x/bin/flwr-clientapp --token t ") is None
    assert (
        flare.role("python3 -u -m nvflare.private.fed.app.server.server_train -m /w/bench/prod_00/server ") == "server"
    )
    assert flare.role("bash /w/bench/prod_00/site-12/startup/sub_start.sh ") == "client-12"
    assert flare.role("python3 flare_job.py 3 8 ") is None


def test_every_process_with_the_mark_is_counted_and_ended_also_one_that_will_not_go() -> None:
    mark = f"for-test-{os.getpid()}"  # and no other run's, on the same machine
    script = "trap '' TERM; sh -c 'echo; read line'; :"
    with subprocess.Popen(
        ["sh", "-c", script],
        env={processes.MARK: mark, "PATH": "/usr/bin:/bin"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as shell:
        try:
            assert shell.stdout is not None
            shell.stdout.readline()
            watch = processes.Watch(mark, lambda command: "server" if "trap" in command else None)
            watch.look()

            found = processes.marked(mark)
            assert len(found) == 2
            # What the server started is the server's: both together.
            pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in found)
            assert watch.peak("server") == pytest.approx(pages * resource.getpagesize() / 2**20, rel=0.1)
            assert watch.peak("client") == 0
        finally:
            processes.end(mark, patience=0.0)
        assert not processes.marked(mark)


def test_processes_are_gone_only_when_several_looks_find_none(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([{7}, set(), {8}, set(), set(), set()])
    killed: list[int] = []
    monkeypatch.setattr(processes, "marked", lambda _: next(looks))
    monkeypatch.setattr(processes.os, "kill", lambda pid, _: killed.append(pid))
    monkeypatch.setattr(processes.time, "sleep", lambda _: None)

    processes.end("for-test")

    assert killed == [7, 8]
    assert next(looks, None) is None


def test_models_differ_by_their_worst_tensor_in_their_worst_round() -> None:
    theirs = {"a": np.array([100.0, 1.0]), "b": np.array(2.0), "none": np.zeros((0, 3))}
    ours = {"a": np.array([101.0, 1.0]), "b": np.array(2.5), "none": np.zeros((0, 3))}

    assert cases.difference(ours, theirs) == Difference(1.0, 0.25)
    assert cases.worst([(ours, theirs), (theirs, theirs)]) == Difference(1.0, 0.25)
    assert cases.difference({**ours, "a": np.array([np.nan, 1.0])}, theirs) == Difference(np.inf, np.inf)
    with pytest.raises(ValueError, match="same tensors"):
        cases.difference({"a": ours["a"]}, theirs)


def named(label: str) -> Case:
    return next(case for case in CASES if case.label == label)


def test_a_pair_that_should_be_equal_and_is_not_is_told() -> None:
    case = named("fedavg-float64")

    assert equality.line(case, Difference(0.0, 1e-13))["verdict"] == "equal"
    assert equality.line(case, Difference(0.0, 1e-9))["verdict"] == "NOT EQUAL"
    assert equality.line(named("fedavg-float32"), Difference(0.0, 1e-7))["verdict"] == "equal"
    assert equality.line(named("fedavgm-float64"), Difference(0.0, 1e-8))["verdict"] == "equal"
    assert equality.line(named("fedavgm-float64"), Difference(0.0, 1e-6))["verdict"] == "NOT EQUAL"
    assert equality.line(named("fedavg-integers-int64"), Difference(0.5, 0.1))["verdict"] == "equal"
    assert equality.line(named("fedavg-integers-int64"), Difference(0.6, 0.1))["verdict"] == "NOT EQUAL"
    assert equality.line(replace(case, equal=False), Difference(0.0, 1.0))["verdict"] == "differs"


@pytest.mark.parametrize("case", [case for case in CASES if not case.equal], ids=lambda case: case.label)
def test_ours_goes_through_every_case_that_differs_with_the_options_that_it_names(case: Case) -> None:
    base, _ = cases.updates(case)
    models = list(cases.ours(case))

    assert len(models) == cases.ROUNDS
    assert all(np.any(models[0][name] != base[name]) for name in ("matrix", "vector"))


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64"])
def test_every_number_of_the_updates_follows_from_its_place_and_the_seed(dtype: str) -> None:
    """Said once more in integers, as `updates` documents it: whoever has PCG64 can make them."""
    base, rounds = cases.updates(replace(named("fedavg-float64"), dtype=dtype))
    sizes = {name: int(np.prod(shape)) for name, shape in cases.SHAPES.items()}
    drawn = iter(np.random.PCG64(4).random_raw(sum(sizes.values()) * (1 + 4 * 7)).tolist())
    scale = 1000 if dtype == "int64" else 1

    def expected(around: dict[str, list[float]], width: float) -> dict[str, list[float]]:
        return {
            name: np.array([at + width * scale * ((next(drawn) >> 11) / 2**52 - 1) for at in column], dtype).tolist()
            for name, column in around.items()
        }

    start = expected({name: [0.0] * size for name, size in sizes.items()}, 2.0)
    assert {name: array.reshape(-1).tolist() for name, array in base.items()} == start
    for models in rounds:
        for model in models:
            assert {name: array.reshape(-1).tolist() for name, array in model.items()} == expected(start, 0.5)
    assert next(drawn, None) is None


def test_what_flower_gave_is_read_as_it_was_written(tmp_path: Path) -> None:
    live = {case.label: list(cases.ours(case)) for case in recorded.KEPT}
    assert "cannot be read" in recorded.problems(live, tmp_path)[0]

    for _ in range(2):
        recorded.write(live, tmp_path)
        assert recorded.problems(live, tmp_path) == []
    assert (
        recorded.read(tmp_path).outputs["krum-float32"][3]["matrix"].tolist()
        == live["krum-float32"][3]["matrix"].tolist()
    )


def test_it_is_told_when_what_flower_gave_is_not_what_it_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = {case.label: list(cases.ours(case)) for case in recorded.KEPT}
    recorded.write(live, tmp_path)
    # What is kept in float32 lets ours be that far away, but not Flower from itself.
    live["fedavgm-float64"][3] = {**live["fedavgm-float64"][3], "scalar": np.array(1.0)}
    live["fedavg-float32"][0] = {
        name: array * np.float32(1 + 1e-6) for name, array in live["fedavg-float32"][0].items()
    }
    live["median-float64"][0] = {name: array * (1 + 1e-9) for name, array in live["median-float64"][0].items()}
    found = recorded.problems(live, tmp_path)
    assert [problem.partition(" is ")[0] for problem in found] == ["fedavgm-float64", "median-float64"]

    kept = recorded.read(tmp_path)
    monkeypatch.setattr(recorded, "PINS", {"flwr": ("flwr==2.0.0",)})
    assert recorded.problems(live, tmp_path)[0].endswith("and the pins are flwr==2.0.0")
    given = {**kept.given, "krum-float64": "other", "gone": "none"}
    del given["median-float32"]
    assert recorded.outdated(replace(kept, given=given)) == [
        f"it is of {', '.join(kept.pins)}, and the pins are flwr==2.0.0",
        "gone is no case any more",
        "krum-float64 is of other updates or options",
        "median-float32 is missing",
    ]


@pytest.mark.parametrize(
    "other",
    [{"flower": "FedMedian"}, {"options": {"x": 1}}, {"samples": cases.EVEN}, {"dtype": "float32"}],
    ids=lambda other: next(iter(other)),
)
def test_the_digest_is_of_all_that_flower_is_given(other: dict[str, Any]) -> None:
    case = named("fedavg-float64")
    assert recorded.digest(replace(case, **other)) != recorded.digest(case) == recorded.digest(case)


def test_the_picture_has_each_framework_and_the_floor_where_they_were_measured() -> None:
    ours = [replace(outcome("silobus", point), floor_s=0.1) for point in (SMALL, LARGE)]
    outcomes = as_json([*ours, outcome("nvflare"), outcome("nvflare", LARGE, None, "given up")])
    root = ElementTree.fromstring(draw(outcomes, 3))  # noqa: S314  our own
    circles = [element for element in root.iter() if element.tag.endswith("circle")]
    assert len(circles) == (2 + 1 + 2) + (2 + 1)  # seconds: ours, FLARE's, the floor; memory: ours, FLARE's
    words = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert {"Silobus", "NVIDIA FLARE", "floor"} <= words
    assert "Flower" not in words
    with pytest.raises(ValueError, match="no point with 30 silos"):
        draw(outcomes, 30)
