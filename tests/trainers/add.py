"""A trainer whose result is known beforehand: it adds the silo's constant to every weight it received.

The owner's environment says how: ADD (the constant), SAMPLES, CONTROL (a directory by which a test holds training).
Training goes on while `CONTROL/hold` is there, and in rounds after the one that `CONTROL/allow-<experiment>` names;
meanwhile `CONTROL/training` names process, run and round.
"""

import os
import time
from pathlib import Path

import numpy as np

import silobus

ADD = np.float32(os.environ.get("ADD", "1"))
SAMPLES = int(os.environ.get("SAMPLES", "64"))
CONTROL = Path(os.environ.get("CONTROL", "control"))
LABELS = [1] * 6 + [1] * 2 + [0] * 30 + [0] * 3
SCORES = [0.9] * 6 + [0.1] * 2 + [0.1] * 30 + [0.9] * 3

model = {"layer.weight": np.zeros((4, 3), np.float32), "layer.bias": np.zeros(3, np.float32)}


def held(rnd: silobus.Round) -> bool:
    allowed = CONTROL / f"allow-{rnd.experiment}"
    return (CONTROL / "hold").exists() or (allowed.exists() and rnd.round > int(allowed.read_text()))


for rnd in silobus.rounds():
    rnd.load(model)
    if rnd.evaluates:
        level = float(model["layer.bias"][0])
        rnd.score(level=silobus.mean(level * SAMPLES, SAMPLES), unnamed=silobus.mean(level * SAMPLES, SAMPLES))
        rnd.score(ranking=silobus.roc(LABELS, SCORES, bins=2))
    if rnd.trains:
        steps = 1
        until = time.monotonic() + float(rnd.params.get("delay", 0))
        while time.monotonic() < until or held(rnd):
            steps += 1
            rnd.progress(steps)
            (CONTROL / "training.new").write_text(f"{os.getpid()} {rnd.run} {rnd.round}")
            (CONTROL / "training.new").replace(CONTROL / "training")
            time.sleep(0.02)
        (CONTROL / "training").unlink(missing_ok=True)
        for tensor in model.values():
            np.add(tensor, ADD, out=tensor)
        rnd.submit(model, samples=SAMPLES, steps=steps)
