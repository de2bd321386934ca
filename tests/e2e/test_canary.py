"""A secret that a silo's script knows is nowhere outside the silo, whatever the script does to get it out.

The secret is in the script's environment, its paths, its data's paths, its output and its private state, and it tries
to leave in exceptions, reports, metrics, tensor names and headers. Then every byte of the federation outside the
silo's own directory is searched: queues, dead letters, blobs, state, logs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

from messages import names
from messages.rights import principals
from orchestrator.experiment.state import Ended
from tests.federation import TRAINERS, Federation, Letter, Silo, announcement, everything_in, payload_of, safetensors

pytestmark = pytest.mark.slow

CANARY = "canary_c0ffee_5f3e"
LEAKS = {
    "stdout": "completed",
    "exception": "failed: script-error",
    "memory": "failed: out-of-memory",
    "exit": "failed: script-error",
    "tensor": "failed: script-error",
    "report-field": "completed",
    "report-value": "failed: report-invalid",
    "metric-text": "failed: report-invalid",
    "header": "declined: outbound-forbidden",
    "tensor-in-header": "failed: update-invalid",
    "no-report": "failed: no-report",
    "state": "completed",
}
"""What a script does, and what its silo says of it."""
MODEL = safetensors({"layer.weight": np.zeros((4, 3), np.float32), "layer.bias": np.zeros(3, np.float32)})
INITIAL = payload_of(MODEL)
LIMITS = {"hyperparameters": {"leak": {"one_of": [*LEAKS, "depth"]}}}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    place = tmp_path_factory.mktemp("owner") / CANARY
    place.mkdir()
    script = place / "train.py"
    script.write_bytes((TRAINERS / "leaky.py").read_bytes())
    data = place / "patients.csv"
    data.write_text(CANARY)
    task = {
        "script": script,
        "mode": "per-round",
        "data": {"train": str(data)},
        "environment": {"CANARY": CANARY, "TOKEN": f"{CANARY}-token"},
        "tries": 1,
        "limits": LIMITS,
        "outbound": {"min_samples": 1},
    }
    tasks = {
        "leaky": task,
        "private": task | {"environment": {"CANARY": CANARY, "SILO_MODEL": "private"}},
        "unready": task | {"data": {"train": str(place / f"{CANARY}-not-there.csv")}},
        "broken": task | {"command": [str(place / f"{CANARY}-no-such-command")]},
    }
    south = Silo("south", tasks={name: {"limits": LIMITS} for name in tasks})
    with Federation([Silo("north", tasks=tasks), south], lock=1) as running:
        running.create(names.INITIAL, names.initial_blob(INITIAL["sha256"]), MODEL)
        yield running


def outcome(federation: Federation, experiment: str, **asked: object) -> str:
    """Runs one round in both silos; how it ended for north."""
    federation.start_experiment(
        experiment,
        silos=["north", "south"],
        initial={"sha256": INITIAL["sha256"]},
        quorum={"minimum": "all", "reminders": 0},
        **asked,
    )

    def ended() -> Ended | None:
        state = federation.status(experiment)
        return state if isinstance(state, Ended) else None

    state = federation.until(ended, f"{experiment} goes on")
    return "completed" if state.outcome == "completed" else state.reason.partition("north: ")[2].partition(";")[0]


def test_no_secret_of_a_silo_is_anywhere_outside_it(federation: Federation) -> None:
    said = {leak: outcome(federation, leak, task="leaky", hyperparameters={"leak": leak}) for leak in LEAKS}
    assert said == LEAKS
    assert outcome(federation, "private", task="private") == "completed"
    assert outcome(federation, "unready", task="unready") == "failed: data-missing"
    assert outcome(federation, "broken", task="broken") == "failed: compute-unavailable"

    assert federation.files_with(CANARY, federation.shared_files()) == []
    assert_the_search_would_have_found_it(federation)
    assert_it_was_there_to_be_found(federation)


def assert_the_search_would_have_found_it(federation: Federation) -> None:
    """What did leave is seen in each of the places that were searched."""

    def places(text: str) -> set[str]:
        found = federation.files_with(text, federation.shared_files())
        return {path.relative_to(federation.folder.root).parts[0] for path in found}

    assert {"bus", "store", "logs"} <= places("no-report")
    assert {"bus", "store"} <= places("level")
    assert "store" in places("layer.bias")


def assert_it_was_there_to_be_found(federation: Federation) -> None:
    """The silo itself has it in the output of every try, and in what the scripts kept."""
    home = federation.folder.home("north")
    kept = federation.files_with(CANARY, everything_in(home))
    assert [path for path in kept if path.name == "output.txt"]
    assert [path for path in kept if path.is_relative_to(home / "state")]


def test_no_message_of_a_silo_holds_its_secret(federation: Federation) -> None:
    """Messages that were settled are gone from the queues; the silo's own log of what left still has them."""
    outcome(federation, "logged", task="leaky", hyperparameters={"leak": "exception"})
    messages = [json.dumps(entry["message"]) for entry in federation.egress("north") if "message" in entry]
    assert any("training-failed" in message for message in messages)
    assert not [message for message in messages if CANARY in message]


