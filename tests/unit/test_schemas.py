"""Messages: they survive the wire, say which field is wrong, and never repeat what was in it."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from messages import codec, experiments, schemas
from messages.codec import decode, encode
from messages.errors import Poison
from messages.experiments import CancelExperiment, PauseExperiment, Quorum, ResumeExperiment, Schedule, StartExperiment
from messages.schemas import (
    ConfusionMetric,
    Head,
    HistogramMetric,
    MeanMetric,
    Offer,
    Payload,
    Purpose,
    RoundAnnounced,
    RoundClosed,
    SiloHello,
    SumMetric,
    UpdatePublished,
)

ALL: tuple[type[BaseModel], ...] = (
    *(StartExperiment, CancelExperiment, PauseExperiment, ResumeExperiment, RoundAnnounced, RoundClosed, SiloHello),
    *(UpdatePublished, schemas.RoundDeclined, schemas.TrainingFailed, schemas.SiloHeartbeat),
    *(schemas.AggregateRound, schemas.DeadlinePassed, schemas.GraceOver),
)
OPERATORS = (StartExperiment, CancelExperiment, PauseExperiment, ResumeExperiment)
RUN, DIGEST = "mnist_0123abcd", "9f" * 32
SECRET = "c2VjcmV0c2VjcmV0"

names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True)
runs = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?_[0-9a-f]{8}", fullmatch=True)
digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
rounds = st.integers(0, 99_999)
counts = st.integers(0, 10**12)
finite = st.floats(allow_nan=False, allow_infinity=False)
words = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", fullmatch=True)
scalars = st.booleans() | st.integers(-(2**62), 2**62) | finite | st.text(st.characters(codec="utf-8"), max_size=200)
times = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)).map(lambda t: t.replace(tzinfo=UTC))
globs = st.from_regex(r"!?[a-z*?.\[\]]{1,30}", fullmatch=True)
payloads = st.builds(
    Payload, sha256=digests, layout=digests, bytes=st.integers(8, 1 << 50), form=st.sampled_from(["weights", "delta"])
)
schedules = st.dictionaries(st.integers(2, 99_999), scalars, max_size=5).flatmap(
    lambda later: scalars.map(lambda first: Schedule(by_round={1: first, **later}))
)
hyperparameters = st.dictionaries(words, scalars | schedules, max_size=4)
histograms = st.integers(2, 20).flatmap(
    lambda bins: st.tuples(*[st.lists(st.integers(0, 1000), min_size=bins, max_size=bins)] * 2)
)
phases = st.sampled_from(["received", "trained"])
metrics = (
    st.builds(MeanMetric, name=words, phase=phases, count=counts, value=finite)
    | st.builds(SumMetric, name=words, phase=phases, count=counts, value=finite)
    | st.builds(
        lambda name, phase, bins: HistogramMetric(
            name=name, phase=phase, positive=bins[0], negative=bins[1], count=sum(map(sum, bins))
        ),
        words,
        phases,
        histograms,
    )
    | st.builds(
        lambda name, phase, cells: ConfusionMetric(
            name=name, phase=phase, matrix=[cells[:2], cells[2:]], count=sum(cells)
        ),
        words,
        phases,
        st.lists(st.integers(0, 1000), min_size=4, max_size=4),
    )
)
starts = st.builds(
    StartExperiment,
    experiment=names,
    task=names,
    rounds=st.integers(1, 99_000),
    silos=st.none() | st.lists(names, min_size=1, max_size=5, unique=True),
    quorum=st.builds(
        Quorum,
        minimum=st.just("all") | st.just(1) | st.floats(0, 1, exclude_min=True, exclude_max=True),
        grace=st.floats(0, 1e6),
        deadline=st.floats(1, 1e6),
        reminders=st.integers(0, 1000),
    ),
    initial=st.none()
    | st.builds(experiments.FromDigest, sha256=digests)
    | st.builds(experiments.FromExperiment, experiment=names, round=rounds | st.sampled_from(["best", "last"])),
    hyperparameters=hyperparameters,
    metric=st.none() | st.builds(experiments.Metric, name=words, mode=st.sampled_from(["max", "min"])),
    share=st.lists(globs, min_size=1, max_size=4),
)
updates = st.builds(
    UpdatePublished,
    run=runs,
    round=rounds,
    purpose=st.sampled_from(Purpose),
    announcement=st.integers(1, 10**6),
    payloads=st.fixed_dictionaries({}, optional={"weights": payloads}),
    samples=counts,
    steps=counts,
    metrics=st.lists(metrics, max_size=4),
    hyperparameters=st.dictionaries(words, scalars, max_size=4),
    code=digests,
    policy=digests,
    seconds=st.floats(0, 1e9),
)
announcements = st.builds(
    RoundAnnounced,
    experiment=names,
    run=runs,
    round=rounds,
    purpose=st.sampled_from(Purpose),
    announcement=st.integers(1, 10**6),
    task=names,
    payloads=st.fixed_dictionaries({}, optional={"weights": payloads}),
    hyperparameters=st.dictionaries(words, scalars, max_size=4),
    silos=st.integers(1, 10_000),
    quorum=st.integers(1, 10_000),
    deadline=times,
)
hellos = st.builds(
    SiloHello,
    instance=st.from_regex(r"[0-9a-f]{32}", fullmatch=True),
    agent_version=st.text(st.characters(codec="utf-8"), max_size=40),
    policy=digests,
    offers=st.lists(st.builds(Offer, task=names, code=digests), max_size=3),
    at=times,
)
others = (
    st.builds(CancelExperiment, experiment=names, run=st.none() | runs)
    | st.builds(RoundClosed, run=runs, round=rounds, because=st.sampled_from(schemas.ClosedBecause))
    | st.builds(schemas.RoundDeclined, run=runs, round=rounds, reason=st.sampled_from(schemas.DeclineReason))
    | st.builds(schemas.GraceOver, run=runs, round=rounds, announcement=st.integers(1))
)


def types_within(value: Any) -> Any:
    """1, 1.0 and True are equal in Python, and different as hyperparameters."""
    match value:
        case dict():
            return {k: types_within(v) for k, v in value.items()}
        case list():
            return [types_within(v) for v in value]
        case _:
            return type(value)


@settings(max_examples=60, deadline=None)
@given(starts | updates | announcements | hellos | others)
def test_a_message_survives_the_wire_with_every_type(message: BaseModel) -> None:
    again = decode(encode(message), *ALL)
    assert again == message
    assert type(again) is type(message)
    assert types_within(again.model_dump()) == types_within(message.model_dump())


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_whatever_is_not_a_message_is_poison(body: bytes) -> None:
    with pytest.raises(Poison):
        decode(body, *ALL)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_message_with_any_field_spoiled_is_accepted_or_poison_never_another_error(data: st.DataObject) -> None:
    fields = json.loads(encode(data.draw(starts | updates | announcements | hellos | others)))
    field = data.draw(st.sampled_from(sorted(fields)))
    fields[field] = data.draw(json_values)
    message: BaseModel | None = None
    poison: Poison | None = None
    try:
        message = decode(json.dumps(fields).encode(), *ALL)
    except Poison as caught:
        poison = caught
    if poison is not None:
        assert poison.reason in ("invalid-message", "unknown-kind", "unexpected-kind", "unknown-version")
        assert len(poison.description) < 4000
    if message is not None:
        assert decode(encode(message), *ALL) == message


# --- strict and tolerant ---------------------------------------------------------------------------------------------


def closed(**fields: Any) -> dict[str, Any]:
    return {"kind": "round-closed", "run": RUN, "round": 3, "because": "failed"} | fields


def start(**fields: Any) -> dict[str, Any]:
    return {"kind": "start-experiment", "experiment": "mnist", "task": "digits", "rounds": 3} | fields


def poison_of(fields: Any, *expected: type[BaseModel]) -> Poison:
    with pytest.raises(Poison) as caught:
        decode(fields if isinstance(fields, bytes) else json.dumps(fields).encode(), *(expected or ALL))
    assert caught.value.__cause__ is None
    return caught.value


def test_machine_messages_ignore_fields_of_a_newer_version() -> None:
    message = decode(json.dumps(closed(newer={"a": 1})).encode(), RoundClosed)
    assert message == RoundClosed(run=RUN, round=3, because=schemas.ClosedBecause.FAILED)


def test_an_announcement_may_say_more_of_the_transfer_than_this_version_knows() -> None:
    asked = {
        "kind": "round-announced",
        "experiment": "mnist",
        "run": RUN,
        "round": 1,
        "purpose": "train",
        "announcement": 1,
        "task": "digits",
        "transfer": {"form": "delta", "compression": "newer"},
        "silos": 3,
        "quorum": 2,
        "deadline": "2026-01-01T00:00:00Z",
    }
    assert decode(json.dumps(asked).encode(), RoundAnnounced).transfer == experiments.Transfer(form="delta")


@pytest.mark.parametrize("model", OPERATORS)
def test_operator_messages_refuse_unknown_fields_and_name_them(model: type[BaseModel]) -> None:
    fields = {"kind": model.model_fields["kind"].default, "experiment": "mnist", "roundz": 3}
    assert "roundz: Extra inputs are not permitted" in poison_of(fields, model).description


@pytest.mark.parametrize(
    "nested",
    [
        {"quorum": {"minimun": 2}},
        {"transfer": {"dtyp": "float32"}},
        {"strategy": {"nam": "fedavg"}},
        {"initial": {"sha": DIGEST}},
        {"metric": {"name": "loss", "mod": "min"}},
        {"hyperparameters": {"lr": {"by_round": {"1": 0.1}, "x": 1}}},
    ],
)
def test_operator_messages_refuse_unknown_fields_within_fields(nested: dict[str, Any]) -> None:
    assert poison_of(start(**nested)).reason == "invalid-message"


def test_a_message_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RoundClosed(run=RUN, round=3, because=schemas.ClosedBecause.FAILED).round = 4  # type: ignore[misc]


def test_no_field_holds_a_location_or_a_senders_name() -> None:
    forbidden = {"path", "url", "uri", "container", "blob", "silo", "sender", "queue", "reply_to", "command"}
    for model in ALL:
        assert forbidden & set(model.model_fields) == set(), model


# --- what a description says -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "reason", "says"),
    [
        (b"x" * 200_001, "too-large", ["200001 bytes", "200000 is the most"]),
        (b"\xff\xfe", "not-json", ["UTF-8 JSON"]),
        (b'{"kind":', "not-json", ["UTF-8 JSON"]),
        (b"[" * 100_000, "not-json", ["UTF-8 JSON"]),
        (b'{"kind": "round-closed", "round": NaN}', "not-json", ["NaN is not a JSON number"]),
        (json.dumps(closed()).encode("utf-16"), "not-json", ["UTF-8 JSON"]),
        ([], "unknown-kind", ["`kind`", "round-closed"]),
        ({}, "unknown-kind", ["`kind`", "round-closed"]),
        ({"kind": 7}, "unknown-kind", ["`kind`"]),
        ({"kind": "no-such"}, "unexpected-kind", ["no-such", "round-closed"]),
        (closed(run="Mnist_0123abcd"), "invalid-message", ["round-closed", "run: "]),
        (closed(run=RUN + "\n"), "invalid-message", ["run: "]),
        (closed(run="../../x_0123abcd"), "invalid-message", ["run: "]),
        (closed(round=-1), "invalid-message", ["round: ", "greater than or equal to 0"]),
        (closed(round="three"), "invalid-message", ["round: ", "integer"]),
        (closed(because="boredom"), "invalid-message", ["because: ", "'aggregated', 'cancelled' or 'failed'"]),
        (closed(schema_version=2), "unknown-version", ["upgrade this silo's agent"]),
        ({"kind": "round-closed"}, "invalid-message", ["run: Field required", "round: Field required"]),
        (start(rounds=0), "invalid-message", ["rounds: "]),
        (start(silos=["a", "a"]), "invalid-message", ["silos: a silo is listed twice"]),
        (start(silos=[]), "invalid-message", ["silos: "]),
        (start(silos=["a"], overrides={"b": {}}), "invalid-message", ["overrides: not among the silos: b"]),
        (start(silos=["a"], quorum={"minimum": 2}), "invalid-message", ["2 silos needed, but 1 listed"]),
        (start(hyperparameters={"lr": {"by_round": {"2": 1}}}), "invalid-message", ["value for round 1"]),
        (start(hyperparameters={"lr": None}), "invalid-message", ["hyperparameters.lr"]),
        (start(hyperparameters={"lr": [1]}), "invalid-message", ["hyperparameters.lr"]),
        (start(share=["! x"]), "invalid-message", ["share.0: "]),
        (start(quorum={"deadline": 0}), "invalid-message", ["quorum.deadline: "]),
        (start(strategy={"name": "FedAdam"}), "invalid-message", ["strategy.name: ", "lower-case letters, digits and"]),
        (
            start(strategy={"name": "fedadam", "server_lr": 0.1}),
            "invalid-message",
            ["strategy: there is no field server_lr; what a strategy is told stands under `options`"],
        ),
    ],
)
def test_what_is_wrong_is_named(fields: Any, reason: str, says: list[str]) -> None:
    poison = poison_of(fields)
    assert poison.reason == reason
    for text in says:
        assert text in poison.description


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"quorum": {"minimum": "x"}}, "quorum.minimum: Input should be a valid integer, a valid number or 'all'"),
        ({"quorum": {"minimum": 1.5}}, "quorum.minimum: Input should be a valid integer, less than 1 or 'all'"),
        ({"silos": ["a", "a"]}, "silos: a silo is listed twice"),
        ({"silos": ["a"], "quorum": {"minimum": 2}}, "quorum: 2 silos needed, but 1 listed"),
        (
            {"hyperparameters": {"lr": None}},
            "hyperparameters.lr: Input should be a valid boolean, a valid integer, a valid number, a valid string or "
            "an object",
        ),
        ({"hyperparameters": {"lr": "x" * 300}}, "hyperparameters.lr: String should have at most 200 characters"),
        (
            {"hyperparameters": {"lr": {"by_round": {"2": 1}}}},
            "hyperparameters.lr: a schedule needs a value for round 1",
        ),
        (
            {"overrides": {"a": {"lr": {"by": 1}}}},
            'overrides.a.lr: should be one value, or a schedule such as {"by_round": {"1": 0.1, "10": 0.01}}',
        ),
        (
            {"hyperparameters": {"lr": {"by_round": {"1": 0.1}, "x": 1}}},
            "hyperparameters.lr.x: Extra inputs are not permitted",
        ),
        ({"initial": 3}, "initial: Input should be an object"),
        ({"initial": {}}, "initial: experiment: Field required or sha256: Field required"),
        ({"initial": {"experiment": "A"}}, "initial.experiment: String should match"),
        (
            {"initial": {"experiment": "a", "round": "x"}},
            "initial.round: Input should be a valid integer or 'best' or 'last'",
        ),
        ({"initial": {"sha256": "x"}}, "initial.sha256: String should match"),
    ],
)
def test_a_field_that_may_be_several_things_is_complained_of_once(fields: dict[str, Any], says: str) -> None:
    description = poison_of(start(**fields)).description
    assert description.startswith(f"start-experiment is not valid. {says}")
    assert "; " in says or "; " not in description


def test_the_kind_of_a_metric_is_no_field() -> None:
    update = {"kind": "update-published", "metrics": [{"kind": "mean", "name": "loss", "phase": "received"}]}
    assert "metrics.0.value: Field required" in poison_of(update).description


@pytest.mark.parametrize(
    "fields",
    [
        closed(run=SECRET),
        closed(because=SECRET),
        closed(round=SECRET),
        start(experiment=SECRET),
        start(rounds=SECRET),
        start(hyperparameters={"lr": [SECRET]}),
        start(quorum={"minimum": SECRET}),
        start(initial=SECRET),
        {"kind": "update-published", "metrics": [{"kind": SECRET}]},
        {"kind": "update-published", "metrics": [{"kind": "mean", "value": SECRET}]},
        {"kind": "silo-hello", "at": SECRET, "instance": SECRET},
        f'{{"kind": {SECRET}'.encode(),
    ],
)
def test_values_are_not_repeated_in_a_description(fields: Any) -> None:
    assert SECRET not in poison_of(fields).description


def test_a_huge_number_or_an_infinite_one_is_refused() -> None:
    assert poison_of(b'{"kind": "round-closed", "round": ' + b"9" * 10_000 + b"}").reason == "not-json"
    body = json.dumps(start(hyperparameters={"lr": 0.5})).replace("0.5", "1e999").encode()
    assert "hyperparameters.lr" in poison_of(body).description


def test_a_time_needs_its_offset() -> None:
    hello = {"kind": "silo-hello", "instance": "0" * 32, "agent_version": "1", "policy": DIGEST, "offers": []}
    assert "at: " in poison_of(hello | {"at": "2026-01-01T00:00:00"}).description
    message = decode(json.dumps(hello | {"at": "2026-01-01T02:00:00+02:00"}).encode(), SiloHello)
    assert message.at == datetime(2026, 1, 1, tzinfo=UTC)
    assert message.at - datetime(2026, 1, 1, tzinfo=UTC) == timedelta(0)


def test_a_queue_takes_only_its_own_kinds() -> None:
    poison = poison_of(closed(), StartExperiment, CancelExperiment)
    assert poison.reason == "unexpected-kind"
    assert "cancel-experiment, start-experiment" in poison.description


def test_the_schema_defines_every_message_once() -> None:
    schema = codec.json_schema()
    assert {model.__name__ for model in ALL} <= set(schema["$defs"])
    assert schema["$schema"].endswith("2020-12/schema")


# --- small rules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("minimum", "silos", "needed"),
    [("all", 7, 7), (3, 7, 3), (0.5, 7, 4), (0.5, 8, 4), (0.01, 3, 1), (0.999, 3, 3), (0.07, 100, 7), (0.55, 20, 11)],
)
def test_a_quorum_is_a_number_a_share_rounded_up_or_all(minimum: Any, silos: int, needed: int) -> None:
    assert Quorum(minimum=minimum).needed(silos) == needed


@example(7, 100)
@example(55, 20)
@given(st.integers(1, 99), st.integers(1, 10_000))
def test_a_share_in_hundredths_is_counted_exactly(percent: int, silos: int) -> None:
    assert Quorum(minimum=percent / 100).needed(silos) == -(-percent * silos // 100)


@given(st.dictionaries(st.integers(1, 50), st.integers(), max_size=6), st.integers(0, 60))
def test_a_schedule_gives_the_value_of_the_last_round_listed(later: dict[int, int], now: int) -> None:
    by_round: dict[int, Any] = {1: 0} | later
    expected = by_round[max(r for r in by_round if r <= max(now, 1))]
    assert Schedule(by_round=by_round).at(now) == expected


def test_metrics_agree_with_themselves() -> None:
    base: dict[str, Any] = {"name": "auroc", "phase": "received"}
    HistogramMetric(**base, count=6, positive=[1, 2], negative=[3, 0])
    for wrong in (
        {"count": 7, "positive": [1, 2], "negative": [3, 0]},
        {"count": 3, "positive": [1, 2, 0], "negative": [0, 0]},
    ):
        with pytest.raises(ValueError, match="histogram"):
            HistogramMetric(**base, **wrong)
    for wrong in ({"count": 3, "matrix": [[1, 2], [0]]}, {"count": 4, "matrix": [[1, 2], [0, 0]]}):
        with pytest.raises(ValueError, match="confusion"):
            ConfusionMetric(**base, **wrong)
    with pytest.raises(ValueError, match="finite"):
        MeanMetric(**base, count=1, value=math.nan)


@pytest.mark.parametrize(
    ("phase", "round_number", "wanted"), [("open", 3, True), ("open", 2, False), ("closed", 3, False)]
)
def test_a_head_says_whether_an_update_still_counts(phase: Any, round_number: int, wanted: bool) -> None:
    assert Head(run=RUN, round=3, announcement=1, phase=phase).wants(round_number) is wanted


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"quorum": {"minimum": 1.0}}, "quorum.minimum"),
        ({"quorum": {"minimum": 2.0}}, "quorum.minimum"),
        ({"quorum": {"minimum": True}}, "quorum.minimum"),
        ({"quorum": {"minimum": "2"}}, "quorum.minimum"),
        ({"quorum": {"minimum": "0.5"}}, "quorum.minimum"),
        ({"quorum": {"reminders": True}}, "quorum.reminders"),
        ({"rounds": "5"}, "rounds"),
        ({"rounds": 5.0}, "rounds"),
        ({"rounds": True}, "rounds"),
    ],
)
def test_what_an_operator_posts_is_taken_at_its_word_or_not_at_all(changes: dict[str, Any], field: str) -> None:
    body = json.dumps({"kind": "start-experiment", "experiment": "a", "task": "t", "rounds": 5, **changes}).encode()
    with pytest.raises(Poison) as caught:
        codec.decode(body, experiments.StartExperiment)
    assert caught.value.reason == "invalid-message"
    assert field in caught.value.description


def test_a_key_that_stands_twice_is_refused_since_one_of_them_would_be_ignored() -> None:
    body = (
        b'{"kind": "start-experiment", "experiment": "a", "task": "t", "rounds": 5, "quorum": {"grace": 1, "grace": 2}}'
    )
    with pytest.raises(Poison, match="'grace' stands twice") as caught:
        codec.decode(body, experiments.StartExperiment)
    assert caught.value.reason == "not-json"


def test_a_schedule_written_in_json_has_its_rounds_as_text() -> None:
    start = {"kind": "start-experiment", "experiment": "a", "task": "t", "rounds": 5}
    body = json.dumps({**start, "hyperparameters": {"lr": {"by_round": {"1": 0.1, "3": 1}}}}).encode()
    said = codec.decode(body, experiments.StartExperiment)
    assert said.hyperparameters["lr"].at(4) == 1
    assert codec.decode(codec.encode(said), experiments.StartExperiment) == said
