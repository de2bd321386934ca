"""Strategies in whole runs: what they keep from round to round, second roles, and what is refused at the door."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from messages import names
from messages.schemas import Payload, Purpose, RoundAnnounced, UpdatePublished
from messages.weights import parse_layout
from orchestrator.aggregation import fedadam
from orchestrator.blobs import Weights
from orchestrator.experiment.state import Ended, RunOutcome
from orchestrator.replay import Replay, Replayed, Verdict
from orchestrator.settings import RetentionSettings
from orchestrator.store import Documents
from tests.scenario.faults import Trouble
from tests.scenario.world import World
from tests.virtual_clock import rest

SILOS = {"north": 12.0, "south": 18.0}
ADAM: dict[str, Any] = {"name": "fedadam", "options": {"server_lr": 1.0}}
SCAFFOLD: dict[str, Any] = {"name": "scaffold"}


@contextlib.asynccontextmanager
async def world(retention: RetentionSettings | None = None, silos: dict[str, float] = SILOS) -> AsyncIterator[World]:
    made = World(silos, retention=retention)
    try:
        yield made
    finally:
        await made.close()


async def trained(w: World, trouble: Trouble | None = None, **start: Any) -> str:
    """A run that is over."""
    await w.start(trouble)
    w.live_silos()
    run = await w.begin(**{"rounds": 3, **start})
    await w.ended()
    return run


def made(w: World, run: str, number: int) -> dict[str, Payload]:
    """What a round made, by its record."""
    record = w.record(run, number)
    assert record is not None
    assert record.model is not None
    return {"weights": record.model, **record.besides}


def numbers(w: World, run: str, number: int, name: str) -> np.ndarray[Any, Any]:
    blob = names.weights_blob(run, number, made(w, run, number)[name].sha256)
    found: np.ndarray[Any, Any] = load(w.store.blobs[names.GLOBAL, blob].data)["w"]
    return found


def announced(w: World, silo: str, purpose: Purpose) -> list[RoundAnnounced]:
    return [m for m in w.silos[silo].heard if isinstance(m, RoundAnnounced) and m.purpose is purpose]


async def verdicts(w: World) -> list[str]:
    return [found.verdict.value for found in await replayed(w)]


async def replayed(w: World) -> list[Replayed]:
    state = w.state()
    assert isinstance(state, Ended)
    weights = Weights(w.store, w.scratch, memory_budget=1 << 20)
    replay = Replay(w.store, Documents(w.store), weights, state.run)
    return [found async for found in replay.replay(await replay.rounds())]


# --- what is kept ------------------------------------------------------------------------------------------------


async def test_what_a_strategy_keeps_is_a_blob_of_each_round_and_the_next_goes_on_from_it() -> None:
    async with world() as w:
        run = await trained(w, strategy=ADAM)
        state: Any = None
        for number in (1, 2, 3):
            base = {"w": numbers(w, run, number - 1, "weights")}
            models = [{"w": base["w"] + np.float32(constant)} for constant in SILOS.values()]
            model, state = fedadam(models, base=base, state=state, server_lr=1.0)
            assert numbers(w, run, number, "weights").tolist() == model["w"].tolist()
            for name in ("momentum", "variance"):
                assert numbers(w, run, number, name).tolist() == state[name]["w"].tolist()
        assert made(w, run, 0).keys() == {"weights"}
        assert {message.payloads.keys() == {"weights"} for message in announced(w, "north", Purpose.TRAIN)} == {True}
        assert await verdicts(w) == ["same"] * 4 + ["not-summed"]


@pytest.mark.parametrize("strategy", [ADAM, SCAFFOLD], ids=["fedadam", "scaffold"])
async def test_a_process_that_dies_while_it_puts_things_in_place_loses_nothing_of_what_is_kept(
    strategy: dict[str, Any],
) -> None:
    async with world() as w:
        trouble = Trouble()
        run = await trained(w, trouble, rounds=2, strategy=strategy)
        expected = [made(w, run, number) for number in (1, 2)]
    creating = [call for call, line in enumerate(trouble.log, 1) if line.startswith("create")][-len(expected[1]) :]
    assert len(creating) > 1
    for call in sorted({c + more for c in creating for more in (-1, 0, 1)}):
        async with world() as w:
            trouble = Trouble()
            trouble.at[call] = "crash-after"
            again = await trained(w, trouble, rounds=2, strategy=strategy)
            assert (again, trouble.dead) == (run, True)
            assert [made(w, run, number) for number in (1, 2)] == expected


async def test_retention_lets_go_of_what_was_kept_with_the_weights() -> None:
    async with world(RetentionSettings(updates=0, models=1, days=0.001)) as w:
        run = await trained(w, strategy=ADAM)
        await w.clock.until(lambda: bool(w.store.named(names.swept_blob(run))), within=1000)
        prefix = names.round_prefix(run, 3)
        left = [name for where, name in w.store.blobs if where == names.GLOBAL and name.endswith(".safetensors")]
        assert sorted(left) == sorted({prefix + f"{one.sha256}.safetensors" for one in made(w, run, 3).values()})


@pytest.mark.parametrize("name", ["momentum", "variance"])
async def test_replay_names_what_was_kept_and_is_not_what_it_was(name: str) -> None:
    async with world() as w:
        run = await trained(w, rounds=2, strategy=ADAM)
        blob = names.weights_blob(run, 1, made(w, run, 1)[name].sha256)
        w.store.replace(names.GLOBAL, blob, save({"w": np.ones(4, np.float32)}))
        _, first, second, _ = await replayed(w)
        assert (first.verdict, second.verdict) == (Verdict.DIFFERENT, Verdict.DIFFERENT)
        assert f"the stored {name} is not what the record says" in str(first.why)
        assert f"the {name} of round 1, which it began with, is not what the record says" in str(second.why)


# --- a second role -----------------------------------------------------------------------------------------------


async def test_a_second_role_is_summed_by_its_own_rule_and_announced_with_the_next_round() -> None:
    async with world() as w:
        run = await trained(w, strategy=SCAFFOLD)
        assert [numbers(w, run, n, "control")[0] for n in (1, 2, 3)] == [15.0, 30.0, 45.0]
        first, second, third = announced(w, "north", Purpose.TRAIN)
        assert [message.roles for message in (first, second, third)] == [["weights", "control"]] * 3
        assert first.payloads.keys() == {"weights"}
        assert second.payloads["control"] == made(w, run, 1)["control"]
        assert third.payloads["control"] == made(w, run, 2)["control"]
        (last,) = announced(w, "north", Purpose.EVALUATE)
        assert (last.roles, last.payloads.keys()) == (["weights"], {"weights"})
        assert await verdicts(w) == ["same"] * 4 + ["not-summed"]


async def test_silos_that_were_not_asked_count_in_what_control_is_divided_by() -> None:
    async with world(silos={"east": 8.0, "north": 8.0, "south": 8.0, "west": 8.0}) as w:
        run = await trained(w, rounds=1, strategy=SCAFFOLD, sample={"share": 0.5, "seed": 1})
        assert numbers(w, run, 1, "control")[0] == 2 * 8.0 / 4
        assert await verdicts(w) == ["same", "same", "not-summed"]


async def test_a_control_that_is_not_what_was_said_of_it_is_refused_and_the_silo_named() -> None:
    async with world() as w:
        silo = w.silos["south"]
        honest = silo._control

        async def reshaped(asked: RoundAnnounced) -> Payload:
            payload = await honest(asked)
            data = save({"w": np.ones(3, np.float32)})
            digest = parse_layout(data, len(data)).digest
            return await _put(w, silo.name, asked, data, payload.model_copy(update={"layout": digest}))

        silo._control = reshaped  # type: ignore[method-assign]
        run = await trained(w, rounds=1, strategy=SCAFFOLD, quorum={"minimum": 1, "grace": 1})
        record = w.record(run, 1)
        assert record is not None
        assert "layout-mismatch: The control of south" in record.others["south"]
        assert numbers(w, run, 1, "control")[0] == 6.0


async def _put(w: World, silo: str, asked: RoundAnnounced, data: bytes, payload: Payload) -> Payload:
    import hashlib

    sha256 = hashlib.sha256(data).hexdigest()
    await w.store.create(names.updates_of(silo), names.weights_blob(asked.run, asked.round, sha256), data)
    return payload.model_copy(update={"sha256": sha256, "bytes": len(data)})


# --- the door ----------------------------------------------------------------------------------------------------


async def test_a_start_that_makes_no_sense_is_a_dead_letter_with_its_reason() -> None:
    async with world() as w:
        await w.start()
        await w.begin(silos=list(SILOS), strategy={"name": "krum", "options": {"f": 1}})
        await w.begin(strategy={"name": "fedavg", "options": {"mu": 1.0}})
        await rest()
        assert await w.dead_letters(names.EXPERIMENTS) == ["quorum-too-small-for-strategy", "invalid-strategy-options"]
        assert w.state() is None


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "median"},
        {"name": "geometric-median"},
        {"name": "trimmed-mean", "options": {"fraction": 0.1}},
        {"name": "krum", "options": {"f": 0}},
        {"name": "fedavg", "options": {"clip_factor": 1.0}},
    ],
    ids=lambda strategy: str(strategy["name"]),
)
async def test_too_few_silos_for_a_strategy_are_refused_before_any_of_them_trains(strategy: dict[str, Any]) -> None:
    """The quorum is whoever takes part, and that is two: one of them would choose the model."""
    async with world() as w:
        await w.start()
        w.live_silos()
        await w.begin(strategy=strategy)
        await rest()
        assert await w.dead_letters(names.EXPERIMENTS) == ["quorum-too-small-for-strategy"]
        assert w.state() is None


async def test_a_geometric_median_that_was_not_found_ends_the_run_and_is_not_published() -> None:
    async with world(silos={"east": 2.0, "north": 3.0, "south": 9.0}) as w:
        run = await trained(w, rounds=2, strategy={"name": "geometric-median", "options": {"iterations": 1}})
        state, record = w.state(), w.record(run, 1)
        assert isinstance(state, Ended)
        assert state.outcome is RunOutcome.FAILED
        assert "not-converged: The geometric median was not found" in state.reason
        assert "a greater option `iterations`" in state.reason
        assert record is not None
        assert record.model is None


async def test_silos_train_with_what_the_strategy_says() -> None:
    async with world() as w:
        await trained(w, rounds=1, strategy={"name": "fedprox", "options": {"mu": 0.25}}, hyperparameters={"lr": 0.1})
        (asked,) = announced(w, "north", Purpose.TRAIN)
        assert (asked.strategy, asked.hyperparameters) == ("fedprox", {"lr": 0.1, "proximal_mu": 0.25})


async def test_an_update_that_the_strategy_cannot_weigh_is_refused_when_it_arrives() -> None:
    async with world() as w:
        silo = w.silos["south"]
        publish = silo.publish

        async def without_steps(asked: RoundAnnounced, **spoilt: Any) -> UpdatePublished:
            return (await publish(asked, **spoilt)).model_copy(update={"steps": 0})

        silo.publish = without_steps  # type: ignore[method-assign]
        run = await trained(w, rounds=1, strategy={"name": "fednova"}, quorum={"minimum": 1, "grace": 1})
        record = w.record(run, 1)
        assert record is not None
        assert record.others["south"].startswith("failed: no-steps")
        state = w.state()
        assert isinstance(state, Ended)
        assert state.outcome is RunOutcome.COMPLETED
