"""`silobus up --silos-dir`: each owner's file is taken as it is, its paths as they are meant there."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli.terminal import Complaint
from orchestrator.cli.up import check, files_in, read_owners

OWNER = """
home: somewhere
store: {directory: /elsewhere}
tasks:
  mine:
    command: [python, train.py]
    directory: ..
    code: {path: ../train.py, sha256: abc}
    data: {train: a.csv, test: /data/b.csv}
"""


def test_a_file_per_silo_or_a_folder_per_silo(tmp_path: Path) -> None:
    (tmp_path / "north.yaml").write_text(OWNER)
    (tmp_path / "south").mkdir()
    (tmp_path / "south" / "silo.yaml").write_text(OWNER)
    (tmp_path / "third.yaml").write_text("silo: east\n" + OWNER)

    assert set(read_owners(tmp_path)) == {"north", "south", "east"}


def test_paths_are_relative_to_the_file_and_bus_store_and_home_are_left_to_up(tmp_path: Path) -> None:
    (tmp_path / "north.yaml").write_text(OWNER)

    owner = read_owners(tmp_path)["north"]

    task = owner["tasks"]["mine"]
    assert Path(task["directory"]).resolve() == tmp_path.parent
    assert Path(task["code"]["path"]).resolve() == tmp_path.parent / "train.py"
    assert task["data"] == {"train": str(tmp_path / "a.csv"), "test": "/data/b.csv"}
    assert owner.keys() == {"tasks"}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("north.yaml", "tasks: [", "readable YAML"),
        ("north.yaml", "silo: north", "no tasks"),
        ("North.yaml", OWNER, "no silo's name"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)

    with pytest.raises(Complaint, match=says) as complaint:
        read_owners(tmp_path)
    assert str(tmp_path / name) in str(complaint.value)


def test_two_files_for_one_silo_are_refused(tmp_path: Path) -> None:
    (tmp_path / "north.yaml").write_text(OWNER)
    (tmp_path / "other.yaml").write_text("silo: north\n" + OWNER)

    with pytest.raises(Complaint, match="two files"):
        read_owners(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Complaint, match="no owner's file"):
        read_owners(tmp_path)


GOOD = """
tasks:
  mine:
    command: [python, train.py]
    directory: ..
    code: {path: ../train.py, sha256: SHA}
    outbound: {tensors: ["*"], dtypes: [float32], max_bytes: 1000}
    limits:
      rounds: 50
""".replace("SHA", "a" * 64)


async def test_a_file_that_an_agent_accepts_needs_no_bus_store_and_home(tmp_path: Path) -> None:
    (tmp_path / "north.yaml").write_text(GOOD)

    await check(files_in(tmp_path))


@pytest.mark.parametrize(
    ("old", "new", "line", "field"),
    [
        ("rounds: 50", "rounds: fifty", 9, "limits.rounds"),
        ("rounds: 50", "ruonds: 50", 9, "limits.ruonds"),
        ("rounds: 50", "rounds: 50\n      rounds: 51", 10, "`rounds` is there twice"),
        ("a" * 64, "abc", 6, "code.sha256"),
        ("[python, train.py]", "python train.py", 4, "command"),
    ],
)
async def test_what_an_agent_would_not_accept_is_said_with_file_line_and_field(
    tmp_path: Path, old: str, new: str, line: int, field: str
) -> None:
    (tmp_path / "north.yaml").write_text(GOOD)
    (tmp_path / "south.yaml").write_text(GOOD.replace(old, new))

    with pytest.raises(Complaint) as complaint:
        await check(files_in(tmp_path))

    said = str(complaint.value)
    assert said.startswith(f"{tmp_path / 'south.yaml'} is not right:")
    assert f"line {line}: " in said
    assert field in said
    assert "north" not in said
