"""The demo's split: everybody's rows together are all rows, nobody has too few, and it can be repeated."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from orchestrator.cli.patients import divide, read_rows, share_out
from orchestrator.cli.terminal import Complaint

LABELS = ["0"] * 150 + ["1"] * 250


@given(silos=st.integers(1, 8), seed=st.integers(0, 10_000), alpha=st.sampled_from([0.3, 1.0, 10.0]))
def test_every_row_goes_to_exactly_one_silo(silos: int, seed: int, alpha: float) -> None:
    parts = divide(LABELS, silos, alpha=alpha, seed=seed, fewest=10)

    assert sorted(row for part in parts for row in part) == list(range(len(LABELS)))
    assert min(map(len, parts)) >= 10
    assert parts == divide(LABELS, silos, alpha=alpha, seed=seed, fewest=10)


def test_a_small_alpha_makes_silos_that_differ() -> None:
    def spread(alpha: float) -> float:
        shares = [
            sum(LABELS[row] == "1" for row in part) / len(part)
            for seed in range(30)
            for part in divide(LABELS, 3, alpha=alpha, seed=seed, fewest=10)
        ]
        return float(np.std(shares))

    assert spread(0.3) > 2 * spread(30.0)


def test_too_many_silos_are_refused() -> None:
    with pytest.raises(Complaint, match="Take at most 40"):
        divide(LABELS, 41, alpha=1.0, seed=0, fewest=10)


def test_held_out_rows_are_shared_out_evenly_and_never_twice(tmp_path: Path) -> None:
    header = "a,label\n"
    (tmp_path / "pooled.csv").write_text(header + "".join(f"{i},{i % 2}\n" for i in range(100)))
    (tmp_path / "test.csv").write_text(header + "".join(f"{i},{i % 2}\n" for i in range(100, 121)))
    targets = [tmp_path / "a", tmp_path / "b"]

    share_out(tmp_path / "pooled.csv", tmp_path / "test.csv", targets, alpha=1.0, seed=0, fewest=5)

    train = [line for target in targets for line in (target / "train.csv").read_text().splitlines()[1:]]
    test = [(target / "test.csv").read_text().splitlines() for target in targets]
    assert Counter(train) == Counter(f"{i},{i % 2}" for i in range(100))
    assert Counter(test[0][1:] + test[1][1:]) == Counter(f"{i},{i % 2}" for i in range(100, 121))
    assert [lines[0] for lines in test] == ["a,label", "a,label"]
    assert [len(lines) - 1 for lines in test] == [11, 10]


def test_tensors_are_divided_along_their_first_dimension(tmp_path: Path) -> None:
    path = tmp_path / "pooled.safetensors"
    save_file({"images": np.arange(12).reshape(6, 2), "labels": np.array([0, 1, 2, 0, 1, 2])}, path)

    read_rows(path).write(tmp_path / "part.safetensors", [4, 1])

    part = load_file(tmp_path / "part.safetensors")
    assert part["images"].tolist() == [[8, 9], [2, 3]]
    assert part["labels"].tolist() == [1, 1]
