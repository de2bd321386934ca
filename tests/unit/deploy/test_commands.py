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
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from messages.health import PATH
from messages.rights import principals
from messages.settings import load_yaml
from orchestrator.settings import OrchestratorSettings
from silo_agent.settings import SiloSettings
from tests.unit.deploy.az_commands import commands, problem
from tests.unit.deploy.azure import AZURE, ROOT

FENCE = re.compile(r"^```(?P<language>\w+)(?: file=(?P<file>\S+))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
UNCERTAIN = (
    *(
        "compile",
        "narrow roles",
        "contract",
        "scaler",
        "alerts",
        "NFS",
        "real AzureML",
        "second PUT",
        "rw_mount",
        "preempted",
    ),
    *(
        "run history",
        "MLflow",
        "Arc",
        "workload identity",
        "signature",
        "endpoint",
        "quotas",
        "RootManageSharedAccessKey",
    ),
)
"""What the list of things that only a subscription can show has to be about."""
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
            timeout=300,
            check=False,
        )

    @property
    def asked(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.directory / "az" / "asked").read_text().splitlines()]

    def created(self) -> list[list[str]]:
        """Deployments."""
        return [words for words in self.asked if words[:3] == ["deployment", "group", "create"]]

    def deleted(self) -> list[str]:
        return [words[words.index("--name") + 1] for words in self.asked if words[:2] == ["group", "delete"]]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return make_shell(tmp_path)


def make_shell(tmp_path: Path) -> Shell:
    """With commands of the same names in front of the real ones."""
    context = {"constraints.txt", "pyproject.toml", "README.md", "LICENSE", "silobus", "servicebus_emulator"}
    for name in context | {"deploy", "examples", "messages", "orchestrator", "silo_agent", "tests"}:
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


def script(page: str) -> str:
    """Files and commands of a page, in its order."""
    lines = ["set -euo pipefail"]
    for block in FENCE.finditer(page):
        if (name := block["file"]) is not None:
            lines += [f"cat > {name} <<'END_OF_FILE'\n{block['text']}END_OF_FILE"]
        elif block["language"] == "console":
            lines += [line.removeprefix("$ ") for line in block["text"].splitlines() if line.startswith("$ ")]
        elif block["language"] == "bash":
            lines.append(block["text"])
    return "\n".join(lines) + "\n"


