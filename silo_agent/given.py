"""What a script is given for a round: `round.json`, the global weights, private state, in a directory that is complete
or not there.

Here lives how the input is laid out and how one left by an earlier agent is recognised. Fetching the weights is the
caller's; whether the round should run at all was decided before.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from messages.errors import InvalidWeights
from messages.schemas import RoundAnnounced
from messages.weights import Scan, WeightsFault, scan_file, verify
from silo_agent.home import RoundDirectory, make_directory, read_json
from silo_agent.policy import Accepted
from silo_agent.private_state import PrivateState

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True, slots=True)
class Given:
    """A complete input."""

    weights: Scan | None
    """What is in the weights; None when initialising."""
    version: int | None
    """The round that committed the private state in it."""


def round_json(announced: RoundAnnounced, accepted: Accepted, silo: str) -> bytes:
    """The file's bytes: the same for the same announcement and policy, whoever makes them and when."""
    weights = announced.payloads.get("weights")
    asked = {
        "schema_version": 1,
        "experiment": announced.experiment,
        "run": announced.run,
        "round": announced.round,
        "task": announced.task,
        "purpose": announced.purpose,
        "share": announced.share,
        "transfer": {"form": announced.transfer.form, "dtype": announced.transfer.dtype},
        "hyperparameters": accepted.hyperparameters,
        "data": {name: str(path) for name, path in accepted.task.data.items()},
        "seed": seed(announced.run, announced.round, silo),
        "weights": None if weights is None else {"sha256": weights.sha256, "bytes": weights.bytes},
    }
    return json.dumps(asked, indent=1, sort_keys=True).encode()


def seed(run: str, round_number: int, silo: str) -> int:
    """63 bits that differ between silos and rounds, and never between tries."""
    return int.from_bytes(hashlib.sha256(f"{run}\0{round_number}\0{silo}".encode()).digest()[:8], "big") >> 1


def still_good(
    directory: RoundDirectory, asked: bytes, state: PrivateState, run: str, round_number: int
) -> Path | None:
    """The weights of an input that an earlier agent left, if it is the one asked for; otherwise it is deleted."""
    kept = read_json(directory.path / "given.json")
    version = state.version(run, before=round_number)
    there = directory.input / "round.json"
    if kept == {"version": version} and there.is_file() and there.read_bytes() == asked:
        return directory.input / WEIGHTS
    shutil.rmtree(directory.input, ignore_errors=True)
    return None


def begin(directory: RoundDirectory) -> Path:
    """An empty place to put an input together; returns where its weights go."""
    fresh = directory.path / "in.new"
    shutil.rmtree(fresh, ignore_errors=True)
    make_directory(fresh)
    return fresh / WEIGHTS


def finish(directory: RoundDirectory, asked: bytes, state: PrivateState, run: str, round_number: int) -> int | None:
    """Adds the rest, makes it read-only and gives it its name; returns the version of the private state in it."""
    fresh = directory.path / "in.new"
    version = state.version(run, before=round_number)
    state.copy(run, version, fresh / "state")
    (fresh / "round.json").write_bytes(asked)
    for path in fresh.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o222:
            path.chmod(0o444)
    shutil.rmtree(directory.input, ignore_errors=True)
    (directory.path / "given.json").write_text(json.dumps({"version": version}))
    fresh.rename(directory.input)
    return version


def examined(weights: Path, announced: RoundAnnounced) -> Scan | None:
    """What is in the weights, which are those that were announced. Raises InvalidWeights."""
    payload = announced.payloads.get("weights")
    if payload is None:
        return None
    scan = scan_file(weights)
    verify(scan, sha256=payload.sha256, bytes=payload.bytes, layout=None)
    if scan.layout.digest != payload.layout:
        raise InvalidWeights(WeightsFault.LAYOUT_MISMATCH, "The tensors are not those that were announced.")
    return scan
