"""The documents' own commands, run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(?P<language>\w+)(?: file=(?P<file>\S+))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def script_of(document: str) -> str:
    """One bash script that writes a document's files and runs its commands, in the order of the page."""
    lines = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for block in FENCE.finditer(document):
        if (name := block["file"]) is not None:
            lines += [f"mkdir -p {Path(name).parent}", f"cat > {name} <<'END_OF_FILE'\n{block['text']}END_OF_FILE"]
        elif block["language"] == "console":
            lines += [line.removeprefix("$ ") for line in block["text"].splitlines() if line.startswith("$ ")]
    return "\n".join(lines) + "\n"


def run(script: str, directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("SILOBUS_DIR", None)
    return subprocess.run(
        ["bash", "-c", script], cwd=directory, env=environment, capture_output=True, text=True, timeout=180, check=False
    )


def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    script = script_of((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"))
    assert script.count("silobus") > 5

    done = run(script, tmp_path)

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "mine" / "model.safetensors").stat().st_size > 100
    assert "mine-1" in done.stdout


@pytest.mark.parametrize("document", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/operating.md"])
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
    for target in re.findall(r"\]\((?!https?://)([^)#\s]+)", text):
        assert (ROOT / document).parent.joinpath(target).exists(), f"{document} links to {target}, which is not there"


def _words_of(module: str) -> set[tuple[str, ...]]:
    import importlib

    import typer.main

    root = typer.main.get_command(importlib.import_module(module).app)
    words: set[tuple[str, ...]] = set()
    for name, command in getattr(root, "commands", {}).items():
        words.add((name,))
        words |= {(name, sub) for sub in getattr(command, "commands", {})}
    return words
