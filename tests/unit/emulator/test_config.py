"""The configuration file: the official emulator's format, and refusals that name their place."""

from pathlib import Path
from typing import Any

import pytest

from servicebus_emulator.config import ConfigError, QueueSettings, parse_config, parse_duration, read_config


def document(*queues: dict[str, Any]) -> dict[str, Any]:
    namespace = {"Name": "sbemulatorns", "Queues": list(queues), "Topics": []}
    return {"UserConfig": {"Namespaces": [namespace], "Logging": {"Type": "File"}}}


def test_a_queue_of_the_official_example_is_read() -> None:
    properties = {
        "DeadLetteringOnMessageExpiration": True,
        "DefaultMessageTimeToLive": "PT1H",
        "DuplicateDetectionHistoryTimeWindow": "PT20S",
        "ForwardDeadLetteredMessagesTo": "",
        "ForwardTo": "",
        "LockDuration": "PT1M30.5S",
        "MaxDeliveryCount": 3,
        "RequiresDuplicateDetection": True,
        "RequiresSession": False,
    }
    assert parse_config(document({"Name": "queue.1", "Properties": properties}, {"Name": "plain"})).queues == {
        "queue.1": QueueSettings(
            lock_duration=90_500,
            max_delivery_count=3,
            default_ttl=3_600_000,
            dead_letter_on_expiration=True,
            requires_duplicate_detection=True,
            duplicate_window=20_000,
        ),
        "plain": QueueSettings(),
    }


def test_for_ever_means_for_ever() -> None:
    for_ever = {"DefaultMessageTimeToLive": "P10675199DT2H48M5.4775807S"}
    assert parse_config(document({"Name": "q", "Properties": for_ever})).queues["q"].default_ttl is None


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("PT1S", 1000), ("PT0.25S", 250), ("PT1M", 60_000), ("P14D", 1_209_600_000), ("P1DT2H3M4S", 93_784_000)],
)
def test_durations_are_iso_8601(text: str, milliseconds: int) -> None:
    assert parse_duration(text) == milliseconds


@pytest.mark.parametrize("text", ["", "P", "PT", "P1DT", "1M", "PT1", "PT-1S", "P1M", "PT1S ", "00:01:00"])
def test_anything_else_is_not_a_duration(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ([], "the file is not a JSON object"),
        ({"UserConfig": {"Namespaces": {}}}, "Namespaces is not a JSON array"),
        ({"UserConfig": {"Namespaces": [{"Topics": [{"Name": "t"}]}]}}, "topics are not supported"),
        (document({"Name": "a"}, {"Name": "A"}), "listed twice"),
        (document({"Name": "-a"}), "not a queue's name"),
        (document({"Name": 7}), "not a queue's name"),
        (
            document({"Name": "q", "Properties": {"LockDurations": "PT1S"}}),
            "q: Properties: there is no 'LockDurations' here. Did you mean 'LockDuration'?",
        ),
        (document({"Name": "q", "Properties": {"RequiresSession": True}}), "q: RequiresSession is not supported"),
        (document({"Name": "q", "Properties": {"ForwardTo": "x"}}), "q: ForwardTo is not supported"),
        (document({"Name": "q", "Properties": {"MaxDeliveryCount": 0}}), "q: MaxDeliveryCount"),
        (document({"Name": "q", "Properties": {"MaxDeliveryCount": True}}), "q: MaxDeliveryCount"),
        (document({"Name": "q", "Properties": {"LockDuration": 60}}), "q: LockDuration is a duration"),
        (document({"Name": "q", "Properties": {"RequiresDuplicateDetection": "yes"}}), "is true or false"),
        (document({"Name": "q", "Properties": {"LockDuration": "PT10M"}}), "q: LockDuration is PT10M; .* 5 minutes"),
        (document({"Name": "q", "Properties": {"DuplicateDetectionHistoryTimeWindow": "P8D"}}), "10080 minutes"),
        (document({"Name": "q", "Properties": {"LockDuration": "1 minute"}}), "q: LockDuration is '1 minute'; a dur"),
        (document({"Name": "q", "Properties": {"LockDuration": f"P{'9' * 400}D"}}), "q: LockDuration is 'P9999"),
        (document({"Name": "q", "Properties": {"MaxDeliveryCount": 2**31}}), "q: MaxDeliveryCount is a whole number"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(wrong: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_config(wrong)


KEY = {"Name": "k", "Rights": ["Send"], "PrimaryKey": "secret"}


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"userConfig": {}}, "the file: there is no 'userConfig' here. Did you mean 'UserConfig'?"),
        ({"UserConfig": {}, "Namespaces": []}, "the file: there is no 'Namespaces' here"),
        ({"UserConfig": {"NameSpaces": []}}, "UserConfig: there is no 'NameSpaces' here. Did you mean 'Namespaces'?"),
        ({"namespaces": []}, "the file: there is no 'namespaces' here. Did you mean 'Namespaces'?"),
        (
            {"Namespaces": [{}, {"authorizationRules": [KEY]}]},
            r"Namespaces\[1\]: there is no 'authorizationRules' here. Did you mean 'AuthorizationRules'?",
        ),
        ({"Namespaces": [{"queues": []}]}, r"Namespaces\[0\]: there is no 'queues' here. Did you mean 'Queues'?"),
        (
            document({"Name": "q", "AuthorisationRules": [KEY]}),
            "q: there is no 'AuthorisationRules' here. Did you mean 'AuthorizationRules'",
        ),
        (document({"name": "q"}), "a queue: there is no 'name' here. Did you mean 'Name'?"),
        (
            document({"Name": "q", "AuthorizationRules": [{**KEY, "secondaryKey": "s"}]}),
            "q: an authorization rule: there is no 'secondaryKey' here. Did you mean 'SecondaryKey'?",
        ),
        (
            document({"Name": "q", "Zzz": 1}),
            "q: there is no 'Zzz' here. Known are Name, Properties, AuthorizationRules",
        ),
    ],
)
def test_a_key_that_nobody_reads_is_refused_at_every_level(wrong: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why.replace("?", "[?]")) as refused:
        parse_config(wrong)
    assert "secret" not in str(refused.value)


def test_logging_may_say_what_it_likes() -> None:
    assert parse_config({"UserConfig": {"Logging": {"Type": "File", "anything": {"else": 1}}}}).queues == {}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"Namespaces": [{"AuthorizationRules": [], "AuthorizationRules": []}]}', "'AuthorizationRules' stands twice"),
        ('{"Queues": []}', "the file: there is no 'Queues' here"),
        ("{", "is not JSON: Expecting property name"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_file_that_is_refused_is_named(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "bus.json").write_text(text)
    with pytest.raises(ConfigError, match=f"bus.json(: .*| ){why}"):
        read_config(tmp_path / "bus.json")


def test_a_file_may_begin_as_windows_begins_it(tmp_path: Path) -> None:
    (tmp_path / "bus.json").write_text('{"Namespaces": []}', encoding="utf-8-sig")
    assert read_config(tmp_path / "bus.json").queues == {}
