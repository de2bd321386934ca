"""The orchestrator as its users meet it: messages in, messages, records and weights out, whatever happens."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from messages import names
from messages.errors import NotFound
from messages.experiments import CancelExperiment, PauseExperiment, ResumeExperiment, StartExperiment
from messages.ports import Outgoing
from messages.schemas import (
    ClosedBecause,
    DeclineReason,
    Head,
    Purpose,
    RoundAnnounced,
    RoundClosed,
    RoundDeclined,
    SiloHeartbeat,
)
from orchestrator.documents import Presence
from orchestrator.experiment.state import Aggregating, Collecting, RunOutcome
from orchestrator.store import Documents
from tests.scenario.faults import Trouble
from tests.scenario.model_silo import TASK, Doing
from tests.scenario.world import World
from tests.virtual_clock import rest

CONSTANTS = {"east": 6.0, "north": 12.0, "south": 18.0}


@contextlib.asynccontextmanager
async def world(**options: Any) -> AsyncIterator[World]:
    made = World(options.pop("silos", CONSTANTS), **options)
    try:
        yield made
    finally:
        await made.close()


async def collecting(w: World, round_number: int, purpose: Purpose = Purpose.TRAIN) -> Collecting:
    """Lets time pass until this round is open."""
    await w.clock.until(lambda: isinstance(s := w.state(), Collecting) and s.round == round_number, within=600)
    state = w.state()
    assert isinstance(state, Collecting)
    assert state.purpose is purpose
    return state


# --- a run -------------------------------------------------------------------------------------------------------


async def test_three_silos_train_a_model() -> None:
    async with world() as w:
        await w.start()
        w.live_silos()
        run = await w.begin(metric={"name": "loss", "mode": "min"})
        over = await w.ended()

        assert (over.outcome, over.reason) == (RunOutcome.COMPLETED, "All 2 rounds are done.")
        assert [w.weights(run, number) for number in range(3)] == [[6.0] * 4, [18.0] * 4, [30.0] * 4]
        records = [w.record(run, number) for number in range(4)]
        assert [r and [u.silo for u in r.updates] for r in records] == [["east"], *[["east", "north", "south"]] * 3]
        assert [r and [(m.name, m.number) for m in r.metrics] for r in records[3:]] == [
            [("auroc", 1.0), ("loss", 0.25)]
        ]
        assert over.run.best is not None
        assert over.run.best.round == 2
        assert w.head(run) == Head(run=run, round=3, announcement=1, phase="ended")
        for queue in names.queues(list(w.enrolled)):
            assert await w.dead_letters(queue) == []
        for queue in (names.EXPERIMENTS, *(names.from_silo(s) for s in w.enrolled)):
            assert await w.waiting(queue) == []


async def test_an_undisturbed_run_says_everything_once_and_writes_its_state_once_per_event() -> None:
    async with world() as w:
        process = await w.start()
        w.live_silos()
        await w.begin()
        await w.ended()
        heard = {name: [(m.kind, m.round) for m in silo.heard] for name, silo in w.silos.items()}
        later = [("round-announced", number) for number in (1, 2, 3)]
        assert heard == {"east": [("round-announced", 0), *later], "north": later, "south": later}
        sent = [line for line in process.trouble.log if line.startswith("send work")]
        assert len(sent) == 4 + 2 * 1 + 1  # deadlines of four rounds, three sums; with all silos there is no grace
        start, model, rounds, evaluation, outbox_emptied = 1, 1 + 1, 2 * (3 + 1), 3, 1
        sums_undertaken = 3  # the outbox is emptied before each, so that no other orchestrator asks for it again
        assert len(w.store.history) == start + model + rounds + evaluation + outbox_emptied + sums_undertaken


async def test_agents_hear_of_a_round_only_after_its_head_says_so() -> None:
    async with world() as w:
        process = await w.start()
        w.live_silos()
        await w.begin()
        await w.ended()
        log = process.trouble.log
        rounds = [number for number, line in enumerate(log) if line.startswith("write rounds/")][:-1]
        for number in rounds:
            head = next(i for i in range(number, len(log)) if log[i].startswith("write exp_"))
            told = next(i for i in range(number, len(log)) if log[i].startswith("send to-"))
            assert head < told


async def test_deltas_give_the_same_model() -> None:
    async with world() as w:
        await w.start()
        w.live_silos()
        run = await w.begin(transfer={"form": "delta"})
        await w.ended()
        assert w.weights(run, 2) == [30.0] * 4


async def test_updates_are_weighed_by_samples() -> None:
    async with world(silos={"east": 0.0, "north": 10.0}) as w:
        w.silos["north"].samples = 3
        await w.start()
        w.live_silos()
        run = await w.begin(rounds=1)
        await w.ended()
        assert w.weights(run, 1) == [7.5] * 4


async def test_stragglers_are_dismissed_after_the_grace() -> None:
    async with world() as w:
        await w.start()
        w.silos["south"].doing = lambda asked: "ignore"
        w.live_silos()
        run = await w.begin(rounds=1, quorum={"minimum": 2, "grace": 30, "deadline": 500})
        over = await w.ended()
        record = w.record(run, 1)
        assert record is not None
        assert [u.silo for u in record.updates] == ["east", "north"]
        assert (record.closed_at - record.opened_at).total_seconds() == 30
        told = [m for m in w.silos["south"].heard if isinstance(m, RoundClosed)]
        assert told == [RoundClosed(run=run, round=number, because=ClosedBecause.AGGREGATED) for number in (1, 2)]
        assert over.outcome is RunOutcome.COMPLETED


async def test_a_round_without_quorum_is_announced_again_and_then_the_run_fails() -> None:
    async with world() as w:
        await w.start()
        w.silos["north"].doing = lambda asked: "ignore"
        w.silos["south"].doing = lambda asked: "decline"
        w.live_silos()
        run = await w.begin(quorum={"minimum": 2, "deadline": 100, "reminders": 1})
        over = await w.ended()
        assert over.outcome is RunOutcome.FAILED
        assert over.reason == (
            "Round 1: no quorum, 1 of 2 updates. north: had not answered; south: declined: budget-spent"
        )
        asked = [m for m in w.silos["north"].heard if isinstance(m, RoundAnnounced)]
        assert [(m.round, m.announcement) for m in asked] == [(1, 1), (1, 2)]
        assert w.silos["north"].heard[-1] == RoundClosed(run=run, round=1, because=ClosedBecause.FAILED)


async def test_what_an_owner_forbids_is_passed_on_with_the_name_that_the_start_has_for_it() -> None:
    async with world() as w:
        await w.start()
        south = w.silos["south"]
        south.doing = lambda asked: "ignore"
        w.live_silos()
        run = await w.begin(quorum={"minimum": 3, "deadline": 100, "reminders": 0})
        await rest()
        reason = DeclineReason.HYPERPARAMETER_FORBIDDEN
        await south.send(RoundDeclined(run=run, round=1, reason=reason, about="proximal_mu"))
        assert "south: declined: hyperparameter-forbidden: proximal_mu" in (await w.ended()).reason


# --- what silos send ---------------------------------------------------------------------------------------------


async def test_a_useless_update_is_dead_lettered_and_the_round_does_not_wait_for_it() -> None:
    async with world() as w:
        await w.start()
        w.silos["north"].doing = lambda asked: "spoil" if asked.round == 1 else "update"
        w.live_silos()
        run = await w.begin(rounds=1, quorum={"minimum": 2, "deadline": 5000})
        await w.ended()
        assert await w.dead_letters(names.from_silo("north")) == ["not-finite"]
        record = w.record(run, 1)
        assert record is not None
        assert record.others["north"].startswith("failed: not-finite: ")
        assert (record.closed_at - record.opened_at).total_seconds() == 0
        assert w.weights(run, 1) == [18.0] * 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sha256": "0" * 64}, "weights-not-found"),
        ({"bytes": 99}, "size-mismatch"),
        ({"layout": "0" * 64}, "layout-mismatch"),
    ],
)
async def test_an_update_must_be_what_its_message_says(change: dict[str, Any], reason: str) -> None:
    async with world() as w:
        await w.start()
        w.live_silos("east")
        await w.begin()
        state = await collecting(w, 1)
        await rest()
        north = w.silos["north"]
        asked = RoundAnnounced.model_validate_json((await w.waiting(names.to_silo("north")))[0].body)
        update = await north.publish(asked)
        lie = update.payloads["weights"].model_copy(update=change)
        await north.send(update.model_copy(update={"payloads": {"weights": lie}}))
        await rest()
        assert await w.dead_letters(names.from_silo("north")) == [reason]
        answer = w.state()
        assert isinstance(answer, Collecting)
        assert answer.answers["north"].answer == "failed"
        assert state.round == answer.round == 1


async def test_an_update_with_other_tensors_is_refused() -> None:
    async with world() as w:
        await w.start()
        w.live_silos("east")
        await w.begin()
        await collecting(w, 1)
        await rest()
        asked = RoundAnnounced.model_validate_json((await w.waiting(names.to_silo("north")))[0].body)
        update = await w.silos["north"].publish(asked)
        data = save({"other": np.ones(4, np.float32)})
        sha256 = hashlib.sha256(data).hexdigest()
        await w.store.create(names.updates_of("north"), names.weights_blob(asked.run, 1, sha256), data)
        other = update.payloads["weights"].model_copy(update={"sha256": sha256, "bytes": len(data)})
        await w.silos["north"].send(update.model_copy(update={"payloads": {"weights": other}}))
        await rest()
        assert await w.dead_letters(names.from_silo("north")) == ["layout-mismatch"]


async def test_a_message_nobody_can_read_still_answers_its_round() -> None:
    async with world() as w:
        await w.start()
        w.live_silos("east")
        run = await w.begin()
        await collecting(w, 1)
        body = json.dumps({"kind": "update-published", "run": run, "round": 1, "samples": -1}).encode()
        await w.bus.send(names.from_silo("north"), Outgoing(body=body, message_id="x", subject="update-published"))
        await rest()
        assert await w.dead_letters(names.from_silo("north")) == ["invalid-message"]
        state = w.state()
        assert isinstance(state, Collecting)
        assert state.answers["north"].answer == "failed"


async def test_a_silo_cannot_speak_for_another() -> None:
    """What is sent on north's queue is north's, whatever it says; an operator's message is not taken there at all."""
    async with world() as w:
        await w.start()
        w.live_silos("east")
        await w.begin()
        await collecting(w, 1)
        body = json.dumps({"kind": "cancel-experiment", "experiment": "exp"}).encode()
        await w.bus.send(names.from_silo("north"), Outgoing(body=body, message_id="x", subject="cancel-experiment"))
        await rest()
        assert await w.dead_letters(names.from_silo("north")) == ["unexpected-kind"]
        assert w.phase() == "collecting"


