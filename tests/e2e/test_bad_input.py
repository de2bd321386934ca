"""Everything that can be wrong with what arrives, each ending where the design says, while a good experiment goes on.

One federation for all: `north` and `south` run a good experiment, of which each test lets one more round through;
`west` has an owner with narrow rules; `rogue` is enrolled but has no agent: the tests speak in its place.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from messages import names
from tests.federation import DIGEST, TASK, TRAINERS, Federation, Letter, Silo, announcement, payload_of, safetensors

pytestmark = pytest.mark.slow

SECRET = "hunter2-5f3e"
"""Stands where values stand, and must never come back in a reason."""
RUN = "bad_0123abcd"
MODEL = {"layer.weight": np.zeros((4, 3), np.float32), "layer.bias": np.zeros(3, np.float32)}

GOOD = "good"
ROUNDS = 12
EACH_ROUND = 2.0
"""What north (adds 1) and south (adds 3), with as many samples, add together."""

NARROW: dict[str, dict[str, Any]] = {
    "strict": {
        "limits": {
            "quorum": 2,
            "silos": 2,
            "hyperparameters": {
                "lr": {"min": 0.001, "max": 1.0},
                "optimizer": {"one_of": ["sgd"]},
                "delay": {"min": 0, "max": 9},
            },
        },
        "outbound": {"dtypes": ["float32"]},
    },
    "once": {"limits": {"rounds": 1}},
    "edited": {},
    "no-bias": {"outbound": {"tensors": ["*", "!*.bias"]}},
    "doubles": {"outbound": {"dtypes": ["float64"]}},
    "tiny": {"outbound": {"max_bytes": 100}},
    "few": {"environment": {"SAMPLES": "7"}, "outbound": {"min_samples": 20}},
    "measured": {
        "outbound": {"metrics": {"level": {"min": 0, "max": 1}, "ranking": {}}, "min_samples": 20, "min_cell": 5}
    },
}
"""Tasks of west, each with one rule that some test breaks. South allows all of them, and one that west does not."""


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    code = Path(shutil.copy(TRAINERS / "add.py", tmp_path_factory.mktemp("approved")))
    silos = (
        Silo("north", 1, 64, {"steady": {}}),
        Silo("south", 3, 64, {"steady": {}, "southern": {}, **{task: {} for task in NARROW}}),
        Silo("west", 5, 64, NARROW | {"edited": {"script": code}}),
        Silo("rogue", agent=False),
    )
    with Federation(silos) as running:
        Rogue(running).says_hello()
        running.allow(GOOD, 1)
        run = running.start_experiment(GOOD, task="steady", rounds=ROUNDS, silos=["north", "south"])
        running.wait_for_round(GOOD, 2)
        yield running
        running.allow(GOOD, ROUNDS)
        running.wait_for(GOOD)
        final = running.weights(run, ROUNDS)
        assert all((tensor == ROUNDS * EACH_ROUND).all() for tensor in final.values())
        for log in running.folder.log("bus").parent.iterdir():
            assert "message.bug" not in log.read_text(), log.name


@pytest.fixture(autouse=True)
def the_good_experiment_goes_on(federation: Federation) -> Iterator[None]:
    """After each test another of its rounds is let through; the last is kept for the end."""
    yield
    state = federation.status(GOOD)
    assert state is not None
    assert state.phase == "collecting", "the good experiment was disturbed"
    if state.round < ROUNDS:
        federation.allow(GOOD, state.round)
        federation.wait_for_round(GOOD, state.round + 1)


@pytest.fixture
def rogue(federation: Federation) -> Rogue:
    return Rogue(federation)


class Rogue:
    """An enrolled silo that says what it likes: only its queue and its container are its own."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation

    def says_hello(self) -> None:
        """Offers the task, as an agent would."""
        hello = {
            "kind": "silo-hello",
            "instance": "0" * 32,
            "agent_version": "1",
            "policy": DIGEST,
            "offers": [{"task": TASK, "code": DIGEST}],
            "at": datetime.now(UTC).isoformat(),
        }
        self.federation.post(hello, "from-rogue")
        self.federation.until(lambda: self.federation.presence("rogue"), "the hello of rogue was not taken")

    def asked(self, experiment: str, **more: Any) -> dict[str, Any]:
        """Starts an experiment over north and rogue, which fails without an update of rogue's; its announcement."""
        initial = safetensors(MODEL)
        digest = sha256(initial).hexdigest()
        if self.federation.document(names.INITIAL, names.initial_blob(digest)) is None:
            self.federation.create(names.INITIAL, names.initial_blob(digest), initial)
        asked: dict[str, Any] = {
            "silos": ["north", "rogue"],
            "initial": {"sha256": digest},
            "quorum": {"minimum": "all", "reminders": 0, "deadline": 60},
        }
        self.federation.start_experiment(experiment, **(asked | more))
        while True:
            announced = self.federation.receive("to-rogue").json
            if announced["kind"] == "round-announced" and announced["experiment"] == experiment:
                return dict(announced)

    def uploads(self, asked: Mapping[str, Any], data: bytes, *, under: str | None = None) -> dict[str, Any]:
        """Creates a weights blob; the payload that describes it."""
        digest = under or sha256(data).hexdigest()
        self.federation.create("updates-rogue", names.weights_blob(asked["run"], asked["round"], digest), data)
        return payload_of(data) | {"sha256": digest}

    def publishes(self, asked: Mapping[str, Any], payload: Mapping[str, Any] | None, **more: Any) -> str:
        """Sends update-published; its message id."""
        return self.federation.post(update(asked, payload, **more), "from-rogue")


