"""What a script is given for a round: `round.json`, the payloads, private state, in a directory that is complete
or not there.

Here lives how the input is laid out and how one left by an earlier agent is recognised. Fetching payloads is the
caller's; whether the round should run at all was decided before.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from messages.errors import InvalidWeights
from messages.schemas import Payload, RoundAnnounced
from messages.weights import Layout, WeightsFault, scan_file, verify
from silo_agent.home import RoundDirectory, make_directory, read_json
from silo_agent.policy import Accepted
from silo_agent.private_state import PrivateState
from silo_agent.roles import given_as, layout_given, wanted


def round_json(announced: RoundAnnounced, accepted: Accepted, silo: str) -> bytes:
    """The file's bytes: the same for the same announcement and policy, whoever makes them and when."""
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
        "roles": list(wanted(announced)),
        **{role: _described(announced.payloads.get(role)) for role in ("weights", "control")},
    }
    return json.dumps(asked, indent=1, sort_keys=True).encode()


def seed(run: str, round_number: int, silo: str) -> int:
    """63 bits that differ between silos and rounds, and never between tries."""
    return int.from_bytes(hashlib.sha256(f"{run}\0{round_number}\0{silo}".encode()).digest()[:8], "big") >> 1


def still_good(directory: RoundDirectory, asked: bytes, state: PrivateState, run: str, round_number: int) -> bool:
    """Whether an earlier agent left the very input that is asked for; another is deleted."""
    kept = read_json(directory.path / "given.json")
    version = state.version(run, before=round_number)
    there = directory.input / "round.json"
    if kept == {"version": version} and there.is_file() and there.read_bytes() == asked:
        return True
    shutil.rmtree(directory.input, ignore_errors=True)
    return False


def begin(directory: RoundDirectory) -> Path:
    """An empty place to put an input together; its payloads go there, named by `roles.given_as`."""
    fresh = directory.path / "in.new"
    shutil.rmtree(fresh, ignore_errors=True)
    make_directory(fresh)
    return fresh


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


def examined(top: Path, announced: RoundAnnounced) -> Layout | None:
    """The layout of the weights at `top`, where every payload is the one that was announced; None when initialising.

    Raises InvalidWeights. Blocks: use it in a thread.
    """
    weights: Layout | None = None
    for role in sorted(announced.payloads, reverse=True):  # the weights first: they say how others are laid out
        payload = announced.payloads[role]
        scan = scan_file(top / given_as(role))
        beside = layout_given(role, weights) if weights is not None else None
        verify(scan, sha256=payload.sha256, bytes=payload.bytes, layout=beside)
        if scan.layout.digest != payload.layout:
            raise InvalidWeights(WeightsFault.LAYOUT_MISMATCH, f"The tensors of {role} are not those announced.")
        weights = weights or scan.layout
    return weights


def _described(payload: Payload | None) -> dict[str, object] | None:
    return None if payload is None else {"sha256": payload.sha256, "bytes": payload.bytes}