async def test_messages_of_unknown_runs_are_dead_lettered_and_of_runs_long_over_are_not() -> None:
    async with world() as w:
        await w.start()
        w.live_silos()
        run = await w.begin(rounds=1)
        await w.ended()
        await w.begin(rounds=1)
        await w.ended()
        north = w.silos["north"]
        asked = next(m for m in north.heard if isinstance(m, RoundAnnounced) and m.run == run)
        await north.answer(asked, "update")
        await north.answer(asked.model_copy(update={"run": "exp_ffffffff"}), "decline")
        await rest()
        assert await w.dead_letters(names.from_silo("north")) == ["unknown-run"]


@pytest.mark.parametrize("away", [None, "read experiments", "send to-north", "write presence"])
async def test_a_new_agent_is_told_of_the_open_round_whatever_was_away_for_a_moment(away: str | None) -> None:
    async with world() as w:
        process = await w.start()
        w.live_silos("east")
        run = await w.begin()
        await collecting(w, 1)
        north = w.silos["north"]
        before = len(await w.waiting(names.to_silo("north")))
        if away is not None:
            process.trouble.at_next(away, "refuse")
        await north.hello()
        await w.clock.advance(5)
        told = await w.waiting(names.to_silo("north"))
        assert len(told) > before
        again = RoundAnnounced.model_validate_json(told[-1].body)
        assert (again.run, again.round, again.announcement) == (run, 1, 1)
        assert told[-1].message_id not in {d.message_id for d in told[:-1]}


