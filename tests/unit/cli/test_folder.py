"""A local federation's folder: its files are read by those they are for, and its secrets by nobody else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from messages.experiments import StartExperiment
from messages.rights import AGENT, OPERATOR, principals
from messages.settings import load_yaml
from orchestrator.aggregation import admitted, least_updates
from orchestrator.cli import hospitals
from orchestrator.cli.folder import (
    Card,
    Folder,
    keys_of,
    read_card,
    write_card,
    write_connections,
    write_operator,
    write_orchestrator,
    write_queues,
    write_silo,
)
from orchestrator.cli.keys import connection_string, new_key, port_of
from orchestrator.cli.terminal import Complaint
from orchestrator.settings import OrchestratorSettings
from servicebus_emulator.config import read_config
from silo_agent.code_digest import code_digest
from silo_agent.policy import Accepted, Facts, decide
from silo_agent.settings import SiloSettings
from tests.e2e.check.broken_silo import obeying_permissions
from tests.unit.agent.making import announced

SILOS = ["north", "south"]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_the_card_comes_back_as_it_was_and_only_its_owner_may_read_it(folder: Folder) -> None:
    card = Card("Endpoint=sb://127.0.0.1:5673;SharedAccessKey=k", ("north", "south"), {"bus": 1})
    write_card(folder, Card("old", (), {}))

    write_card(folder, card)

    assert read_card(folder) == card
    assert folder.card.stat().st_mode & 0o777 == 0o600


def test_a_damaged_card_is_said_with_what_to_do(folder: Folder) -> None:
    folder.card.write_text("{")

    with pytest.raises(Complaint, match=r"federation\.json is damaged\. Move this one file away"):
        read_card(folder)


def test_a_card_of_another_user_is_not_called_damaged(folder: Folder) -> None:
    write_card(folder, Card("Endpoint=sb://127.0.0.1:5673;SharedAccessKey=k", ("north",), {}))
    folder.card.chmod(0o000)
    with obeying_permissions(), pytest.raises(Complaint) as refused:
        read_card(folder)
    assert "federation.json: Permission denied. This user may not use it" in str(refused.value)
    assert "start again" not in str(refused.value)


def test_the_port_is_found_again_in_a_connection_string() -> None:
    assert port_of(connection_string(5673, "operator", new_key()).get_secret_value()) == 5673


def test_the_emulator_reads_its_queues_and_who_may_do_what(folder: Folder) -> None:
    keys = keys_of(folder, ["north"])
    write_queues(folder, ["north"], keys)

    config = read_config(folder.queues)

    queues = config.queues
    assert list(queues) == ["experiments", "work", "to-north", "from-north"]
    assert {q.lock_duration for q in queues.values()} == {30_000}
    assert {q.max_delivery_count for q in queues.values()} == {10}
    assert not any(q.requires_duplicate_detection for q in queues.values())
    assert config.rules == (), "a key of the namespace would open every queue"
    for queue, settings in queues.items():
        given = {(rule.name, rule.keys, frozenset(map(str, rule.rights))) for rule in settings.rules}
        meant = {
            (who.name, (keys[who.name].get_secret_value(),), frozenset(map(str, who.queues[queue])))
            for who in principals(["north"])
            if queue in who.queues
        }
        assert given == meant


def test_everybody_has_a_key_of_their_own(folder: Folder) -> None:
    keys = keys_of(folder, SILOS)

    assert list(keys) == ["orchestrator", "agent-north", "agent-south", "operator"]
    assert len({key.get_secret_value() for key in keys.values()}) == len(keys)
    assert not [key for key in keys.values() if key.get_secret_value() in repr(keys)]


def test_a_key_stays_the_same_from_start_to_start_and_a_new_silo_gets_a_new_one(folder: Folder) -> None:
    first = keys_of(folder, ["north"])
    write_connections(folder, ["north"], first, 5673)

    again = keys_of(folder, SILOS)

    assert {name: again[name] for name in first} == first
    assert again["agent-south"] not in first.values()


def test_a_key_that_was_somebody_elses_is_not_taken_over(folder: Folder) -> None:
    """A silo's folder that was copied from another's, and a key of an older version, which opened everything."""
    first = keys_of(folder, SILOS)
    write_connections(folder, SILOS, first, 5673)
    shutil.copyfile(folder.connection(AGENT, "north"), folder.connection(AGENT, "south"))
    root = "Endpoint=sb://127.0.0.1:5673;SharedAccessKeyName=RootManageSharedAccessKey;SharedAccessKey=k;"
    folder.connection(OPERATOR).write_text(root)

    again = keys_of(folder, SILOS)

    assert again["agent-north"] == first["agent-north"]
    assert again["agent-south"] not in first.values()
    assert again[OPERATOR].get_secret_value() != "k"


def test_what_holds_keys_is_for_the_owner_of_the_folder_alone(folder: Folder) -> None:
    folder.bus.mkdir(mode=0o755)
    folder.queues.touch(mode=0o644)
    for who in principals(SILOS):
        file = folder.connection(who.role, who.silo)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o644)
    keys = keys_of(folder, SILOS)

    write_queues(folder, SILOS, keys)
    write_connections(folder, SILOS, keys, 5673)

    secrets = [key.get_secret_value() for key in keys.values()]
    holds = [p for p in folder.root.rglob("*") if p.is_file() and any(key in p.read_text() for key in secrets)]
    assert len(holds) == 1 + len(keys)
    assert {p.stat().st_mode & 0o777 for p in holds} == {0o600}
    assert folder.bus.stat().st_mode & 0o777 == 0o700


def test_each_settings_file_names_its_own_connection(folder: Folder) -> None:
    write_orchestrator(folder, SILOS)
    write_operator(folder, SILOS)
    for silo in SILOS:
        write_silo(folder, silo, {"tasks": {}})

    orchestrator = load_yaml(folder.orchestrator, OrchestratorSettings)
    operator = load_yaml(folder.operator, OrchestratorSettings)
    agents = [load_yaml(folder.silo(silo), SiloSettings) for silo in SILOS]

    names = [settings.bus.connection_string_file for settings in (orchestrator, operator, *agents)]
    assert names == [
        folder.root / "orchestrator.connection",
        folder.root / "connection",
        *(folder.root / "silos" / silo / "connection" for silo in SILOS),
    ]
    assert operator.silos == orchestrator.silos


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


@pytest.mark.parametrize("name", list(hospitals.TASKS))
@pytest.mark.parametrize(
    "asked",
    [
        {"hyperparameters": {"proximal_mu": 0.1}, "strategy": "fedprox"},
        {"roles": ["weights", "control"], "strategy": "scaffold"},
        {"transfer": {"form": "delta", "dtype": "bfloat16"}},
    ],
)
def test_the_demos_owners_allow_what_strategies_ask_for(folder: Folder, name: str, asked: dict[str, Any]) -> None:
    task = hospitals.task_named(name)
    write_silo(folder, "north", hospitals.policy(task, folder, "north", 3))
    policy = load_yaml(folder.silo("north"), SiloSettings).policy()

    facts = Facts(code=policy.tasks[name].code.sha256, spent=0)
    assert isinstance(decide(policy, announced(task=name, **asked), facts), Accepted)


def test_the_first_example_of_the_strategies_page_goes_with_the_federation_that_it_names() -> None:
    page = (Path(__file__).parents[3] / "docs" / "strategies.md").read_text()
    example = page.split("```json\n", 1)[1].split("```", 1)[0]
    request = StartExperiment.model_validate_json(example)

    assert "`silobus up` has three hospitals" in page
    assert request.task in hospitals.TASKS
    assert least_updates(admitted(request)) <= request.quorum.needed(3) <= 3


async def test_data_that_is_gone_or_of_which_nothing_is_known_is_made_anew(folder: Folder) -> None:
    task = hospitals.task_named("breast-cancer")
    data = hospitals.Data(folder, task)
    await hospitals.admit(task, folder, SILOS, seed=0)
    first = data.train("north").read_bytes()

    shutil.rmtree(folder.silo("north").parent)
    await hospitals.admit(task, folder, SILOS, seed=0)
    assert data.train("north").read_bytes() == first

    data.pooled.with_name("shared-out.json").write_bytes(b"\xb5 no JSON")
    await hospitals.admit(task, folder, SILOS, seed=0)
    assert data.train("north").read_bytes() == first