def update(asked: Mapping[str, Any], payload: Mapping[str, Any] | None, **more: Any) -> dict[str, Any]:
    """An update-published as an agent would send it, but for `more`."""
    return {
        "kind": "update-published",
        "run": asked["run"],
        "round": asked["round"],
        "purpose": asked["purpose"],
        "announcement": 1,
        "payloads": {} if payload is None else {"weights": payload},
        "samples": 64,
        "steps": 1,
        "metrics": [],
        "code": DIGEST,
        "policy": DIGEST,
        "seconds": 0.1,
        **more,
    }


def good_update() -> bytes:
    return safetensors({name: tensor + np.float32(7) for name, tensor in MODEL.items()})


def explains(federation: Federation, letter: Letter, reason: str, *words: str) -> None:
    """The dead letter has this reason, a description with these words, and nothing of what was secret."""
    assert letter.reason == reason, letter.description
    for word in words:
        assert word in letter.description
    assert SECRET not in letter.description
    assert not [key for key in federation.secrets if key in letter.description]
    assert str(federation.folder.root) not in letter.description


# --- what an operator posts -------------------------------------------------------------------------------------------

START = {"kind": "start-experiment", "experiment": "bad", "task": TASK, "rounds": 1}


def start(**changes: Any) -> bytes:
    return json.dumps(START | changes).encode()


