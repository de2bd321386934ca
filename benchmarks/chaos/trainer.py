"""A trainer whose result is known exactly, also for what it remembers from round to round.

The owner's environment says what it adds (ADD) and what that weighs (SAMPLES). The hyperparameter `adds` says how:

    constant   ADD
    count      ADD times the number of rounds that it has trained before and with this one
    momentum   v, which is half of what it was, plus ADD

Both memories are kept private state: a round committed twice, or not at all, shows in every weight from then on.
"""

import os
import time

import numpy as np

import silobus

ADD = float(os.environ["ADD"])
SAMPLES = int(os.environ["SAMPLES"])
FLOATS = int(os.environ["FLOATS"])

model = {"layer.weight": np.zeros(FLOATS, np.float32), "layer.bias": np.zeros(8, np.float32)}
memory = {"rounds": 0, "velocity": 0.0}

for rnd in silobus.rounds():
    rnd.load(model)
    rnd.keep("memory", memory)
    if rnd.evaluates:
        rnd.score(level=silobus.mean(float(model["layer.bias"][0]) * SAMPLES, SAMPLES))
    if rnd.trains:
        steps, until = 1, time.monotonic() + float(rnd.params["delay"])
        while (left := until - time.monotonic()) > 0:
            rnd.progress(steps)
            steps += 1
            time.sleep(min(left, 0.2))
        memory["rounds"] += 1
        memory["velocity"] = memory["velocity"] / 2 + ADD
        added = {"constant": ADD, "count": ADD * memory["rounds"], "momentum": memory["velocity"]}[rnd.params["adds"]]
        for tensor in model.values():
            np.add(tensor, np.float32(added), out=tensor)
        rnd.score("trained", rounds=silobus.sum(memory["rounds"], 1))
        rnd.submit(model, samples=SAMPLES, steps=steps)
