"""What silos said while no orchestrator worked: `status` and `watch` look for it before they call one gone."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from messages import names
from messages.errors import Transient
from messages.schemas import SiloHeartbeat
from messages.transport.memory_bus import MemoryBus
from orchestrator.cli import federation
from orchestrator.cli.awaiting import waiting_for
from orchestrator.cli.listening import Listening, unread_of, with_unread
from orchestrator.cli.standing import Reader, Standing, Unread
from orchestrator.cli.watch import Lines
from orchestrator.cli.wording import as_json
from orchestrator.experiment.state import Collecting
from tests.unit.cli.conftest import Federation, run
from tests.unit.cli.test_status import LOOKED, beating
from tests.unit.experiment.given import RUN, after, aggregating, at, training, update


def now_training(seconds: float, **changes: Any) -> Collecting:
    """Asked so many seconds ago, by the clock on the wall."""
    opened = datetime.now(UTC) - timedelta(seconds=seconds)
    return training().model_copy(
        update={"opened_at": opened, "announced_at": opened, "deadline": opened + timedelta(hours=1), **changes}
    )


def beats(silobus: Federation, silo: str, number: int = 1, **changes: Any) -> None:
    """So many signs of life that no orchestrator has read."""
    for n in range(number):
        beat = SiloHeartbeat(run=RUN, round=1, doing="training", progress_age=0, at=datetime.now(UTC))
        silobus.send(names.from_silo(silo), beat.model_copy(update=changes).model_dump_json(), f"{silo}-{n}")


def test_a_silo_whose_signs_of_life_nobody_reads_is_not_said_to_be_gone(silobus: Federation) -> None:
    silobus.save("exp", now_training(300))
    beats(silobus, "east", 3)

    said = json.loads(silobus("status", "exp", "--json").stdout)

    assert (said["silos"]["east"]["state"], said["silos"]["east"]["gone"]) == ("training", False)
    assert said["silos"]["east"]["unread_for"] < 5
    assert said["silos"]["east"]["last_sign_of_life"] is not None
    assert said["silos"]["north"]["gone"] is True
    assert "east (training, 30" in said["waiting_for"]
    assert "north (gone since" in said["waiting_for"]
    assert re.search(r"east +training", silobus("status", "exp").stdout)
    [listed] = json.loads(silobus("status", "--json").stdout)["experiments"]
    assert listed["silos"]["east"]["state"] == "training"


def test_what_waits_to_be_read_is_what_speaks_for_there_being_no_orchestrator() -> None:
    waits = {**LOOKED, "east": Unread(since=at(260), said=beating("east", 290))}
    said = waiting_for(with_unread(Standing("exp", training(), {}, {}, at(300)), waits)) or ""

    assert "east (training, 300 s), north (gone since" in said
    assert "no orchestrator has read what silos say for 40 s: does one work?" in said


def test_an_answer_that_waits_to_be_read_is_an_answer(silobus: Federation) -> None:
    silobus.save("exp", now_training(300))
    silobus.send(names.from_silo("east"), update("east").update.model_dump_json(), "answer")

    said = json.loads(silobus("status", "exp", "--json").stdout)["silos"]["east"]

    assert re.fullmatch(r"has answered \d s ago, which nobody has taken yet", said["state"])
    assert said["gone"] is False


def test_the_newest_of_many_is_found_and_strange_messages_are_passed_by(silobus: Federation) -> None:
    silobus.save("exp", now_training(300))
    silobus.send(names.from_silo("east"), "no JSON", "strange")
    beats(silobus, "east", 517, progress_age=1.0)
    beats(silobus, "east", 1, doing="uploading")

    found = run(unread_of(MemoryBus(silobus.broker), "east"))

    assert found.said is not None
    assert found.said.heartbeats[RUN].doing == "uploading"
    assert json.loads(silobus("status", "exp", "--json").stdout)["silos"]["east"]["state"] == "uploading"


def test_a_bus_that_does_not_answer_makes_nobody_gone(silobus: Federation) -> None:
    silobus.save("exp", now_training(300))

    def away(when: str, operation: str, queue: str) -> None:
        raise Transient(f"{operation} {queue}: away")

    silobus.faults = away

    said = json.loads(silobus("status", "exp", "--json").stdout)

    assert said["silos"]["east"]["gone"] is None
    assert "east (gone, or no orchestrator works since" in said["waiting_for"]
    assert said["silos"]["east"]["state"].startswith("gone, or no orchestrator works: no sign of life for 30")


def test_watch_says_the_same_and_looks_again_after_a_while(silobus: Federation) -> None:
    silobus.save("exp", now_training(300))
    beats(silobus, "east")
    asked = []

    async def look() -> list[str]:
        settings_ = federation.settings(silobus.folder.root, None)
        reached = federation.Federation(settings_)
        peek = reached.bus.peek

        async def noted(queue: str, **more: Any) -> Any:
            asked.append(queue)
            return await peek(queue, **more)

        reached.bus.peek = noted  # type: ignore[method-assign]
        reader, listening, lines = Reader(reached.store), Listening(reached), []
        for _ in range(3):
            standing = await reader.read("exp")
            assert standing is not None
            lines += Lines().new((await listening.told([standing]))[0])
        return lines

    lines = run(look())
    assert not [line for line in lines if line.startswith("east: gone")]
    assert [line for line in lines if line.startswith("north: gone, not heard of")]
    assert sorted(asked) == ["from-east", "from-north", "from-south"]


@pytest.mark.parametrize(("now", "words"), [(120, "the sum of 3 updates"), (121, "or no orchestrator works")])
def test_a_sum_that_takes_long_asks_whether_anybody_makes_it(now: float, words: str) -> None:
    state, _ = after(training(), *(update(silo) for silo in ("east", "north", "south")))
    found = Standing("exp", aggregating(state), {}, {}, at(now))

    assert (waiting_for(found) or "").endswith(words)
    assert as_json(found)["summing_for"] == now