@pytest.mark.parametrize("doing", ["update", "decline", "fail"])
async def test_any_answer_is_a_sign_of_life(doing: Doing) -> None:
    async with world() as w:
        documents = Documents(w.store)
        await w.start()
        await w.begin()
        state = await collecting(w, 0, Purpose.INITIALISE)
        before = await documents.presence(state.asked[0])
        await w.clock.advance(30)
        w.silos[state.asked[0]].doing = lambda asked: doing
        w.live_silos(state.asked[0])
        await rest()
        after = await documents.presence(state.asked[0])
        assert before is not None
        assert after is not None
        assert after.seen_at >= before.seen_at + timedelta(seconds=30)
        assert after.hello_at == before.hello_at


async def test_heartbeats_are_kept_apart_from_runs_and_written_rarely() -> None:
    async with world() as w:
        process = await w.start()
        w.live_silos("east")
        run = await w.begin()
        await collecting(w, 1)
        await rest()
        history, calls = len(w.store.history), len(process.trouble.log)
        for steps in range(10):
            beat = SiloHeartbeat(run=run, round=1, doing="training", steps=steps, progress_age=0.1, at=w.clock.now())
            await w.silos["north"].send(beat)
            await w.clock.advance(1)
        assert len(w.store.history) == history
        presence = Presence.model_validate_json((await w.store.read(names.STATE, names.presence_blob("north"))).data)
        assert presence.heartbeats[run].steps == 8
        assert presence.heartbeats_at[run] == presence.seen_at
        writes = [line for line in process.trouble.log[calls:] if line.startswith("write ")]
        assert writes == ["write presence/north.json"] * 5


