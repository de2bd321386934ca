"""What a job on AzureML runs first: it makes the two directories of the training contract out of what AzureML mounts,
runs the owner's command, and puts its result where the agent finds it.

It runs on the compute, as a file by itself: standard library only, nothing of ours, and no later Python than 3.8. Every
process of a distributed job runs one of these; only that of rank 0 writes the result, `report.json` last.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

LONGEST_PRINTED = 1 << 20
EVERY = 2.0


def main() -> int:
    said = arguments()
    rank = int(os.environ.get("RANK", "0"))
    result = Path(said.result)
    (result / "ranks").mkdir(parents=True, exist_ok=True)
    if rank == 0:
        clear(result)
    with tempfile.TemporaryDirectory(prefix="silobus-") as temporary:
        source, target = Path(temporary, "in"), Path(temporary, "out")
        target.mkdir()
        lay_out(Path(said.round), source, dict(pair.split("=", 1) for pair in said.data))
        paths = [str(Path(said.lib)), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "SILOBUS_INPUT": str(source),
            "SILOBUS_OUTPUT": str(target),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        over = threading.Event()
        copying = threading.Thread(target=copy_progress, args=(target, result, over), daemon=True)
        if rank == 0:
            copying.start()
        status, printed = run(said.command, environment, said.code)
        over.set()
        if rank == 0:
            copying.join()
        files = hand_in(target, result) if rank == 0 else {}
        (result / "ranks" / f"{rank}.txt").write_bytes(printed)
        ended = {"status": status, "at": time.time(), "files": files, "state": (target / "state").is_dir()}
        (result / "ranks" / f"{rank}.json").write_text(json.dumps(ended))
        report = target / "report.json"
        if rank == 0 and report.is_file():
            shutil.copyfile(report, result / "report.json")
    return 128 - status if status < 0 else status


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lib", required=True)
    parser.add_argument("--round", required=True)
    parser.add_argument("--result", required=True)
    parser.add_argument("--code")
    parser.add_argument("--data", action="append", default=[])
    parser.add_argument("command", nargs="+")
    return parser.parse_args()


def clear(result: Path) -> None:
    """Takes away what the same job left before it lost its node and began again; the report first."""
    for name in ("report.json", "update.safetensors", "control.safetensors", "progress.json"):
        if (result / name).exists():
            (result / name).unlink()
    shutil.rmtree(result / "state", ignore_errors=True)
    for left in (result / "ranks").iterdir():
        left.unlink()


def lay_out(given: Path, source: Path, data: dict[str, str]) -> None:
    """The input directory: what the agent gave, and where the data are on this machine."""
    source.mkdir()
    for name in ("weights.safetensors", "control.safetensors", "state"):
        if (given / name).exists():
            (source / name).symlink_to((given / name).resolve())
    if not (source / "state").exists():
        (source / "state").mkdir()
    asked = json.loads((given / "round.json").read_text(encoding="utf-8"))
    initialises = asked["purpose"] == "initialise"
    asked["data"] = {} if initialises else {name: str(Path(path).resolve()) for name, path in data.items()}
    (source / "round.json").write_text(json.dumps(asked, indent=1, sort_keys=True), encoding="utf-8")


def run(command: list[str], environment: dict[str, str], code: str | None) -> tuple[int, bytes]:
    """Exit status (minus the number of a signal) and the end of what was printed, which AzureML's log has as well."""
    printed = b""
    try:
        process = subprocess.Popen(command, cwd=code, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        return 127, f"the command cannot be started: {error}\n".encode()
    signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
    assert process.stdout is not None  # noqa: S101
    while True:
        piece = os.read(process.stdout.fileno(), 1 << 16)
        if not piece:
            break
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        printed = (printed + piece)[-LONGEST_PRINTED:]
    return process.wait(), printed


def copy_progress(target: Path, result: Path, over: threading.Event) -> None:
    before = b""
    while not over.wait(EVERY):
        try:
            now = (target / "progress.json").read_bytes()
            if now != before:
                (result / "progress.json").write_bytes(now)
                before = now
        except OSError:
            pass


def hand_in(target: Path, result: Path) -> dict[str, str]:
    """Copies everything but the report; the digest of each file, by its path."""
    files = {}
    for path in sorted(target.rglob("*")):
        name = path.relative_to(target).as_posix()
        if path.is_file() and name not in ("report.json", "progress.json"):
            (result / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, result / name)
            files[name] = digest(path)
    return files


def digest(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            sha.update(piece)
    return sha.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
