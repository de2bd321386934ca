"""SCAFFOLD's control variates go through an agent as weights do: fetched, verified, judged, logged, published once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from messages import names
from messages.schemas import Payload
from silo_agent.egress import read, verify
from silo_agent.rerun import rerun
from silo_agent.settings import SiloSettings
from tests.scenario.agent_world import HERE, RUN, Dying, World, free_locks, payload, vector

ROLES = ["weights", "control"]
MADE = {"weights": payload(vector(2.0, 1.0)), "control": payload(vector(0.75, 0.25))}
"""What the trainer makes of round 1's weights and of COMMON."""
COMMON = vector(0.25, -0.25)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def allowing(world: World, **rules: Any) -> SiloSettings:
    outbound = {"tensors": ["w"], "dtypes": ["float32"], "max_bytes": 1000, "roles": ROLES, "min_samples": 20}
    return world.settings(outbound={**outbound, **rules})


async def announce(world: World, common: bytes | None = COMMON, told: Payload | None = None) -> None:
    weights = vector(1.0, 0.0)
    payloads = {"weights": payload(weights)}
    for data in (weights, common):
        if data is not None:
            await world.store.create(names.GLOBAL, names.weights_blob(RUN, 0, payload(data).sha256), data)
    if common is not None:
        payloads["control"] = told or payload(common)
    await world.announce(1, payloads=payloads, roles=ROLES, strategy="scaffold")


async def left_in_store(world: World) -> list[str]:
    return sorted(row.name for row in await world.store.list(names.updates_of(HERE), ""))


async def test_both_payloads_are_published_and_both_are_in_the_egress_log(world: World) -> None:
    async with world.agent(allowing(world)):
        await announce(world)
        said = await world.hear()
        await world.settled()
    assert said["kind"] == "update-published"
    assert {role: (one["sha256"], one["form"]) for role, one in said["payloads"].items()} == {
        "weights": (MADE["weights"].sha256, "weights"),
        "control": (MADE["control"].sha256, "delta"),
    }
    assert said == json.loads(await world.publication())
    blobs = [names.weights_blob(RUN, 1, one.sha256) for one in MADE.values()]
    assert await left_in_store(world) == sorted([*blobs, names.publication_blob(RUN, 1)])
    assert (await world.store.read(names.updates_of(HERE), blobs[1])).data == vector(0.75, 0.25)
    update = next(line for line in read(world.home / "egress.jsonl") if line["what"] == "update")
    assert {role: update[role]["sha256"] for role in ROLES} == {role: one.sha256 for role, one in MADE.items()}
    assert verify(world.home / "egress.jsonl") is None


async def test_the_first_round_has_none_to_start_from(world: World) -> None:
    async with world.agent(allowing(world)):
        await announce(world, common=None)
        said = await world.hear()
    assert said["payloads"]["control"]["sha256"] == payload(vector(0.5, 0.5)).sha256


LYING = payload(COMMON).model_copy(update={"layout": "0" * 64})
OF_ANOTHER_MODEL = vector(1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("reason", "rules", "common", "told"),
    [
        ("role-forbidden", {"roles": ["weights"]}, COMMON, None),
        ("weights-invalid", {}, COMMON, LYING),
        ("weights-invalid", {}, OF_ANOTHER_MODEL, None),
        ("weights-missing", {}, COMMON, payload(vector(9.0, 9.0))),
        ("outbound-forbidden", {"max_bytes": 120}, COMMON, None),  # enough for one of them
    ],
    ids=["not-named", "lying", "of-another-model", "missing", "both-too-large"],
)
async def test_declining_before_anything_is_trained(
    world: World, reason: str, rules: dict[str, Any], common: bytes, told: Payload | None
) -> None:
    async with world.agent(allowing(world, **rules)) as agent:
        await announce(world, common, told)
        assert (await world.hear())["reason"] == reason
        await world.settled()
        assert agent.silo.budget.spent("bc") == 0
    assert world.ran() == []
    assert await left_in_store(world) == []


def creates(blob: str) -> Callable[..., bool]:
    return lambda container, name, *_: name == blob


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("role", ROLES)
async def test_an_agent_that_dies_between_two_payloads_publishes_once(world: World, role: str, after: bool) -> None:
    blob = names.weights_blob(RUN, 1, MADE[role].sha256)  # type: ignore[index]
    settings = allowing(world)
    with Dying(world.store, "create", creates(blob), after=after) as dying:
        store: Any = dying
        async with world.agent(settings, store=store) as agent:
            await announce(world)
            await dying.died.wait()
            await agent.kill()
    free_locks(world)
    async with world.agent(settings) as agent:
        said = await world.hear()
        await world.settled()
        assert agent.silo.budget.spent("bc") == 1
    assert said == json.loads(await world.publication())
    assert len(world.ran()) == 1, "what was trained is not trained again"
    assert world.committed() == {"00001": "1"}
    assert len(await left_in_store(world)) == 3


async def test_the_rounds_directory_can_be_run_again(world: World) -> None:
    settings = allowing(world)
    async with world.agent(settings):
        await announce(world)
        await world.hear()
        await world.settled()
    went_well, lines = await rerun(settings, RUN, 1)
    assert went_well, lines
    assert f"control: 1 tensors, {MADE['control'].bytes} bytes" in lines
    again = world.home / "rounds" / RUN / "00001" / "rerun" / "out" / "control.safetensors"
    assert again.read_bytes() == vector(0.75, 0.25)