# --- what operators send -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        ({"task": "nobody-has-it"}, "task-not-offered"),
        ({"silos": ["west"]}, "unknown-silos"),
        ({"quorum": {"minimum": 4}}, "quorum-too-large"),
        ({"strategy": {"name": "sorcery"}}, "unknown-strategy"),
        ({"initial": {"sha256": "0" * 64}}, "initial-not-found"),
        ({"initial": {"experiment": "never-was"}}, "initial-not-found"),
    ],
)
async def test_a_start_that_cannot_run_is_dead_lettered_and_leaves_nothing_behind(
    start: dict[str, Any], reason: str
) -> None:
    async with world() as w:
        await w.start()
        await w.begin(**start)
        await rest()
        assert await w.dead_letters(names.EXPERIMENTS) == [reason]
        assert w.state() is None


async def test_another_body_under_a_live_name_is_dead_lettered_and_the_same_one_is_not() -> None:
    async with world() as w:
        await w.start()
        run = await w.begin()
        await w.begin()
        await w.begin(rounds=9)
        await rest()
        assert await w.dead_letters(names.EXPERIMENTS) == ["experiment-is-live"]
        state = w.state()
        assert isinstance(state, Collecting)
        assert state.run.id == run


async def test_a_start_that_comes_after_its_cancel_is_refused_once() -> None:
    async with world() as w:
        await w.start()
        await w.post(CancelExperiment(experiment="exp"))
        await rest()
        await w.begin()
        await rest()
        assert w.phase() == "tombstone"
        assert await w.dead_letters(names.EXPERIMENTS) == ["cancelled-before-start"]
        await w.begin()
        await rest()
        assert w.phase() == "collecting"


