"""The queues to create at start: the JSON configuration file of Microsoft's Service Bus emulator, read and checked.

Only reading lives here; what a setting does is in the broker. Durations are ISO 8601 in the file and
milliseconds everywhere else. A file that asks for something this emulator does not do is refused, not ignored; what
is about Microsoft's emulator only (`Logging`, the namespace's name) is passed over. What a queue leaves out is what the
service sets, which is not always what that emulator sets (Config-schema.json: TTL of an hour, 3 deliveries).
One thing is ours: `AuthorizationRules`, of a namespace or a queue, which hold `Name`, `Rights` and `PrimaryKey`.
A key that is not known here is refused wherever it stands: a rule that is not read would let everybody in.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeGuard, get_args

from servicebus_emulator.rights import Right, Rule

Status = Literal["Active", "Disabled", "SendDisabled", "ReceiveDisabled"]

MIB = 1024 * 1024
MINUTE = 60_000
DAY = 24 * 60 * MINUTE
MOST = 2**31 - 1
LONGEST: Mapping[str, int] = {"LockDuration": 5 * MINUTE, "DuplicateDetectionHistoryTimeWindow": 7 * DAY}
"""The service's limits, in milliseconds; whoever asks for more is refused, in the file and over HTTP."""


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
    max_message_size: int | None = None  # bytes; None: what the process allows
    max_size: int = 1024 * MIB  # bytes of all messages together
    status: Status = "Active"
    rules: tuple[Rule, ...] = ()
    # What follows only describes: it is kept and told, and changes nothing here.
    user_metadata: str | None = None
    batched_operations: bool = True
    partitioning: bool = False
    express: bool = False
    delete_on_idle: int | None = None

    def to_json(self) -> str:
        """For the store."""
        return json.dumps({**asdict(self), "rules": rules_to_json(self.rules)})

    @classmethod
    def from_json(cls, text: str) -> "QueueSettings":
        """As `to_json` wrote it."""
        fields = json.loads(text)
        return cls(**{**fields, "rules": rules_from_json(fields["rules"])})

    def digest(self) -> str:
        """The same for the same settings; rules are left out."""
        settings = {name: value for name, value in asdict(self).items() if name != "rules"}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def rules_to_json(rules: Iterable[Rule]) -> list[dict[str, Any]]:
    """For the store: keys included."""
    return [{"name": rule.name, "keys": rule.keys, "rights": sorted(rule.rights)} for rule in rules]


def rules_from_json(said: Iterable[Mapping[str, Any]]) -> tuple[Rule, ...]:
    """As `rules_to_json` wrote them."""
    return tuple(Rule(r["name"], tuple(r["keys"]), frozenset(map(Right, r["rights"]))) for r in said)


@dataclass(frozen=True, slots=True)
class Config:
    """What the file says."""

    queues: Mapping[str, QueueSettings] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    """Rules of the namespace."""

    def has_rules(self) -> bool:
        """Whether there is a rule anywhere."""
        return bool(self.rules) or any(settings.rules for settings in self.queues.values())


