"""What Flower's strategies make of given updates, round after round.

    python flower_aggregates.py FOLDER

FOLDER has `cases.json` (name, strategy, options, rounds, samples), and for each case `<name>.start.npz` and
`<name>.<round>.<silo>.npz`. It gets `<name>.<round>.theirs.npz`.
"""

# mypy: ignore-errors
# Flower is not installed where types are checked.

import json
import sys
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp import strategy as strategies


class Reply:
    """As much of a message as a strategy looks at; Flower's own can only be made in a run."""

    def __init__(self, content):
        self.content = content

    def has_error(self):
        return False


def load(path):
    with np.load(path, allow_pickle=False) as file:
        return ArrayRecord({name: Array(file[name]) for name in file.files})


def main(folder):
    for case in json.loads((folder / "cases.json").read_text()):
        name, samples = case["name"], case["samples"]
        # Nobody is asked to train, so that configuring a round only shows the strategy where it starts.
        strategy = getattr(strategies, case["strategy"])(fraction_train=0.0, **case["options"])
        arrays = load(folder / f"{name}.start.npz")
        for number in range(1, case["rounds"] + 1):
            list(strategy.configure_train(number, arrays, ConfigRecord(), None))
            replies = [
                Reply(
                    RecordDict(
                        {
                            "arrays": load(folder / f"{name}.{number}.{silo}.npz"),
                            "metrics": MetricRecord({"num-examples": count}),
                        }
                    )
                )
                for silo, count in enumerate(samples)
            ]
            arrays, _ = strategy.aggregate_train(number, replies)
            np.savez(folder / f"{name}.{number}.theirs.npz", **{key: value.numpy() for key, value in arrays.items()})


main(Path(sys.argv[1]))
