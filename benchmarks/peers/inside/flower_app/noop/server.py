"""Flower's FedAvg, its own loop, and a note of the time whenever a round is over."""

# mypy: ignore-errors
# Flower is not installed where types are checked.

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

TENSORS = 8
app = ServerApp()


def initial(floats):
    """The weights that `benchmarks/trainer.py` starts from: eight vectors of float32."""
    return {
        f"tensor.{i}": (np.arange(floats // TENSORS, dtype=np.int64) % 1024).astype(np.float32) for i in range(TENSORS)
    }


@app.main()
def main(grid: Grid, context: Context) -> None:
    floats, rounds, silos = (int(context.run_config[key]) for key in ("floats", "rounds", "silos"))
    marks = Path(context.run_config["marks"])

    def mark(**what) -> None:
        with marks.open("a") as file:
            file.write(json.dumps({"at": time.time(), **what}) + "\n")

    def over(number: int, arrays: ArrayRecord) -> None:
        mark(round=number)
        if number == rounds:
            expected = initial(floats)
            wrong = max(
                float(np.max(np.abs(array.numpy() - (expected[name] + np.float32(rounds)))))
                for name, array in arrays.items()
            )
            mark(wrong=wrong)

    # All silos in every round; without evaluation, which would be a second exchange.
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=silos, min_available_nodes=silos)
    start = ArrayRecord({name: Array(array) for name, array in initial(floats).items()})
    strategy.start(grid=grid, initial_arrays=start, num_rounds=rounds, evaluate_fn=over)
