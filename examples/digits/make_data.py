"""The digits that come with scikit-learn, divided so that each of three silos has hardly seen some of them.

For each digit the silos' shares are drawn from a Dirichlet(0.1) distribution. The test data hold 36 of every digit.

    python make_data.py /tmp/digits
"""

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from sklearn.datasets import load_digits

SILOS = 3
ALPHA = 0.1
TESTS_PER_DIGIT = 36
FEWEST = 50


def main(where: Path, seed: int = 0) -> None:
    digits = load_digits()
    rng = np.random.default_rng(seed)
    by_digit = [rng.permutation(np.flatnonzero(digits.target == digit)) for digit in range(10)]
    parts = divide([rows[TESTS_PER_DIGIT:] for rows in by_digit], rng)
    while min(map(len, parts)) < FEWEST:
        parts = divide([rows[TESTS_PER_DIGIT:] for rows in by_digit], rng)

    where.mkdir(parents=True, exist_ok=True)
    files = {"test": np.concatenate([rows[:TESTS_PER_DIGIT] for rows in by_digit])}
    files |= {"pooled": np.concatenate(parts)} | {f"silo-{silo}": part for silo, part in enumerate(parts)}
    for name, rows in files.items():
        images, labels = digits.images[rows].astype(np.float32), digits.target[rows].astype(np.int64)
        save_file({"images": images, "labels": labels}, where / f"{name}.safetensors")


def divide(by_digit: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    cuts = [(np.cumsum(rng.dirichlet([ALPHA] * SILOS))[:-1] * len(rows)).astype(int) for rows in by_digit]
    pieces = [np.split(rows, cut) for rows, cut in zip(by_digit, cuts, strict=True)]
    return [np.concatenate([piece[silo] for piece in pieces]) for silo in range(SILOS)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
