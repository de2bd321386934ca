"""Orchestrators that come, go and are stopped, as processes: none is needed all the time, and none does harm.

Each round adds exactly 3 to all weights; the round in which something happens is held by its trainers meanwhile.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from messages import names
from orchestrator.experiment.state import Collecting, Ended, State
from tests.e2e.command import SILOBUS
from tests.federation import PATIENCE, THREE, Federation

pytestmark = pytest.mark.slow

ALL = {"silos": [silo.name for silo in THREE], "quorum": {"minimum": "all", "deadline": 120, "reminders": 2}}
ROUNDS = 2
LOCK = 2.0


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    with Federation(lock=LOCK, heartbeat=0.5) as running:
        yield running


def is_exact(federation: Federation, run: str, rounds: int = ROUNDS) -> bool:
    return all(
        (tensor == number * 3.0).all()
        for number in range(1, rounds + 1)
        for tensor in federation.weights(run, number).values()
    )


def answered(federation: Federation, run: str, number: int) -> None:
    """Returns when every silo has published its update."""
    blob = names.publication_blob(run, number)
    for silo in federation.silos:
        federation.until(lambda silo=silo: federation.document(names.updates_of(silo), blob), f"{silo} is not done")  # type: ignore[misc]


def life(federation: Federation) -> float:
    """`silobus orchestrator --until-idle 1s` from its start to its own end; for how many seconds it lived."""
    began = time.monotonic()
    arguments = ["orchestrator", "--config", str(federation.folder.orchestrator), "--until-idle", "1s"]
    with federation.folder.log("orchestrator-for-a-while").open("ab") as log:
        ended = subprocess.run([*SILOBUS, *arguments], stdout=log, stderr=log, timeout=PATIENCE, check=False)
    assert ended.returncode == 0
    return time.monotonic() - began


def lives(federation: Federation, done: Callable[[State | None], bool]) -> None:
    """One life after another until it is done: a round may take silos longer than an orchestrator waits for them."""
    federation.until(lambda: life(federation) and done(federation.status("lives")), "the orchestrators achieve nothing")


def test_a_run_is_finished_by_orchestrators_that_end_when_nothing_is_to_be_done(federation: Federation) -> None:
    """The second round is slow: while it is trained, with signs of life every half second, there is no orchestrator."""
    federation.stop("orchestrator")
    try:
        federation.allow("lives", 1)
        run = federation.start_experiment("lives", rounds=ROUNDS, **ALL)
        lives(federation, lambda state: isinstance(state, Collecting) and state.round == 2)
        for silo in federation.silos:
            federation.training(silo, "lives", 2)
        federation.allow("lives", ROUNDS)
        answered(federation, run, 2)
        lives(federation, lambda state: isinstance(state, Ended))
        federation.wait_for("lives")
        assert is_exact(federation, run)
    finally:
        federation.start("orchestrator")


def test_an_orchestrator_asleep_beyond_its_locks_is_not_missed_and_does_no_harm_when_it_wakes(
    federation: Federation,
) -> None:
    federation.start("orchestrator-2")
    second = federation.folder.log("orchestrator-2")
    federation.until(lambda: "orchestrator.ready" in second.read_text(), "the second does not get ready")
    federation.allow("asleep", 1)
    run = federation.start_experiment("asleep", rounds=ROUNDS, **ALL)
    federation.training("north", "asleep", 2)
    os.kill(federation.pid("orchestrator"), signal.SIGSTOP)
    try:
        federation.allow("asleep", ROUNDS)
        federation.wait_for("asleep")
    finally:
        os.kill(federation.pid("orchestrator"), signal.SIGCONT)
    assert is_exact(federation, run)
    federation.kill("orchestrator-2")
    federation.allow("awake", ROUNDS)
    run = federation.start_experiment("awake", rounds=1, **ALL)
    federation.wait_for("awake")
    assert is_exact(federation, run, 1)
    for queue in names.queues(list(federation.silos)):
        assert federation.dead_letters(queue) == []