OPERATOR = {
    "not JSON": (b"{'kind': 'start-experiment', 'note': 'hunter2-5f3e'}", "not-json", "not UTF-8 JSON"),
    "not text": (b"\xff\xfe\x00start", "not-json", "not UTF-8 JSON"),
    "nested without end": (b"[" * 100_000, "not-json", "not UTF-8 JSON"),
    "a list": (json.dumps([START, SECRET]).encode(), "unknown-kind", "start-experiment"),
    "no kind": (json.dumps({"experiment": "bad", "note": SECRET}).encode(), "unknown-kind", "needs a field `kind`"),
    "wrong kind": (start(kind="round-announced", note=SECRET), "unexpected-kind", "takes cancel-experiment"),
    "longer than a message may be": (start(note=SECRET * 20_000), "too-large", "200000 is the most"),
    "missing field": (
        json.dumps({"kind": "start-experiment", "experiment": "bad", "task": TASK}).encode(),
        "invalid-message",
        "rounds: Field required",
    ),
    "extra field": (start(round=SECRET), "invalid-message", "round: Extra inputs are not permitted"),
    "wrong type": (start(rounds=SECRET), "invalid-message", "rounds: Input should be a valid integer"),
    "newer version": (start(schema_version=99), "unknown-version", "upgrade the orchestrator"),
    "NaN learning rate": (start(hyperparameters={"lr": float("nan")}), "not-json", "NaN is not a JSON number"),
    "infinite learning rate": (
        start(hyperparameters={"lr": 0}).replace(b"0}", b"1e999}"),
        "invalid-message",
        "hyperparameters.lr",
    ),
    "NaN in a schedule": (
        start(hyperparameters={"lr": {"by_round": {"1": float("nan")}}}),
        "not-json",
        "NaN is not a JSON number",
    ),
    "an id with ../": (start(experiment=f"../../{SECRET}"), "invalid-message", "experiment: String should match"),
    "a task with ../": (start(task=f"../{SECRET}"), "invalid-message", "task: String should match"),
    "a silo with ../": (start(silos=["north", "../south"]), "invalid-message", "silos.1: String should match"),
    "a line feed after an id": (start(experiment="bad\n"), "invalid-message", "experiment: String should match"),
    "a location in a message": (
        start(initial={"url": f"https://example.invalid/{SECRET}"}),
        "invalid-message",
        "initial",
    ),
    "a path as a digest": (start(initial={"sha256": "../" * 21 + "x"}), "invalid-message", "initial"),
    "a task no silo offers": (start(task="unheard-of"), "task-not-offered", "No silo offers the task unheard-of"),
    "a silo that is not enrolled": (start(silos=["north", "atlantis"]), "unknown-silos", "atlantis"),
    "a silo twice": (start(silos=["north", "north"]), "invalid-message", "listed twice"),
    "a quorum larger than the silos listed": (
        start(silos=["north", "south"], quorum={"minimum": 3}),
        "invalid-message",
        "3 silos needed, but 2 listed",
    ),
    "a quorum larger than the silos that offer": (
        start(quorum={"minimum": 9}),
        "quorum-too-large",
        "The quorum is 9 updates, but only 4 silos",
    ),
    "overrides for a stranger": (
        start(silos=["north"], overrides={"south": {"lr": 0.1}}),
        "invalid-message",
        "not among the silos: south",
    ),
    "a share that lets nothing through": (
        start(share=["*", "!*"]),
        "nothing-shared",
        "share: *, !* lets no tensor through",
    ),
    "an unknown strategy": (start(strategy={"name": "fedmagic"}), "unknown-strategy", "fedavg"),
    "initial weights that are not there": (start(initial={"sha256": DIGEST}), "initial-not-found", "Upload it first"),
    "initial weights of an unknown experiment": (
        start(initial={"experiment": "never-was"}),
        "initial-not-found",
        "never-was",
    ),
    "a pause of what never was": (
        json.dumps({"kind": "pause-experiment", "experiment": "never-was"}).encode(),
        "unknown-experiment",
        "Check the name",
    ),
}


@pytest.mark.parametrize("what", OPERATOR)
def test_an_operators_mistake_is_dead_lettered_with_what_to_change(federation: Federation, what: str) -> None:
    body, reason, words = OPERATOR[what]
    letter = federation.dead_letter("experiments", federation.post(body))
    explains(federation, letter, reason, words)
    assert letter.body == body
    assert federation.status("bad") is None


def test_another_body_under_a_live_name_is_refused_and_the_live_run_is_left_alone(federation: Federation) -> None:
    before = federation.status(GOOD)
    letter = federation.dead_letter("experiments", federation.post(START | {"experiment": GOOD}))
    explains(federation, letter, "experiment-is-live", "Cancel it first, or choose another name")
    after = federation.status(GOOD)
    assert before is not None
    assert after is not None
    assert after.run.id == before.run.id


def test_a_start_posted_twice_is_one_run(federation: Federation) -> None:
    body = json.dumps(START | {"experiment": "twice", "silos": ["north", "south"]}).encode()
    federation.post(body, id="the-same")
    ended = federation.wait_for("twice")
    again = federation.post(body, id="the-same")
    federation.quietly_completed("experiments", again)
    assert federation.status("twice") == ended


# --- what comes on a silo's queue -------------------------------------------------------------------------------------

NOWHERE = {"run": RUN, "round": 1, "purpose": "train"}

