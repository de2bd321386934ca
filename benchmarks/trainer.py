"""A trainer that costs nothing: it adds one to every weight, so that a round's time is Silobus's own."""

import os

import numpy as np

import silobus

TENSORS = 8
size, modulus = int(os.environ["FLOATS"]) // TENSORS, int(os.environ.get("MODULUS", "1024"))
model = {f"tensor.{i}": (np.arange(size, dtype=np.int64) % modulus).astype(np.float32) for i in range(TENSORS)}

for rnd in silobus.rounds():
    rnd.load(model)
    if rnd.trains:
        _ = rnd.proximal_mu  # there is no loss that FedProx could add its term to, and so no time that it would take
        for tensor in model.values():
            np.add(tensor, np.float32(1), out=tensor)
        rnd.submit(model, samples=64, steps=1)
