"""Documents by a later version, or damaged: each costs what it says, and no command more."""

from __future__ import annotations

import json

import pytest

from messages import names
from messages.errors import NotFound
from orchestrator.store import Documents
from tests.unit.cli.conftest import Federation, run
from tests.unit.cli.test_status import ENDED, beating, record
from tests.unit.experiment.given import RUN, at, training


def spoil(silobus: Federation, name: str) -> None:
    """A document as a later version might write it."""

    async def write() -> None:
        try:
            etag = (await silobus.store.read(names.STATE, name)).etag
        except NotFound:
            etag = None
        await silobus.store.write(names.STATE, name, b'{"version": 2}', if_match=etag)

    run(write())


def test_an_experiment_that_cannot_be_read_is_one_line_of_the_list(silobus: Federation) -> None:
    silobus.save("exp", training())
    spoil(silobus, names.experiment_blob("later"))

    listed = silobus("status")
    alone = silobus("status", "later")

    assert listed.exit_code == 0
    words = " ".join(listed.stdout.split())
    assert "exp running 1 2 updates from 3 of 3" in words
    assert "state/experiments/later.json cannot be read: it is by a later version of Silobus, so use that one" in words
    rows = {row["experiment"]: row["status"] for row in json.loads(silobus("status", "--json").stdout)["experiments"]}
    assert rows == {"exp": "running", "later": "unreadable"}
    assert alone.exit_code == 1
    assert "state/experiments/later.json cannot be read" in alone.stderr


@pytest.mark.parametrize(
    "name", [names.presence_blob("south"), names.round_blob(RUN, 1), names.retained_blob(RUN)], ids=lambda n: n[:8]
)
def test_a_document_that_cannot_be_read_costs_what_it_says_and_no_more(silobus: Federation, name: str) -> None:
    silobus.save("exp", ENDED)
    run(Documents(silobus.store).record_round(record(1, loss=0.9)))
    run(Documents(silobus.store).record_round(record(2, loss=0.25)))
    run(Documents(silobus.store).change_presence("north", lambda _: beating("north", 30)))
    spoil(silobus, name)

    for command in (("status", "exp"), ("watch", "exp")):
        found = silobus(*command)
        assert found.exit_code == 0
        assert f"state/{name} cannot be read" in found.stdout
        assert "All 2 rounds are done." in found.stdout
    said = json.loads(silobus("status", "exp", "--json").stdout)
    assert said["unreadable"] == [f"state/{name}"]
    assert said["metrics"] == {"loss": 0.25}
    assert said["silos"]["north"]["last_sign_of_life"] == at(30).isoformat()
    everything = silobus("status")
    assert everything.exit_code == 0
    assert (f"state/{name} cannot be read" in everything.stdout) is name.startswith("presence")