async def test_an_old_start_delivered_again_after_its_name_was_reused_starts_nothing() -> None:
    async with world() as w:
        await w.start()
        w.live_silos()
        first = StartExperiment.model_validate({"experiment": "exp", "task": TASK, "rounds": 1})
        for silo in w.silos.values():
            await silo.hello()
        await rest()
        await w.post(first, message_id="first")
        await w.ended()
        run = await w.post(first, message_id="second")
        await rest()
        await w.ended()
        await w.post(first, message_id="first")
        await rest()
        assert (await w.ended()).run.id == run


async def test_pause_resume_and_cancel() -> None:
    async with world() as w:
        await w.start()
        w.live_silos("east")
        run = await w.begin()
        await collecting(w, 1)
        await w.post(PauseExperiment(experiment="exp"))
        await rest()
        w.live_silos("north", "south")
        await w.clock.until(lambda: w.phase() == "paused", within=600)
        await w.clock.advance(10_000)
        assert w.phase() == "paused"
        for silo in w.silos.values():
            silo.doing = lambda asked: "ignore"
        await w.post(ResumeExperiment(experiment="exp"))
        await collecting(w, 2)
        await w.post(CancelExperiment(experiment="exp", run=run))
        over = await w.ended()
        await rest()
        assert over.outcome is RunOutcome.CANCELLED
        assert w.head(run).phase == "ended"
        for silo in w.silos.values():
            assert silo.heard[-1] == RoundClosed(run=run, round=2, because=ClosedBecause.CANCELLED)


@pytest.mark.parametrize(("which", "expected"), [("last", 30.0), ("best", 6.0), (0, 6.0), (1, 18.0)])
async def test_a_run_can_begin_with_another_experiments_weights(which: str | int, expected: float) -> None:
    async with world() as w:
        await w.start()
        w.live_silos()
        # The loss falls from round to round, so by `max` the first weights measured are the best.
        await w.begin(experiment="first", metric={"name": "loss", "mode": "max"})
        await w.clock.until(lambda: (s := w.state("first")) is not None and s.phase == "ended")
        await rest()
        run = await w.begin(initial={"experiment": "first", "round": which}, rounds=1)
        await w.ended()
        assert w.weights(run, 0) == [expected] * 4
        assert w.weights(run, 1) == [expected + 12.0] * 4
        assert w.record(run, 0) is None


async def test_a_run_can_begin_with_uploaded_weights() -> None:
    async with world() as w:
        data = save({"w": np.full(4, 100.0, np.float32)})
        sha256 = hashlib.sha256(data).hexdigest()
        await w.store.create(names.INITIAL, names.initial_blob(sha256), data)
        await w.start()
        w.live_silos()
        run = await w.begin(initial={"sha256": sha256}, rounds=1)
        await w.ended()
        assert w.weights(run, 1) == [112.0] * 4


@pytest.mark.parametrize("share", [["*", "!head.*"], ["w"], ["w", "head.*", "!*.weight"]])
async def test_of_the_first_weights_a_run_takes_what_it_shares(share: list[str]) -> None:
    async with world() as w:
        body = np.full(4, 100.0, np.float32)
        data = save({"head.weight": np.ones((3, 2)), "w": body, "head.z.weight": np.ones(3, np.int64)})
        sha256 = hashlib.sha256(data).hexdigest()
        await w.store.create(names.INITIAL, names.initial_blob(sha256), data)
        await w.start()
        w.live_silos()
        run = await w.begin(initial={"sha256": sha256}, rounds=1, share=share)
        over = await w.ended()
        assert over.outcome is RunOutcome.COMPLETED
        assert w.weights(run, 0) == [100.0] * 4
        assert w.weights(run, 1) == [112.0] * 4


async def test_first_weights_that_are_shared_whole_stay_the_file_they_were() -> None:
    async with world() as w:
        data = save({"w": np.full(4, 100.0, np.float32)}, metadata={"by": "somebody"})
        sha256 = hashlib.sha256(data).hexdigest()
        await w.store.create(names.INITIAL, names.initial_blob(sha256), data)
        await w.start()
        run = await w.begin(initial={"sha256": sha256})
        await collecting(w, 1)
        assert (await w.store.read(names.GLOBAL, names.weights_blob(run, 0, sha256))).data == data


