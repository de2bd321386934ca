"""Telling runs who offers what: what becomes of it when a run cannot be told."""

from __future__ import annotations

from typing import Any, cast

import pytest

from messages.errors import Forbidden, Transient
from messages.transport.memory_store import MemoryStore
from orchestrator.members import Members
from orchestrator.store import Documents
from orchestrator.transitions import Experiments


class Failing:
    """In place of what applies events: a bus that refuses, that is away, or a document that cannot be read."""

    def __init__(self, error: Exception) -> None:
        self.error, self.asked = error, list[str]()

    async def apply(self, experiment: str, event: object) -> None:
        self.asked.append(experiment)
        raise self.error


def members(failing: Failing) -> Members:
    documents = Documents(MemoryStore())
    return Members((), documents=documents, experiments=cast(Experiments, failing), attendance=cast(Any, None))


@pytest.mark.parametrize("error", [Forbidden("not yours"), Transient("away")])
async def test_whoever_cannot_tell_a_run_for_now_says_so_and_is_asked_again(error: Exception) -> None:
    with pytest.raises(type(error)):
        await members(Failing(error)).look(["a", "b"], enrolled=False)


async def test_a_run_that_cannot_be_told_does_not_keep_others_from_it(caplog: pytest.LogCaptureFixture) -> None:
    failing = Failing(ValueError("somebody edited it"))
    await members(failing).look(["a", "b"], enrolled=False)
    assert failing.asked == ["a", "b"]
    assert [record.message for record in caplog.records] == ["experiment.not-told"] * 2
