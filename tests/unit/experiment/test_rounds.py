"""From round to round: what follows a sum, the best model, stopping early, and what live phases need again."""

from __future__ import annotations

import pytest

from messages.errors import Duplicate, Poison, Stale
from messages.experiments import Schedule
from messages.schemas import Head, Purpose
from orchestrator.experiment.announcing import announcement_for
from orchestrator.experiment.effects import (
    Announce,
    PublishHead,
    RecordRound,
    RecordRun,
    RequestAggregation,
    ScheduleDeadline,
    ScheduleGrace,
)
from orchestrator.experiment.events import AggregationFailed, CancelRequested, PauseRequested, SiloAppeared
from orchestrator.experiment.state import (
    STATE,
    Aggregating,
    RoundOutcome,
    RoundRecord,
    RunOutcome,
    State,
    Tombstone,
)
from orchestrator.experiment.step import reconcile, step
from tests.unit.experiment.given import (
    RUN,
    SILOS,
    T0,
    after,
    aggregated,
    aggregating,
    at,
    collecting,
    deadline,
    ended,
    evaluating,
    grace,
    initialising,
    loss,
    training,
    update,
    weights,
)

METRIC = {"name": "loss", "mode": "min", "patience": 2, "min_delta": 0.01}


def summed(state: State | None, round_number: int, value: float | None) -> State:
    """The state after a round in which the weights received had this loss."""
    metrics = () if value is None else (loss(value),)
    updates = [update(silo, round_number, *metrics) for silo in SILOS]
    result, _ = after(state, *updates, aggregated(round_number))
    assert result is not None
    return result


def frozen() -> Aggregating:
    return aggregating(after(training(), *(update(silo) for silo in SILOS))[0])


def test_a_sum_is_recorded_and_the_next_round_announced() -> None:
    before = frozen()
    state, effects = step(before, aggregated(), at(5))
    run = collecting(state).run
    assert run.model is not None
    assert (run.model.round, run.model.payload) == (1, weights("sum1"))
    record = RoundRecord(
        **before.closed.__dict__, outcome=RoundOutcome.AGGREGATED, over_at=at(5), model=weights("sum1")
    )
    assert effects == (
        RecordRound(record=record),
        PublishHead(head=Head(run=RUN, round=2, announcement=1, phase="open")),
        *(Announce(silo=silo, round=2, announcement=1) for silo in SILOS),
        ScheduleDeadline(run=RUN, round=2, announcement=1, at=at(105)),
    )


def test_the_first_model_is_followed_by_round_one() -> None:
    state, _ = after(initialising(), update("east", 0, purpose=Purpose.INITIALISE), aggregated(0))
    assert (collecting(state).round, collecting(state).purpose) == (1, Purpose.TRAIN)
    assert collecting(state).asked == SILOS


def test_the_last_round_is_followed_by_an_evaluation() -> None:
    state = summed(summed(training(), 1, None), 2, None)
    assert (collecting(state).round, collecting(state).purpose) == (3, Purpose.EVALUATE)


def test_a_sum_made_twice_is_a_duplicate() -> None:
    state, _ = step(frozen(), aggregated(), T0)
    with pytest.raises(Duplicate):
        step(state, aggregated(), T0)


def test_a_sum_is_taken_for_its_own_round_only() -> None:
    later, _ = after(frozen(), aggregated(1), *(update(silo, 2) for silo in SILOS))
    assert aggregating(later).closed.round == 2
    with pytest.raises(Duplicate):
        step(later, aggregated(1), T0)


def test_a_sum_for_a_cancelled_run_is_stale() -> None:
    over, _ = step(frozen(), CancelRequested(experiment="exp"), T0)
    with pytest.raises(Stale):
        step(over, aggregated(), T0)


def test_a_sum_for_an_unknown_run_is_refused() -> None:
    with pytest.raises(Poison) as caught:
        step(None, aggregated(), T0)
    assert caught.value.reason == "unknown-run"


def test_a_set_that_cannot_be_summed_ends_the_run() -> None:
    state, effects = step(frozen(), AggregationFailed(run=RUN, round=1, reason="not-finite: Tensor w"), at(5))
    over = ended(state)
    assert over.outcome is RunOutcome.FAILED
    assert over.reason == "Round 1 could not be aggregated: not-finite: Tensor w"
    record = RoundRecord(**frozen().closed.__dict__, outcome=RoundOutcome.FAILED, over_at=at(5), model=None)
    assert effects == (
        RecordRound(record=record),
        RecordRun(ended=over),
        PublishHead(head=Head(run=RUN, round=1, announcement=1, phase="ended")),
    )


