"""Images and the Compose file, read: what they promise about users, files, networks and versions."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.containers.lay_out import HEALTH, SILOS
from tests.unit.deploy.azure import ROOT

CONTAINERS = ROOT / "deploy" / "containers"
DOCKERFILES = sorted(CONTAINERS.glob("*.Dockerfile"))
MODULES = {"orchestrator": "orchestrator", "agent": "silo_agent", "emulator": "servicebus_emulator"}
COMPOSE: dict[str, Any] = yaml.safe_load((CONTAINERS / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def instructions(file: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", file.read_text(encoding="utf-8"))
    return [(w, rest) for line in text.splitlines() if line and line[0] != "#" for w, _, rest in [line.partition(" ")]]


def the(file: Path, word: str) -> str:
    """The last of its kind, which is the one that holds."""
    return [rest for found, rest in instructions(file) if found == word][-1]


def test_there_is_one_image_per_role() -> None:
    assert {file.stem for file in DOCKERFILES} == MODULES.keys()


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_hadolint_finds_nothing(file: Path) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}")
    assert hadolint, "make install brings it"
    done = subprocess.run([hadolint, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_an_image_runs_as_nobody_in_particular_and_is_built_in_stages(file: Path) -> None:
    assert the(file, "USER") == "10001:10001"
    assert the(file, "STOPSIGNAL") == "SIGTERM"
    assert len([word for word, _ in instructions(file) if word == "FROM"]) == 2
    assert the(file, "ENTRYPOINT") == f'["/opt/silobus/bin/python", "-m", "{MODULES[file.stem]}"]'
    base = next(rest for word, rest in instructions(file) if word == "ARG")
    assert re.fullmatch(r"BASE=python:3\.11\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", base)
    assert "-c constraints.txt" in " ".join(rest for word, rest in instructions(file) if word == "RUN")
    final = [word for word, _ in instructions(file)]
    assert final.index("USER") < final.index("ENTRYPOINT")


def test_all_images_are_built_in_the_same_way() -> None:
    stages = {file.read_text(encoding="utf-8").split("\nFROM ")[1] for file in DOCKERFILES}
    assert len(stages) == 1
    assert "pip install" in stages.pop()


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_an_image_asks_for_no_health_that_its_settings_need_not_tell(file: Path) -> None:
    checks = [rest for word, rest in instructions(file) if word == "HEALTHCHECK"]
    assert len(checks) == (1 if file.stem == "emulator" else 0)  # which has no settings: its port tells


def test_what_goes_into_the_build_is_named() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for file in DOCKERFILES
        for word, rest in instructions(file)
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert copied == let_in
    assert all((ROOT / path).exists() for path in copied)


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_contained(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == "10001:10001"
    assert service["tmpfs"] == ["/tmp:mode=1777"]
    assert "ports" not in service
    assert not service.get("privileged")
    if name not in ("init", "emulator"):
        assert service["network_mode"] == "service:emulator"


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "init"])
def test_a_container_sees_its_own_part_of_the_volume(name: str) -> None:
    own = {"emulator": "bus", **{role: f"roles/{role}" for role in ("orchestrator", "operator")}}
    seen = {volume["volume"]["subpath"]: volume["target"] for volume in SERVICES[name]["volumes"]}
    assert seen.keys() == {own.get(name, f"silos/{name}"), *({"store"} if name != "emulator" else ())}
    assert all(target == f"/federation/{subpath}" for subpath, target in seen.items())


def test_there_are_an_emulator_an_orchestrator_and_three_agents_each_asked_for_its_health() -> None:
    assert SERVICES.keys() == {"init", "emulator", "orchestrator", "operator", *SILOS}
    for name, port in HEALTH.items():
        assert SERVICES[name]["healthcheck"]["test"][-2:] == ["messages.health", str(port)]
    assert SERVICES["emulator"]["depends_on"]["init"]["condition"] == "service_completed_successfully"


@pytest.mark.parametrize("name", ["emulator", "orchestrator", *SILOS])
def test_a_service_starts_what_its_image_starts(name: str) -> None:
    image = "agent" if name in SILOS else name
    [file] = [file for file in DOCKERFILES if file.stem == image]
    assert SERVICES[name]["entrypoint"] == yaml.safe_load(the(file, "ENTRYPOINT"))
    pattern = [re.sub(r"/\S*/", "", word) for word in yaml.safe_load(the(file, "CMD"))]
    assert [re.sub(r"/\S*/", "", word) for word in SERVICES[name]["command"]] == pattern
