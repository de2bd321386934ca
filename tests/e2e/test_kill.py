"""Kill anything: whatever dies in the middle of a round, the experiment completes with every round summed once.

`north`, `south` and `east` add exactly 3 to all weights in a round: a round lost or counted twice would be seen in the
final weights. Training is held while something is killed, so that it always is in mid-round.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from messages import names
from messages.schemas import SiloHeartbeat
from orchestrator.cli.federation import reach
from orchestrator.cli.listening import Listening
from orchestrator.cli.standing import Reader
from orchestrator.cli.wording import as_json
from orchestrator.experiment.state import Ended
from tests.federation import THREE, Federation, result_of

pytestmark = pytest.mark.slow

ALL = {"silos": [silo.name for silo in THREE], "quorum": {"minimum": "all", "deadline": 60, "reminders": 2}}
EACH_ROUND = 3.0
ROUNDS = 3


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    with Federation() as running:
        yield running


@pytest.fixture(autouse=True)
def everything_runs_afterwards(federation: Federation) -> Iterator[None]:
    """So that a test that fails is the only one."""
    yield
    for name in ("bus", "orchestrator", *federation.agents):
        if not federation.alive(name):
            federation.start(name)
    for document in (federation.folder.store / names.STATE / "experiments").iterdir():
        experiment = document.name.partition(".")[0]
        if not isinstance(federation.status(experiment), Ended):
            federation.allow(experiment, ROUNDS)
            federation.post({"kind": "cancel-experiment", "experiment": experiment})


def completes_exactly(federation: Federation, run: str, rounds: int = ROUNDS) -> None:
    """The run completes, every round has one update of every silo, and the weights are right to the last bit."""
    federation.wait_for(names.experiment_of(run))
    for number in range(1, rounds + 1):
        record = federation.record(run, number)
        assert record is not None
        assert [update.silo for update in record.updates] == [silo.name for silo in THREE]
        for tensor in federation.weights(run, number).values():
            assert (tensor == number * EACH_ROUND).all(), f"round {number}"


def in_mid_round(federation: Federation, experiment: str) -> str:
    """Starts an experiment whose second round is being trained everywhere; call it while training is held."""
    federation.allow(experiment, 1)
    run = federation.start_experiment(experiment, rounds=ROUNDS, **ALL)
    for silo in federation.silos:
        federation.training(silo, experiment, 2)
    return run


def go_on(federation: Federation, experiment: str) -> None:
    federation.allow(experiment, ROUNDS)


@pytest.mark.parametrize("victim", ["orchestrator", "agent-south", "bus"])
def test_a_process_killed_in_mid_round_and_started_again_costs_no_round(federation: Federation, victim: str) -> None:
    run = in_mid_round(federation, f"without-{victim}")
    federation.restart(victim)
    go_on(federation, names.experiment_of(run))
    completes_exactly(federation, run)


@pytest.mark.parametrize("victim", ["orchestrator", "agent-south", "bus"])
def test_a_process_that_is_away_while_the_round_is_answered_costs_no_round(federation: Federation, victim: str) -> None:
    """The others finish the round while it is dead."""
    run = in_mid_round(federation, f"meanwhile-{victim}")
    federation.kill(victim)
    go_on(federation, names.experiment_of(run))
    federation.until(lambda: federation.document("updates-east", names.publication_blob(run, 2)), "east is not done")
    federation.start(victim)
    completes_exactly(federation, run)


def test_of_two_orchestrators_one_is_enough(federation: Federation) -> None:
    """Both work on the same queues and documents; the first dies in mid-round and is not missed."""
    federation.start("orchestrator-2")
    second = federation.folder.log("orchestrator-2")
    try:
        federation.until(lambda: "orchestrator.ready" in second.read_text(), "the second does not get ready")
        run = in_mid_round(federation, "two-orchestrators")
        federation.kill("orchestrator")
        go_on(federation, "two-orchestrators")
        completes_exactly(federation, run)
    finally:
        federation.kill("orchestrator-2")


def test_a_trainer_killed_in_mid_round_trains_again(federation: Federation) -> None:
    run = in_mid_round(federation, "without-trainer")
    before = federation.training("north", "without-trainer", 2)
    os.kill(before, signal.SIGKILL)
    again = federation.until(lambda: federation.training("north", "without-trainer", 2) != before, "north gave up")
    assert again
    go_on(federation, "without-trainer")
    completes_exactly(federation, run)


def test_no_trainer_outlives_its_killed_agent(federation: Federation) -> None:
    run = in_mid_round(federation, "orphans")
    before = federation.trainers("north")
    assert before
    federation.kill("agent-north")
    federation.until(lambda: not federation.trainers("north"), "an orphan trains on")
    federation.start("agent-north")
    assert federation.training("north", "orphans", 2) not in before
    go_on(federation, "orphans")
    completes_exactly(federation, run)


def test_a_power_cut_of_everything_costs_no_round(federation: Federation) -> None:
    run = in_mid_round(federation, "power-cut")
    everything = ["bus", "orchestrator", *federation.agents]
    for name in everything:
        federation.kill(name)
    go_on(federation, "power-cut")
    for name in everything:
        federation.start(name)
    completes_exactly(federation, run)


def test_queues_lost_with_all_that_was_in_them_cost_no_round(federation: Federation) -> None:
    run = in_mid_round(federation, "lost-queues")
    lose_the_queues(federation)
    go_on(federation, "lost-queues")
    completes_exactly(federation, run)


def test_an_orchestrator_that_starts_sends_again_what_was_lost_with_the_queues(federation: Federation) -> None:
    """State in blobs alone is enough: here the end of the grace, which nobody but the queue would have remembered."""
    federation.stop("agent-east")
    try:
        quorum = {"minimum": 2, "grace": 2, "deadline": 600}
        run = federation.start_experiment("lost-grace", silos=ALL["silos"], quorum=quorum)
        federation.until(lambda: federation.wait_for_round("lost-grace", 1).grace_until, "no grace begins")
        lose_the_queues(federation)
        federation.wait_for("lost-grace")
    finally:
        federation.start("agent-east")
    assert all((tensor == 2).all() for tensor in federation.weights(run, 1).values())


def lose_the_queues(federation: Federation) -> None:
    """Every message, scheduled ones too; the silos' agents live on."""
    for name in ("orchestrator", "bus"):
        federation.kill(name)
    for file in federation.folder.bus.iterdir():
        file.unlink()
    federation.start("bus")
    federation.start("orchestrator")


