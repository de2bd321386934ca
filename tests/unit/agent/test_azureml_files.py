"""What a job left on the datastore is taken whole or not at all, and never beside its place."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from messages.transport.directory import DirectoryStore
from silo_agent.compute import Datastore
from silo_agent.runners import azureml_files
from silo_agent.runners.azureml_files import Files, Incomplete, brought_along, folder

RESULT = "silobus/north/rounds/r/1/d/out/1"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    said = {"name": "own", "container": "jobs", "store": {"directory": str(tmp_path / "store")}}
    return Files(DirectoryStore(tmp_path / "store"), Datastore.model_validate(said), "north")


def left(tmp_path: Path, content: dict[str, str], told: dict[str, Any] | None = None, *, report: bool = True) -> Path:
    """A result on the datastore; `told` is what its process says of it, if not the truth."""
    result = tmp_path / "store" / "jobs" / RESULT
    for name, text in content.items():
        (result / name).parent.mkdir(parents=True, exist_ok=True)
        (result / name).write_text(text)
    (result / "ranks").mkdir(parents=True, exist_ok=True)
    truth = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in content.items()}
    ended = {"status": 0, "at": 1.0, "files": truth if told is None else told}
    (result / "ranks" / "0.json").write_text(json.dumps(ended))
    (result / "ranks" / "0.txt").write_text("printed")
    if report:
        (result / "report.json").write_text("{}")
    return result


async def test_what_the_process_wrote_is_taken(files: Files, tmp_path: Path) -> None:
    payloads = {"update.safetensors": "u", "control.safetensors": "c"}
    left(tmp_path, {**payloads, "state/a/b.json": "s", "other.txt": "not of the contract"})
    await files.take(RESULT, tmp_path / "out")
    taken = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert taken == {*payloads, "state/a/b.json", "report.json"}
    assert await files.has_report(RESULT)
    assert [(one.status, one.printed) for one in await files.left(RESULT)] == [(0, b"printed")]


async def test_an_empty_private_state_is_one(files: Files, tmp_path: Path) -> None:
    result = left(tmp_path, {})
    for state in (False, True):
        (result / "ranks" / "0.json").write_text(json.dumps({"status": 0, "at": 1.0, "files": {}, "state": state}))
        await files.take(RESULT, tmp_path / "out")
        assert (tmp_path / "out" / "state").is_dir() is state


@pytest.mark.parametrize(
    ("told", "report"),
    [
        ({"update.safetensors": "0" * 64}, True),
        ({"update.safetensors": None}, True),
        ({"state/gone": "0" * 64}, True),
        ({"state/../../escaped": "0" * 64}, True),
        ({"state/.hidden": "0" * 64}, True),
        ({}, False),
        ([], True),
    ],
)
async def test_what_is_not_as_it_was_written_does_not_count(
    files: Files, tmp_path: Path, told: Any, report: bool
) -> None:
    left(tmp_path, {"update.safetensors": "u", "escaped": "e"}, told, report=report)
    with pytest.raises(Incomplete):
        await files.take(RESULT, tmp_path / "out")
    assert not (tmp_path / "out" / "report.json").exists()
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize(("free", "taken"), [(1_000_000_103, True), (1_000_000_102, False)])
async def test_a_job_cannot_fill_the_agents_disk(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, taken: bool
) -> None:
    """A hundred bytes of update, one of state, two of report; what is not fetched needs no room."""
    left(tmp_path, {"update.safetensors": "u" * 100, "state/s": "s", "other.bin": "o" * 1000})
    monkeypatch.setattr(azureml_files, "_free", lambda path: free)
    with contextlib.nullcontext() if taken else pytest.raises(Incomplete, match="are free below `home`"):
        await files.take(RESULT, tmp_path / "out")
    assert (tmp_path / "out" / "update.safetensors").exists() is taken


async def test_a_job_cannot_leave_files_without_number(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azureml_files, "_MOST_FILES", 3)
    left(tmp_path, {"state/a": "1", "state/b": "2"})
    await files.take(RESULT, tmp_path / "out")
    left(tmp_path, {"state/a": "1", "state/b": "2", "state/c": "3"})
    with pytest.raises(Incomplete, match="4 files"):
        await files.take(RESULT, tmp_path / "out")


async def test_of_many_processes_those_that_failed_first_are_heard(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azureml_files, "_MOST_PRINTED", 2)
    ranks = left(tmp_path, {}) / "ranks"
    for rank, status in enumerate([0, 1, 0, -9]):
        (ranks / f"{rank}.json").write_text(json.dumps({"status": status, "at": 9.0 - rank}))
        (ranks / f"{rank}.txt").write_text(f"of {rank}")
    heard = [(one.status, one.printed) for one in await files.left(RESULT)]
    assert heard == [(-9, b"of 3"), (1, b"of 1"), (0, b""), (0, b"")]


async def test_a_half_put_directory_is_made_whole(files: Files, tmp_path: Path) -> None:
    source = tmp_path / "in"
    (source / "state").mkdir(parents=True)
    (source / "round.json").write_text("asked")
    (source / "state" / "count").write_text("7")
    (source / "link").symlink_to("/etc/passwd")
    half = tmp_path / "store" / "jobs" / "place"
    half.mkdir(parents=True)
    (half / "round.json").write_text("as")
    for _ in range(2):
        await files.put("place", folder(source))
    assert (half / "round.json").read_text() == "asked"
    assert (half / "state" / "count").read_text() == "7"
    assert not (half / "link").exists()


def test_the_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    digests = set()
    for name, text in (("a", "1"), ("b", "1"), ("a", "2")):
        top = tmp_path / f"{name}{text}"
        top.mkdir()
        (top / name).write_text(text)
        digests.add(folder(top).digest)
    assert len(digests) == 3


def test_silobus_and_the_launcher_come_along() -> None:
    files = brought_along().files
    ast.parse(files["azureml_job.py"].read_text(), feature_version=(3, 8))
    assert {"azureml_job.py", "silobus/__init__.py", "silobus/rounds.py"} <= set(files)
    assert not [name for name in files if "__pycache__" in name]
