"""The settings file, and how the process starts and refuses to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from messages.settings import SettingsError
from orchestrator.app import main
from orchestrator.settings import OrchestratorSettings, load

GOOD = """
bus: {connection_string_env: SILOBUS_CONNECTION}
store: {directory: store}
silos: [north, south]
scratch: scratch
"""


def written(path: Path, text: str) -> Path:
    file = path / "orchestrator.yaml"
    file.write_text(text)
    return file


def test_a_settings_file_is_read(tmp_path: Path) -> None:
    settings = load(written(tmp_path, GOOD))
    assert settings.silos == ("north", "south")
    assert settings.scratch == tmp_path / "scratch"
    assert (settings.memory_budget, settings.max_delivery_count) == (256, 10)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (GOOD.replace("[north, south]", "[north, north]"), "listed twice"),
        (GOOD.replace("[north, south]", "[]"), "silos"),
        (GOOD.replace("[north, south]", "[North]"), "silos"),
        (GOOD + "silo: [north]\n", "no such field"),
        (GOOD.replace("scratch: scratch", ""), "scratch"),
    ],
)
def test_a_wrong_settings_file_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        load(written(tmp_path, text))


def test_a_process_that_cannot_start_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(tmp_path / "missing.yaml")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_a_process_that_could_not_sum_does_not_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would take work from those that can."""
    (tmp_path / "scratch").write_text("a file where the directory should be")
    assert main(["--config", str(written(tmp_path, GOOD))]) == 2
    told = capsys.readouterr().err
    assert f"scratch: the scratch directory {tmp_path / 'scratch'} cannot be used (" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(("given", "budget"), [([], 128), (["--memory-budget", "64"], 64)])
def test_the_memory_budget_can_be_given_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], budget: int
) -> None:
    served: list[OrchestratorSettings] = []

    async def serve(settings: OrchestratorSettings, **_: object) -> None:
        served.append(settings)

    monkeypatch.setattr("orchestrator.app.serve", serve)
    monkeypatch.setattr("messages.log.configure", lambda *_, **__: None)
    path = written(tmp_path, GOOD + "memory_budget: 128\n")
    assert main(["--config", str(path), *given]) == 0
    assert [settings.memory_budget for settings in served] == [budget]


def test_starting_does_not_import_what_only_training_needs() -> None:
    code = "import sys, orchestrator.app; print([m for m in ('torch', 'azure', 'sklearn') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"
