"""Guards as data: what each one is, how it is removed, and which test must then fail. `python -m tests.guards`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Edit:
    """One replacement; `old` stands exactly once in the file."""

    file: str
    old: str
    new: str

    def applied_to(self, text: str) -> str:
        """The text without the guard. Raises ValueError when it cannot be told what to replace."""
        if (found := text.count(self.old)) != 1:
            raise ValueError(f"{self.file}: stands there {found} times, not once: {self.old!r}")
        return text.replace(self.old, self.new)


@dataclass(frozen=True, slots=True)
class Guard:
    """One row of a table in docs/testing.md."""

    name: str
    edits: tuple[Edit, ...]
    test: tuple[str, ...]
    """What pytest is told to run; it must go red."""
    effect: str
    """What happens without the guard."""


def sets() -> list[str]:
    """The names of all sets of guards: one file each."""
    return sorted(path.stem for path in DATA.glob("*.toml"))


def guards(name: str) -> Iterator[Guard]:
    """The guards of one set, in the order of the file."""
    for given in tomllib.loads((DATA / f"{name}.toml").read_text())["guard"]:
        yield _guard(given)


def mutated(guard: Guard, root: Path) -> dict[str, str]:
    """The files that change when the guard is removed, with what is in them then."""
    files: dict[str, str] = {}
    for edit in guard.edits:
        text = files.get(edit.file) or (root / edit.file).read_text()
        files[edit.file] = edit.applied_to(text)
    return files


def tables(document: str) -> dict[str, list[str]]:
    """The first column of every table of guards in docs/testing.md, by the heading it stands under."""
    found: dict[str, list[str]] = {}
    for section in re.split(r"^## ", document, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        rows = re.findall(r"^\| (.+?) \|", body, flags=re.MULTILINE)
        if rows and rows[0] == "guard removed":
            found[heading] = rows[1:]
    return found


def _guard(given: dict[str, Any]) -> Guard:
    """Either `old` and `new`, or a list of them under `edits`; `file` may stand in an edit or above all of them."""
    edits = given.get("edits") or [{"old": given["old"], "new": given["new"]}]
    test = given["test"]
    return Guard(
        name=given["name"],
        edits=tuple(Edit(file=e.get("file") or given["file"], old=e["old"], new=e["new"]) for e in edits),
        test=(test,) if isinstance(test, str) else tuple(test),
        effect=given["effect"],
    )
