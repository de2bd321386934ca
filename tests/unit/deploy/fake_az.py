"""Stands for the Azure CLI: deploys by evaluating the templates, remembers outputs, and writes down what it is asked.

FAKE_AZ names its directory; FAKE_AZ_FAILS a command that fails.
"""

from __future__ import annotations

import json
import os
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.unit.deploy.az_commands import problem

HERE = Path(os.environ["FAKE_AZ"])
ANSWERS = {"account show": "11111111-2222-3333-4444-555555555555", "acr repository": f"sha256:{'ab' * 32}"}


def main(words: list[str]) -> int:
    with (HERE / "asked").open("a") as file:
        file.write(json.dumps(words) + "\n")
    if (wrong := problem(words)) is not None:
        sys.stderr.write(f"az: {wrong}\n")
        return 2
    if os.environ.get("FAKE_AZ_FAILS", "\0") in " ".join(words):
        return 1
    match words[:2]:
        case ["deployment", "group"]:
            return deployment(words[2], words[3:])
        case ["acr", "build"]:
            return image(words[2:])
        case ["storage", "container"]:
            sys.stdout.write("sv=signature\n")
        case _ if "--query" in words:
            sys.stdout.write(ANSWERS.get(" ".join(words[:2]), "-".join(words[:2])) + "\n")
    return 0


def image(words: list[str]) -> int:
    """Writes down what a Dockerfile copies to where. Fails where a source is not in the context."""
    context = Path(words[-1] if not words[-1].startswith("-") else words[-3])
    if "--output" in words:
        context = Path(words[words.index("--output") - 1])
    name = f"{words[words.index('--registry') + 1]}.{words[words.index('--image') + 1]}"
    file = context / (words[words.index("--file") + 1] if "--file" in words else "Dockerfile")
    copied = {}
    for line in file.read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            *sources, target = line.split()[1:]
            for source in sources:
                if not (found := context / source).exists():
                    sys.stderr.write(f"acr build: {source} is not in {context}\n")
                    return 1
                place = f"{target}{source}" if target.endswith("/") else target
                copied[place] = sha256(found.read_bytes()).hexdigest() if found.is_file() else ""
    (HERE / f"image.{name.replace(':', '_')}").write_text(json.dumps(copied))
    return 0


def deployment(verb: str, words: list[str]) -> int:
    from tests.unit.deploy.bicep import deploy  # late: most commands do without the grammar

    group = words[words.index("-g") + 1]
    if verb == "show":
        [_, _, wanted, _] = words[words.index("--query") + 1].split(".")
        made = HERE / f"{group}.{words[words.index('-n') + 1]}"
        if not made.exists():
            sys.stderr.write(f"az: there is no deployment {made.name}\n")
            return 3
        outputs = json.loads(made.read_text())
        sys.stdout.write(f"{outputs[wanted]}\n")
        return 0
    template = Path(words[words.index("-f") + 1])
    name = words[words.index("-n") + 1] if "-n" in words else template.stem
    made, outputs = deploy(template.resolve(), group, parameters(template, words[words.index("-p") + 1 :]))
    if verb == "create":
        for app in made.of("Microsoft.App/containerApps"):
            [secret] = app["properties.configuration.secrets"]
            (HERE / f"{group}.{app['name']}.yaml").write_text(secret["value"])
        (HERE / f"{group}.{name}").write_text(json.dumps(outputs))
    return 0


def parameters(template: Path, words: list[str]) -> dict[str, Any]:
    from tests.unit.deploy.bicep_syntax import parse

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