async def test_first_weights_of_which_nothing_is_shared_start_no_run() -> None:
    async with world() as w:
        data = save({"w": np.ones(4, np.float32)})
        sha256 = hashlib.sha256(data).hexdigest()
        await w.store.create(names.INITIAL, names.initial_blob(sha256), data)
        await w.start()
        await w.begin(initial={"sha256": sha256}, share=["*", "!w"])
        await rest()
        (letter,) = await w.bus.peek(names.dead_letters_of(names.EXPERIMENTS), count=10)
        assert letter.dead_letter_reason == "share-matches-nothing"
        assert "(*, !w)" in (letter.dead_letter_description or "")
        assert w.state() is None


async def test_uploaded_weights_must_be_what_they_are_called() -> None:
    async with world() as w:
        await w.store.create(names.INITIAL, names.initial_blob("0" * 64), save({"w": np.ones(4, np.float32)}))
        await w.start()
        await w.begin(initial={"sha256": "0" * 64})
        await rest()
        assert await w.dead_letters(names.EXPERIMENTS) == ["digest-mismatch"]
        assert w.state() is None


# --- what goes wrong ---------------------------------------------------------------------------------------------


async def test_a_set_that_cannot_be_summed_ends_the_run_with_the_reason() -> None:
    async with world() as w:
        for silo in w.silos.values():
            silo.samples = 0
        await w.start()
        w.live_silos()
        await w.begin()
        over = await w.ended()
        assert over.outcome is RunOutcome.FAILED
        assert over.reason.startswith("Round 1 could not be aggregated: ")
        assert len(await w.dead_letters(names.WORK)) == 1


async def test_an_update_replaced_after_it_was_verified_is_not_summed() -> None:
    async with world() as w:
        await w.start()
        w.live_silos("north", "east")
        w.silos["south"].doing = lambda asked: "ignore" if asked.round else "update"
        w.live_silos("south")
        run = await w.begin(rounds=1)
        await w.clock.until(lambda: isinstance(s := w.state(), Collecting) and "north" in s.answers and s.round == 1)
        (name,) = [
            n for c, n in w.store.blobs if c == "updates-north" and "/00001/" in n and n.endswith(".safetensors")
        ]
        await w.store.delete("updates-north", name)
        await w.store.create("updates-north", name, save({"w": np.full(4, 666, np.float32)}))
        w.silos["south"].doing = lambda asked: "update"
        await w.silos["south"].hello()
        over = await w.ended()
        assert over.outcome is RunOutcome.FAILED
        assert over.run.id == run
        assert "digest-mismatch" in over.reason


async def test_a_silo_whose_queue_is_missing_does_not_hold_up_the_others() -> None:
    async with world(enrolled=("east", "north", "south")) as w:
        del w.broker._queues["to-south"]
        await w.start()
        w.live_silos("east", "north")
        run = await w.begin(rounds=1, quorum={"minimum": 2, "grace": 5})
        over = await w.ended()
        assert over.outcome is RunOutcome.COMPLETED
        record = w.record(run, 1)
        assert record is not None
        assert record.others == {"south": "had not answered"}


@pytest.mark.parametrize("phase", ["initialising", "training", "aggregating", "paused"])
async def test_queues_may_be_lost_entirely(phase: str) -> None:
    async with world() as w:
        process = await w.start()
        run = await w.begin()
        await rest()
        match phase:
            case "training":
                w.live_silos("east")
                await collecting(w, 1)
            case "aggregating":
                w.live_silos()
                process.trouble.at_next("create .*/00001/", "crash-before")
                await w.clock.until(lambda: not process.alive, within=600)
                assert isinstance(w.state(), Aggregating)
            case "paused":
                await w.post(PauseExperiment(experiment="exp"))
                await rest()
                w.live_silos()
                await w.clock.until(lambda: w.phase() == "paused", within=600)
        await process.kill()
        w.lose_queues()
        await w.start()
        w.live_silos()
        if phase == "paused":
            assert w.phase() == "paused"
            await w.post(ResumeExperiment(experiment="exp"))
        over = await w.ended()
        assert over.outcome is RunOutcome.COMPLETED
        assert w.weights(run, 2) == [30.0] * 4