def test_messages_waiting_in_the_queue_hold_no_secret(federation: Federation) -> None:
    """While the orchestrator is away nobody takes them: each can be looked at. Then they become dead letters."""
    run = "waiting_0123abcd"

    def waiting(text: str) -> list[Letter]:
        found = [letter for letter in federation.peek("from-north") if run.encode() in letter.body]
        return [letter for letter in found if text.encode() in letter.body]

    federation.create(names.GLOBAL, names.weights_blob(run, 0, INITIAL["sha256"]), MODEL)
    federation.kill("orchestrator")
    try:
        asked = announcement(run, INITIAL, task="leaky", hyperparameters={"leak": "exit"})
        federation.post(asked, "to-north")
        federation.until(lambda: waiting("training-failed"), "north does not answer")
        assert not waiting(CANARY)
    finally:
        federation.start("orchestrator")

    def dead() -> list[Letter]:
        return [letter for letter in federation.dead_letters("from-north") if run.encode() in letter.body]

    letters = federation.until(dead, "the orchestrator does not take what was sent meanwhile")
    assert {letter.reason for letter in letters} == {"unknown-run"}
    assert not [letter for letter in letters if CANARY in f"{letter.body!r} {letter.description}"]


def test_a_key_is_in_its_owners_file_and_with_the_bus_alone(federation: Federation) -> None:
    """In no message, blob or log, and in no script's environment, which the script has printed."""
    outcome(federation, "key", task="leaky", hyperparameters={"leak": "stdout"})
    printed = (p for p in everything_in(federation.folder.home("north")) if p.name == "output.txt")
    assert federation.files_with("SILOBUS_OUTPUT", printed)
    folder = federation.folder
    for who in principals(list(federation.silos)):
        own = folder.connection(who.role, who.silo)
        elsewhere = [file for file in everything_in(folder.root) if not file.is_relative_to(folder.bus)]
        found = federation.files_with(federation.keys[who.name].get_secret_value(), elsewhere)
        assert set(found) == {own, folder.queues}
        assert not [file for file in found if file.stat().st_mode & 0o077]
    assert folder.bus.stat().st_mode & 0o077 == 0


def test_the_dead_letter_of_a_fault_in_the_agent_tells_no_secret(federation: Federation) -> None:
    """The private state has paths longer than paths may be: the agent fails, with one of them in its exception."""
    run = federation.start_experiment(
        "fault",
        task="leaky",
        rounds=2,
        silos=["south", "north"],
        hyperparameters={"leak": "depth"},
        quorum={"minimum": "all", "reminders": 0, "deadline": 120},
    )
    ended = federation.wait_for("fault", "failed")
    assert "north: declined: agent-fault" in ended.reason

    def dead() -> list[Letter]:
        """The run is told before, and may be over by then."""
        return [letter for letter in federation.dead_letters("to-north") if run.encode() in letter.body]

    (letter,) = federation.until(dead, "the message is no dead letter")
    assert letter.reason == "bug"
    assert CANARY not in letter.description
    faults = list((federation.folder.home("north") / "faults").iterdir())
    assert CANARY in faults[0].read_text()
    logs = [federation.folder.log(name).read_text() for name in ("agent-north", "orchestrator")]
    assert all(CANARY not in log for log in logs)
    assert names.experiment_of(run) == "fault"
