"""The processes that the templates start: settings, health, scale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from messages.health import PATH
from messages.rights import ORCHESTRATOR, Right, principals
from messages.settings import load_yaml
from orchestrator.cli.folder import MAX_DELIVERY_COUNT
from orchestrator.settings import OrchestratorSettings
from silo_agent.settings import SiloSettings
from tests.unit.deploy.azure import PROFILES, SILOS, federation
from tests.unit.deploy.bicep_values import Resource

APP = "Microsoft.App/containerApps"


def apps(profile: str, name: str, **more: Any) -> list[Resource]:
    return [app for app in federation(profile, **more).of(APP) if app["name"] == name]


def settings_in(app: Resource, tmp_path: Path) -> Path:
    """The file as the process finds it."""
    [secret] = app["properties.configuration.secrets"]
    [volume] = [v for v in app["properties.template.volumes"] if v["name"] == "settings"]
    file = tmp_path / volume["secrets"][0]["path"]
    file.write_text(secret["value"])
    [container] = app["properties.template.containers"]
    assert container["args"][-1] == f"/etc/silobus/{file.name}"
    return file


@pytest.mark.parametrize("profile", PROFILES)
def test_the_orchestrators_settings_are_right_and_a_message_in_any_of_its_queues_wakes_it(
    profile: str, tmp_path: Path
) -> None:
    [app] = apps(profile, "orchestrator")
    settings = load_yaml(settings_in(app, tmp_path), OrchestratorSettings)
    assert list(settings.silos) == SILOS
    assert settings.bus.credential == settings.store.credential == "managed-identity"
    assert settings.max_delivery_count == MAX_DELIVERY_COUNT

    [who] = [p for p in principals(SILOS) if p.role == ORCHESTRATOR]
    rules = app["properties.template.scale.rules"]
    assert {rule["custom"]["metadata"]["queueName"] for rule in rules} == {
        queue for queue, allowed in who.queues.items() if Right.LISTEN in allowed
    }
    assert all(rule["custom"]["identity"].endswith("-orchestrator") for rule in rules)
    assert app["properties.template.scale.minReplicas"] == 0
    assert app["properties.template.scale.maxReplicas"] > 1


@pytest.mark.parametrize("profile", PROFILES)
def test_an_agents_settings_are_right_and_there_is_one_of_it(profile: str, tmp_path: Path) -> None:
    for app in apps(profile, "agent"):
        settings = load_yaml(settings_in(app, tmp_path), SiloSettings)
        assert settings.silo in SILOS
        assert settings.bus.credential == settings.store.credential == "managed-identity"
        assert app["properties.template.scale.minReplicas"] == app["properties.template.scale.maxReplicas"] == 1
        [home] = [v for v in app["properties.template.volumes"] if v["name"] == "home"]
        assert home["storageType"] == ("NfsAzureFile" if profile == "private" else "EmptyDir")


@pytest.mark.parametrize("name", ["orchestrator", "agent"])
def test_every_process_is_asked_for_its_health_and_nobody_else_can_call_it(name: str, tmp_path: Path) -> None:
    for app in apps("private", name):
        said = json.loads(settings_in(app, tmp_path).read_text())["health"]
        [container] = app["properties.template.containers"]
        assert [probe["type"] for probe in container["probes"]] == ["Startup", "Liveness"]
        for probe in container["probes"]:
            assert probe["httpGet"] == {"path": PATH, "port": said["port"]}
        assert "ingress" not in app["properties.configuration"]
        assert [variable["name"] for variable in container["env"]] == ["AZURE_CLIENT_ID", "SETTINGS"]