def test_an_experiment_completes_while_one_after_another_is_killed_at_odd_moments(federation: Federation) -> None:
    rounds = 8
    run = federation.start_experiment("battered", rounds=rounds, hyperparameters={"delay": 0.2}, **ALL)
    federation.wait_for_round("battered", 1)
    for pause, victim in zip((0.1, 0.9, 0.4, 0.7, 0.2, 0.6), ("orchestrator", "agent-east", "bus") * 2, strict=True):
        time.sleep(pause)
        federation.restart(victim)
    completes_exactly(federation, run, rounds)


# --- silos that do not answer -----------------------------------------------------------------------------------------


def test_a_silo_that_never_answers_is_waited_for_no_longer_than_the_grace(federation: Federation) -> None:
    federation.stop("agent-east")
    try:
        quorum = {"minimum": 2, "grace": 0.5, "deadline": 60}
        run = federation.start_experiment("two-of-three", rounds=3, silos=ALL["silos"], quorum=quorum)
        federation.wait_for("two-of-three")
    finally:
        federation.start("agent-east")
    level = 0.0
    for number in (1, 2, 3):
        record = federation.record(run, number)
        assert record is not None
        assert [update.silo for update in record.updates] == ["north", "south"]
        assert record.others == {"east": "had not answered"}
        assert record.announcements == 1
        waited = (record.closed_at - max(update.at for update in record.updates)).total_seconds()
        assert 0.4 < waited < 10
        level += result_of(record, federation.silos)
        assert all((tensor == level).all() for tensor in federation.weights(run, number).values())
    assert level == 6