FROM_SILO: dict[str, tuple[bytes | dict[str, Any], str, str]] = {
    "not JSON": (b"update!", "not-json", "not UTF-8 JSON"),
    "an operator's message": (START, "unexpected-kind", "This queue takes round-declined"),
    "an announcement": ({"kind": "round-announced", "note": SECRET}, "unexpected-kind", "round-announced"),
    "the orchestrator's own work": (
        {"kind": "aggregate-round", "run": RUN, "round": 1},
        "unexpected-kind",
        "aggregate-round",
    ),
    "missing fields": ({"kind": "update-published", "run": RUN}, "invalid-message", "round: Field required"),
    "a run with ../": (update(NOWHERE | {"run": "../../x_0123abcd"}, None), "invalid-message", "run: String should"),
    "a negative count": (update(NOWHERE, None, samples=-1), "invalid-message", "samples: Input should be greater"),
    "a round that is no number": (update(NOWHERE | {"round": SECRET}, None), "invalid-message", "round: Input should"),
    "a digest that is a path": (
        update(NOWHERE, payload_of(good_update()) | {"sha256": f"../../global/{SECRET}"}),
        "invalid-message",
        "payloads.weights.sha256: String should match",
    ),
    "a NaN metric": (
        update(
            NOWHERE,
            None,
            metrics=[{"name": "l", "phase": "received", "kind": "mean", "count": 1, "value": float("nan")}],
        ),
        "not-json",
        "NaN is not a JSON number",
    ),
    "a histogram that does not add up": (
        update(
            NOWHERE,
            None,
            metrics=[
                {
                    "name": "l",
                    "phase": "received",
                    "kind": "histogram",
                    "count": 9,
                    "positive": [1, 1],
                    "negative": [1, 1],
                }
            ],
        ),
        "invalid-message",
        "add up to its count",
    ),
    "free text as a reason": (
        {"kind": "round-declined", "run": RUN, "round": 1, "reason": SECRET},
        "invalid-message",
        "reason: Input should be",
    ),
    "an update for an unknown run": (update(NOWHERE, payload_of(good_update())), "unknown-run", RUN),
    "a refusal for an unknown run": (
        {"kind": "round-declined", "run": RUN, "round": 1, "reason": "budget-spent"},
        "unknown-run",
        RUN,
    ),
}


@pytest.mark.parametrize("what", FROM_SILO)
def test_a_silos_nonsense_is_dead_lettered_on_its_own_queue(federation: Federation, what: str) -> None:
    body, reason, words = FROM_SILO[what]
    letter = federation.dead_letter("from-rogue", federation.post(body, "from-rogue"))
    explains(federation, letter, reason, words)


@pytest.mark.parametrize("kind", ["update-published", "round-declined", "training-failed"])
def test_a_silo_that_was_not_asked_has_no_say_in_a_run(federation: Federation, rogue: Rogue, kind: str) -> None:
    good = federation.status(GOOD)
    assert good is not None
    message = update({"run": good.run.id, "round": good.round, "purpose": "train"}, payload_of(good_update()))
    message |= {"kind": kind, "reason": "budget-spent", "category": "timeout", "tries": 1}
    letter = federation.dead_letter("from-rogue", federation.post(message, "from-rogue"))
    explains(federation, letter, "not-asked", "rogue was not asked", "north, south")


def test_an_update_for_a_round_not_yet_announced_is_refused(federation: Federation, rogue: Rogue) -> None:
    asked = rogue.asked("eager")
    payload = rogue.uploads(asked | {"round": 5}, good_update())
    letter = federation.dead_letter("from-rogue", rogue.publishes(asked | {"round": 5}, payload))
    explains(federation, letter, "unknown-round", "Round 5", "has not been announced")
    rogue.publishes(asked, rogue.uploads(asked, good_update()))
    federation.wait_for_round("eager", 2)  # the evaluation: what counted was the update for the open round
    cancel(federation, "eager")


# --- updates ----------------------------------------------------------------------------------------------------------


def test_a_good_update_sent_by_hand_counts(federation: Federation, rogue: Rogue) -> None:
    """What all tests below do, done right: without this they would prove nothing."""
    asked = rogue.asked("by-hand")
    rogue.publishes(asked, rogue.uploads(asked, good_update()))
    federation.wait_for_round("by-hand", 2)
    assert all((tensor == 4).all() for tensor in federation.weights(asked["run"], 1).values())  # (1 + 7) / 2
    cancel(federation, "by-hand")


