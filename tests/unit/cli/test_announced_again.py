"""A round that failed and is announced again: what `status` and `watch` say of its silos, and of what comes next."""

from __future__ import annotations

from orchestrator.cli.awaiting import waiting_for
from orchestrator.cli.standing import Standing
from orchestrator.cli.watch import Lines
from orchestrator.cli.wording import as_json
from orchestrator.documents import Presence
from orchestrator.experiment.checking import Change
from orchestrator.experiment.collecting import announce_again
from orchestrator.experiment.state import Collecting, Failed, State
from tests.unit.cli.test_status import LOOKED, beating
from tests.unit.experiment.given import after, at, collecting, declined, evaluating, failed, training, update

SILOS = ("east", "north", "south")


def beaten(second: float = 1) -> dict[str, Presence]:
    """All three were heard to train in this second."""
    return {silo: beating(silo, second) for silo in SILOS}


def all_failed() -> Collecting:
    """Every silo failed: the round waits until it is announced again."""
    return collecting(after(training(), *map(failed, SILOS), now=at(2))[0])


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
    assert as_json(found(training(), 44, beaten(-10)))["silos"]["east"]["gone"] is False  # it was asked since


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


def test_an_evaluation_has_no_next_try() -> None:
    state = collecting(after(evaluating(), declined("east", 3), declined("north", 3), now=at(2))[0])

    assert (waiting_for(found(state, 3, {})) or "").endswith(
        "needs 2; 2 declined: budget-spent); closes at the deadline, 2026-01-01 00:01:40 UTC"
    )


def test_of_many_reasons_the_most_frequent_are_named() -> None:
    answers = {f"s{n}": Failed(announcement=1, reason=f"r{n // 3}") for n in range(14)}
    state = training().model_copy(update={"answers": answers, "asked": (*answers, "east")})

    assert "needs 2; 3 failed: r0, 3 failed: r1, 3 failed: r2, 5 more without an update)" in (
        waiting_for(found(state, 3, {})) or ""
    )


def watched(*standings: Standing) -> list[list[str]]:
    """What `watch` says at each look, but for what it says of the run."""
    lines = Lines()
    said = [lines.new(standing) for standing in standings]
    return [said[0][1:], *said[1:]]


def test_watch_says_each_failure_that_it_is_announced_again_and_the_next_failure() -> None:
    one = collecting(after(training(), failed("north"), now=at(2))[0])
    more = collecting(after(again(), failed("north", announcement=2), now=at(61))[0])

    looks = watched(
        found(one, 3, beaten()),
        found(all_failed(), 4, beaten()),
        found(all_failed(), 5, beaten()),
        found(again(), 61, beaten()),
        found(more, 62, beaten()),
    )

    assert looks == [
        ["north: failed: timeout, in round 1"],
        [
            "east: failed: timeout, in round 1",
            "south: failed: timeout, in round 1",
            "waiting for the next try (has 0, needs 2; 3 failed: timeout); it is at 2026-01-01 00:00:12 UTC (1 left)",
        ],
        [],
        ["round 1: announced again (1 of 1) at 2026-01-01 00:01:00 UTC"],
        ["north: failed: timeout, in round 1, try 2"],
    ]


def test_watch_says_who_declined_and_who_was_left_out() -> None:
    opened = training(checks={"max_norm": 1}, quorum={"minimum": 1})
    state = collecting(after(opened, declined("east"), update("north", change=Change(norm=2.0)), now=at(2))[0])

    [[first, second]] = watched(found(state, 3, beaten()))

    assert first == "east: declined: budget-spent, in round 1"
    assert second.startswith("north: left out: its change has ")


def test_who_comes_late_to_watch_is_told_what_went_before() -> None:
    [said] = watched(found(again(), 61, beaten()))

    assert said == [
        *(f"{silo}: failed: timeout, in round 1" for silo in SILOS),
        "round 1: announced again (1 of 1) at 2026-01-01 00:01:00 UTC",
    ]


def test_what_is_waited_for_is_said_once_however_many_are_gone() -> None:
    [_, said] = watched(found(training(), 2, beaten()), found(training(), 60, beaten()))

    assert [line.partition(":")[0] for line in said[:3]] == list(SILOS)
    assert [line[:40] for line in said[3:]] == ["waiting for updates from 3 of 3: east (g"]


def test_a_silo_that_is_gone_and_asked_again_has_not_come_back() -> None:
    timely = collecting(announce_again(training(), at(100))[0])

    looks = watched(
        found(training(), 60, beaten()),
        found(timely, 101, beaten()),
        found(timely, 103, {**beaten(), "east": beating("east", 102)}),
    )

    assert [line.partition(" (")[0] for line in looks[1]] == ["round 1: announced again"]
    assert looks[2] == ["east: heard of again, at 2026-01-01 00:01:42 UTC"]
