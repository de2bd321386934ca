"""A round that failed and is announced again: what `status` and `watch` say of its silos, and of what comes next."""

from __future__ import annotations

from orchestrator.cli.awaiting import waiting_for
from orchestrator.cli.standing import Standing
from orchestrator.cli.wording import as_json
from orchestrator.documents import Presence
from orchestrator.experiment.collecting import announce_again
from orchestrator.experiment.state import Collecting, State
from tests.unit.cli.test_status import LOOKED, beating
from tests.unit.experiment.given import after, at, collecting, failed, training

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