# --- the best model ----------------------------------------------------------------------------------------------


def test_a_metric_of_the_weights_received_describes_the_round_before() -> None:
    state = summed(training(metric=METRIC), 1, 0.5)
    best = collecting(state).run.best
    assert best is not None
    assert (best.round, best.payload, best.number) == (0, weights("initial"), 0.5)
    state = summed(state, 2, 0.4)
    best = collecting(state).run.best
    assert best is not None
    assert (best.round, best.payload, best.number) == (1, weights("sum1"), 0.4)


def test_the_evaluation_can_find_the_last_model_best() -> None:
    metric = {"name": "loss", "mode": "min"}
    events = [update(silo, 3, loss(0.1), purpose=Purpose.EVALUATE) for silo in SILOS]
    state, _ = after(evaluating(metric=metric), *events)
    best = ended(state).run.best
    assert best is not None
    assert (best.round, best.number) == (2, 0.1)


def test_less_than_min_delta_is_no_improvement() -> None:
    state = summed(summed(training(metric=METRIC, rounds=9), 1, 0.5), 2, 0.495)
    assert collecting(state).run.stagnant == 1
    best = collecting(state).run.best
    assert best is not None
    assert best.number == 0.5


def test_a_run_stops_when_the_metric_has_not_improved_for_long_enough_and_is_evaluated() -> None:
    state: State | None = training(metric=METRIC, rounds=9)
    for number, value in enumerate((0.5, 0.6, 0.55), start=1):
        state = summed(state, number, value)
    assert (collecting(state).round, collecting(state).purpose) == (4, Purpose.EVALUATE)
    state, _ = step(state, deadline(4), T0)
    assert ended(state).outcome is RunOutcome.COMPLETED
    assert ended(state).reason == "Stopped after round 3 of 9: loss did not improve in 2 rounds."


def test_an_improvement_starts_the_patience_anew() -> None:
    state: State | None = training(metric=METRIC, rounds=9)
    for number, value in enumerate((0.5, 0.6, 0.4, 0.6), start=1):
        state = summed(state, number, value)
    assert collecting(state).purpose is Purpose.TRAIN
    assert collecting(state).run.stagnant == 1


def test_a_round_without_the_metric_says_nothing() -> None:
    state: State | None = training(metric=METRIC, rounds=9)
    for number, value in enumerate((0.5, None, None, None), start=1):
        state = summed(state, number, value)
    assert collecting(state).run.stagnant == 0


def test_without_patience_a_run_never_stops_early() -> None:
    state: State | None = training(metric={"name": "loss", "mode": "min"}, rounds=9)
    for number in range(1, 6):
        state = summed(state, number, 0.5)
    assert collecting(state).purpose is Purpose.TRAIN


# --- what is announced -------------------------------------------------------------------------------------------


def test_an_announcement_says_all_that_a_silo_needs() -> None:
    state = training(
        hyperparameters={"lr": Schedule.model_validate({"by_round": {1: 0.1, 2: 0.01}}), "epochs": 1},
        overrides={"south": {"epochs": 3}},
        transfer={"form": "delta", "dtype": "bfloat16"},
        share=["*", "!head.*"],
    )
    said = announcement_for(state, "south")
    assert said.model_dump(exclude={"payloads", "transfer"}) == {
        "schema_version": 1,
        "kind": "round-announced",
        "experiment": "exp",
        "run": RUN,
        "round": 1,
        "purpose": Purpose.TRAIN,
        "announcement": 1,
        "task": "toy",
        "roles": ["weights"],
        "hyperparameters": {"epochs": 3, "lr": 0.1},
        "strategy": "fedavg",
        "checks": None,
        "share": ["*", "!head.*"],
        "silos": 3,
        "quorum": 2,
        "deadline": at(100),
    }
    assert said.payloads == {"weights": weights("initial")}
    assert (said.transfer.form, said.transfer.dtype) == ("delta", "bfloat16")
    assert announcement_for(state, "north").hyperparameters == {"epochs": 1, "lr": 0.1}


def test_a_schedule_gives_the_value_in_force() -> None:
    schedule = Schedule.model_validate({"by_round": {1: 0.1, 3: 0.01}})
    rates = [announcement_for(training(r, hyperparameters={"lr": schedule}), "north") for r in (1, 2, 3, 4)]
    assert [said.hyperparameters["lr"] for said in rates] == [0.1, 0.1, 0.01, 0.01]


