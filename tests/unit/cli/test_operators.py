"""`silobus cancel|pause|resume` post the operator messages of that name."""

from __future__ import annotations

import json

import pytest

from messages import names
from tests.unit.cli.conftest import Federation
from tests.unit.experiment.given import training


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume"])
def test_it_posts_the_message(silobus: Federation, verb: str) -> None:
    silobus.save("exp", training())

    result = silobus(verb, "exp")

    assert result.exit_code == 0
    assert [json.loads(b) for b in silobus.bodies(names.EXPERIMENTS)] == [
        {"kind": f"{verb}-experiment", "experiment": "exp"}
    ]


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_an_unknown_experiment_is_said_and_nothing_is_sent(silobus: Federation, verb: str) -> None:
    result = silobus(verb, "nothing")

    assert result.exit_code == 1
    assert result.stderr.strip() == "There is no experiment nothing. `silobus status` lists those there are."
    assert silobus.bodies(names.EXPERIMENTS) == []


def test_cancelling_an_unknown_experiment_is_sent_since_its_start_may_still_come(silobus: Federation) -> None:
    result = silobus("cancel", "late")

    assert result.exit_code == 0
    assert "the next start under this name will be refused" in result.stdout
    assert len(silobus.bodies(names.EXPERIMENTS)) == 1


def test_a_name_that_cannot_be_is_refused(silobus: Federation) -> None:
    result = silobus("cancel", "No Such Name")

    assert result.exit_code == 2
    assert "is no name" in result.stderr
    assert silobus.bodies(names.EXPERIMENTS) == []
