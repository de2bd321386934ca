"""An NVIDIA FLARE client that trains nothing: it returns what it was sent, plus one."""

# mypy: ignore-errors
# NVIDIA FLARE is not installed where types are checked.

import numpy as np
import nvflare.client as flare

flare.init()
while flare.is_running():
    received = flare.receive()
    if received is None:
        break
    params = {name: array + np.float32(1) for name, array in received.params.items()}
    flare.send(flare.FLModel(params=params, meta={"NUM_STEPS_CURRENT_ROUND": 64}))
