"""docs/strategies.md: its code runs as it stands there, and its table names every strategy."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from messages.errors import Poison
from orchestrator.aggregation import combine, strategy_named
from orchestrator.aggregation.named import _OURS

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```python file=(\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


def test_every_strategy_is_in_the_table() -> None:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`([a-z-]+)`", row)} == {"name", *_OURS}


def test_the_functions_on_arrays_run_as_written() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILES["arrays.py"]], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    mean, weighted, chosen, state = done.stdout.splitlines()
    assert (chosen, state) == ("[1. 1. 1.]", "['momentum', 'variance']")
    assert (mean[:5], weighted[:6]) == ("[-7.5", "[0.898")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's own strategy, as pip would put it there."""
    (tmp_path / "half_step.py").write_text(FILES["half_step.py"])
    info = tmp_path / "half_step-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: half-step\nVersion: 1.0\n")
    (entry,) = re.findall(r"^half-step = \"(.*)\"$", PAGE, re.MULTILINE)
    (info / "entry_points.txt").write_text(f"[silobus.strategies]\nhalf-step = {entry}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("half_step", None)


@pytest.mark.usefixtures("installed")
def test_a_strategy_of_ones_own_is_found_by_its_name_and_does_what_it_says() -> None:
    strategy = strategy_named("half-step", {"part": 0.25})
    models = [{"w": np.array([4.0]), "n": np.array([4])}, {"w": np.array([8.0]), "n": np.array([8])}]
    made = combine(strategy, models, samples=[1, 9], base={"w": np.array([1.0]), "n": np.array([0])}).model
    assert made["w"].tolist() == [1.0 + 0.25 * (0.25 * 3 + 0.75 * 7)]
    assert made["n"].tolist() == [7]
    with pytest.raises(Poison, match="part is a number above 0"):
        strategy_named("half-step", {"part": 0})