_DURATION = re.compile(
    r"P(?:(?P<days>\d+)D)?(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+(?:\.\d+)?)S)?)?"
)
_PROPERTIES = (
    *("DeadLetteringOnMessageExpiration", "DefaultMessageTimeToLive", "LockDuration", "MaxDeliveryCount"),
    *("RequiresDuplicateDetection", "DuplicateDetectionHistoryTimeWindow", "RequiresSession"),
    *("ForwardTo", "ForwardDeadLetteredMessagesTo", "MaxMessageSizeInKilobytes", "MaxSizeInMegabytes", "Status"),
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


def read_config(path: Path) -> Config:
    """What the file asks for. Raises ConfigError."""
    try:
        return parse_config(json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_object))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    except (ValueError, RecursionError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_config(document: Any) -> Config:
    top = _mapping(document, "the file")
    user = _mapping(top.get("UserConfig", top), "UserConfig")
    if user is not top:
        _refuse_unknown("the file", top, ("UserConfig",))
        _refuse_unknown("UserConfig", user, ("Namespaces", "Logging"))
    else:
        _refuse_unknown("the file", top, ("UserConfig", "Namespaces", "Logging"))
    queues: dict[str, QueueSettings] = {}
    rules: tuple[Rule, ...] = ()
    names: set[str] = set()
    for number, namespace in enumerate(_list(user.get("Namespaces"), "Namespaces")):
        where = _mapping(namespace, "a namespace")
        _refuse_unknown(f"Namespaces[{number}]", where, ("Name", "Queues", "Topics", "AuthorizationRules"))
        if where.get("Topics"):
            raise ConfigError("topics are not supported")
        rules += _rules("the namespace", where)
        for entry in _list(where.get("Queues"), "Queues"):
            queue = _mapping(entry, "a queue")
            name = queue.get("Name")
            if name is None:
                _refuse_unknown("a queue", queue, ("Name", "Properties", "AuthorizationRules"))
            if not is_queue_name(name):
                raise ConfigError(f"{name!r} is not a queue's name")
            if name.lower() in names:
                raise ConfigError(f"the queue {name} is listed twice")
            names.add(name.lower())
            _refuse_unknown(name, queue, ("Name", "Properties", "AuthorizationRules"))
            properties = _mapping(queue.get("Properties") or {}, f"{name}: Properties")
            queues[name] = _settings(name, properties, _rules(name, queue))
    return Config(queues, rules)


def is_queue_name(name: object) -> TypeGuard[str]:
    """Whether a queue may be called so."""
    return isinstance(name, str) and len(name) <= 260 and _NAME.fullmatch(name) is not None


def _rules(of: str, given: Mapping[str, Any]) -> tuple[Rule, ...]:
    rules = []
    for entry in _list(given.get("AuthorizationRules"), f"{of}: AuthorizationRules"):
        rule = _mapping(entry, f"{of}: an authorization rule")
        _refuse_unknown(f"{of}: an authorization rule", rule, ("Name", "Rights", "PrimaryKey", "SecondaryKey"))
        name = rule.get("Name")
        keys = tuple(rule[key] for key in ("PrimaryKey", "SecondaryKey") if rule.get(key) is not None)
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{of}: an authorization rule has a Name")
        if not keys or not all(isinstance(key, str) and key for key in keys):
            raise ConfigError(f"{of}: the rule {name} has a PrimaryKey")
        try:
            rights = frozenset(map(Right, _list(rule.get("Rights"), f"{of}: Rights of {name}")))
        except ValueError:
            raise ConfigError(f"{of}: the rule {name} has Rights: Send, Listen or Manage") from None
        if not rights:
            raise ConfigError(f"{of}: the rule {name} has Rights: Send, Listen or Manage")
        rules.append(Rule(name, keys, rights))
    if len({rule.name for rule in rules}) != len(rules):
        raise ConfigError(f"{of}: two authorization rules have the same name")
    return tuple(rules)


def _settings(name: str, given: Mapping[str, Any], rules: tuple[Rule, ...]) -> QueueSettings:
    _refuse_unknown(f"{name}: Properties", given, _PROPERTIES)
    for key in ("RequiresSession", "ForwardTo", "ForwardDeadLetteredMessagesTo"):
        if given.get(key):
            raise ConfigError(f"{name}: {key} is not supported")
    ttl = _milliseconds(name, given, "DefaultMessageTimeToLive", None)
    kilobytes = _count(name, given, "MaxMessageSizeInKilobytes", 0)
    status = given.get("Status", "Active")
    if status not in get_args(Status):
        raise ConfigError(f"{name}: Status is one of {', '.join(get_args(Status))}")
    return QueueSettings(
        lock_duration=_milliseconds(name, given, "LockDuration", 60_000) or 60_000,
        max_delivery_count=_count(name, given, "MaxDeliveryCount", 10),
        default_ttl=None if ttl is None or ttl >= LONGEST_TTL else ttl,
        dead_letter_on_expiration=_flag(name, given, "DeadLetteringOnMessageExpiration"),
        requires_duplicate_detection=_flag(name, given, "RequiresDuplicateDetection"),
        duplicate_window=_milliseconds(name, given, "DuplicateDetectionHistoryTimeWindow", 600_000) or 600_000,
        max_message_size=kilobytes * 1024 or None,
        max_size=_count(name, given, "MaxSizeInMegabytes", 1024) * MIB,
        status=status,
        rules=rules,
    )


def _milliseconds(name: str, given: Mapping[str, Any], key: str, default: int | None) -> int | None:
    value = given.get(key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise ConfigError(f"{name}: {key} is a duration like PT1M")
    try:
        milliseconds = parse_duration(value)
    except (ConfigError, OverflowError):
        raise ConfigError(f"{name}: {key} is {value!r:.99}; a duration is written like PT1M or P14D") from None
    if milliseconds <= 0:
        raise ConfigError(f"{name}: {key} is longer than nothing")
    if milliseconds > LONGEST.get(key, milliseconds):
        raise ConfigError(f"{name}: {key} is {value}; the service allows {LONGEST[key] // MINUTE} minutes at most")
    return milliseconds


def _count(name: str, given: Mapping[str, Any], key: str, default: int) -> int:
    value = given.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
        raise ConfigError(f"{name}: {key} is a whole number from 1 to {MOST}")
    return value


def _flag(name: str, given: Mapping[str, Any], key: str) -> bool:
    value = given.get(key, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{name}: {key} is true or false")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of what is said twice one would not be read."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key in found if [name for name, _ in pairs].count(key) > 1)
        raise ConfigError(f"{twice!r:.99} stands twice in one object")
    return found


def _refuse_unknown(place: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """What is not read must not look as if it were."""
    by_lower = {name.lower(): name for name in known}
    for key in given:
        if key not in known:
            close = get_close_matches(key.lower(), by_lower, 1)
            hint = f" Did you mean {by_lower[close[0]]!r}?" if close else ""
            raise ConfigError(f"{place}: there is no {key!r:.99} here.{hint} Known are {', '.join(known)}.")


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
