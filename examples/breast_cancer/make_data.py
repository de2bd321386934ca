"""The breast-cancer data that comes with scikit-learn, as CSV files of a few hospitals of very different size.

python make_data.py /tmp/hospitals
"""

import csv
import random
import sys
from pathlib import Path

from sklearn.datasets import load_breast_cancer

HOSPITALS = {"north": 0.6, "south": 0.3, "island": 0.1}
TEST = 0.25


def main(where: Path, seed: int = 0) -> None:
    data = load_breast_cancer()
    rows = [[*map(float, x), int(y)] for x, y in zip(data.data, data.target, strict=True)]
    random.Random(seed).shuffle(rows)
    tests = int(len(rows) * TEST)
    header = [*map(str, data.feature_names), "label"]
    write(where / "test.csv", header, rows[:tests])
    write(where / "pooled.csv", header, rows[tests:])
    start = tests
    for name, share in HOSPITALS.items():
        end = start + round((len(rows) - tests) * share)
        write(where / name / "train.csv", header, rows[start:end])
        start = end


def write(path: Path, header: list[str], rows: list[list[float]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
