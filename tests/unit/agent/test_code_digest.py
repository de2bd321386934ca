"""The digest of code: what changes it, what does not, and what has none."""

import hashlib
import os
from pathlib import Path

import pytest

from silo_agent.code_digest import CodeUnreadable, cleared, code_digest


@pytest.fixture
def code(tmp_path: Path) -> Path:
    top = tmp_path / "code"
    (top / "part").mkdir(parents=True)
    (top / "train.py").write_text("train()")
    (top / "part" / "model.py").write_text("model()")
    return top


def test_a_file_has_the_digest_that_sha256sum_prints(code: Path) -> None:
    assert code_digest(code / "train.py") == hashlib.sha256(b"train()").hexdigest()


def test_a_directory_has_the_digest_of_the_lines_that_sha256sum_prints(code: Path) -> None:
    lines = "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n"
        for name, content in (("part/model.py", b"model()"), ("train.py", b"train()"))
    )
    assert code_digest(code) == hashlib.sha256(lines.encode()).hexdigest()


def test_names_and_contents_count(code: Path) -> None:
    before = code_digest(code)
    (code / "train.py").write_text("train() ")
    changed = code_digest(code)
    (code / "train.py").write_text("train()")
    assert code_digest(code) == before
    (code / "train.py").rename(code / "train2.py")
    assert len({before, changed, code_digest(code)}) == 3


def test_a_new_file_anywhere_counts_except_for_caches(code: Path) -> None:
    before = code_digest(code)
    (code / "part" / "__pycache__").mkdir()
    (code / "part" / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"x")
    assert code_digest(code) == before
    (code / "part" / ".hidden").write_text("")
    assert code_digest(code) != before


def test_compiled_files_are_gone_before_the_code_runs_since_no_digest_vouches_for_them(code: Path) -> None:
    approved = code_digest(code)
    planted = code / "part" / "__pycache__" / "model.cpython-311.pyc"
    planted.parent.mkdir()
    planted.write_bytes(b"what Python would run instead of model.py")
    assert cleared(code) == approved
    assert not planted.parent.exists()


@pytest.mark.parametrize("name", ["link.py", "part/link"])
@pytest.mark.parametrize("target", ["/etc/hostname", "/etc", "/nowhere"])
def test_a_link_inside_is_an_error_wherever_it_leads(code: Path, name: str, target: str) -> None:
    (code / name).symlink_to(target)
    with pytest.raises(CodeUnreadable, match="symbolic link"):
        code_digest(code)


def test_the_path_itself_may_be_a_link_and_is_measured_through_it(code: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(code)
    (tmp_path / "train").symlink_to(code / "train.py")
    assert code_digest(tmp_path / "link") == code_digest(code)
    assert code_digest(tmp_path / "train") == code_digest(code / "train.py")


def test_what_is_no_file_or_not_there_or_empty_has_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "nothing", tmp_path / "empty"):
        with pytest.raises(CodeUnreadable):
            code_digest(path)
