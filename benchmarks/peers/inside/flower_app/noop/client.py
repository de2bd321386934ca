"""A Flower client that trains nothing: it returns what it was sent, plus one."""

# mypy: ignore-errors
# Flower is not installed where types are checked.

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    received = message.content["arrays"]
    arrays = ArrayRecord({name: Array(array.numpy() + np.float32(1)) for name, array in received.items()})
    return Message(
        RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 64})}),
        reply_to=message,
    )
