"""Rounds in this process: the environment is the round's, and the script is the test."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import silobus
from silobus import tensors, values
from tests.unit.silobus.by_hand import RoundByHand, make_round


@pytest.fixture(autouse=True)
def _nobody_elses_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SILOBUS_INPUT", "SILOBUS_OUTPUT", "SILOBUS_SOCKET", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four elements, so that the small tensors of tests have several pieces."""
    for module in (tensors, values):
        monkeypatch.setattr(module, "PIECE", 4)


@pytest.fixture
def alone() -> Callable[..., None]:
    """Runs a loop body as a script that nobody started for a round."""

    def alone(body: Callable[[silobus.Round], object], **kwargs: Any) -> None:
        for rnd in silobus.rounds(**kwargs):
            body(rnd)

    return alone


@pytest.fixture
def given(tmp_path: Path) -> Callable[..., RoundByHand]:
    """Makes a round's directories; see `make_round`."""
    numbers = count(1)
    return lambda *args, **kwargs: make_round(tmp_path / f"round-{next(numbers)}", *args, **kwargs)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., RoundByHand]:
    """Runs a loop body on a round, as a script that the agent starts for it would."""

    def run(made: RoundByHand, body: Callable[[silobus.Round], None], rank: int = 0, **kwargs: Any) -> RoundByHand:
        with monkeypatch.context() as patched:
            for name, value in made.environment.items():
                patched.setenv(name, value)
            patched.setenv("RANK", str(rank))
            rounds: Iterator[silobus.Round] = silobus.rounds(**kwargs)
            for rnd in rounds:
                body(rnd)
        return made

    return run
