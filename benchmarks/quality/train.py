"""A silo of the study as a training script: torch, and `silobus` for what FedProx and SCAFFOLD do to its steps.

The tests run `one_round` in a federation in memory, `--check` this file in a real one; the models must be the study's.
"""

from __future__ import annotations

import os
from typing import Any

import silobus
from benchmarks.quality.data import HIDDEN, SILOS, Division, divided


def build(division: Division) -> Any:
    """The study's initial model, in torch."""
    import torch
    from torch import nn

    model = nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
    model.load_state_dict({name: torch.from_numpy(value) for name, value in division.initial().items()})
    return model


def one_round(rnd: silobus.Round, model: Any, division: Division, number: int, *, lr: float, steps: int) -> None:
    """What silo `number` does in a round, of any purpose."""
    import torch
    from torch import nn

    rnd.load(model)
    if rnd.trains:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        for rows in division.batches(rnd.round, steps)[number]:
            x, y = torch.from_numpy(division.images[rows]), torch.from_numpy(division.labels[rows])
            optimizer.zero_grad()
            loss: Any = nn.functional.cross_entropy(model(x), y) + rnd.proximal(model)
            loss.backward()
            rnd.correct(model)
            optimizer.step()
        rnd.submit(model, samples=division.samples[number], steps=steps, lr=lr)


def main() -> None:
    import torch

    torch.set_num_threads(1)
    seed, silos, number, steps = (int(os.environ[name]) for name in ("SEED", "SILOS", "NUMBER", "STEPS"))
    division = divided(seed, silos=SILOS[:silos])
    model = build(division)
    for rnd in silobus.rounds():
        one_round(rnd, model, division, number, lr=float(os.environ["LR"]), steps=steps)


if __name__ == "__main__":
    main()
