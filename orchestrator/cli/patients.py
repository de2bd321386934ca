"""Sharing rows of data out to silos: every label by a draw of its own, so silos differ in size and in what they see.

Here live the split and the two formats that examples use: CSV files with a column `label`, and safetensors files with a
tensor `labels`.
"""

from __future__ import annotations

import csv
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from orchestrator.cli.terminal import Complaint

TRIES = 10_000


class Rows(ABC):
    """A file of labelled rows."""

    labels: Sequence[str]

    @abstractmethod
    def write(self, path: Path, chosen: Sequence[int]) -> None:
        """A file of the same form with these rows."""

    def __len__(self) -> int:
        return len(self.labels)


@final
class CsvRows(Rows):
    """One row per line, under a header."""

    def __init__(self, path: Path) -> None:
        with path.open(newline="", encoding="utf-8") as file:
            self._header, *self._rows = csv.reader(file)
        label = self._header.index("label")
        self.labels = [row[label] for row in self._rows]

    def write(self, path: Path, chosen: Sequence[int]) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self._header, *(self._rows[i] for i in chosen)])


@final
class TensorRows(Rows):
    """One row per index of the first dimension of every tensor."""

    def __init__(self, path: Path) -> None:
        from safetensors.numpy import load_file

        self._tensors: dict[str, Any] = load_file(path)
        self.labels = [str(label) for label in self._tensors["labels"].tolist()]

    def write(self, path: Path, chosen: Sequence[int]) -> None:
        from safetensors.numpy import save_file

        save_file({name: tensor[list(chosen)] for name, tensor in self._tensors.items()}, path)


def read_rows(path: Path) -> Rows:
    """The rows in a file of either form."""
    return TensorRows(path) if path.suffix == ".safetensors" else CsvRows(path)


def divide(labels: Sequence[str], silos: int, *, alpha: float, seed: int, fewest: int) -> list[list[int]]:
    """Row numbers per silo: each label is shared out by a Dirichlet draw; drawn again until nobody has too few."""
    if silos * fewest > len(labels):
        raise Complaint(f"{len(labels)} rows are too few for {silos} silos. Take at most {len(labels) // fewest}.")
    generator = random.Random(seed)  # noqa: S311  (a split that can be repeated is wanted, not a secret one)
    for _ in range(TRIES):
        parts: list[list[int]] = [[] for _ in range(silos)]
        for label in sorted(set(labels)):
            rows = [i for i, its in enumerate(labels) if its == label]
            generator.shuffle(rows)
            draws = [generator.gammavariate(alpha, 1.0) for _ in range(silos)]
            start, drawn = 0, 0.0
            for part, draw in zip(parts, draws, strict=True):
                drawn += draw
                end = round(len(rows) * drawn / sum(draws))
                part.extend(rows[start:end])
                start = end
        if min(map(len, parts)) >= fewest:
            return [sorted(part) for part in parts]
    raise Complaint(f"No split over {silos} silos leaves {fewest} rows in each. Take fewer silos, or another seed.")


def share_out(pooled: Path, held_out: Path, targets: Sequence[Path], *, alpha: float, seed: int, fewest: int) -> None:
    """Gives each target folder its `train` file, and evenly of the held-out rows its `test` file.

    Each held-out row is in one silo's test file, so the pooled metrics of a round are those of all held-out rows.
    """
    rows, tests = read_rows(pooled), read_rows(held_out)
    parts = divide(rows.labels, len(targets), alpha=alpha, seed=seed, fewest=fewest)
    for number, (target, part) in enumerate(zip(targets, parts, strict=True)):
        target.mkdir(parents=True, exist_ok=True)
        rows.write(target / f"train{pooled.suffix}", part)
        tests.write(target / f"test{held_out.suffix}", range(number, len(tests), len(targets)))
