"""What a script is given: complete or not there, read-only, the same for every try."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from messages.errors import InvalidWeights
from messages.schemas import Payload
from messages.weights import parse_layout, write_file
from silo_agent import given
from silo_agent.home import RoundDirectory
from silo_agent.policy import Accepted
from silo_agent.private_state import PrivateState
from tests.unit.agent.making import RUN, announced, safetensors, task

ACCEPTED = Accepted(task=task(data={"train": "/data/x.csv"}), hyperparameters={"lr": 0.1}, charged=True)
WEIGHTS = safetensors({"w": [1.0]})


@pytest.fixture
def directory(tmp_path: Path) -> RoundDirectory:
    return RoundDirectory(tmp_path / "round")


@pytest.fixture
def state(tmp_path: Path) -> PrivateState:
    return PrivateState(tmp_path / "state")


def made(directory: RoundDirectory, state: PrivateState, asked: bytes = b"{}") -> None:
    (given.begin(directory) / "weights.safetensors").write_bytes(WEIGHTS)
    given.finish(directory, asked, state, RUN, 1)


def test_round_json_says_what_the_contract_says() -> None:
    asked = json.loads(given.round_json(announced(), ACCEPTED, "north"))
    assert asked == {
        "schema_version": 1,
        "experiment": "bc",
        "run": RUN,
        "round": 1,
        "task": "t",
        "purpose": "train",
        "share": ["*"],
        "transfer": {"form": "weights", "dtype": None},
        "hyperparameters": {"lr": 0.1},
        "data": {"train": "/data/x.csv"},
        "seed": given.seed(RUN, 1, "north"),
        "roles": ["weights"],
        "weights": {"sha256": "b" * 64, "bytes": 100},
        "control": None,
    }


def test_the_seed_differs_between_rounds_and_silos_only() -> None:
    seeds = {given.seed(RUN, number, silo) for number in (1, 2) for silo in ("north", "south") for _ in range(2)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_input_is_complete_and_read_only(directory: RoundDirectory, state: PrivateState, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "moments").write_text("m")
    state.commit(RUN, 0, tmp_path / "old")
    made(directory, state)
    files = {path.relative_to(directory.input).as_posix(): path for path in directory.input.rglob("*")}
    assert set(files) == {"round.json", "weights.safetensors", "state", "state/moments"}
    assert all(path.stat().st_mode & 0o222 == 0 for path in files.values() if path.is_file())


def test_an_input_half_made_is_not_there(directory: RoundDirectory, state: PrivateState) -> None:
    (given.begin(directory) / "weights.safetensors").write_bytes(WEIGHTS)
    assert not directory.input.exists()
    assert not given.still_good(directory, b"{}", state, RUN, 1)


def test_what_was_made_for_the_same_round_is_used_again(directory: RoundDirectory, state: PrivateState) -> None:
    made(directory, state)
    assert given.still_good(directory, b"{}", state, RUN, 1)


def test_what_was_made_for_something_else_is_made_anew(
    directory: RoundDirectory, state: PrivateState, tmp_path: Path
) -> None:
    made(directory, state)
    assert not given.still_good(directory, b'{"lr": 2}', state, RUN, 1)
    assert not directory.input.exists()
    made(directory, state)
    (tmp_path / "old").mkdir()
    state.commit(RUN, 0, tmp_path / "old")  # there is another private state to start from
    assert not given.still_good(directory, b"{}", state, RUN, 1)


def described(data: bytes) -> Payload:
    layout = parse_layout(data, len(data)).digest
    return Payload(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), layout=layout)


def test_weights_are_those_that_were_announced(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(WEIGHTS)
    good = described(WEIGHTS)
    assert given.examined(tmp_path, announced(payloads={"weights": good})) == parse_layout(WEIGHTS, len(WEIGHTS))
    for change in ({"sha256": "0" * 64}, {"bytes": 99}, {"layout": "0" * 64}):
        with pytest.raises(InvalidWeights):
            given.examined(tmp_path, announced(payloads={"weights": good.model_copy(update=change)}))


def test_control_variates_are_those_that_were_announced_and_of_these_weights(tmp_path: Path) -> None:
    """The weights have an integer tensor and one in float64; control variates are of what floats, in float32."""
    weights = {"w": np.ones((2, 2)), "n": np.array(3)}
    write_file(tmp_path / "weights.safetensors", weights)
    payloads = {"weights": described((tmp_path / "weights.safetensors").read_bytes())}
    control = tmp_path / "control.safetensors"

    def examined(tensors: dict[str, Any], **change: Any) -> None:
        control.unlink(missing_ok=True)
        write_file(control, tensors)
        told = described(control.read_bytes()).model_copy(update=change)
        given.examined(tmp_path, announced(payloads={**payloads, "control": told}, roles=["weights", "control"]))

    good = {"w": np.zeros((2, 2), np.float32)}
    examined(good)
    for change in ({"sha256": "0" * 64}, {"layout": "0" * 64}):
        with pytest.raises(InvalidWeights):
            examined(good, **change)
    for bad in ({"w": np.zeros((2, 2))}, {"w": np.zeros(4, np.float32)}, {**good, "n": np.zeros((), np.float32)}, {}):
        with pytest.raises(InvalidWeights, match="not those of the model"):
            examined(bad)


def test_round_json_says_which_control_variates_there_are() -> None:
    roles = ["weights", "control"]
    first = json.loads(given.round_json(announced(roles=roles), ACCEPTED, "north"))
    assert (first["roles"], first["control"]) == (roles, None)
    control = Payload(sha256="e" * 64, bytes=90, layout="f" * 64)
    payloads = {"weights": announced().payloads["weights"], "control": control}
    later = json.loads(given.round_json(announced(roles=roles, payloads=payloads), ACCEPTED, "north"))
    assert later["control"] == {"sha256": "e" * 64, "bytes": 90}
    evaluating = announced(roles=roles, purpose="evaluate")
    assert json.loads(given.round_json(evaluating, ACCEPTED, "north"))["roles"] == []
