"""The commands of deploy/azure: README.md from its first line to its last, and smoke.sh, with a stand-in for `az`.

What runs here truly runs: `silobus`, `silobus-agent`, files, loops, quoting. What Azure would do is checked as far as
the templates say it: each deployment is evaluated with the parameters that it is given.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from messages.health import PATH
from messages.settings import load_yaml
from orchestrator.settings import OrchestratorSettings
from silo_agent.settings import SiloSettings
from tests.unit.deploy.azure import AZURE, ROOT, SILOS

FENCE = re.compile(r"^```(?P<language>\w+)(?: file=(?P<file>\S+))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
README = (AZURE / "README.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Shell:
    """A checkout with a stand-in for the Azure CLI."""

    directory: Path

    def run(self, script: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
        path = f"{self.directory / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin"
        return subprocess.run(
            ["bash", "-c", script],
            cwd=self.directory,
            env={**environment, "PATH": path, "FAKE_AZ": str(self.directory / "az"), "PYTHONPATH": str(ROOT), **more},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    @property
    def asked(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.directory / "az" / "asked").read_text().splitlines()]

    def deleted(self) -> list[str]:
        return [words[words.index("--name") + 1] for words in self.asked if words[:2] == ["group", "delete"]]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    for name in ("deploy", "examples", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "az").mkdir()
    (tmp_path / "bin").mkdir()
    stand_ins = {
        "az": f'exec "{sys.executable}" "{Path(__file__).with_name("fake_az.py")}" "$@"',
        "sudo": 'echo "sudo $*"',
        "silobus": 'if [ "$1" = start ] && [ "$3" = --print ]; then exec real-silobus "$@"; fi; echo "silobus $*"',
        "real-silobus": f'exec "{sys.executable}" -c "from orchestrator.cli import main; main()" "$@"',
        "silobus-agent": f'exec "{sys.executable}" -m silo_agent "$@"',
    }
    for name, text in stand_ins.items():
        file = tmp_path / "bin" / name
        file.write_text(f"#!/usr/bin/env bash\n{text}\n")
        file.chmod(0o755)
    return Shell(tmp_path)


def script() -> str:
    """Files and commands of the page, in its order."""
    lines = ["set -euo pipefail"]
    for block in FENCE.finditer(README):
        if (name := block["file"]) is not None:
            lines += [f"cat > {name} <<'END_OF_FILE'\n{block['text']}END_OF_FILE"]
        elif block["language"] == "console":
            lines += [line.removeprefix("$ ") for line in block["text"].splitlines() if line.startswith("$ ")]
        elif block["language"] == "bash":
            lines.append(block["text"])
    return "\n".join(lines) + "\n"


def test_the_readme_goes_from_an_empty_subscription_to_an_empty_subscription(shell: Shell) -> None:
    done = shell.run(script(), SHARE_ACCOUNT="share")

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert '"kind": "start-experiment"' in done.stdout
    assert "silobus start first.yaml --wait" in done.stdout
    settings = load_yaml(shell.directory / "operator.yaml", OrchestratorSettings)
    assert list(settings.silos) == SILOS
    deployed = [words[words.index("-f") + 1] for words in shell.asked if words[:3] == ["deployment", "group", "create"]]
    assert {Path(file).name for file in deployed} == {"hub.bicep", "silo.bicep", "enrol.bicep"}
    assert settings.bus.namespace == f"{_output(shell, 'namespace')}.servicebus.windows.net"
    assert settings.store.account_url == _output(shell, "store")
    made = {words[words.index("--name") + 1] for words in shell.asked if words[:2] == ["group", "create"]}
    assert "silobus-hub" in shell.deleted()
    assert len(made) == len(shell.deleted()) == 2
    assert (shell.directory / "connection").read_text().startswith("Endpoint=sb://")


def _output(shell: Shell, name: str) -> str:
    return str(json.loads((shell.directory / "az" / "silobus-hub.hub").read_text())[name])


def test_the_smoke_test_ends_with_an_empty_subscription(shell: Shell) -> None:
    done = shell.run("deploy/azure/smoke.sh", LOCATION="somewhere", EMAIL="a@example.org")

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().endswith("smoke: good")
    assert "silobus model smoke" in done.stdout
    assert _groups_made(shell) == sorted(shell.deleted())
    assert len(shell.deleted()) == 3


@pytest.mark.parametrize("fails", ["acr build", "silo=north", "signed-in-user"])
def test_the_smoke_test_cleans_up_when_something_fails(shell: Shell, fails: str) -> None:
    done = shell.run("deploy/azure/smoke.sh", LOCATION="somewhere", EMAIL="a@example.org", FAKE_AZ_FAILS=fails)

    assert done.returncode == 1
    assert "smoke: failed" in done.stdout
    assert set(_groups_made(shell)) <= set(shell.deleted())
    assert len(shell.deleted()) == 3


def _groups_made(shell: Shell) -> list[str]:
    return sorted(words[words.index("--name") + 1] for words in shell.asked if words[:2] == ["group", "create"])


def test_one_list_says_what_only_a_subscription_can_show_each_with_its_command() -> None:
    assert README.count("## What only a subscription can show") == 1
    section = README.partition("## What only a subscription can show")[2]
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", section, re.MULTILINE)[1:]
    assert len(rows) > 10
    without = [
        what for what, command in rows if "`" not in command and not command.startswith(("the same", "the loop"))
    ]
    assert without == []


def test_the_manifest_is_as_contained_as_the_images_and_its_settings_are_right(tmp_path: Path) -> None:
    found = {part["kind"]: part for part in yaml.safe_load_all((AZURE / "agent.yaml").read_text(encoding="utf-8"))}
    pod = found["StatefulSet"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert found["StatefulSet"]["spec"]["replicas"] == 1
    policy = found["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policy

    (tmp_path / "silo.yaml").write_text(found["ConfigMap"]["data"]["silo.yaml"])
    settings = load_yaml(tmp_path / "silo.yaml", SiloSettings)
    assert settings.bus.credential == settings.store.credential == "workload-identity"
    assert settings.health is not None
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": PATH, "port": settings.health.port}
    account = found["ServiceAccount"]["metadata"]
    bicep = (AZURE / "silo.bicep").read_text(encoding="utf-8")
    assert f"system:serviceaccount:{account['namespace']}:{account['name']}" in bicep
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(settings.home) in mounts