async def test_heads_only_move_forward() -> None:
    async with world() as w:
        documents = Documents(w.store)
        said = [(1, 1, "open"), (1, 2, "open"), (1, 2, "closed"), (2, 1, "open"), (2, 1, "ended")]
        heads = [
            Head.model_validate({"run": "exp_00000000", "round": r, "announcement": a, "phase": p}) for r, a, p in said
        ]
        for number, head in enumerate(heads):
            for older in heads[: number + 1]:
                await documents.publish_head(head)
                await documents.publish_head(older)
                assert w.head("exp_00000000") == head
        assert w.store.heads == heads


async def test_a_document_that_cannot_be_read_does_not_hold_up_other_experiments() -> None:
    async with world() as w:
        await w.store.create(names.STATE, names.experiment_blob("broken"), b"{}")
        await w.start()
        w.live_silos()
        await w.begin(rounds=1)
        assert (await w.ended()).outcome is RunOutcome.COMPLETED


async def test_two_orchestrators_share_the_work() -> None:
    async with world() as w:
        await w.start()
        await w.start()
        w.live_silos()
        run = await w.begin(rounds=5)
        over = await w.ended()
        assert over.outcome is RunOutcome.COMPLETED
        assert w.weights(run, 5) == [66.0] * 4


async def small_run(trouble: Trouble) -> list[list[float]]:
    """One round with two silos, whatever happens to the first orchestrator; another follows when it dies."""
    async with world(silos={"east": 2.0, "north": 4.0}) as w:
        await w.start(trouble)
        w.live_silos()
        run = await w.begin(rounds=1)
        over = await w.ended()
        await w.supervised(lambda: w.clock.now() > over.ended_at + timedelta(seconds=200))
        assert over.outcome is RunOutcome.COMPLETED
        assert [(r is not None and [u.silo for u in r.updates]) for r in (w.record(run, n) for n in range(3))] == [
            ["east"],
            ["east", "north"],
            ["east", "north"],
        ]
        assert w.head(run).phase == "ended"
        assert w.store.named("runs/") == [names.run_blob(run)]
        for queue in (names.EXPERIMENTS, names.WORK, names.from_silo("east"), names.from_silo("north")):
            assert await w.dead_letters(queue) == []
        assert [d.subject for queue in names.queues(list(w.enrolled)) for d in await w.waiting(queue)] == [
            "deadline-passed" for d in await w.waiting(names.WORK)
        ]
        return [w.weights(run, number) for number in range(2)]


async def calls_of_a_small_run() -> int:
    trouble = Trouble()
    result = await small_run(trouble)
    assert result == [[2.0] * 4, [5.0] * 4]
    return trouble.calls


@pytest.mark.parametrize("what", ["crash-before", "lose-answer", "refuse"])
async def test_nothing_is_lost_and_nothing_counts_twice_whichever_call_goes_wrong(what: str) -> None:
    calls = await calls_of_a_small_run()
    assert calls > 60
    for call in range(1, calls + 1):
        trouble = Trouble()
        trouble.in_calls(call, what)
        result = await small_run(trouble)
        assert result == [[2.0] * 4, [5.0] * 4], trouble.log[call - 1]


async def test_a_store_that_is_away_at_the_start_is_waited_for() -> None:
    async with world() as w:
        trouble = Trouble()
        for call in range(1, 30):
            trouble.in_calls(call, "refuse")
        process = await w.start(trouble)
        w.live_silos()
        run = await w.begin(rounds=1)
        await w.ended()
        assert process.alive
        assert w.weights(run, 1) == [18.0] * 4


async def test_nothing_is_read_that_is_not_there() -> None:
    """The world itself: a scenario that looks for what never was must hear of it."""
    async with world() as w:
        with pytest.raises(NotFound):
            await w.store.read(names.STATE, names.experiment_blob("exp"))
        assert w.state() is None