def test_without_a_quorum_silos_are_reminded_and_then_the_run_fails_saying_who_did_not_answer(
    federation: Federation,
) -> None:
    federation.stop("agent-east")
    try:
        quorum = {"minimum": "all", "grace": 0, "deadline": 3, "reminders": 2}
        federation.peek("to-east")  # opens the link, so that each of the looks below is short
        run = federation.start_experiment("three-of-three", silos=ALL["silos"], quorum=quorum)
        announced: set[int] = set()

        def is_over() -> bool:
            """Each announcement lasts until its deadline only, so all must be seen in passing."""
            waiting = [letter.json for letter in federation.peek("to-east") if run.encode() in letter.body]
            announced.update(m["announcement"] for m in waiting if m["kind"] == "round-announced" and m["round"] == 1)
            return isinstance(federation.status("three-of-three"), Ended)

        federation.until(is_over, "the run goes on")
        ended = federation.wait_for("three-of-three", "failed")
    finally:
        federation.start("agent-east")
    assert ended.reason == "Round 1: no quorum, 2 of 3 updates. east: had not answered"
    assert announced == {1, 2, 3}, "announced, and reminded twice"
    record = federation.until(lambda: federation.record(run, 1), "there is no record of the round")
    assert record.outcome == "failed"
    assert (record.over_at - record.opened_at).total_seconds() >= 9


def test_a_stopped_trainer_is_reported_as_stalled_by_its_agent_which_lives(federation: Federation) -> None:
    run = in_mid_round(federation, "stopped")
    federation.until(lambda: len(signs_of_life(federation, "east", run)) > 2, "east is not reported alive")
    trainer = federation.training("east", "stopped", 2)
    os.kill(trainer, signal.SIGSTOP)
    try:
        federation.until(lambda: signs_of_life(federation, "east", run)[-1].stalled, "nobody notices")

        def said() -> bool:
            """Looked at together: on a busy machine signs of life may be late, and all be gone for a moment."""
            now = status(federation, "stopped")["silos"]["east"]
            return "without progress" in now["state"] and (now["gone"], now["stalled"]) == (False, True)

        federation.until(said, "the status does not say so")
        federation.until(lambda: not signs_of_life(federation, "north", run)[-1].stalled, "north is stalled as well")
        federation.start_experiment("meanwhile", silos=["east"], hyperparameters={"unheard-of": 1})
        assert "east: declined" in federation.wait_for("meanwhile", "failed").reason  # the agent answers
    finally:
        os.kill(trainer, signal.SIGCONT)
    federation.until(lambda: not signs_of_life(federation, "east", run)[-1].stalled, "east is stalled for ever")
    go_on(federation, "stopped")
    completes_exactly(federation, run)


def test_a_killed_agent_is_seen_to_be_gone_and_its_round_says_what_it_waits_for(federation: Federation) -> None:
    """Within three of its heartbeats, here of 1 s each; with those of 15 s that agents send by default, within 45 s."""
    run = in_mid_round(federation, "gone")
    federation.until(lambda: len(signs_of_life(federation, "east", run)) > 1, "east is not reported alive")
    federation.kill("agent-east")
    killed = time.monotonic()
    try:

        def said() -> dict[str, Any]:
            return status(federation, "gone")

        federation.until(lambda: said()["silos"]["east"]["gone"], "nobody notices")
        assert time.monotonic() - killed < 40, "three heartbeats, and what it takes to ask"

        def only_east() -> dict[str, Any] | None:
            """On a busy machine a sign of life of north's may be late, too."""
            now = said()
            return now if not now["silos"]["north"]["gone"] else None

        now = federation.until(only_east, "north is gone as well")
        assert now["silos"]["east"]["state"].startswith("gone: no sign of life for")
        assert now["silos"]["east"]["state"].endswith("was training")
        assert re.search(r"east \(gone since [0-9:]{8}, \d+ s ago, was training\)", now["waiting_for"])
        assert re.search(r"north \(training, \d+ s\)", now["waiting_for"])
    finally:
        federation.start("agent-east")
    federation.until(lambda: not said()["silos"]["east"]["gone"], "east is gone for ever")
    go_on(federation, "gone")
    completes_exactly(federation, run)


def status(federation: Federation, experiment: str) -> dict[str, Any]:
    """What `silobus status EXPERIMENT --json` says."""

    async def read() -> dict[str, Any]:
        async with reach(None, federation.folder.operator) as reached:
            standing = await Reader(reached.store).read(experiment)
            assert standing is not None
            return as_json((await Listening(reached).told([standing]))[0])

    return asyncio.run(read())


def signs_of_life(federation: Federation, silo: str, run: str) -> list[SiloHeartbeat]:
    """Heartbeats of its second round that a silo has sent, by its own log of what left."""
    sent = [entry["message"] for entry in federation.egress(silo) if entry.get("what") == "message"]
    beats = [SiloHeartbeat.model_validate(m) for m in sent if m["kind"] == "silo-heartbeat"]
    return [beat for beat in beats if (beat.run, beat.round) == (run, 2)]