BEFORE_THE_END, _, THE_END = README.partition("## Tearing down")
ON_AZUREML = (
    (ROOT / "docs/azureml.md")
    .read_text(encoding="utf-8")
    .partition("## On Azure, from these templates")[2]
    .partition("\n## ")[0]
)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell in which everything was pasted: README.md, before its end the walk through AzureML."""
    shell = make_shell(tmp_path_factory.mktemp("walked"))
    done = shell.run(script(BEFORE_THE_END) + script(ON_AZUREML) + script(THE_END))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (shell.directory / "said").write_text(done.stdout)
    return shell


def test_the_readme_goes_from_an_empty_subscription_to_an_empty_subscription(walked: Shell) -> None:
    said = (walked.directory / "said").read_text()
    assert '"kind": "start-experiment"' in said
    assert "silobus start first.yaml --wait" in said
    operator = load_yaml(walked.directory / "operator.yaml", OrchestratorSettings)
    assert operator.bus.namespace == f"{_output(walked, 'namespace')}.servicebus.windows.net"
    assert operator.store.account_url == _output(walked, "store")
    assert _groups_made(walked) == sorted(walked.deleted())
    deployed = [
        words[words.index("-f") + 1] for words in walked.asked if words[:3] == ["deployment", "group", "create"]
    ]
    assert {Path(file).name for file in deployed} == {"hub.bicep", "silo.bicep", "enrol.bicep"}


def test_what_another_owners_silo_asks_for_is_approved_on_bus_and_store(walked: Shell) -> None:
    """Which two it asks for: test_network.py."""
    listed = [words for words in walked.asked if words[:3] == ["network", "private-endpoint-connection", "list"]]
    assert {(words[words.index("--type") + 1], words[words.index("--name") + 1]) for words in listed} == {
        ("Microsoft.ServiceBus/namespaces", _output(walked, "namespace")),
        ("Microsoft.Storage/storageAccounts", _output(walked, "storageAccount")),
    }


def test_names_that_azure_keeps_after_deleting_can_be_used_again(walked: Shell) -> None:
    workspaces = [words for words in walked.asked if words[:3] == ["ml", "workspace", "delete"]]
    vaults = [words for words in walked.asked if words[:2] == ["keyvault", "purge"]]
    [north] = workspaces  # the one silo of the walk that trains on AzureML
    assert north[north.index("--name") + 1] == _told(walked, "silobus-north.silo", "workspace")
    assert "--permanently-delete" in north
    assert [words[words.index("--name") + 1] for words in vaults] == [_told(walked, "silobus-north.silo", "vault")]


def test_the_first_round_asks_for_no_more_silos_than_were_deployed_with_an_agent(walked: Shell) -> None:
    before = [words for words in walked.asked if "silobus-island" not in words]
    agents = {words[words.index("-g") + 1] for words in before if "image=agent:1" in words}
    operator = load_yaml(walked.directory / "operator.yaml", OrchestratorSettings)
    first = yaml.safe_load((walked.directory / "first.yaml").read_text())
    assert agents == {f"silobus-{silo}" for silo in operator.silos}
    assert first["quorum"]["minimum"] <= len(agents)
    hubs = [
        word for words in before if "deploy/azure/hub.bicep" in words for word in words if word.startswith("silos=")
    ]
    assert json.loads(hubs[0].partition("=")[2]) == list(operator.silos)


@pytest.mark.parametrize("silo", ["north", "south"])
def test_an_agents_image_has_what_its_policy_names_and_the_code_that_was_approved(walked: Shell, silo: str) -> None:
    task = yaml.safe_load((walked.directory / "policy.yaml").read_text())["tasks"]["breast-cancer"]
    [file] = [f for f in (walked.directory / "az").glob("image.*.agent_1") if f"image.{silo}" in f.name]
    copied = json.loads(file.read_text())
    assert copied[task["code"]["path"]] == task["code"]["sha256"]
    assert {*task["data"].values()} <= copied.keys()
    assert f"{task['directory']}/{task['command'][1]}" in copied


def test_who_is_enrolled_by_hand_is_told_to_the_hub(walked: Shell) -> None:
    enrolled = {
        word.partition("=")[2]
        for words in walked.asked
        if words[:3] == ["deployment", "group", "create"]
        and words[words.index("-f") + 1].endswith(("enrol.bicep", "silo.bicep"))
        for word in words
        if word.startswith("silo=")
    }
    settings = load_yaml(walked.directory / "az" / "silobus-hub.orchestrator.yaml", OrchestratorSettings)
    assert set(settings.silos) == enrolled == {"north", "south", "island", "abroad", "distant"}


def test_no_secret_stands_on_a_command_line_and_files_with_one_are_their_owners_alone(walked: Shell) -> None:
    files = {f.name: f for f in (walked.directory / "for-distant").iterdir()}
    assert files.keys() == {"connection", "global.sas", "updates-distant.sas"}
    for file in files.values():
        assert file.stat().st_mode & 0o077 == 0, file
    connection = files["connection"].read_text()
    assert re.fullmatch(r"Endpoint=sb://\S+/;SharedAccessKeyName=agent-distant;SharedAccessKey=\S{44}\n", connection)
    key = connection.strip().rpartition("SharedAccessKey=")[2]
    assert all(key not in word for words in walked.asked for word in words)
    given = [words[words.index("--key-value") + 1] for words in walked.asked if "--key-value" in words]
    assert len(given) == 2
    assert all(value.startswith("@") for value in given)


def test_signatures_are_for_the_agents_verbs_and_are_over_within_a_week(walked: Shell) -> None:
    signed = [words for words in walked.asked if words[:3] == ["storage", "container", "generate-sas"]]
    verbs = {words[words.index("--name") + 1]: set(words[words.index("--permissions") + 1]) for words in signed}
    [agent] = [who for who in principals(["distant"]) if who.silo]
    assert verbs == {place: {verb.value[0] for verb in allowed} for place, allowed in agent.containers.items()}
    for words in signed:
        until = datetime.fromisoformat(words[words.index("--expiry") + 1])
        assert timedelta(days=5) < until - datetime.now(UTC) < timedelta(days=7)
        assert "--as-user" in words


def test_the_walk_through_azureml_ends_with_a_task_that_runs_there(walked: Shell) -> None:
    settings = load_yaml(walked.directory / "az" / "silobus-north.agent.yaml", SiloSettings)
    task = settings.tasks["breast-cancer"]
    there = task.compute.azureml
    assert there is not None
    assert there.workspace == _told(walked, "silobus-north.silo", "workspace")
    assert there.datastore.name == there.datastore.container == "training"
    assert all(str(data.path).startswith("azureml://datastores/records/") for data in there.data.values())
    extras = [words for words in walked.asked if words[:2] == ["acr", "build"] and "base:2" in words]
    assert all("EXTRAS=azureml" in words for words in extras)
    assert extras


@pytest.mark.parametrize(
    "page",
    ["deploy/azure/README.md", "deploy/azure/smoke.sh", "deploy/azure/sign.sh", "docs/operate.md", "docs/azureml.md"],
)
def test_every_command_of_az_and_its_options_are_those_of_its_reference(page: str) -> None:
    found = list(commands((ROOT / page).read_text(encoding="utf-8")))
    assert found
    assert [wrong for words in found if (wrong := problem(words)) is not None] == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("role assignment list -g hub --all", "exclude"),
        ("role assignment lst", "there is no"),
        ("group create --nmae x", "unrecognized"),
    ],
)
def test_a_slip_in_a_command_is_seen(words: str, why: str) -> None:
    assert why in str(problem(words.split()))
    assert [list(one) for one in commands(f"so `az {words}` and\n  az {words} | x")] == [words.split()] * 2


def _output(shell: Shell, name: str) -> str:
    return _told(shell, "silobus-hub.hub", name)


def _told(shell: Shell, deployment: str, name: str) -> str:
    return str(json.loads((shell.directory / "az" / deployment).read_text())[name])


@pytest.mark.parametrize("azureml", ["0", "1"])
def test_the_smoke_test_ends_with_an_empty_subscription(shell: Shell, azureml: str) -> None:
    done = shell.run("deploy/azure/smoke.sh", LOCATION="somewhere", EMAIL="a@example.org", AZUREML=azureml)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().endswith("smoke: good")
    assert "silobus model smoke" in done.stdout
    assert _groups_made(shell) == sorted(shell.deleted())
    assert len(shell.deleted()) == 3
    [hub] = [file.name.removesuffix("-hub.hub") for file in (shell.directory / "az").glob("*-hub.hub")]
    task = load_yaml(shell.directory / "az" / f"{hub}-south.agent.yaml", SiloSettings).tasks["add"]
    [image] = [f for f in (shell.directory / "az").glob("image.*.agent_1") if "image.south" in f.name]
    assert json.loads(image.read_text()) == {str(task.code.path): task.code.sha256}
    assert (task.compute.azureml is not None) == (azureml == "1")
    # Log Analytics goes with its group: what it knows is asked for before.
    said = [" ".join(words[:3]) for words in shell.asked]
    assert said.index("monitor log-analytics query") < said.index("group delete --name")
    assert (shell.directory / "dist/smoke" / hub / "refused.json").exists()
    workspaces = [words for words in shell.asked if words[:3] == ["ml", "workspace", "delete"]]
    assert len(workspaces) == (2 if azureml == "1" else 0)
    assert all("--permanently-delete" in words for words in workspaces)


@pytest.mark.parametrize("fails", ["silo=north", "signed-in-user"])
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
    without = [
        what for what, command in rows if "`" not in command and not command.startswith(("the same", "the loop", "["))
    ]
    assert without == []
    about = " ".join(what for what, _ in rows)
    for topic in UNCERTAIN:
        assert topic in about, f"nothing says how to see: {topic}"


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
