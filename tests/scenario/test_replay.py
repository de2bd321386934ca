"""Replay: the sums of the past made again from what is stored, and whatever is not as it was, by name."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest
from safetensors.numpy import save

from messages import names
from messages.experiments import FromDigest
from orchestrator.blobs import Weights
from orchestrator.experiment.state import Ended, RoundRecord
from orchestrator.replay import Replay, Replayed, Verdict
from orchestrator.settings import RetentionSettings
from orchestrator.store import Documents
from tests.scenario.faults import FaultyStore, Trouble
from tests.scenario.world import World

SILOS = {"north": 12.0, "south": 18.0}
ALL = ["same", "same", "same", "not-summed"]


@contextlib.asynccontextmanager
async def trained(retention: RetentionSettings | None = None, **start: object) -> AsyncIterator[tuple[World, str]]:
    """A run of two rounds that is over."""
    w = World(SILOS, retention=retention)
    try:
        await w.start()
        w.live_silos()
        run = await w.begin(rounds=2, **start)
        await w.ended()
        yield w, run
    finally:
        await w.close()


async def replayed(w: World, trouble: Trouble | None = None) -> list[Replayed]:
    store = FaultyStore(w.store, trouble or Trouble())
    state = w.state()
    assert isinstance(state, Ended)
    weights = Weights(store, w.scratch, memory_budget=1 << 20)
    replay = Replay(store, Documents(store), weights, state.run)
    return [found async for found in replay.replay(await replay.rounds())]


def verdicts(found: list[Replayed]) -> list[str]:
    return [one.verdict.value for one in found]


def blob(w: World, container: str, run: str, number: int) -> str:
    """The one weights blob there."""
    prefix = names.round_prefix(run, number)
    [name] = [n for c, n in w.store.blobs if c == container and n.startswith(prefix) and n.endswith(".safetensors")]
    return name


def edit_record(w: World, run: str, number: int, edit: Callable[[RoundRecord], RoundRecord]) -> None:
    record = w.record(run, number)
    assert record is not None
    w.store.replace(names.STATE, names.round_blob(run, number), edit(record).model_dump_json().encode())


@pytest.mark.parametrize("form", ["weights", "delta"])
async def test_an_untouched_run_is_the_same_and_nothing_is_written(form: str) -> None:
    async with trained(transfer={"form": form}) as (w, run):
        trouble = Trouble()
        found = await replayed(w, trouble)
        assert verdicts(found) == ALL
        assert {line.partition(" ")[0] for line in trouble.log} == {"read", "open", "list", "fetch"}
        for one in found[:3]:
            assert one.recomputed == one.recorded
            assert one.recorded in blob(w, names.GLOBAL, run, one.round)
        assert list(w.scratch.iterdir()) == []


async def test_weights_that_an_operator_gave_are_a_base_too() -> None:
    data = save({"w": np.full(4, 5.0, np.float32)})
    digest = hashlib.sha256(data).hexdigest()
    w = World(SILOS)
    try:
        await w.store.create(names.INITIAL, names.initial_blob(digest), data)
        await w.start()
        w.live_silos()
        await w.begin(rounds=2, initial=FromDigest(sha256=digest).model_dump())
        await w.ended()
        assert verdicts(await replayed(w)) == ["same", "same", "not-summed"]
    finally:
        await w.close()


async def test_an_update_that_was_replaced_is_named_with_its_digest() -> None:
    async with trained() as (w, run):
        other = save({"w": np.full(4, 99.0, np.float32)})
        w.store.replace("updates-south", blob(w, "updates-south", run, 1), other)
        found = await replayed(w)
        assert verdicts(found) == ["same", "different", "same", "not-summed"]
        assert found[1].why is not None
        assert "the update of south is not what the record says" in found[1].why
        assert hashlib.sha256(other).hexdigest() in found[1].why


async def test_stored_weights_that_were_replaced_are_named_with_the_first_tensor() -> None:
    async with trained() as (w, run):
        w.store.replace(names.GLOBAL, blob(w, names.GLOBAL, run, 2), save({"w": np.full(4, 99.0, np.float32)}))
        found = await replayed(w)
        assert verdicts(found) == ["same", "same", "different", "not-summed"]
        assert (found[2].tensor, found[2].recomputed) == ("w", found[2].recorded)


async def test_a_base_that_was_replaced_is_named() -> None:
    async with trained(transfer={"form": "delta"}) as (w, run):
        w.store.replace(names.GLOBAL, blob(w, names.GLOBAL, run, 1), save({"w": np.full(4, 99.0, np.float32)}))
        found = await replayed(w)
        assert verdicts(found) == ["same", "different", "different", "not-summed"]
        assert found[2].why is not None
        assert "the weights of round 1, which it began with, is not what" in found[2].why


async def test_a_record_that_says_other_numbers_makes_other_weights() -> None:
    async with trained() as (w, run):

        def weigh(record: RoundRecord) -> RoundRecord:
            heavier = record.updates[0].model_copy(update={"samples": 7})
            return record.model_copy(update={"updates": (heavier, *record.updates[1:])})

        edit_record(w, run, 1, weigh)
        found = await replayed(w)
        assert verdicts(found)[1] == "different"
        assert found[1].recomputed not in {None, found[1].recorded}
        assert found[1].tensor == "w"


async def test_what_is_missing_without_a_tombstone_is_different() -> None:
    async with trained() as (w, run):
        await w.store.delete("updates-north", blob(w, "updates-north", run, 2))
        found = await replayed(w)
        assert verdicts(found) == ["same", "same", "different", "not-summed"]
        assert found[2].why is not None
        assert "no tombstone" in found[2].why


async def test_what_retention_deleted_is_said_with_its_rule() -> None:
    async with trained(RetentionSettings(updates=2, models=1, days=None)) as (w, _):
        found = await replayed(w)
        assert verdicts(found) == ["deleted", "deleted", "deleted", "not-summed"]
        assert found[1].why == "its updates are deleted: updates of the last 2 rounds are kept, weights of 1"
        assert found[2].why is not None  # its updates are there; the weights that it began with are not
        assert found[2].why.startswith("what it was made of is deleted")


async def test_a_round_swept_while_it_is_replayed_is_deleted_and_not_different() -> None:
    async with trained() as (w, run):
        documents = Documents(w.store)

        async def gone(known: object) -> object:
            return known.model_copy(update={"updates_before": 2, "because": "a rule"})  # type: ignore[attr-defined]

        state = w.state()
        assert isinstance(state, Ended)
        replay = Replay(w.store, documents, Weights(w.store, w.scratch, memory_budget=1 << 20), state.run)
        opened = w.store.open

        async def swept_first(container: str, name: str) -> object:
            await documents.change_retained(run, gone)  # type: ignore[arg-type]
            await w.store.delete(container, name)
            return await opened(container, name)

        w.store.open = swept_first  # type: ignore[method-assign, assignment]
        assert (await replay.round(1)).verdict is Verdict.DELETED
