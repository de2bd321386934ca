"""Silobus for training scripts: the loop a script puts around what it already does.

    for rnd in silobus.rounds():
        rnd.load(model, share=["*", "!head.*"])     # the global weights, and this silo's own
        rnd.keep("optimizer", optimizer)            # private state, committed with the round
        if rnd.evaluates:
            rnd.score(loss=silobus.mean(total, n))  # how the weights received do here
        if rnd.trains:
            n, steps = fit(model, optimizer, rnd.data["train"], rnd.params, on_step=rnd.progress)
            rnd.submit(model, samples=n, steps=steps)

In each step of `fit`, one line each for FedProx and SCAFFOLD: `loss = loss + rnd.proximal(model)` before `backward()`,
`rnd.correct(model)` after it. With other strategies, and alone, they do nothing.

The same script runs alone, as one job per round, or as a process kept warm between rounds. Here lives only the
script's half of the training contract (docs/training-contract.md). What the agent and the orchestrator do never
does, and neither is needed: the standard library and safetensors are enough, and torch where the script uses it.
"""

from silobus.metrics import Metric, confusion, mean, roc, sum
from silobus.round import Round
from silobus.rounds import rounds
from silobus.unmet import NoProximalTerm, NotCorrected, NothingShared

__all__ = [
    "Metric",
    "NoProximalTerm",
    "NotCorrected",
    "NothingShared",
    "Round",
    "confusion",
    "mean",
    "roc",
    "rounds",
    "sum",
]
