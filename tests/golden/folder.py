"""Where golden files lie, and what is in them. `live` has those of a federation in mid-run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from messages import names
from messages.codec import json_schema
from messages.schemas import RoundAnnounced
from silo_agent.given import round_json
from silo_agent.policy import Accepted, Code, Limits, Task
from tests.golden import examples

ROOT: Final = Path(__file__).resolve().parents[2]
HERE: Final = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Golden:
    """The files of one version."""

    path: Path

    @classmethod
    def of(cls, version: str) -> Golden:
        """Those of this version, which need not be there."""
        return cls(HERE / version)

    @property
    def _seal(self) -> Path:
        return self.path / "RELEASED"

    @property
    def is_released(self) -> bool:
        """Whether they stay as they are for ever."""
        return self._seal.exists()

    def release(self) -> None:
        """Says so, with the digest of each."""
        self._seal.write_text(self._digests())

    @property
    def is_intact(self) -> bool:
        """Whether they are those that were released."""
        return self._seal.read_text() == self._digests()

    def _digests(self) -> str:
        files = sorted(path for path in self.path.rglob("*") if path.is_file() and path != self._seal)
        return "".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(self.path)}\n" for p in files)

    def read(self, *parts: str) -> Any:
        """A file's JSON."""
        return json.loads(self.path.joinpath(*parts).read_text())

    def named(self, folder: str) -> dict[str, Any]:
        """Every file of a folder, by its name."""
        return {path.stem: self.read(folder, path.name) for path in sorted((self.path / folder).glob("*.json"))}


def all_versions() -> list[Golden]:
    """Every version there are files of, the newest last."""
    found = (path for path in HERE.iterdir() if path.is_dir() and path.name[0].isdigit())
    return [Golden(path) for path in sorted(found, key=lambda path: [int(n) for n in path.name.split(".")])]


def contents() -> dict[str, Any]:
    """What today's code would write, `live` apart: values of JSON by path."""
    made: dict[str, Any] = {"schema.json": json_schema(), "names.json": derived()}
    for folder, found in (("messages", examples.messages()), ("documents", examples.kept())):
        made |= {f"{folder}/{name}.json": model.model_dump(mode="json") for name, model in found.items()}
    return made | {"contract/round.json": round_asked()}


def write(golden: Golden) -> None:
    """Writes them."""
    for name, value in contents().items():
        path = golden.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=1, sort_keys=name != "names.json", ensure_ascii=False) + "\n")


def derived() -> dict[str, str]:
    """What both halves work out for themselves, and must work out alike whatever their versions."""
    run = names.run_id("bc", "message-1", b'{"kind": "start-experiment"}')
    return {
        "run_id": run,
        "to_silo": names.to_silo("north"),
        "from_silo": names.from_silo("north"),
        "updates_of": names.updates_of("north"),
        "weights_blob": names.weights_blob(run, 7, examples.DIGEST),
        "publication_blob": names.publication_blob(run, 7),
        "initial_blob": names.initial_blob(examples.DIGEST),
        "head_blob": names.head_blob(run),
        "experiment_blob": names.experiment_blob("bc"),
        "round_blob": names.round_blob(run, 7),
        "run_blob": names.run_blob(run),
        "presence_blob": names.presence_blob("north"),
        "queues": " ".join(names.queues(["north"])),
        "containers": " ".join(names.containers(["north"])),
    }


def round_asked() -> Any:
    """What a training script is told."""
    announced = RoundAnnounced.model_validate(examples.filled(RoundAnnounced).model_dump() | {"purpose": "train"})
    task = Task(
        command=["python"],
        directory=Path("/code"),
        code=Code(path=Path("/code"), sha256=examples.DIGEST),
        data={"train": Path("/data/train.csv")},
        limits=Limits(rounds=1),
    )
    return json.loads(
        round_json(announced, Accepted(task=task, hyperparameters=announced.hyperparameters, charged=True), "north")
    )
