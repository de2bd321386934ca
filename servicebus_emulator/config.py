"""The queues to create at start: the JSON configuration file of Microsoft's Service Bus emulator, read and checked.

Only reading lives here; what a setting does is in the broker. Durations are ISO 8601 in the file and
milliseconds everywhere else. A file that asks for something this emulator does not do is refused, not ignored.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ConfigError(Exception):
    """The configuration file is wrong; the text says where."""


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """Times in milliseconds. The defaults are those of the service."""

    lock_duration: int = 60_000
    max_delivery_count: int = 10
    default_ttl: int | None = None
    dead_letter_on_expiration: bool = False
    requires_duplicate_detection: bool = False
    duplicate_window: int = 600_000


_DURATION = re.compile(
    r"P(?:(?P<days>\d+)D)?(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+(?:\.\d+)?)S)?)?"
)
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?")
LONGEST_TTL = 10_675_199 * 86_400_000  # what the service writes for "never" is a few hours more


def parse_duration(text: str) -> int:
    """Milliseconds in an ISO 8601 duration of days and less."""
    match = _DURATION.fullmatch(text)
    if match is None or text in ("P", "PT") or text.endswith("T"):
        raise ConfigError(f"{text!r} is not a duration like PT1M or P14D")
    days, hours, minutes, seconds = (float(match[unit] or 0) for unit in ("days", "hours", "minutes", "seconds"))
    return round((((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1000)


def read_config(path: Path) -> dict[str, QueueSettings]:
    """Queue name to settings."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return parse_config(document)


def parse_config(document: Any) -> dict[str, QueueSettings]:
    user = _mapping(document, "the file").get("UserConfig", document)
    queues: dict[str, QueueSettings] = {}
    names: set[str] = set()
    for namespace in _list(_mapping(user, "UserConfig").get("Namespaces"), "Namespaces"):
        where = _mapping(namespace, "a namespace")
        if where.get("Topics"):
            raise ConfigError("topics are not supported")
        for entry in _list(where.get("Queues"), "Queues"):
            queue = _mapping(entry, "a queue")
            name = queue.get("Name")
            if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > 260:
                raise ConfigError(f"{name!r} is not a queue's name")
            if name.lower() in names:
                raise ConfigError(f"the queue {name} is listed twice")
            names.add(name.lower())
            queues[name] = _settings(name, _mapping(queue.get("Properties") or {}, f"{name}: Properties"))
    return queues


def _settings(name: str, given: Mapping[str, Any]) -> QueueSettings:
    unknown = given.keys() - {
        *("DeadLetteringOnMessageExpiration", "DefaultMessageTimeToLive", "LockDuration", "MaxDeliveryCount"),
        *("RequiresDuplicateDetection", "DuplicateDetectionHistoryTimeWindow", "RequiresSession"),
        *("ForwardTo", "ForwardDeadLetteredMessagesTo"),
    }
    if unknown:
        raise ConfigError(f"{name}: unknown properties {', '.join(sorted(unknown))}")
    for key in ("RequiresSession", "ForwardTo", "ForwardDeadLetteredMessagesTo"):
        if given.get(key):
            raise ConfigError(f"{name}: {key} is not supported")
    ttl = _milliseconds(name, given, "DefaultMessageTimeToLive", None)
    max_delivery_count = given.get("MaxDeliveryCount", 10)
    if not isinstance(max_delivery_count, int) or isinstance(max_delivery_count, bool) or max_delivery_count < 1:
        raise ConfigError(f"{name}: MaxDeliveryCount is a whole number of at least 1")
    return QueueSettings(
        lock_duration=_milliseconds(name, given, "LockDuration", 60_000) or 60_000,
        max_delivery_count=max_delivery_count,
        default_ttl=None if ttl is None or ttl >= LONGEST_TTL else ttl,
        dead_letter_on_expiration=_flag(name, given, "DeadLetteringOnMessageExpiration"),
        requires_duplicate_detection=_flag(name, given, "RequiresDuplicateDetection"),
        duplicate_window=_milliseconds(name, given, "DuplicateDetectionHistoryTimeWindow", 600_000) or 600_000,
    )


def _milliseconds(name: str, given: Mapping[str, Any], key: str, default: int | None) -> int | None:
    value = given.get(key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise ConfigError(f"{name}: {key} is a duration like PT1M")
    milliseconds = parse_duration(value)
    if milliseconds <= 0:
        raise ConfigError(f"{name}: {key} is longer than nothing")
    return milliseconds


def _flag(name: str, given: Mapping[str, Any], key: str) -> bool:
    value = given.get(key, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{name}: {key} is true or false")
    return value


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{what} is not a JSON object")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise ConfigError(f"{what} is not a JSON array")
    return value
