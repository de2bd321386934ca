"""Stands for the Azure CLI: deploys by evaluating the templates, remembers outputs, and writes down what it is asked.

FAKE_AZ names its directory; FAKE_AZ_FAILS a command that fails.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.unit.deploy.bicep import deploy, parse

HERE = Path(os.environ["FAKE_AZ"])
COMMANDS = {
    "account show",
    "acr build",
    "ad group",
    "ad signed-in-user",
    "deployment group",
    "group create",
    "group delete",
    "identity create",
    "identity federated-credential",
    "identity show",
    "login",
    "network private-endpoint-connection",
    "provider register",
    "role assignment",
    "role definition",
    "servicebus queue",
}


def main(words: list[str]) -> int:
    command = " ".join(word for word in words[:2] if not word.startswith("-"))
    with (HERE / "asked").open("a") as file:
        file.write(json.dumps(words) + "\n")
    if command not in COMMANDS:
        sys.stderr.write(f"az: there is no {command}\n")
        return 2
    if os.environ.get("FAKE_AZ_FAILS", "\0") in " ".join(words):
        return 1
    if command == "deployment group":
        return deployment(words[2], words[3:])
    if "--query" in words:
        sys.stdout.write({"account show": "sub"}.get(command, command.replace(" ", "-")) + "\n")
    return 0


def deployment(verb: str, words: list[str]) -> int:
    group = words[words.index("-g") + 1]
    if verb == "show":
        [_, _, wanted, _] = words[words.index("--query") + 1].split(".")
        outputs = json.loads((HERE / f"{group}.{words[words.index('-n') + 1]}").read_text())
        sys.stdout.write(f"{outputs[wanted]}\n")
        return 0
    template = Path(words[words.index("-f") + 1])
    name = words[words.index("-n") + 1] if "-n" in words else template.stem
    _, outputs = deploy(template.resolve(), group, parameters(template, words[words.index("-p") + 1 :]))
    if verb == "create":
        (HERE / f"{group}.{name}").write_text(json.dumps(outputs))
    return 0


def parameters(template: Path, words: list[str]) -> dict[str, Any]:
    kinds = {}
    for node in parse(template).named_children:
        if node.type == "parameter_declaration":
            kinds[_text(node.named_children[0])] = _text(next(n for n in node.named_children if n.type == "type"))
    found: dict[str, Any] = {}
    for word in words:
        if word.startswith("-"):
            break
        name, equals, text = word.partition("=")
        if not equals:
            said = json.loads(Path(word).read_text())["parameters"]
            found |= {key: value["value"] for key, value in said.items()}
        elif text.startswith("@"):
            found[name] = json.loads(Path(text[1:]).read_text())
        else:
            found[name] = text if kinds.get(name) == "string" else json.loads(text)
    return found


def _text(node: Any) -> str:
    return (node.text or b"").decode()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
