"""The scratch directory: whose it is, and what becomes of it."""

from __future__ import annotations

import asyncio
import errno
import subprocess
import sys
from pathlib import Path

import pytest

from messages.errors import Transient
from orchestrator.scratch import Scratch, ScratchUnusable

HOLDER = """
import asyncio, pathlib, sys
from orchestrator.scratch import Scratch

async def hold():
    async with Scratch(pathlib.Path(sys.argv[1])).directory() as path:
        (path / "half").write_bytes(b"x")
        print(path, flush=True)
        sys.stdin.read()

asyncio.run(hold())
"""


async def test_a_directory_is_there_as_long_as_it_is_used(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "made")
    async with scratch.directory() as one, scratch.directory() as other:
        assert one != other
        (one / "half").write_bytes(b"x")
        await scratch.sweep()
        assert (one / "half").exists()
    assert list((tmp_path / "made").iterdir()) == []


def test_what_a_killed_process_left_is_deleted_by_whoever_comes_next(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout
        held = Path(holder.stdout.readline().decode().strip())
        asyncio.run(Scratch(tmp_path).sweep())
        assert (held / "half").exists()
        holder.kill()
        holder.wait(10)
    assert held.exists()

    async def use() -> bool:
        async with Scratch(tmp_path).directory():
            return held.exists()  # noqa: ASYNC240  # nobody waits for this loop

    assert not asyncio.run(use())


async def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "silobus-link").symlink_to(tmp_path / "precious")
    await Scratch(tmp_path).sweep()
    assert (tmp_path / "precious").is_dir()
    assert (tmp_path / "silobus-link").is_symlink()


async def test_a_directory_in_which_nothing_can_be_made_is_waited_for(tmp_path: Path) -> None:
    """Its disk may come back; and it is no fault of the update or of this program."""
    (tmp_path / "file").write_text("where the disk was")
    with pytest.raises(ScratchUnusable, match=r"file/scratch cannot be used \(Not a directory\); this user must"):
        async with Scratch(tmp_path / "file" / "scratch").directory():
            pass


@pytest.mark.parametrize(
    ("code", "raised"), [(errno.ENOSPC, Transient), (errno.EDQUOT, Transient), (errno.EIO, OSError)]
)
def test_a_full_disk_is_waited_for_and_nothing_is_left_on_it(tmp_path: Path, code: int, raised: type) -> None:
    async def write() -> None:
        async with Scratch(tmp_path).directory() as directory:
            (directory / "half").write_bytes(b"half")
            raise OSError(code, "said the system")

    with pytest.raises(raised):
        asyncio.run(write())
    assert list(tmp_path.iterdir()) == []
