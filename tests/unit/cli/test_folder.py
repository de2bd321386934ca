"""A local federation's folder: its files are read by those they are for, and its secrets by nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from messages.settings import load_yaml
from orchestrator.cli import hospitals
from orchestrator.cli.folder import (
    Card,
    Folder,
    connection_string,
    port_and_key,
    read_card,
    write_card,
    write_orchestrator,
    write_queues,
    write_silo,
)
from orchestrator.cli.terminal import Complaint
from orchestrator.settings import OrchestratorSettings
from servicebus_emulator.config import read_config
from silo_agent.code_digest import code_digest
from silo_agent.settings import SiloSettings


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_the_card_comes_back_as_it_was_and_only_its_owner_may_read_it(folder: Folder) -> None:
    card = Card(connection_string(5673, "key"), ("north", "south"), {"bus": 1})
    write_card(folder, Card("old", (), {}))

    write_card(folder, card)

    assert read_card(folder) == card
    assert folder.card.stat().st_mode & 0o777 == 0o600


def test_a_damaged_card_is_said_with_what_to_do(folder: Folder) -> None:
    folder.card.write_text("{")

    with pytest.raises(Complaint, match="Remove the folder"):
        read_card(folder)


def test_port_and_key_are_found_again_in_a_connection_string() -> None:
    assert port_and_key(connection_string(5673, "a+/b")) == (5673, "a+/b")


def test_the_emulator_reads_its_queues(folder: Folder) -> None:
    write_queues(folder, ["north"])

    queues = read_config(folder.queues).queues

    assert list(queues) == ["experiments", "work", "to-north", "from-north"]
    assert {q.lock_duration for q in queues.values()} == {30_000}
    assert {q.max_delivery_count for q in queues.values()} == {10}
    assert not any(q.requires_duplicate_detection for q in queues.values())


def test_the_orchestrator_reads_its_settings(folder: Folder) -> None:
    write_orchestrator(folder, ["north", "south"])

    settings = load_yaml(folder.orchestrator, OrchestratorSettings)

    assert settings.silos == ("north", "south")
    assert settings.store.directory == folder.store


@pytest.mark.parametrize("name", list(hospitals.TASKS))
def test_an_agent_reads_what_the_demo_writes_and_approves_the_code(folder: Folder, name: str) -> None:
    task = hospitals.task_named(name)
    write_silo(folder, "north", hospitals.policy(task, folder, "north", 3))

    settings = load_yaml(folder.silo("north"), SiloSettings)

    allowed = settings.policy().tasks[name]
    assert allowed.code.sha256 == code_digest(allowed.code.path)
    assert allowed.outbound.metrics.keys() >= {"loss", "accuracy"}
    assert settings.home == folder.home("north")
