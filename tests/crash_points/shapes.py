"""What is run: few silos, few rounds, and what each silo does in them. What must come of it is `outcome`'s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from messages.experiments import Strategy
from orchestrator.settings import RetentionSettings
from tests.crash_points.trainer import Does, Member

SERVER_MOMENTUM: Final = 0.5
DAY: Final = 86400.0
"""Longer than a run may take: whatever waits for such a deadline is found to stand still."""
_DEFAULT: Final = RetentionSettings()
_AVERAGE: Final = Strategy()
_NORTH: Final = Member(2.0, 30)
_SOUTH: Final = Member(6.0, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One run."""

    silos: Mapping[str, Member]
    rounds: int
    initial: bool = False
    """Whether the first weights are given; otherwise a silo initialises the model."""
    orchestrators: int = 1
    repeats: bool = False
    """Whether every message arrives twice, and each silo's old updates again whenever a round is announced."""
    retention: RetentionSettings = _DEFAULT
    strategy: Strategy = _AVERAGE
    metric: Mapping[str, str] | None = None
    """By which weights are the best."""
    kept: tuple[int, ...] | None = None
    """Rounds whose weights are there after the last sweep, when no update is; None: that sweep comes weeks later."""
    least: int | None = None
    """Updates, and silos asked, without which owners refuse; None: all."""
    deadline: float = 300.0
    """Seconds."""
    more: Mapping[str, Any] | None = None
    """What else the start asks for; of `quorum`, besides the deadline."""

    def start(self) -> dict[str, Any]:
        """The start, but for what the federation adds: names, and the first weights."""
        more = {**(self.more or {})}
        quorum = {"deadline": self.deadline, **more.pop("quorum", {})}
        metric = {"metric": dict(self.metric)} if self.metric else {}
        return {"rounds": self.rounds, "strategy": self.strategy.model_dump(), "quorum": quorum, **metric, **more}


SHAPES: Final = {
    "run": Shape(silos={"north": _NORTH, "south": _SOUTH}, rounds=2),
    "two": Shape(
        silos={"north": _NORTH, "south": _SOUTH},
        rounds=1,
        initial=True,
        orchestrators=2,
        repeats=True,
    ),
    "small": Shape(silos={"north": _NORTH}, rounds=1, initial=True),
    "swept": Shape(
        silos={"north": _NORTH},
        rounds=2,
        initial=True,
        retention=RetentionSettings(updates=0, models=1, days=0.001),
        metric={"name": "loss", "mode": "max"},  # it falls, so the first weights are the best
        kept=(0, 2),
    ),
    "momentum": Shape(
        silos={"north": _NORTH},
        rounds=2,
        initial=True,
        strategy=Strategy(name="fedavgm", options={"momentum": SERVER_MOMENTUM}),
    ),
    "fails": Shape(
        silos={"north": Member(2.0, 30, Does.FAIL), "south": _SOUTH},
        rounds=1,
        initial=True,
        least=1,
        deadline=DAY,
        more={"sample": {"share": 0.5, "seed": 3}, "quorum": {"grace": 600}},
    ),
    "grace": Shape(
        silos={"north": _NORTH, "south": Member(6.0, 10, Does.HANG), "east": Member(1.0, 20, Does.DECLINE)},
        rounds=1,
        initial=True,
        least=1,
        deadline=DAY,
        more={"quorum": {"minimum": 1, "grace": 200}},
    ),
    "checks": Shape(
        silos={"north": _NORTH, "east": Member(40.0, 20, Does.STRAY)},
        rounds=1,
        initial=True,
        least=1,
        deadline=DAY,
        more={"quorum": {"minimum": 1, "grace": 600}, "checks": {"max_norm": 20.0, "measure": True}},
    ),
}
"""`run`: everything that each run has. `two`: two orchestrators, and everything arrives twice. `small`: for pairs.
`swept`: what is not needed is deleted at once, and soon after the end everything but the best and the last weights.
`momentum`: the strategy keeps something from round to round, and every blob that it made is there.

With deadlines of a day, so that nothing may wait for one: `fails`: the silo that is drawn fails, is asked again soon,
with the other, and fails again. `grace`: one silo declines, one trains until the grace is over. `checks`: one update is
left out, and what is left is measured once more before it is summed.
"""
