"""`silobus hold|release|replay`: what they post, what they refuse, and what is said of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from messages import names
from orchestrator.cli.kept import kept
from orchestrator.documents import Retained
from tests.unit.cli.conftest import Federation, run
from tests.unit.experiment.given import training

HELD = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize("verb", ["hold", "release"])
def test_it_posts_the_message(silobus: Federation, verb: str) -> None:
    state = training()
    silobus.save("exp", state)

    assert silobus(verb, "exp").exit_code == 0
    assert silobus(verb, "exp", "--run", state.run.id).exit_code == 0
    assert [json.loads(b) for b in silobus.bodies(names.EXPERIMENTS)] == [
        {"kind": f"{verb}-experiment", "experiment": "exp"},
        {"kind": f"{verb}-experiment", "experiment": "exp", "run": state.run.id},
    ]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("hold", "nothing"), 1, "There is no experiment nothing."),
        (("hold", "exp", "--run", "other_0123abcd"), 1, "other_0123abcd is no run of exp."),
        (("release", "exp", "--run", "exp"), 2, "is no run"),
    ],
)
def test_what_cannot_be_held_is_said_and_nothing_is_sent(
    silobus: Federation, words: tuple[str, ...], status: int, said: str
) -> None:
    silobus.save("exp", training())
    result = silobus(*words)

    assert result.exit_code == status
    assert said in result.stderr
    assert silobus.bodies(names.EXPERIMENTS) == []


def test_status_shows_what_is_held_and_what_is_gone(silobus: Federation) -> None:
    state = training()
    silobus.save("exp", state)
    assert "kept" not in silobus("status", "exp").stdout
    assert json.loads(silobus("status", "exp", "--json").stdout)["retention"] is None

    said = Retained(run=state.run.id, held_at=HELD, updates_before=7, models_before=3, spared=(0, 2), because="a rule")
    blob = names.retained_blob(state.run.id)
    run(silobus.store.write(names.STATE, blob, said.model_dump_json().encode(), if_match=None))
    assert (
        "kept         held since 2026-01-31 12:00:00 UTC, nothing more is deleted; updates of rounds before 7 are "
        "deleted; weights of rounds before 3 but 0, 2 too" in silobus("status", "exp").stdout
    )
    assert json.loads(silobus("status", "exp", "--json").stdout)["retention"] == {
        "held_at": "2026-01-31T12:00:00+00:00",
        "updates_before": 7,
        "models_before": 3,
        "spared": [0, 2],
        "because": "a rule",
    }


def test_a_run_that_was_released_before_anything_was_deleted_needs_no_word() -> None:
    assert kept(None) is None
    assert kept(Retained(run="exp_00000000", asked_at=HELD)) is None


def test_a_round_that_is_not_over_cannot_be_replayed(silobus: Federation) -> None:
    silobus.save("exp", training())
    result = silobus("replay", "exp", "--round", "7")

    assert result.exit_code == 1
    assert "is not over. Its rounds that are: none." in result.stderr


def test_only_what_was_started_can_be_replayed(silobus: Federation) -> None:
    silobus.save("exp", training())
    assert "There is no experiment nothing." in silobus("replay", "nothing").stderr
    assert "exp has no run exp_ffffffff" in silobus("replay", "exp", "--run", "exp_ffffffff").stderr
