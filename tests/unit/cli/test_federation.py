"""Which federation a command speaks to, and what an operator sees when something is not as it should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from messages import names
from messages.errors import Forbidden, NotFound, Transient
from messages.settings import BusSettings
from messages.transport.memory_bus import MemoryBus
from orchestrator import cli
from orchestrator.cli import federation
from tests.unit.cli.conftest import Federation
from tests.unit.experiment.given import training


def test_a_settings_file_may_be_named_instead_of_a_folder(silobus: Federation) -> None:
    silobus.save("exp", training())

    result = CliRunner().invoke(cli.app, ["status", "--json", "--config", str(silobus.folder.orchestrator)])

    assert result.exit_code == 0
    assert [row["experiment"] for row in json.loads(result.stdout)["experiments"]] == ["exp"]


def test_the_folder_may_come_from_the_environment(silobus: Federation) -> None:
    result = CliRunner().invoke(cli.app, ["queues", "--json"], env={"SILOBUS_DIR": str(silobus.folder.root)})

    assert result.exit_code == 0
    assert len(json.loads(result.stdout)) == 8


def bus_files(silobus: Federation, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    """Which connections a command opens."""
    opened: list[str] = []

    def open_bus(settings: BusSettings) -> MemoryBus:
        opened.append(str(settings.connection_string_file))
        return MemoryBus(silobus.broker)

    monkeypatch.setattr(federation, "open_bus", open_bus)
    assert silobus(*arguments).exit_code == 0
    return [Path(name).name for name in opened]


@pytest.mark.parametrize("words", [["queues"], ["dead-letters", "list"], ["queues", "peek", "work"], ["cancel", "exp"]])
def test_commands_are_the_operators(silobus: Federation, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    assert bus_files(silobus, monkeypatch, *words) == ["connection"]


def test_reconcile_does_the_orchestrators_work_with_its_rights(
    silobus: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bus_files(silobus, monkeypatch, "reconcile") == ["orchestrator.connection"]


def test_an_orchestrator_in_the_foreground_has_the_orchestrators_rights(
    silobus: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr("os.execv", lambda _, arguments: started.extend(arguments))

    assert silobus("orchestrator").exit_code == 0

    assert started[-2:] == ["--config", str(silobus.folder.orchestrator)]


def test_a_wrong_settings_file_is_said_with_line_and_field(tmp_path: Path) -> None:
    (tmp_path / "o.yaml").write_text("bus: {}\n")

    result = CliRunner().invoke(cli.app, ["status", "--config", str(tmp_path / "o.yaml")])

    assert result.exit_code == 1
    assert "line 1" in result.stderr
    assert "silos" in result.stderr


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (Transient("cannot peek into 'work'"), "silobus up"),
        (Forbidden("no Listen claim"), "needs the right"),
        (NotFound("there is no queue 'work'"), "Not found"),
    ],
)
def test_what_the_bus_refuses_is_a_line_or_two(silobus: Federation, error: Exception, says: str) -> None:
    def fails(when: str, operation: str, queue: str) -> None:
        raise error

    silobus.faults = fails
    result = silobus("queues", "peek", "work")

    assert result.exit_code == 1
    assert says in result.stderr
    assert len(result.stderr.splitlines()) <= 2


def test_reconcile_sends_again_what_a_live_run_needs(silobus: Federation) -> None:
    silobus.save("exp", training())

    result = silobus("reconcile")

    assert result.exit_code == 0
    for silo in ("east", "north", "south"):
        [announced] = [json.loads(body) for body in silobus.bodies(names.to_silo(silo))]
        assert (announced["kind"], announced["round"]) == ("round-announced", 1)


def test_a_missing_queue_is_listed_as_missing(silobus: Federation) -> None:
    def fails(when: str, operation: str, queue: str) -> None:
        if queue == "work":
            raise NotFound("there is no queue 'work'")

    silobus.faults = fails
    rows = {row["queue"]: row for row in json.loads(silobus("queues", "--json").stdout)}

    assert rows["work"]["missing"] is True
    assert "missing" not in rows["experiments"]


def test_help_and_version_need_no_federation() -> None:
    assert CliRunner().invoke(cli.app, ["--help"]).exit_code == 0
    assert CliRunner().invoke(cli.app, ["--version"]).stdout.startswith("silobus ")


def test_the_schema_is_json_with_every_message() -> None:
    printed = json.loads(CliRunner().invoke(cli.app, ["schema"]).stdout)

    assert {"StartExperiment", "RoundAnnounced", "UpdatePublished"} <= printed["$defs"].keys()
