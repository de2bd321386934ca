"""Which commands of the Azure CLI this repository uses, and which of their options: as its reference has them.

Written down by hand from https://learn.microsoft.com/cli/azure; `az` itself is not there to ask. Whoever uses another
command or option looks it up, and adds it here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

EVERYWHERE = {"--query", "--output", "-o"}
GROUP, NAME = {"--resource-group", "-g"}, {"--name", "-n"}
WORKSPACE = {"--workspace-name", "-w"}
QUEUE = {"--namespace-name", "--queue-name"}

COMMANDS: dict[str, set[str]] = {
    "account show": set(),
    "acr build": {"--registry", "-r", "--image", "-t", "--file", "-f", "--build-arg"},
    "acr repository show": NAME | {"--image", "-t"},
    "ad group create": {"--display-name", "--mail-nickname"},
    "ad group delete": {"--group", "-g"},
    "ad group member add": {"--group", "-g", "--member-id"},
    "ad signed-in-user show": set(),
    "bicep build": {"--file", "-f"},
    "consumption usage list": {"--start-date", "--end-date"},
    "containerapp env workload-profile list-supported": {"--location", "-l"},
    "containerapp exec": GROUP | NAME | {"--command"},
    "containerapp logs show": GROUP | NAME | {"--tail", "--type", "-t", "--follow"},
    "containerapp replica list": GROUP | NAME | {"--revision"},
    "containerapp revision activate": GROUP | NAME | {"--revision"},
    "containerapp revision deactivate": GROUP | NAME | {"--revision"},
    "containerapp revision list": GROUP | NAME | {"--all"},
    "containerapp revision restart": GROUP | NAME | {"--revision"},
    "containerapp update": GROUP | NAME | {"--min-replicas", "--max-replicas", "--image"},
    "deployment group create": GROUP | NAME | {"--template-file", "-f", "--parameters", "-p"},
    "deployment group show": GROUP | NAME,
    "deployment group what-if": GROUP | NAME | {"--template-file", "-f", "--parameters", "-p"},
    "group create": {"--name", "-n", "--location", "-l"},
    "group delete": {"--name", "-n", "--yes", "-y", "--no-wait"},
    "identity create": GROUP | NAME,
    "identity federated-credential create": GROUP | NAME | {"--identity-name", "--issuer", "--subject", "--audiences"},
    "identity show": GROUP | NAME,
    "keyvault purge": NAME | {"--location", "-l"},
    "login": set(),
    "ml compute attach": GROUP | WORKSPACE | NAME | {"--type", "-t", "--resource-id", "--namespace"},
    "ml compute list-usage": GROUP | WORKSPACE | {"--location", "-l"},
    "ml job list": GROUP | WORKSPACE,
    "ml job show": GROUP | WORKSPACE | NAME,
    "ml workspace delete": GROUP | NAME | {"--permanently-delete", "-p", "--yes", "-y"},
    "ml workspace outbound-rule list": GROUP | WORKSPACE,
    "ml workspace provision-network": GROUP | NAME,
    "ml workspace show": GROUP | NAME,
    "monitor activity-log list": GROUP | {"--offset"},
    "monitor log-analytics query": {"--workspace", "-w", "--analytics-query"},
    "network private-endpoint-connection approve": {"--id", "--description"},
    "network private-endpoint-connection list": GROUP | NAME | {"--type"},
    "provider register": {"--namespace", "-n", "--wait"},
    "role assignment create": {"--role", "--assignee", "--scope"},
    "role assignment delete": {"--ids"},
    "role assignment list": GROUP | {"--all", "--assignee", "--role", "--scope", "--include-inherited"},
    "role definition delete": NAME | {"--scope"},
    "role definition list": {"--custom-role-only", "--scope"},
    "servicebus namespace authorization-rule delete": GROUP | NAME | QUEUE - {"--queue-name"},
    "servicebus namespace authorization-rule keys list": GROUP | NAME | QUEUE - {"--queue-name"},
    "servicebus namespace authorization-rule list": GROUP | QUEUE - {"--queue-name"},
    "servicebus queue authorization-rule delete": GROUP | NAME | QUEUE,
    "servicebus queue authorization-rule keys renew": GROUP | NAME | QUEUE | {"--key", "--key-value"},
    "servicebus queue delete": GROUP | NAME | QUEUE - {"--queue-name"},
    "servicebus queue list": GROUP | QUEUE - {"--queue-name"},
    "servicebus queue show": GROUP | NAME | QUEUE - {"--queue-name"},
    "servicebus queue update": GROUP | NAME | QUEUE - {"--queue-name"} | {"--status"},
    "storage account create": GROUP | NAME | {"--sku"},
    "storage account revoke-delegation-keys": GROUP | NAME,
    "storage blob upload": NAME | {"--auth-mode", "--account-name", "--container-name", "-c", "--data", "--file", "-f"},
    "storage container-rm delete": GROUP | NAME | {"--storage-account", "--yes", "-y"},
    "storage container generate-sas": NAME
    | {"--as-user", "--auth-mode", "--account-name", "--permissions", "--expiry", "--https-only"},
}
NOT_TOGETHER = {"role assignment list": [("--all", "-g"), ("--all", "--resource-group"), ("--all", "--scope")]}
"""Options that the CLI refuses beside each other."""


def problem(words: Sequence[str]) -> str | None:
    """What `az` would say of these words before it asked anybody; None: nothing."""
    command = next((c for n in range(len(words), 0, -1) if (c := " ".join(words[:n])) in COMMANDS), None)
    if command is None:
        return f"there is no {' '.join(words[:3])}"
    given = {word.partition("=")[0] for word in words if re.match("--?[a-z]", word)}
    if unknown := given - COMMANDS[command] - EVERYWHERE:
        return f"{command}: unrecognized arguments: {' '.join(sorted(unknown))}"
    for one, other in NOT_TOGETHER.get(command, []):
        if {one, other} <= given:
            return f"{command}: {one} and {other} exclude each other"
    return None


def commands(text: str) -> Iterator[list[str]]:
    """The calls of `az` in a script or a page: words without what is quoted."""
    text = text.replace("\\\n", " ").replace('"$verb"', "create").replace('revision "$1"', "revision activate")
    for call in re.findall(r"(?:^|[`(;|&]|\bthen|\bdo|xargs -r)\s*az ([a-z][^`\n;|&]*)", text, re.MULTILINE):
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", " ", call.partition("$(")[0] + _after(call))
        yield re.sub(r"[)#].*", "", bare).split()


def _after(call: str) -> str:
    """What follows a call within the call; nothing where that does not end on the same line."""
    inner = re.match(r"[^$]*\$\((?:[^()]|\([^()]*\))*\)(.*)", call)
    return inner[1] if inner else ""
