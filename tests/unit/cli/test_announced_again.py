"""A round that failed and is announced again: what `status` and `watch` say of its silos, and of what comes next."""

from __future__ import annotations

from orchestrator.cli.awaiting import waiting_for
from orchestrator.cli.standing import Standing
from orchestrator.cli.wording import as_json
from orchestrator.documents import Presence
from orchestrator.experiment.collecting import announce_again
from orchestrator.experiment.state import Collecting, Failed, State
from tests.unit.cli.test_status import LOOKED, beating
from tests.unit.experiment.given import after, at, collecting, declined, failed, training, update

SILOS = ("east", "north", "south")


def beaten(second: float = 1) -> dict[str, Presence]:
    """All three were heard to train in this second."""
    return {silo: beating(silo, second) for silo in SILOS}


def all_failed(state: Collecting | None = None) -> Collecting:
    """Every silo failed: the round waits until it is announced again."""
    opened = state or training()
    tries = (failed(silo, announcement=opened.announcement) for silo in SILOS)
    return collecting(after(opened, *tries, now=at(2))[0])


def again(second: float = 60) -> Collecting:
    """Announced again after all failed."""
    state, _ = announce_again(all_failed(), at(second))
    return collecting(state)


def found(state: State, second: float, presence: dict[str, Presence]) -> Standing:
    return Standing("exp", state, {}, presence, at(second), unread=LOOKED)


def does(standing: Standing, silo: str) -> str:
    return str(as_json(standing)["silos"][silo]["state"])


def test_a_sign_from_before_the_announcement_says_nothing_of_what_came_of_it() -> None:
    early, late = found(again(), 105, beaten()), found(again(), 106, beaten())

    assert as_json(early)["silos"]["east"]["doing"] is None
    assert [as_json(s)["silos"]["east"]["gone"] for s in (early, late)] == [False, True]
    assert "gone" not in (waiting_for(early) or "")
    assert "east (gone since 00:01:00, 46 s ago, nothing since it was asked)" in (waiting_for(late) or "")
    heard = found(again(), 106, beaten(60))
    assert as_json(heard)["silos"]["east"]["doing"] == "training"


def test_how_often_an_agent_gives_signs_is_known_from_before_the_announcement() -> None:
    before = beaten()
    rarely = {run: sign.model_copy(update={"every": 60}) for run, sign in before["east"].heartbeats.items()}
    before["east"] = before["east"].model_copy(update={"heartbeats": rarely})

    silos = as_json(found(again(), 106, before))["silos"]
    assert (silos["east"]["gone"], silos["north"]["gone"]) == (False, True)


def test_a_bus_whose_clock_is_behind_hides_no_signs_of_the_first_announcement() -> None:
    assert does(found(training(), 5, beaten(-1)), "east") == "training"


def test_a_silo_that_is_asked_again_is_shown_with_what_went_wrong_before() -> None:
    assert does(found(all_failed(), 3, {}), "east") == "failed: timeout"
    assert does(found(again(), 61, {}), "east") == "asked; before that it failed: timeout"
    assert "(has 0, needs 2; 3 failed before: timeout)" in (waiting_for(found(again(), 61, {})) or "")
    assert does(found(again(), 200, {}), "east").startswith("gone: no sign of life for 140 s; before that it failed: ")


def test_a_round_in_which_everything_failed_waits_for_its_next_try() -> None:
    assert waiting_for(found(all_failed(), 3, beaten())) == (
        "the next try (has 0, needs 2; 3 failed: timeout); it is at 2026-01-01 00:00:12 UTC (1 left)"
    )


def test_a_round_with_too_few_left_for_a_quorum_says_so_while_the_others_train() -> None:
    state = collecting(after(training(), declined("east"), failed("north"), now=at(2))[0])

    assert waiting_for(found(state, 3, beaten())) == (
        "updates from 1 of 3: south (training, 3 s) (has 0, needs 2; 1 declined: budget-spent, 1 failed: timeout)"
        "; too few for a quorum, so the next try is at 2026-01-01 00:00:12 UTC (1 left)"
    )


def test_with_enough_left_for_a_quorum_it_is_the_deadline_that_is_waited_for() -> None:
    state = collecting(after(training(), update("east"), failed("north"), now=at(2))[0])

    assert (waiting_for(found(state, 3, beaten())) or "").endswith(
        "(has 1, needs 2; 1 failed: timeout); at the deadline, 2026-01-01 00:01:40 UTC, it closes with a "
        "quorum, and is announced again without (1 times at most)"
    )


def test_of_many_reasons_the_most_frequent_are_named() -> None:
    answers = {f"s{n}": Failed(announcement=1, reason=f"r{n // 3}") for n in range(14)}
    state = training().model_copy(update={"answers": answers, "asked": (*answers, "east")})

    assert "needs 2; 3 failed: r0, 3 failed: r1, 3 failed: r2, 5 more without an update)" in (
        waiting_for(found(state, 3, {})) or ""
    )
