"""Metrics in the job's MLflow run, when there is one."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

import silobus
from silobus.tracking import track

METRICS = {("loss", "received"): silobus.mean(6, 3), ("seen", "trained"): silobus.sum(7, 3)}
INSIDE = {"AZUREML_RUN_ID": "bc_00000000-1-north-1", "MLFLOW_TRACKING_URI": "azureml://here"}


class Mlflow(ModuleType):
    def __init__(self, error: Exception | None = None) -> None:
        super().__init__("mlflow")
        self.logged: list[tuple[dict[str, float], int]] = []
        self.error = error

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        if self.error:
            raise self.error
        self.logged.append((metrics, step))


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in INSIDE.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def installed(monkeypatch: pytest.MonkeyPatch, module: Any) -> Any:
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module


def test_inside_azureml_metrics_are_in_the_jobs_run(inside: pytest.MonkeyPatch) -> None:
    mlflow = installed(inside, Mlflow())
    track(METRICS, round_number=4)
    assert mlflow.logged == [({"received/loss": 2.0, "trained/seen": 7.0}, 4)]


@pytest.mark.parametrize("missing", INSIDE)
def test_elsewhere_nothing_is_logged(inside: pytest.MonkeyPatch, missing: str) -> None:
    mlflow = installed(inside, Mlflow())
    inside.delenv(missing)
    track(METRICS, round_number=4)
    assert mlflow.logged == []


def test_without_mlflow_nothing_happens(inside: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    installed(inside, None)  # as Python says that there is no such module
    track(METRICS, round_number=4)
    assert capsys.readouterr().err == ""


def test_mlflow_never_fails_a_round(inside: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    installed(inside, Mlflow(ConnectionError("no route")))
    track(METRICS, round_number=4)
    assert "no route" in capsys.readouterr().err
