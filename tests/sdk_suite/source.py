"""The SDK's source distribution: had with pip, as pip is configured here, and what is needed of it unpacked."""

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

PACKAGE = "azure-servicebus"
WANTED_TOO = "websocket-client"  # by the synchronous client, for WebSocket; no use to anything else here
NEEDED = (
    "tests/test_queues.py",
    "tests/mocks.py",
    "tests/utilities.py",
    "tests/async_tests/test_queues_async.py",
    "tests/async_tests/mocks_async.py",
)


class NotToBeHad(Exception):
    """There is no source distribution; the text says why."""


def download(folder: Path) -> Path:
    """The archive, in `folder`; the one that is there already, if it is."""
    wanted = version(PACKAGE)
    archive = folder / f"{PACKAGE.replace('-', '_')}-{wanted}.tar.gz"
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        command += ["--dest", str(folder), f"{PACKAGE}=={wanted}"]
        for more in ([], ["--no-build-isolation"]):  # pip builds its metadata, for which it may want the network again
            done = subprocess.run([*command, *more], check=False, capture_output=True, text=True)
            if archive.exists():
                break
        else:
            raise NotToBeHad(f"pip cannot download {PACKAGE} {wanted}:\n{done.stderr.strip()}")
    return archive


def install_what_else_is_wanted(folder: Path) -> None:
    """Into `folder` and nowhere else, unless it is there."""
    if not folder.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), WANTED_TOO]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise NotToBeHad(f"pip cannot install {WANTED_TOO}:\n{done.stderr.strip()}")


def unpack(archive: Path, folder: Path) -> None:
    """The queue tests and what they import, side by side; nothing else of it, least of all the SDK itself."""
    folder.mkdir(parents=True, exist_ok=True)
    root = archive.name.removesuffix(".tar.gz")
    with tarfile.open(archive) as distribution:
        for path in NEEDED:
            try:
                member = distribution.extractfile(f"{root}/{path}")
            except KeyError:
                member = None
            if member is None:
                raise NotToBeHad(f"{archive.name} has no {path}")
            (folder / Path(path).name).write_bytes(member.read())
