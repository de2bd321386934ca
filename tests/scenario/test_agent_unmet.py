"""What an experiment asks for and a script does not do: its operator hears which, in a fixed word; texts stay here."""

from pathlib import Path
from typing import Any

import pytest

from tests.scenario.agent_world import World

SCRIPT = """
import numpy, silobus

model = {"w": numpy.zeros(2, "float32")}
for rnd in silobus.rounds():
    rnd.load(model)
    if rnd.trains:
        print("CANARY of the owner's")
        rnd.submit(model, samples=50, steps=1)
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.code.write_text(SCRIPT)
    return made


@pytest.mark.parametrize("mode", ["warm", "per-round"])
@pytest.mark.parametrize(
    ("word", "asked", "says"),
    [
        ("nothing-shared", {"share": ["hed.*"]}, "of 1 tensors none is shared by"),
        ("no-proximal-term", {"hyperparameters": {"proximal_mu": 0.5}}, "add rnd.proximal(model)"),
        ("not-corrected", {"roles": ["weights", "control"], "strategy": "scaffold"}, "call rnd.correct(model)"),
    ],
)
async def test_what_the_script_does_not_do_is_told_in_a_fixed_word(
    world: World, word: str, asked: dict[str, Any], says: str, mode: str
) -> None:
    limits = {"rounds": 100, "hyperparameters": {"proximal_mu": {"min": 0, "max": 1}}}
    outbound = {"tensors": ["w"], "dtypes": ["float32"], "max_bytes": 1000, "roles": ["weights", "control"]}
    async with world.agent(world.settings(tries=2, mode=mode, limits=limits, outbound=outbound)):
        await world.announce(1, **asked)
        said = await world.hear()
        await world.settled()
    assert (said["kind"], said["category"]) == ("training-failed", word)
    assert said["tries"] == 1, "another try would only repeat it"
    (printed,) = world.home.glob("rounds/*/00001/tries/1/output.txt")
    assert says in printed.read_text(), "the owner reads the whole of it"
    assert not any(text in sent for sent in world.sent for text in (b"CANARY", b"tensors none", b"rnd."))


async def test_what_the_owner_forbids_is_told_by_its_name_in_the_announcement(world: World) -> None:
    async with world.agent():
        await world.announce(1, hyperparameters={"lr": 0.1, "proximal_mu": 5})
        said = await world.hear()
        await world.settled()
    assert (said["kind"], said["reason"], said["about"]) == (
        "round-declined",
        "hyperparameter-forbidden",
        "proximal_mu",
    )
