"""NVIDIA FLARE's FedAvg with its own loop and its own saving, which notes the time when a round is over."""

# mypy: ignore-errors
# NVIDIA FLARE is not installed where types are checked.

import json
import time
from pathlib import Path

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.workflows.fedavg import FedAvg

TENSORS = 8


def initial(floats):
    """The weights that `benchmarks/trainer.py` starts from: eight vectors of float32."""
    return {
        f"tensor.{i}": (np.arange(floats // TENSORS, dtype=np.int64) % 1024).astype(np.float32) for i in range(TENSORS)
    }


class NotedFedAvg(FedAvg):
    """`load_model` and `save_model` are the two places that FLARE documents for a model of one's own."""

    def __init__(self, num_clients, num_rounds, floats, marks):
        super().__init__(num_clients=num_clients, num_rounds=num_rounds, persistor_id="")
        self.floats = floats
        self.marks = marks

    def load_model(self):
        self._note(round=0)
        return FLModel(params_type=ParamsType.FULL, params=initial(self.floats))

    def save_model(self, model):
        super().save_model(model)
        number = self.current_round + 1
        self._note(round=number)
        if number == self.num_rounds:
            expected = initial(self.floats)
            wrong = max(
                float(np.max(np.abs(array - (expected[name] + np.float32(number)))))
                for name, array in model.params.items()
            )
            self._note(wrong=wrong)

    def _note(self, **what):
        with Path(self.marks).open("a") as file:
            file.write(json.dumps({"at": time.time(), **what}) + "\n")
