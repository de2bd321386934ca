"""`silobus status|watch|model`: everything is read from the store, and what is missing is said."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from messages import names
from messages.experiments import StartExperiment
from messages.schemas import DeclineReason, Payload, Purpose, SiloHeartbeat, SiloHello
from messages.transport.directory import DirectoryStore
from orchestrator.cli.awaiting import waiting_for
from orchestrator.cli.keeping_up import COLUMNS, row, stragglers
from orchestrator.cli.standing import Standing, Unread
from orchestrator.cli.watch import Lines, view
from orchestrator.cli.wording import as_json, phase_of, status_of
from orchestrator.documents import ExperimentDocument, Numbered, Presence
from orchestrator.experiment.checking import Change
from orchestrator.experiment.effects import RecordRound
from orchestrator.experiment.metrics import PooledMetric
from orchestrator.experiment.pace import Pace, Taken
from orchestrator.experiment.state import (
    Aggregating,
    Best,
    Collecting,
    Declined,
    Ended,
    Failed,
    Model,
    Paused,
    RoundOutcome,
    RoundRecord,
    RunOutcome,
    State,
    Tombstone,
    UpdateRecord,
)
from orchestrator.experiment.step import step
from orchestrator.store import Documents, Loaded
from tests.unit.cli.conftest import Federation, run
from tests.unit.experiment.given import RUN, T0, after, aggregated, aggregating, at, compared, training, update, weights

LOOKED = {silo: Unread() for silo in ("east", "north", "south", "s299")}
"""Their queues were looked into, and nothing waits there."""

ENDED = Ended(
    run=training().run.model_copy(update={"model": Model(round=2, payload=weights("two"))}),
    round=3,
    outcome=RunOutcome.COMPLETED,
    reason="All 2 rounds are done.",
    ended_at=at(60),
)


def record(number: int, *, loss: float, silos: tuple[str, ...] = ("east", "north")) -> RoundRecord:
    """A training round, 2 s long, that found this loss in the weights it was given."""
    updates = tuple(
        UpdateRecord(
            silo=silo,
            announcement=1,
            payload=weights(silo),
            samples=10,
            steps=1,
            seconds=1.5,
            norm=1.0,
            metrics=(),
            at=T0,
        )
        for silo in silos
    )
    metric = PooledMetric(name="loss", phase="received", kind="mean", count=30, number=loss, silos=len(silos))
    return RoundRecord(
        run=RUN,
        round=number,
        purpose=Purpose.EVALUATE if number > 2 else Purpose.TRAIN,
        announcements=1,
        opened_at=at(number * 10),
        closed_at=at(number * 10 + 1),
        updates=updates,
        others={"south": "had not answered"},
        metrics=(metric,),
        outcome=RoundOutcome.AGGREGATED,
        over_at=at(number * 10 + 2),
        model=weights("w"),
    )


def standing(state: State, *records: RoundRecord) -> Standing:
    return Standing("exp", state, {r.round: r for r in records}, {}, at(60), unread=LOOKED)


def beating(silo: str, second: float, *, seen: float | None = None) -> Presence:
    """A silo that trains in round 1 and was heard to do so at this second."""
    beat = SiloHeartbeat(run=RUN, round=1, doing="training", progress_age=0, at=at(second))
    seen_at = at(second if seen is None else seen)
    return Presence(silo=silo, seen_at=seen_at, heartbeats={RUN: beat}, heartbeats_at={RUN: at(second)})


def test_an_answer_is_a_sign_of_life() -> None:
    presence = {silo: beating(silo, 30) for silo in ("east", "north")}
    answered, _ = step(training(), update("east"), at(40))
    assert answered is not None
    summing, _ = step(after(answered, update("north"))[0], update("south"), at(50))
    assert isinstance(summing, Aggregating)

    def signs(state: State | None, *records: RoundRecord) -> dict[str, object]:
        assert state is not None
        said = as_json(Standing("exp", state, {r.round: r for r in records}, presence, at(60), unread=LOOKED))
        return {silo: row["last_sign_of_life"] for silo, row in said["silos"].items()}

    assert signs(answered) == {"east": at(40), "north": at(30), "south": None}
    assert signs(summing)["south"] == at(50)
    assert signs(ENDED, record(1, loss=0.9, silos=("south",)))["south"] == T0


@pytest.mark.parametrize(
    ("now", "seen", "does"),
    [
        (75, None, "training"),
        (76, None, "gone: no sign of life for 46 s, was training"),
        (90, 89, "there, but no sign of life of this round for 60 s, was training"),
    ],
)
def test_work_that_is_silent_is_not_said_to_go_on(now: float, seen: float | None, does: str) -> None:
    found = Standing("exp", training(), {}, {"east": beating("east", 30, seen=seen)}, at(now), unread=LOOKED)

    said = as_json(found)["silos"]["east"]
    assert (said["state"], said["gone"], said["doing"]) == (does, does.startswith("gone"), "training")


def test_a_silo_that_was_asked_and_never_heard_of_is_gone_too() -> None:
    standing_at = [Standing("exp", training(), {}, {}, at(now), unread=LOOKED) for now in (45, 46)]
    assert [as_json(s)["silos"]["east"]["state"] for s in standing_at] == ["asked", "gone: no sign of life for 46 s"]


def test_how_long_a_silo_may_be_silent_is_three_of_its_own_heartbeats() -> None:
    often = beating("east", 30)
    rarely = often.model_copy(update={"heartbeats": {RUN: often.heartbeats[RUN].model_copy(update={"every": 60})}})

    for now, gone in ((210, False), (211, True)):
        found = Standing("exp", training(), {}, {"east": rarely}, at(now), unread=LOOKED)
        assert as_json(found)["silos"]["east"]["gone"] is gone


def test_before_its_first_heartbeat_a_silo_may_be_silent_for_three_of_those_it_announced() -> None:
    hello = SiloHello(instance="a" * 32, agent_version="1", policy="a" * 64, offers=[], heartbeat=60, at=T0)
    there = Presence(silo="east", seen_at=at(0), hello=hello, hello_at=at(0))

    for now, gone in ((180, False), (181, True)):
        said = as_json(Standing("exp", training(), {}, {"east": there}, at(now), unread=LOOKED))["silos"]["east"]
        assert said["gone"] is gone


def test_an_agent_that_is_there_is_told_from_its_training_that_stands_still() -> None:
    alive = beating("east", 30)
    sign = alive.heartbeats[RUN].model_copy(update={"stalled": True, "progress_age": 130.0})
    found = Standing(
        "exp", training(), {}, {"east": alive.model_copy(update={"heartbeats": {RUN: sign}})}, at(40), unread=LOOKED
    )

    said = as_json(found)["silos"]["east"]
    assert (said["state"], said["gone"], said["stalled"]) == ("training without progress for 130 s", False, True)
    assert "east: training without progress in round 1" in Lines().new(found)


def test_a_new_agent_has_as_long_as_one_that_was_just_asked() -> None:
    hello = SiloHello(instance="a" * 32, agent_version="1", policy="a" * 64, offers=[], at=T0)
    restarted = beating("east", 30).model_copy(update={"hello": hello, "hello_at": at(70), "seen_at": at(70)})

    found = Standing("exp", training(), {}, {"east": restarted}, at(90), unread=LOOKED)
    assert as_json(found)["silos"]["east"]["state"] == "asked"


def test_watch_says_once_who_is_gone_and_what_is_waited_for_and_who_came_back() -> None:
    lines, presence = (
        Lines(),
        {"east": beating("east", 30), "north": beating("north", 75), "south": beating("south", 75)},
    )
    heard = [lines.new(Standing("exp", training(), {}, presence, at(now), unread=LOOKED)) for now in (70, 80, 82)]
    back = {**presence, "east": beating("east", 90)}
    heard += [lines.new(Standing("exp", training(), {}, back, at(95), unread=LOOKED))]

    assert heard[0][1:] == heard[2] == []
    assert heard[1] == [
        "east: gone, last heard of at 2026-01-01 00:00:30 UTC, training, in round 1",
        "waiting for updates from 3 of 3: east (gone since 00:00:30, 50 s ago, was training), north (training, 80 s), "
        "south (training, 80 s) (has 0, needs 2); at the deadline, 2026-01-01 00:01:40 UTC, it closes with a quorum, "
        "and is announced again without (1 times at most)",
    ]
    assert heard[3] == ["east: heard of again, at 2026-01-01 00:01:30 UTC"]


def test_a_round_that_hears_of_nobody_asks_whether_an_orchestrator_works() -> None:
    said = waiting_for(Standing("exp", training(), {}, {}, at(60), unread=LOOKED))
    assert said is not None
    assert "nobody is heard of: does an orchestrator work?" in said
    heard = Standing("exp", training(), {}, {"east": beating("east", 50)}, at(60), unread=LOOKED)
    assert "nobody" not in (waiting_for(heard) or "")


def test_of_many_silos_those_that_are_gone_are_named() -> None:
    silos = tuple(f"s{n:03d}" for n in range(300))
    state = training(silos=list(silos), enrolled=silos, offering=silos)
    there = {silo: beating(silo, 50) for silo in silos[:-1]}

    said = waiting_for(Standing("exp", state, {}, there, at(60), unread=LOOKED))

    assert said is not None
    assert "s299 (gone since 00:00:00, 60 s ago, nothing since it was asked), 288 more" in said
    assert len(said) < 700


def test_how_silos_keep_up_is_shown() -> None:
    def taken(seconds: float) -> Taken:
        return Taken(last=seconds, mean=seconds)

    paces = {
        "east": Pace(updates=3, updated=3, training=taken(1), answering=taken(2), bytes=3_000_000),
        "north": Pace(updates=3, updated=3, training=taken(90), answering=taken(100), late=2, late_for=1),
        "south": Pace(updates=1, missed=2, missed_since=2, training=taken(1), answering=taken(2)),
    }
    state = training().model_copy(update={"run": training().run.model_copy(update={"paces": paces})})

    said = as_json(standing(state))["silos"]

    assert {silo: row["straggler"] for silo, row in said.items()} == {
        "east": None,
        "north": "answers after 100 s, the others after 2 s",
        "south": "the last 2 rounds it was asked for closed without it",
    }
    assert (said["north"]["late"], said["south"]["missed"], said["east"]["bytes"]) == (2, 2, 3_000_000)
    assert said["north"]["answering_seconds"] == {"last": 100, "mean": 100}


def checked() -> Aggregating:
    """A set of four, of which one was left out."""
    four = ("east", "island", "north", "south")
    opened = training(silos=list(four), enrolled=four, offering=four, quorum={"minimum": 3}, checks={"min_cosine": 0})
    updates = [update(silo, change=Change(norm=2.0, cosine_last=0.25)) for silo in four]
    state, _ = after(opened, *updates, compared(east=0.5, island=0.5, north=0.5, south=-0.75))
    return aggregating(state)


def test_what_was_measured_of_updates_and_who_was_left_out_is_shown(silobus: Federation) -> None:
    silobus.save("exp", checked())

    words = silobus("status", "exp").stdout

    assert "checks       min_cosine 0" in words
    assert "changes of round 1, from the weights it began with" in words
    assert re.search(r"north +2 +0\.5 +0\.25 +yes", words)
    assert re.search(r"south +2 +-0\.75 +0\.25 +no", words)
    assert re.search(r"south +left out: its\s+change has", words)


def test_what_was_measured_is_in_the_history_of_rounds_that_are_over() -> None:
    state, effects = after(checked(), aggregated())
    records = [effect.record for effect in effects if isinstance(effect, RecordRound)]
    assert state is not None

    said = as_json(standing(state, *records))

    row = said["history"][0]
    assert row["changes"]["south"] == {"norm": 2.0, "cosine": -0.75, "cosine_last": 0.25, "counts": False}
    assert row["changes"]["north"]["counts"] is True
    assert "south" not in row["silos"]
    assert row["others"]["south"].startswith("left out: ")
    assert said["silos"]["south"]["left_out"] == 1


def test_a_set_that_is_compared_says_so() -> None:
    opened = training(checks={"measure": True})
    state, _ = after(opened, *(update(silo) for silo in ("east", "north", "south")))
    assert waiting_for(standing(aggregating(state))) == "the comparison of 3 updates, and their sum"


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 B"), (999, "999 B"), (18_436, "18.4 kB"), (3_000_000, "3.0 MB"), (2.5e9, "2.5 GB")]
)
def test_what_silos_sent_is_shown_in_a_unit_that_fits(size: float, words: str) -> None:
    cells = dict(zip(COLUMNS, row("east", {"east": Pace(bytes=int(size))}, None), strict=True))
    assert cells["sent"] == words


def test_a_few_seconds_more_make_no_straggler() -> None:
    paces = {name: Pace(answering=Taken(last=s, mean=s)) for name, s in (("east", 1.0), ("north", 1.0), ("south", 9.0))}
    assert stragglers(paces) == {}


def test_the_words_of_a_run_say_paces_sample_and_who_takes_part_no_longer(silobus: Federation) -> None:
    state = training(sample={"share": 0.5, "seed": 7}, quorum={"minimum": 1})
    run_ = state.run.model_copy(update={"silos": ("east", "south"), "paces": {"north": Pace(late=4)}})
    silobus.save("exp", state.model_copy(update={"run": run_}))

    words = silobus("status", "exp").stdout

    assert "sample       1 of 2 silos a round, seed 7" in words
    assert "no longer" in words
    assert re.search(r"north .* 4 ", words)


def test_how_a_model_is_made_is_shown(silobus: Federation) -> None:
    asked = {
        "strategy": {"name": "fedadam", "options": {"server_lr": 0.05, "clip_factor": 2.0}},
        "transfer": {"form": "delta", "dtype": "bfloat16"},
        "share": ["*", "!head.*"],
        "hyperparameters": {"lr": {"by_round": {1: 0.1, 5: 0.01}}, "optimizer": "sgd"},
        "overrides": {"south": {"lr": 1}},
    }
    state = training(strategys_hyperparameters={"proximal_mu": 0.5}, **asked)
    silobus.save("exp", state)

    words = silobus("status", "exp").stdout
    request = json.loads(silobus("status", "exp", "--json").stdout)["request"]

    assert "strategy     fedadam, server_lr 0.05, clip_factor 2.0\n" in words
    assert "trains with  proximal_mu 0.5, lr 0.1 (from round 5 0.01), optimizer sgd; south: lr 1\n" in words
    assert "transfer     delta, bfloat16\n" in words
    assert "share        * !head.*\n" in words
    assert StartExperiment.model_validate_json(json.dumps(request)) == state.run.request


def test_of_how_a_model_is_made_what_goes_without_saying_is_not_said(silobus: Federation) -> None:
    silobus.save("exp", training())

    words = silobus("status", "exp").stdout

    assert "strategy     fedavg\n" in words
    assert not re.search("^(trains with|transfer|share) ", words, re.MULTILINE)


def test_of_many_weights_some_are_named(silobus: Federation) -> None:
    silos = [f"s{number:02}" for number in range(12)]
    strategy = {"name": "fedavg", "options": {"weighting": "given"}, "weights": dict.fromkeys(silos, 2.5)}
    silobus.save("exp", training(silos=silos, enrolled=silos, offering=silos, strategy=strategy))

    words = silobus("status", "exp").stdout

    assert "strategy     fedavg, weighting given, weights s00 2.5, s01 2.5, " in words
    assert "s09 2.5, and 2 more\n" in words


def test_a_round_waits_for_those_who_have_not_answered() -> None:
    answers = {"north": Declined(reason=DeclineReason.BUDGET_SPENT), "east": Failed(announcement=1, reason="timeout")}
    state = training().model_copy(update={"answers": answers})

    said = as_json(standing(state))

    assert said["status"] == "running"
    assert said["phase"] == "collecting"
    assert said["waiting_for"].startswith(
        "updates from 1 of 3: south (gone since 00:00:00, 60 s ago, nothing since it was asked) (has 0, needs 2; "
        "1 declined: budget-spent, 1 failed: timeout); too few for a quorum, so the next try is at"
    )
    assert {silo: row["state"] for silo, row in said["silos"].items()} == {
        "east": "failed: timeout",
        "north": "declined: budget-spent",
        "south": "gone: no sign of life for 60 s",
    }
    assert (said["round"], said["rounds"]) == (1, 2)


@pytest.mark.parametrize(("now", "late"), [(115, None), (116, 16), (700, 600)])
def test_a_round_that_should_be_over_says_so(now: float, late: float | None) -> None:
    said = as_json(Standing("exp", training(), {}, {}, at(now), unread=LOOKED))

    assert said["overdue"] == late
    assert said["waiting_for"].endswith("at most)" if late is None else f"at most); OVERDUE by {late} s")


def test_the_end_of_the_grace_counts_where_there_is_one() -> None:
    state = training().model_copy(update={"grace_until": at(20)})

    assert as_json(Standing("exp", state, {}, {}, at(50), unread=LOOKED))["overdue"] == 30


def test_a_round_that_was_announced_again_and_a_pause_that_was_asked_for_are_said() -> None:
    state = training()
    again = state.model_copy(update={"announcement": 3, "reminded": 1, "pausing": True})

    assert phase_of(standing(state)) == "collecting, to train"
    assert phase_of(standing(again)) == (
        "collecting, to train, announced again (1 of 1); pauses when this round is over"
    )
    assert as_json(standing(again))["announcement"] == 3


def test_the_history_says_who_was_summed_with_which_norm_and_how_many_bytes() -> None:
    said = as_json(standing(ENDED, record(1, loss=0.9, silos=("east",))))

    assert said["history"][0]["silos"] == {"east": {"samples": 10, "norm": 1.0, "bytes": 100}}


@pytest.mark.parametrize(
    ("state", "status", "waits"),
    [
        (after(training(), update("east"), update("north"), update("south"))[0], "running", "the sum of"),
        (Paused(run=training().run, round=2, purpose=Purpose.TRAIN, since=T0), "paused", "resume-experiment"),
        (ENDED, "completed", None),
        (ENDED.model_copy(update={"outcome": RunOutcome.FAILED}), "failed", None),
        (ENDED.model_copy(update={"outcome": RunOutcome.CANCELLED}), "cancelled", None),
        (Tombstone(experiment="exp", since=T0), "cancelled", None),
    ],
)
def test_every_phase_has_its_word(state: State, status: str, waits: str | None) -> None:
    said = waiting_for(standing(state))

    assert status_of(standing(state)) == status
    assert said is None if waits is None else said is not None and waits in said


def test_metrics_belong_to_the_round_that_made_the_weights() -> None:
    said = as_json(standing(ENDED, record(1, loss=0.9), record(2, loss=0.5), record(3, loss=0.2)))

    assert [(row["round"], row["metrics"], row["seconds"]) for row in said["history"]] == [
        (1, {"loss": 0.5}, 2.0),
        (2, {"loss": 0.2}, 2.0),
    ]
    assert said["metrics"] == {"loss": 0.2}
    assert said["silos"]["south"]["state"] == "had not answered"


def test_the_final_evaluation_is_no_update_but_a_sign_of_life() -> None:
    evaluated = record(3, loss=0.2)
    late = [update.model_copy(update={"at": at(31)}) for update in evaluated.updates]
    found = standing(ENDED, record(2, loss=0.5), evaluated.model_copy(update={"updates": tuple(late)}))

    said = as_json(found)["silos"]["north"]

    assert (said["last_answer"]["round"], said["state"]) == (2, "evaluated")
    assert said["last_sign_of_life"] == at(31)


def test_the_command_prints_the_same_as_json_and_in_words(silobus: Federation) -> None:
    silobus.save("exp", ENDED)
    run(Documents(silobus.store).record_round(record(1, loss=0.9)))
    run(Documents(silobus.store).record_round(record(2, loss=0.25)))

    said = json.loads(silobus("status", "exp", "--json").stdout)
    words = silobus("status", "exp").stdout

    assert said["run"] == RUN
    assert said["reason"] == "All 2 rounds are done."
    assert said["models"]["last"]["blob"] == f"global/{names.weights_blob(RUN, 2, weights('two').sha256)}"
    assert "completed" in words
    assert "0.25" in words


def test_a_round_that_is_over_counts_before_its_own_document_is_written(silobus: Federation) -> None:
    outbox = (Numbered(sequence=7, effect=RecordRound(record=record(2, loss=0.25))),)
    document = ExperimentDocument(state=ENDED, sequence=7, outbox=outbox)
    run(Documents(silobus.store).save("exp", document, replacing=Loaded(None, None)))

    assert json.loads(silobus("status", "exp", "--json").stdout)["metrics"] == {"loss": 0.25}


def test_without_a_name_every_experiment_and_every_silo_is_listed(silobus: Federation) -> None:
    assert "No experiments yet" in silobus("status").stdout
    silobus.save("exp", training())
    silobus.save("late", Tombstone(experiment="late", since=T0))

    said = json.loads(silobus("status", "--json").stdout)

    assert {e["experiment"]: e["status"] for e in said["experiments"]} == {"exp": "running", "late": "cancelled"}
    assert said["silos"] == {silo: {"last_sign_of_life": None} for silo in ("east", "north", "south")}
    assert "never" in silobus("status").stdout

    run(Documents(silobus.store).change_presence("south", lambda _: beating("south", 30)))
    said = json.loads(silobus("status", "--json").stdout)
    signs = {silo: row["last_sign_of_life"] for silo, row in said["silos"].items()}
    assert signs == {"east": None, "north": None, "south": at(30).isoformat()}


def test_what_has_ended_is_listed_by_its_document_alone(silobus: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    silobus.save("done", ENDED)
    silobus.save("exp", training())
    for state in (ENDED, training()):
        run(Documents(silobus.store).record_round(record(state.round - 1, loss=0.9)))
    read, asked = DirectoryStore.read, []

    async def noted(store: DirectoryStore, container: str, name: str, **more: Any) -> Any:
        asked.append(name)
        return await read(store, container, name, **more)

    monkeypatch.setattr(DirectoryStore, "read", noted)
    rows = {row["experiment"]: row for row in json.loads(silobus("status", "--json").stdout)["experiments"]}

    assert rows["done"]["reason"] == "All 2 rounds are done."
    assert rows["done"]["models"]["last"]["round"] == 2
    assert "history" not in rows["done"]
    assert "history" in rows["exp"]
    assert "All 2 rounds are done." in silobus("status").stdout
    silobus.save("exp", ENDED)
    asked.clear()
    silobus("status")
    assert [name for name in asked if not name.startswith("presence/")] == [
        names.experiment_blob("done"),
        names.experiment_blob("exp"),
    ]


@pytest.mark.parametrize("arguments", [("status",), ("watch",), ("model", "-o", "/tmp/never")])
def test_an_unknown_experiment_is_said(silobus: Federation, arguments: tuple[str, ...]) -> None:
    result = silobus(arguments[0], "nothing", *arguments[1:])

    assert result.exit_code == 1
    assert " ".join(result.stderr.split()) == (
        "There is no experiment nothing. `silobus status` lists those there are; a start "
        "that was refused is in `silobus dead-letters list experiments`, one that nobody has "
        "taken yet in `silobus queues peek experiments`."
    )


def test_watch_ends_with_the_run_and_says_how(silobus: Federation) -> None:
    silobus.save("exp", ENDED)
    assert silobus("watch", "exp").exit_code == 0

    silobus.save("exp", ENDED.model_copy(update={"outcome": RunOutcome.FAILED, "reason": "no quorum"}))
    failed = silobus("watch", "exp")

    assert failed.exit_code == 1
    assert "exp is failed: no quorum" in failed.stdout


def test_each_line_is_said_once() -> None:
    lines = Lines()

    begun = Standing("exp", training(2), {1: record(1, loss=0.9)}, {}, at(30), unread=LOOKED)
    first, again = lines.new(begun), lines.new(begun)
    then = lines.new(standing(ENDED, record(1, loss=0.9), record(2, loss=0.5)))

    assert [line.split(":")[0] for line in first] == [RUN]
    assert again == []
    assert [line.partition(":")[0] for line in then] == ["round 1", "round 2", "exp is completed"]
    assert "loss 0.5" in then[0]
    assert "south had not answered" in then[0]


def placed(silobus: Federation, content: bytes, *, as_digest_of: bytes | None = None) -> Payload:
    """A payload in `global`, maybe not what its name says."""
    digest = hashlib.sha256(as_digest_of or content).hexdigest()
    payload = Payload(sha256=digest, bytes=len(content), layout="a" * 64)
    run(silobus.store.create(names.GLOBAL, names.weights_blob(RUN, 2, digest), content))
    return payload


def test_model_writes_the_latest_weights_or_the_best(silobus: Federation, tmp_path: Path) -> None:
    last, best = placed(silobus, b"the last"), placed(silobus, b"the best")
    known = training().run.model_copy(
        update={"model": Model(round=2, payload=last), "best": Best(round=2, payload=best, number=0.9)}
    )
    silobus.save("exp", ENDED.model_copy(update={"run": known}))

    assert silobus("model", "exp", "-o", tmp_path / "last").exit_code == 0
    assert silobus("model", "exp", "-o", tmp_path / "best", "--best").exit_code == 0

    assert (tmp_path / "last").read_bytes() == b"the last"
    assert (tmp_path / "best").read_bytes() == b"the best"


def test_the_file_is_a_copy_of_its_own(silobus: Federation, tmp_path: Path) -> None:
    payload = placed(silobus, b"the weights")
    known = training().run.model_copy(update={"model": Model(round=2, payload=payload)})
    silobus.save("exp", ENDED.model_copy(update={"run": known}))
    silobus("model", "exp", "-o", tmp_path / "m")

    (tmp_path / "m").write_bytes(b"changed")

    assert run(silobus.store.read(names.GLOBAL, names.weights_blob(RUN, 2, payload.sha256))).data == b"the weights"


def test_a_model_takes_the_place_of_files_alone(silobus: Federation, tmp_path: Path) -> None:
    payload = placed(silobus, b"the weights")
    known = training().run.model_copy(update={"model": Model(round=2, payload=payload)})
    silobus.save("exp", ENDED.model_copy(update={"run": known}))
    os.mkfifo(tmp_path / "device")
    (tmp_path / "link to it").symlink_to(tmp_path / "device")
    for place in (tmp_path / "device", tmp_path / "link to it", tmp_path, Path("/")):
        refused = silobus("model", "exp", "-o", place)
        assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1), refused.exception
        assert f"{place} cannot be written: it is there and is no file" in refused.stderr
    assert (tmp_path / "device").is_fifo()
    assert (tmp_path / "link to it").is_symlink()


def test_a_model_is_written_where_a_link_leads(silobus: Federation, tmp_path: Path) -> None:
    payload = placed(silobus, b"the weights")
    known = training().run.model_copy(update={"model": Model(round=2, payload=payload)})
    silobus.save("exp", ENDED.model_copy(update={"run": known}))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "m")

    assert silobus("model", "exp", "-o", tmp_path / "link").exit_code == 0

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere" / "m").read_bytes() == b"the weights"
    told = silobus("model", "exp", "-o", tmp_path / "elsewhere" / "m" / "below")
    assert f"{tmp_path / 'elsewhere' / 'm' / 'below'} cannot be written: Not a directory." in told.stderr


def test_damaged_weights_leave_no_file(silobus: Federation, tmp_path: Path) -> None:
    payload = placed(silobus, b"is damaged", as_digest_of=b"the weights")
    known = training().run.model_copy(update={"model": Model(round=2, payload=payload)})
    silobus.save("exp", ENDED.model_copy(update={"run": known}))

    result = silobus("model", "exp", "-o", tmp_path / "m")

    assert result.exit_code == 1
    assert "damaged" in result.stderr
    assert list(tmp_path.glob("m*")) == []


def test_what_there_is_not_is_said(silobus: Federation, tmp_path: Path) -> None:
    silobus.save("exp", Collecting.model_validate(training().model_dump() | {"run": _without_model()}))

    assert "has no weights yet" in silobus("model", "exp", "-o", tmp_path / "m").stderr
    assert "has no metric" in silobus("model", "exp", "-o", tmp_path / "m", "--best").stderr


def _without_model() -> dict[str, object]:
    return training().run.model_dump() | {"model": None}


def test_the_live_view_shows_silos_rounds_and_what_it_waits_for() -> None:
    screen = Console(width=150, record=True, file=io.StringIO())

    screen.print(view(standing(training(2), record(1, loss=0.9), record(2, loss=0.5))))

    text = screen.export_text()
    assert f"{RUN}  running  round 2 of 2" in text
    assert "waiting for updates from 3 of 3: east (gone since" in text
    assert re.search(r"1 +2 +2\.00 +0\.5", text)
