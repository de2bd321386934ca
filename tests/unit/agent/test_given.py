"""What a script is given: complete or not there, read-only, the same for every try."""

import json
from pathlib import Path

import pytest

from messages.errors import InvalidWeights
from messages.schemas import Payload
from messages.weights import parse_layout
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
    given.begin(directory).write_bytes(WEIGHTS)
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
        "weights": {"sha256": "b" * 64, "bytes": 100},
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
    given.begin(directory).write_bytes(WEIGHTS)
    assert not directory.input.exists()
    assert given.still_good(directory, b"{}", state, RUN, 1) is None


def test_what_was_made_for_the_same_round_is_used_again(directory: RoundDirectory, state: PrivateState) -> None:
    made(directory, state)
    assert given.still_good(directory, b"{}", state, RUN, 1) == directory.input / "weights.safetensors"


def test_what_was_made_for_something_else_is_made_anew(
    directory: RoundDirectory, state: PrivateState, tmp_path: Path
) -> None:
    made(directory, state)
    assert given.still_good(directory, b'{"lr": 2}', state, RUN, 1) is None
    assert not directory.input.exists()
    made(directory, state)
    (tmp_path / "old").mkdir()
    state.commit(RUN, 0, tmp_path / "old")  # there is another private state to start from
    assert given.still_good(directory, b"{}", state, RUN, 1) is None


def test_weights_are_those_that_were_announced(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(WEIGHTS)
    layout = parse_layout(WEIGHTS, len(WEIGHTS))
    import hashlib

    good = Payload(sha256=hashlib.sha256(WEIGHTS).hexdigest(), bytes=len(WEIGHTS), layout=layout.digest)
    scan = given.examined(path, announced(payloads={"weights": good}))
    assert scan is not None
    assert scan.layout == layout
    for change in ({"sha256": "0" * 64}, {"bytes": 99}, {"layout": "0" * 64}):
        with pytest.raises(InvalidWeights):
            given.examined(path, announced(payloads={"weights": good.model_copy(update=change)}))
