"""What `check` tells people to grant is what the Azure templates grant."""

import pytest

from deploy.azure.rights import OF_RIGHT, OF_VERBS, README, ROLES
from messages.errors import Forbidden, Transient
from messages.rights import AGENT, Right, principals
from messages.schemas import FailureCategory
from messages.settings import BusSettings, StoreSettings
from silo_agent.check_words import (
    KEEPS_FILES,
    ROLE_OF_RIGHT,
    SUBMITS,
    container_trouble,
    ended,
    queue_trouble,
    role_on,
    unreachable_bus,
    unreachable_store,
)

(NORTH,) = (who for who in principals(["north"]) if who.role == AGENT)
ACCOUNT = StoreSettings(account_url="https://x.example", credential="managed-identity")


def test_the_roles_on_queues_are_those_of_the_templates() -> None:
    assert {right: ROLES[OF_RIGHT[right]].called for right in Right} == ROLE_OF_RIGHT


def test_the_roles_on_containers_are_those_of_the_templates() -> None:
    for container, verbs in NORTH.containers.items():
        assert role_on("north", container) == ROLES[OF_VERBS[verbs]].called


@pytest.mark.parametrize("role", [SUBMITS, KEEPS_FILES])
def test_the_roles_for_azureml_are_in_the_table_for_people(role: str) -> None:
    assert any(line.startswith("| agent |") and f"| {role} |" in line for line in README.read_text().splitlines())


def test_every_right_of_the_agents_has_its_words_and_its_reason() -> None:
    for queue, rights in NORTH.queues.items():
        for right in rights:
            told = queue_trouble(Forbidden("no"), "north", queue, right)
            assert f"needs {right} on queue {queue} (" in told
    for container, verbs in NORTH.containers.items():
        for verb in verbs:
            told = container_trouble(Forbidden("no"), ACCOUNT, "north", container, verb)
            assert f"needs {verb} on container {container} (" in told


def test_what_is_asked_about_the_way_there_is_what_the_file_has() -> None:
    away = Transient("no answer")
    assert "bus.namespace" in unreachable_bus(away, BusSettings(namespace="x.example", credential="azure-cli"))
    assert "bus.ca_file" not in unreachable_bus(away, BusSettings(connection_string_env="ANY"))
    assert "store.account_url" in unreachable_store(away, ACCOUNT)


@pytest.mark.parametrize("category", list(FailureCategory))
def test_every_way_to_fail_has_words(category: FailureCategory) -> None:
    assert len(ended(category, None, "")) > 20
