"""What `benchmarks.chaos` takes for wrong: a verdict that is never against anybody says nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from benchmarks.chaos.__main__ import compared
from benchmarks.chaos.arithmetic import INITIAL, Made, after
from benchmarks.chaos.dead_letters import BUG, DELIVERIES, UNTOLD, Letter, wrong_with
from benchmarks.chaos.judge import fewest
from benchmarks.chaos.load import ROWS, Load
from benchmarks.chaos.stage import SILOS
from messages.experiments import Quorum
from messages.schemas import Purpose
from orchestrator.experiment.state import RoundRecord, UpdateRecord
from tests.golden.examples import filled

RUN = "exp_0123abcd"
CLOSED = datetime(2026, 1, 31, 12, tzinfo=UTC)
BEFORE, AFTER = CLOSED - timedelta(seconds=1), CLOSED + timedelta(seconds=1)
LETTER = Letter("from-east", "m", "update-published", None, RUN, 1, BUG, "Delivered 8 times", DELIVERIES)


def updates(*silos: str) -> tuple[UpdateRecord, ...]:
    example = filled(UpdateRecord)
    assert isinstance(example, UpdateRecord)
    return tuple(example.model_copy(update={"silo": silo}) for silo in silos)


def wrong(letter: Letter, did: str | None, given_up: datetime | None = BEFORE) -> str | None:
    """`did`: what the record says of east; None: it has its update."""
    example = filled(RoundRecord)
    assert isinstance(example, RoundRecord)
    about = {"round": 1, "asked": ("north", "east"), "closed_at": CLOSED}
    about |= {"updates": updates("north", *(() if did else ("east",))), "others": {"east": did} if did else {}}
    return wrong_with(letter, {RUN: "exp"}, {RUN: {1: example.model_copy(update=about)}}, given_up)


@pytest.mark.parametrize(
    ("letter", "did", "given_up"),
    [
        (LETTER, None, BEFORE),
        (LETTER, "failed: bug: Delivered 8 times", BEFORE),
        (LETTER, "had not answered; before that it failed: bug: Delivered 8 times", BEFORE),
        (LETTER, "had not answered", AFTER),
        (replace(LETTER, reason=UNTOLD), "had not answered", None),
        (replace(LETTER, queue="to-east", kind="round-announced"), "declined: agent-fault", BEFORE),
        (replace(LETTER, queue="to-east", kind="round-closed"), "had not answered", BEFORE),
        (replace(LETTER, queue="work", kind="deadline-passed"), "had not answered", BEFORE),
    ],
)
def test_a_dead_letter_that_killing_explains_and_the_round_knows_is_in_order(
    letter: Letter, did: str | None, given_up: datetime | None
) -> None:
    assert wrong(letter, did, given_up) is None


@pytest.mark.parametrize(
    ("letter", "did", "says"),
    [
        (LETTER, "had not answered", "does not know"),
        (LETTER, "declined: task-unknown", "does not know"),
        (replace(LETTER, reason=UNTOLD), "declined: task-unknown", "does not know"),
        (replace(LETTER, queue="to-east", kind="round-announced"), "had not answered", "does not know"),
        (replace(LETTER, deliveries=DELIVERIES - 1), None, "given up after"),
        (replace(LETTER, reason="update-conflict"), None, "update-conflict"),
        (replace(LETTER, description=""), None, "bug"),
        (replace(LETTER, run="exp_89abcdef"), None, "nobody started"),
        (replace(LETTER, round=7), None, "no record"),
        (replace(LETTER, queue="experiments", run=None, experiment="other"), None, "nobody started"),
    ],
)
def test_any_other_is_a_violation(letter: Letter, did: str | None, says: str) -> None:
    assert says in (wrong(letter, did) or "")


@pytest.mark.parametrize(
    ("purpose", "lasted", "updates"),
    [("train", 60, 2), ("initialise", 60, 1), ("evaluate", 9, 1), ("evaluate", 10, 0)],
)
def test_only_an_evaluation_at_its_deadline_may_end_with_nothing(purpose: str, lasted: float, updates: int) -> None:
    example = filled(RoundRecord)
    assert isinstance(example, RoundRecord)
    about = {"purpose": Purpose(purpose), "opened_at": CLOSED - timedelta(seconds=lasted), "closed_at": CLOSED}
    assert fewest(example.model_copy(update=about), Quorum(minimum=2, deadline=10)) == updates


def test_with_momentum_at_the_server_each_model_is_a_velocity_further() -> None:
    (row,) = (row for row in ROWS if row.strategy.name == "fedavgm")
    everybody = [
        update.model_copy(update={"samples": silo.samples})
        for update, silo in zip(updates(*(silo.name for silo in SILOS)), SILOS, strict=True)
    ]
    made = [INITIAL]
    for number in range(1, 4):
        made.append(after(row, made[-1], everybody, dict.fromkeys((silo.name for silo in SILOS), number)))
    assert made[1:] == [Made(4, {"momentum": 4}), Made(10, {"momentum": 6}), Made(17, {"momentum": 7})]
    assert after(row, made[1], everybody[:2], {"north": 2, "south": 1}) == Made(10, {"momentum": 6})


def test_every_row_is_there_and_each_is_content_with_two_silos_at_times() -> None:
    asked = [Load(1, 5, 0.0, partial=True).experiment(1, number) for number in range(20)]
    assert {one.row.name for one in asked} == {row.name for row in ROWS}
    assert {one.row.name for one in asked if one.message.quorum.minimum == 2} == {row.name for row in ROWS}


@pytest.mark.parametrize(("slow", "fast", "is_wrong"), [(100.0, 101.0, False), (100.0, 100.0, True), (9.0, 8.0, True)])
def test_two_orchestrators_must_be_faster_than_one(slow: float, fast: float, is_wrong: bool) -> None:
    reports = [{"rounds_per_minute": speed, "violations": []} for speed in (slow, fast)]
    assert bool(compared(*reports)) is is_wrong
    assert compared({**reports[0], "violations": ["something"]}, {**reports[1], "rounds_per_minute": 999}) == [
        "something"
    ]