def header(entries: Mapping[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


WEIGHTS: dict[str, tuple[bytes, str, str]] = {
    "the wrong shape": (
        safetensors(MODEL | {"layer.bias": np.zeros(4, np.float32)}),
        "layout-mismatch",
        "layer.bias (4,), not (3,)",
    ),
    "the wrong dtype": (
        safetensors(MODEL | {"layer.bias": np.zeros(3, np.float64)}),
        "layout-mismatch",
        "layer.bias F64, not F32",
    ),
    "a tensor missing": (
        safetensors({"layer.weight": MODEL["layer.weight"]}),
        "layout-mismatch",
        "missing: layer.bias",
    ),
    "a tensor too many": (
        safetensors(MODEL | {"extra": np.zeros(1, np.float32)}),
        "layout-mismatch",
        "not expected: extra",
    ),
    "an infinite value": (
        safetensors(MODEL | {"layer.bias": np.array([0, np.inf, 0], np.float32)}),
        "not-finite",
        "layer.bias",
    ),
    "a NaN": (
        safetensors(MODEL | {"layer.weight": np.full((4, 3), np.nan, np.float32)}),
        "not-finite",
        "layer.weight",
    ),
    "no tensor at all": (safetensors({}), "layout-mismatch", "missing"),
    "a truncated file": (good_update()[:-5], "truncated", "the file has"),
    "bytes after the end": (good_update() + bytes(8), "offsets-invalid", "follow the last tensor"),
    "a header of 2^62 bytes": ((1 << 62).to_bytes(8, "little") + bytes(64), "header-too-large", "25000000 is the most"),
    "a header longer than the file": (
        (1 << 20).to_bytes(8, "little") + b"{}",
        "truncated",
        "The header claims 1048576",
    ),
    "a header that is not JSON": (header({})[:8] + b"[]", "header-invalid", "not a safetensors file"),
    "a tensor of 2^47 numbers": (header({"layer.bias": tensor([1 << 47], 0, 1 << 49)}), "truncated", "describes"),
    "a shape that overflows": (
        header({"layer.bias": tensor([1 << 40, 1 << 40], 0, 4)}, bytes(4)),
        "offsets-invalid",
        "does not fill",
    ),
    "tensors over one another": (
        header({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)),
        "offsets-invalid",
        "overlaps",
    ),
    "a negative offset": (header({"a": tensor([1], -4, 0)}, bytes(4)), "offsets-invalid", "not two positions"),
    "an unknown dtype": (header({"a": tensor([1], 0, 4, "F8_E4M3")}, bytes(4)), "unknown-dtype", "known: BOOL"),
    "a name twice": (
        (18).to_bytes(8, "little") + b'{"a": {}, "a": {}}',
        "header-invalid",
        "a key twice",
    ),
    "a pickle": (pickle.dumps(MODEL), "header-too-large", "is the most"),
}


@pytest.mark.parametrize("what", WEIGHTS)
def test_an_update_that_is_not_what_was_asked_for_is_rejected_and_its_run_is_told(
    federation: Federation, rogue: Rogue, what: str
) -> None:
    data, reason, words = WEIGHTS[what]
    experiment = f"weights-{list(WEIGHTS).index(what)}"
    asked = rogue.asked(experiment)
    message_id = rogue.publishes(asked, rogue.uploads(asked, data))
    rejected(federation, experiment, message_id, reason, words)


def rejected(federation: Federation, experiment: str, message_id: str, reason: str, *words: str) -> None:
    """The message is a dead letter with this reason, and the run did not wait for it: it failed, saying the same."""
    explains(federation, federation.dead_letter("from-rogue", message_id), reason, *words)
    ended = federation.wait_for(experiment, "failed")
    assert "no quorum" in ended.reason
    assert f"rogue: failed: {reason}" in ended.reason


UploadAndSend = Callable[[Rogue, dict[str, Any]], str]


def _other_content(rogue: Rogue, asked: dict[str, Any]) -> str:
    digest = sha256(good_update()).hexdigest()
    other = safetensors({name: tensor + np.float32(8) for name, tensor in MODEL.items()})
    return rogue.publishes(asked, rogue.uploads(asked, other, under=digest))


def _nothing_uploaded(rogue: Rogue, asked: dict[str, Any]) -> str:
    return rogue.publishes(asked, payload_of(good_update()))


def _elsewhere(rogue: Rogue, asked: dict[str, Any]) -> str:
    """A sound update, but in another round's place, with a message that says where it is in every way one could."""
    payload = rogue.uploads(asked | {"round": 4}, good_update())
    place = names.weights_blob(asked["run"], 4, payload["sha256"])
    path = str(rogue.federation.folder.store / "updates-rogue" / place)
    where = {"url": f"file://{path}", "path": path, "container": "updates-rogue", "blob": place, "name": place}
    return rogue.publishes(asked, payload | where, **where)


def _anothers(rogue: Rogue, asked: dict[str, Any]) -> str:
    """The digest of what north published in this round: it lies in north's container, not in rogue's."""
    prefix = rogue.federation.folder.store / "updates-north" / asked["run"] / "00001"
    found: list[Path] = rogue.federation.until(lambda: list(prefix.glob("*.safetensors")), "north does not publish")
    data = found[0].read_bytes()
    return rogue.publishes(asked, payload_of(data))


def _changed(rogue: Rogue, asked: dict[str, Any], **changes: Any) -> str:
    return rogue.publishes(asked, rogue.uploads(asked, good_update()) | changes)


UNTRUE: dict[str, tuple[UploadAndSend, str, str]] = {
    "other content than its digest": (_other_content, "digest-mismatch", "SHA-256"),
    "nothing uploaded": (_nothing_uploaded, "weights-not-found", "not where they must be"),
    "a location in the message": (_elsewhere, "weights-not-found", "not where they must be"),
    "another silo's update": (_anothers, "weights-not-found", "not where they must be"),
    "another size": (partial(_changed, bytes=4_000_000_000), "size-mismatch", "announced 4000000000 bytes"),
    "another layout": (partial(_changed, layout=DIGEST), "layout-mismatch", "another layout"),
    "a delta where weights were asked for": (partial(_changed, form="delta"), "wrong-form", "takes weights, not delta"),
    "no weights": (lambda rogue, asked: rogue.publishes(asked, None), "payload-missing", "names no weights"),
    "another purpose": (
        lambda rogue, asked: rogue.publishes(asked, None, purpose="evaluate"),
        "wrong-purpose",
        "is for train, the update for evaluate",
    ),
    "a NaN metric": (
        lambda rogue, asked: rogue.publishes(
            asked,
            None,
            metrics=[{"name": "l", "phase": "received", "kind": "mean", "count": 1, "value": float("nan")}],
        ),
        "not-json",
        "NaN",
    ),
    "a metric of no known kind": (
        lambda rogue, asked: rogue.publishes(asked, None, metrics=[{"kind": "gossip", "text": SECRET}]),
        "invalid-message",
        "metrics.0",
    ),
}


@pytest.mark.parametrize("what", UNTRUE)
def test_an_update_that_is_not_as_its_message_says_is_rejected_and_its_run_is_told(
    federation: Federation, rogue: Rogue, what: str
) -> None:
    send, reason, words = UNTRUE[what]
    experiment = f"untrue-{list(UNTRUE).index(what)}"
    rejected(federation, experiment, send(rogue, rogue.asked(experiment)), reason, words)


def test_a_second_update_with_other_content_is_refused_and_the_first_counts(
    federation: Federation, rogue: Rogue
) -> None:
    with federation.held("north"):  # so that the round stays open
        asked = rogue.asked("changeable")
        first = rogue.publishes(asked, rogue.uploads(asked, good_update()))
        federation.quietly_completed("from-rogue", first)
        other = safetensors({name: tensor + np.float32(1000) for name, tensor in MODEL.items()})
        letter = federation.dead_letter("from-rogue", rogue.publishes(asked, rogue.uploads(asked, other)))
        explains(federation, letter, "update-conflict", "the first one was counted", "two agents")
    federation.wait_for_round("changeable", 2)
    assert all((tensor == 4).all() for tensor in federation.weights(asked["run"], 1).values())
    cancel(federation, "changeable")


def test_the_same_update_twice_counts_once(federation: Federation, rogue: Rogue) -> None:
    with federation.held("north"):
        asked = rogue.asked("insistent")
        payload = rogue.uploads(asked, good_update())
        for _ in range(3):
            federation.quietly_completed("from-rogue", rogue.publishes(asked, payload))
    federation.wait_for_round("insistent", 2)
    assert all((tensor == 4).all() for tensor in federation.weights(asked["run"], 1).values())
    cancel(federation, "insistent")


def test_a_late_update_is_ignored_once_the_round_has_closed(federation: Federation, rogue: Rogue) -> None:
    asked = rogue.asked("late", quorum={"minimum": 1, "grace": 0, "deadline": 60})
    federation.until(lambda: federation.record(asked["run"], 1), "round 1 does not close")
    federation.quietly_completed("from-rogue", rogue.publishes(asked, rogue.uploads(asked, good_update())))
    assert all((tensor == 1).all() for tensor in federation.weights(asked["run"], 1).values())  # north's alone
    federation.wait_for("late")
    federation.quietly_completed("from-rogue", rogue.publishes(asked, payload_of(good_update())))


def cancel(federation: Federation, experiment: str) -> None:
    federation.post({"kind": "cancel-experiment", "experiment": experiment})
    federation.wait_for(experiment, "cancelled")


# --- what comes to a silo ---------------------------------------------------------------------------------------------

TO_SILO: dict[str, tuple[bytes | dict[str, Any], str, str]] = {
    "not JSON": (b"round!", "not-json", "not UTF-8 JSON"),
    "an operator's message": (START, "unexpected-kind", "round-announced"),
    "missing fields": ({"kind": "round-announced", "run": RUN, "note": SECRET}, "invalid-message", "Field required"),
    "a run with ../": (
        {"kind": "round-closed", "run": "../../x_0123abcd", "round": 1, "because": "failed"},
        "invalid-message",
        "run: String should match",
    ),
}


@pytest.mark.parametrize("what", TO_SILO)
def test_nonsense_on_a_silos_queue_is_dead_lettered_there_and_the_agent_goes_on(
    federation: Federation, what: str
) -> None:
    body, reason, words = TO_SILO[what]
    letter = federation.dead_letter("to-west", federation.post(body, "to-west"))
    explains(federation, letter, reason, words)
    federation.start_experiment(name := f"after-{list(TO_SILO).index(what)}", silos=["west"])
    federation.wait_for(name)


# --- what a silo's owner does not allow -------------------------------------------------------------------------------

BREACHES: dict[str, tuple[dict[str, Any], str]] = {
    "a task that is not offered": ({"task": "southern"}, "task-not-offered"),
    "a hyperparameter above its range": (
        {"task": "strict", "hyperparameters": {"lr": 1.5}},
        "hyperparameter-forbidden: lr",
    ),
    "a hyperparameter below its range": (
        {"task": "strict", "hyperparameters": {"lr": 0.0}},
        "hyperparameter-forbidden: lr",
    ),
    "a hyperparameter not listed": (
        {"task": "strict", "hyperparameters": {"epochs": 1}},
        "hyperparameter-forbidden: epochs",
    ),
    "a value not listed": (
        {"task": "strict", "hyperparameters": {"optimizer": SECRET}},
        "hyperparameter-forbidden: optimizer",
    ),
    "a word for a number": ({"task": "strict", "hyperparameters": {"lr": "0.1"}}, "hyperparameter-forbidden: lr"),
    "a schedule that leaves the range": (
        {"task": "strict", "rounds": 2, "hyperparameters": {"delay": {"by_round": {"1": 0, "2": 10}}}},
        "hyperparameter-forbidden: delay",
    ),
    "too few silos": ({"task": "strict", "silos": ["west"]}, "too-few-silos"),
    "a budget spent": ({"task": "once", "rounds": 2}, "budget-spent"),
    "a transfer dtype": ({"task": "strict", "transfer": {"dtype": "float16"}}, "transfer-forbidden: float16"),
    "a tensor named in share": ({"task": "no-bias", "share": ["layer.bias"]}, "outbound-forbidden"),
    "a tensor that may not leave": ({"task": "no-bias"}, "outbound-forbidden"),
    "a dtype that may not leave": ({"task": "doubles"}, "outbound-forbidden"),
    "more bytes than may leave": ({"task": "tiny"}, "outbound-forbidden"),
    "too few samples": ({"task": "few"}, "too-few-samples"),
}


@pytest.mark.parametrize("what", BREACHES)
def test_what_an_owner_does_not_allow_is_declined_with_a_word_from_the_closed_list(
    federation: Federation, what: str
) -> None:
    asked, reason = BREACHES[what]
    asked = {"silos": ["west", "south"], "quorum": {"minimum": "all", "reminders": 0}} | asked
    declined(federation, f"breach-{list(BREACHES).index(what)}", reason, **asked)


def test_a_quorum_too_small_for_an_owner_is_declined_and_the_others_go_on_without_that_silo(
    federation: Federation,
) -> None:
    run = federation.start_experiment(
        "small", task="strict", silos=["west", "south"], quorum={"minimum": 1, "grace": 0, "deadline": 60}
    )
    federation.wait_for("small")
    record = federation.until(lambda: federation.record(run, 1), "round 1 is not recorded")
    assert [update.silo for update in record.updates] == ["south"]
    assert record.others["west"] in {"declined: quorum-too-small", "had not answered"}
    federation.until(lambda: said(federation, "west", run, "round-declined"), "west does not decline")
    assert {m["reason"] for m in said(federation, "west", run, "round-declined")} == {"quorum-too-small"}
    assert not said(federation, "west", run, "update-published")


def said(federation: Federation, silo: str, run: str, kind: str) -> list[dict[str, Any]]:
    """What a silo said about a run after round 0, by its own log of what left."""
    messages = [entry["message"] for entry in federation.egress(silo) if "message" in entry]
    return [m for m in messages if m["kind"] == kind and m["run"] == run and m["round"] > 0]


def test_code_changed_after_approval_is_not_run(federation: Federation, tmp_path: Path) -> None:
    silo = federation.folder.silo("west").read_text()
    (code,) = {Path(word) for word in silo.split() if word.endswith("add.py") and "approved" in word}
    approved = code.read_bytes()
    touched = tmp_path / "it-ran"
    code.write_bytes(approved + f"\nopen({str(touched)!r}, 'w')\n".encode())
    try:
        declined(federation, "edited", "code-not-approved", task="edited", silos=["west", "south"])
    finally:
        code.write_bytes(approved)
    assert not touched.exists()
    federation.start_experiment("restored", task="edited", silos=["west", "south"])
    federation.wait_for("restored")


def declined(federation: Federation, experiment: str, reason: str, **asked: Any) -> None:
    """The run fails and says that west declined, and why; no update left west, and nothing became a dead letter."""
    run = federation.start_experiment(experiment, **asked)
    ended = federation.wait_for(experiment, "failed")
    assert f"west: declined: {reason}" in ended.reason
    assert SECRET not in ended.reason
    last = federation.folder.store / "updates-west" / run / f"{ended.round:05d}"
    assert not list(last.glob("*")), "something left"
    assert not [letter for letter in federation.dead_letters("to-west") if run.encode() in letter.body]
    assert not [letter for letter in federation.dead_letters("from-west") if run.encode() in letter.body]


def test_metrics_leave_only_as_the_owner_allows(federation: Federation) -> None:
    """`level` is 0 before round 1 and 4 afterwards, `unnamed` is not in the rules, `ranking` has small cells."""
    run = federation.start_experiment("measured", task="measured", rounds=1, silos=["west", "south"])
    federation.wait_for("measured")

    def left(round_number: int) -> dict[str, dict[str, Any]]:
        sent = federation.document("updates-west", names.publication_blob(run, round_number))
        assert sent is not None
        return {metric["name"]: metric for metric in json.loads(sent)["metrics"]}

    first, evaluation = left(1), left(2)
    assert first.keys() == {"level", "ranking"}, "a metric left that the owner does not name"
    assert evaluation.keys() == {"ranking"}, "a value left that is outside its range"
    for ranking in (first["ranking"], evaluation["ranking"]):
        assert (ranking["positive"], ranking["negative"]) == ([0, 6], [30, 0]), "small cells leave as 0"
        assert ranking["count"] == 36


def test_an_announcement_of_weights_that_are_not_there_is_declined(federation: Federation) -> None:
    """Forged: no orchestrator would announce it. The agent's answer is about an unknown run, and ends as such."""
    payload = payload_of(good_update())
    run = "forged_0123abcd"
    federation.post(announcement(run, payload), "to-west")
    letter = answer(federation, run)
    assert letter.json["reason"] == "weights-missing"


def test_announced_weights_that_are_not_sound_are_declined(federation: Federation) -> None:
    data = safetensors(MODEL | {"layer.bias": np.full(3, np.inf, np.float32)})
    run = "forged_4567abcd"
    federation.create(names.GLOBAL, names.weights_blob(run, 0, sha256(data).hexdigest()), data)
    federation.post(announcement(run, payload_of(data)), "to-west")
    assert answer(federation, run).json["reason"] == "weights-invalid"


def answer(federation: Federation, run: str) -> Letter:
    """What west answered about a run that nobody knows: a dead letter on its queue."""

    def found() -> Letter | None:
        return next((i for i in federation.dead_letters("from-west") if run.encode() in i.body), None)

    letter = federation.until(found, "west does not answer")
    explains(federation, letter, "unknown-run", run)
    return letter
