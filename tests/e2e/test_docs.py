"""The documents' own commands, run as they stand there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from silo_agent.code_digest import code_digest

ROOT = Path(__file__).resolve().parents[2]
FEDERATION = """
export SILOBUS_DIR=$PWD/federation E=bc-1 SILO=north EDITOR=true
silobus up --silos-dir owners > up.log &
until grep -qs Ready up.log; do sleep 0.1; kill -0 $!; done
cp federation/silos/north/silo.yaml .
cp "$ROOT/examples/breast_cancer/train.py" .
dead_letter() {
  silobus dead-letters list experiments --json |
    python -c 'import json, sys; print(json.load(sys.stdin)[0]["sequence_number"])'
}
for n in 1 2; do
  printf '{"experiment": "bad-%s", "task": "no-such", "rounds": 1}' $n | silobus start -
done
printf '{"experiment": "bc-1", "task": "breast-cancer", "rounds": 20, "quorum": {"minimum": 2}}' | silobus start -
until compgen -G 'federation/store/state/rounds/bc-1_*/00003.json*' > /dev/null; do sleep 0.1; kill -0 $!; done
"""
"""What an operator finds: a run that trains in its fourth round, and starts that were refused."""
FENCE = re.compile(r"^```(?P<language>\w+)(?: file=(?P<file>\S+))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def script_of(document: str, first: str = "", before: Callable[[str], str] = lambda block: "") -> str:
    """One bash script that writes a document's files and runs its commands, in the order of the page.

    `first` comes before everything, and what `before` says of a block of commands before that block.
    """
    lines = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT", first]
    for block in FENCE.finditer(document):
        if (name := block["file"]) is not None:
            lines += [f"mkdir -p {Path(name).parent}", f"cat > {name} <<'END_OF_FILE'\n{block['text']}END_OF_FILE"]
        elif block["language"] == "console":
            lines.append(before(block["text"]))
            lines += [line.removeprefix("$ ") for line in block["text"].splitlines() if line.startswith("$ ")]
    return "\n".join(lines) + "\n"


def run(script: str, directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment = {k: v for k, v in environment.items() if not k.startswith("SILOBUS_")} | {"ROOT": str(ROOT)}
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, complained = process.communicate(timeout=600)
    except BaseException:  # what the page has started goes on otherwise
        os.killpg(process.pid, signal.SIGTERM)
        said, complained = process.communicate(timeout=120)
        sys.stderr.write(said[-3000:] + complained[-3000:])
        raise
    return subprocess.CompletedProcess(script, process.returncode, said, complained)


def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    script = script_of((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"))
    assert script.count("silobus") > 5

    done = run(script, tmp_path)

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "mine" / "model.safetensors").stat().st_size > 100
    assert "mine-1" in done.stdout


def owners(directory: Path) -> None:
    """Files of three owners, whose trainers need no torch; those of `bc-1` wait in its fourth round."""
    script, control = ROOT / "tests" / "trainers" / "add.py", directory / "control"
    control.mkdir()
    (control / "allow-bc-1").write_text("3")
    (directory / "owners").mkdir()
    for silo in ("north", "south", "island"):
        task = {
            "command": [sys.executable, script.name],
            "directory": str(script.parent),
            "code": {"path": str(script), "sha256": code_digest(script)},
            "environment": {"CONTROL": str(control)},
            "limits": {"rounds": 100},
            "outbound": {"tensors": ["*"], "dtypes": ["float32"], "max_bytes": 1000, "metrics": {"level": {}}},
        }
        (directory / "owners" / f"{silo}.yaml").write_text(json.dumps({"tasks": {"breast-cancer": task}}))


def test_the_operators_commands_do_what_they_say(tmp_path: Path) -> None:
    owners(tmp_path)
    document = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    script = script_of(document, FEDERATION, lambda block: "export N=$(dead_letter)" if "$N" in block else "")

    done = run(script, tmp_path)

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "bc-1-clean is completed" in done.stdout
    assert (tmp_path / "clean.safetensors").stat().st_size > 100


def test_the_emulators_page_does_what_it_says(tmp_path: Path) -> None:
    done = run(script_of((ROOT / "docs" / "emulator.md").read_text(encoding="utf-8")), tmp_path)

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert '"detach@settle=1x"' in done.stdout


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/operate.md"])
def test_every_command_a_document_names_exists(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    commands = set(
        re.findall(r"\b(silobus(?:-agent)?)((?: [a-z][a-z-]+)?(?: (?:list|show|replay|discard|peek)\b)?)", text)
    )
    asked = {(program, *words.split()) for program, words in commands if words.strip()}
    known = {("silobus", *w) for w in _words_of("orchestrator.cli")} | {
        ("silobus-agent", *w) for w in _words_of("silo_agent.cli")
    }
    prose = {"is", "and", "runs", "for", "package", "does", "in", "commands", "only", "which", "logs", "reads"}
    unknown = {words for words in asked if words not in known and words[1] not in prose}
    assert not unknown, f"{document} names commands that do not exist: {sorted(unknown)}"


@pytest.mark.parametrize(
    "document", sorted(p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
)
def test_every_link_inside_the_documents_leads_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for target, heading in re.findall(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        page = (ROOT / document).parent.joinpath(target) if target else ROOT / document
        assert page.exists(), f"{document} links to {target}, which is not there"
        assert not heading or heading in _headings_of(page), (
            f"{document} links to {target}#{heading}, which is not there"
        )


def _headings_of(page: Path) -> set[str]:
    """As a browser is sent to them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def _words_of(module: str) -> set[tuple[str, ...]]:
    import importlib

    import typer.main

    root = typer.main.get_command(importlib.import_module(module).app)
    words: set[tuple[str, ...]] = set()
    for name, command in getattr(root, "commands", {}).items():
        words.add((name,))
        words |= {(name, sub) for sub in getattr(command, "commands", {})}
    return words
