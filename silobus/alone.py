"""A round of a script that runs by itself: nothing is loaded, written or sent; scores go to the terminal.

Here lives only what a person at a terminal sees. The checks are those of every round, so what runs here is called
rightly.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from silobus.metrics import Metric
from silobus.round import Round, Told
from silobus.state import structure_of
from silobus.weights import divide


def alone_rounds(rounds: int, params: dict[str, Any], data: dict[str, Any], *, prints: bool) -> Iterator[Round]:
    """So many rounds of training, then once more to evaluate what came of it, as a federated run ends."""
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: at least one")
    for number in range(1, rounds + 2):
        rnd = AloneRound(
            Told(
                round=number,
                experiment="alone",
                run="alone",
                task="alone",
                purpose="train" if number <= rounds else "evaluate",
                params=dict(params),
                data=dict(data),
                seed=number,
            ),
            heading=f"round {number} of {rounds}" if number <= rounds else "at the end",
            prints=prints,
        )
        yield rnd
        rnd.finish()


class AloneRound(Round):
    alone = True

    def __init__(self, told: Told, *, heading: str, prints: bool) -> None:
        super().__init__(told)
        self._heading = heading
        self._prints = prints

    def _load(self, model: Any, share: tuple[str, ...]) -> None:
        divide(model, share)  # what would be refused there is refused here

    def _restore(self, name: str, obj: Any) -> None:
        structure_of(obj, name, {})

    def _scored(self, phase: str, metrics: Mapping[str, Metric]) -> None:
        values = "  ".join(f"{name} {metric.summary:.4g}" for name, metric in metrics.items())
        self._print(f"{phase:8}  {values}")

    def _progress(self, steps: int | None) -> None:
        pass

    def _proximal(self, model: Any, mu: float) -> Any:
        return 0.0  # there are no others to stay near to

    def _correct(self, model: Any) -> None:
        pass

    def _submit(self, model: Any, samples: int, steps: int, lr: float | None) -> None:
        self._print(f"trained   on {samples} samples in {steps} steps")

    def _finish(self) -> None:
        pass

    def _print(self, line: str) -> None:
        if self._prints:
            sys.stdout.write(f"{self._heading}: {line}\n")
            sys.stdout.flush()