def test_the_first_model_travels_as_it_is() -> None:
    said = announcement_for(initialising(transfer={"form": "delta", "dtype": "float16"}), "east")
    assert (said.transfer.form, said.transfer.dtype) == ("weights", None)
    assert (said.silos, said.quorum, said.payloads) == (1, 1, {})


def test_what_the_strategy_has_silos_train_with_is_announced_with_the_rest() -> None:
    state = training(hyperparameters={"lr": 0.1}, strategys_hyperparameters={"proximal_mu": 0.5})
    assert announcement_for(state, "north").hyperparameters == {"lr": 0.1, "proximal_mu": 0.5}


def test_other_roles_are_announced_from_when_they_are_there_and_only_to_train_with() -> None:
    first = training(roles=("weights", "control"))
    said = announcement_for(first, "north")
    assert (said.roles, said.payloads) == (["weights", "control"], {"weights": weights("initial")})
    control, momentum = weights("control"), weights("momentum")
    sent = {"weights": weights("north1"), "control": weights("change", "delta")}
    answered, _ = step(first, update("north", 1, payloads=sent, etags={"control": "e"}), at(1))
    closed, _ = after(answered, update("east", 1, payloads=sent), grace(), now=at(20))
    frozen = aggregating(closed).closed.updates
    assert [one.besides["control"].payload.sha256 for one in frozen] == [sent["control"].sha256] * 2
    assert [one.besides["control"].etag for one in frozen] == [None, "e"]
    made = aggregated(besides={"control": control, "momentum": momentum})
    second, effects = step(closed, made, at(30))
    said = announcement_for(collecting(second), "north")
    assert said.payloads == {"weights": weights("sum1"), "control": control}
    record = next(e.record for e in effects if isinstance(e, RecordRound))
    assert (record.model, record.besides) == (weights("sum1"), {"control": control, "momentum": momentum})
    last = collecting(second).model_copy(update={"purpose": Purpose.EVALUATE})
    said = announcement_for(last, "north")
    assert (said.roles, said.payloads) == (["weights"], {"weights": weights("sum1")})


# --- taking up what was left -------------------------------------------------------------------------------------


def test_an_open_round_needs_its_head_its_announcements_and_its_deadline() -> None:
    state, _ = step(training(), update("north"), at(5))
    assert reconcile(state) == (
        PublishHead(head=Head(run=RUN, round=1, announcement=1, phase="open")),
        Announce(silo="east", round=1, announcement=1),
        Announce(silo="south", round=1, announcement=1),
        ScheduleDeadline(run=RUN, round=1, announcement=1, at=at(100)),
    )


def test_a_grace_that_began_is_needed_too() -> None:
    state, _ = after(training(), update("north"), update("south"), now=at(5))
    assert reconcile(state)[-1] == ScheduleGrace(run=RUN, round=1, announcement=1, at=at(15))


def test_a_frozen_set_needs_its_sum() -> None:
    assert reconcile(frozen()) == (
        PublishHead(head=Head(run=RUN, round=1, announcement=1, phase="closed")),
        RequestAggregation(run=RUN, round=1),
    )


def test_a_pause_needs_its_head_only() -> None:
    state, _ = after(training(), PauseRequested(experiment="exp"), *(update(s) for s in SILOS), aggregated())
    assert reconcile(state) == (PublishHead(head=Head(run=RUN, round=1, announcement=0, phase="closed")),)


def test_what_is_over_needs_nothing() -> None:
    over, _ = after(training(), CancelRequested(experiment="exp"))
    for state in (over, None, Tombstone(experiment="exp", since=T0)):
        assert reconcile(state) == ()


# --- as stored ---------------------------------------------------------------------------------------------------


def test_every_phase_survives_json() -> None:
    pausing, _ = after(training(), PauseRequested(experiment="exp"), *(update(s, 1, loss(0.5)) for s in SILOS))
    waiting, _ = step(pausing, aggregated(), T0)
    over, _ = step(waiting, CancelRequested(experiment="exp"), T0)
    answered, _ = after(initialising(), SiloAppeared(silo="east"))
    for state in (training(), answered, pausing, waiting, over, Tombstone(experiment="exp", since=T0)):
        assert state is not None
        assert STATE.validate_json(state.model_dump_json()) == state


def test_an_older_orchestrator_reads_what_a_newer_one_wrote() -> None:
    data = training().model_dump(mode="json")
    assert STATE.validate_python({**data, "something_new": 1}) == training()
