"""What a peer's server wrote down: the time at the end of every round, and how wrong the weights were at the end."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

WARM_UP: Final = 2
"""Rounds left out, as in benchmarks.rounds: processes start in them."""

TOLERANCE: Final = 0.1
"""Weights are up to about a thousand, in float32, and averaged every round; a round that is missing would show as 1."""


@dataclass(frozen=True, slots=True)
class Marks:
    """`ends[r]` is when round r was over, in seconds; `ends[0]` is when the first one began."""

    ends: Sequence[float]
    wrong: float | None = None
    """The largest difference to the weights that had to come out; None: the last round is not over."""

    @property
    def seconds(self) -> list[float]:
        """Of each round after the first two."""
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)][WARM_UP:]

    def problem(self, rounds: int) -> str | None:
        """Why this is no result; None if it is one."""
        if self.wrong is None:
            return f"ended {max(len(self.ends) - 1, 0)} of {rounds} rounds"
        if not self.wrong <= TOLERANCE:
            return f"the weights are wrong by {self.wrong:g}"
        return None

    def median(self) -> float | None:
        """Seconds per round; None while there is no round to count."""
        return statistics.median(self.seconds) if self.seconds else None


def read(path: Path) -> Marks:
    """What is there so far. A line that is not complete is left for later."""
    ends: list[float] = []
    wrong = None
    for line in path.read_text().splitlines(keepends=True) if path.exists() else ():
        if line.endswith("\n"):
            mark = json.loads(line)
            if "round" in mark:
                ends.append(mark["at"])
            wrong = mark.get("wrong", wrong)
    return Marks(ends, wrong)
