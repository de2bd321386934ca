"""A queue's settings as the administration interface describes them (QueueDescription), read and written.

What is missing in a description has the service's default, unknown elements are passed over, and what this emulator
does not do is refused with its reason. The configuration file says the same things in JSON; that is `config`.
Sources: "Create or Update Entity" and "Queue Description" of the Service Bus REST reference; the attribute map of
azure-servicebus 7.15; limits as the same SDKs and "Service Bus quotas" state them.
"""

from collections.abc import Mapping
from typing import cast, get_args

from servicebus_emulator.atom import CONNECT, Element, MalformedXml, Xml, moment, name_of, tag
from servicebus_emulator.config import (
    LONGEST,
    LONGEST_TTL,
    MIB,
    MINUTE,
    MOST,
    ConfigError,
    QueueSettings,
    Status,
    parse_duration,
)
from servicebus_emulator.namespace import LiveQueue
from servicebus_emulator.rights import Right, Rule

FOR_EVER = "P10675199DT2H48M5.4775807S"
COUNTS = "http://schemas.microsoft.com/netservices/2011/06/servicebus"
MOST_RULES = 12
LONGEST_METADATA = 1024


class BadValue(Exception):
    """An element holds what it may not; the text names it."""


class Unsupported(Exception):
    """The service would do this; this emulator does not."""


def read_settings(description: Element, before: QueueSettings | None, max_message_size: int) -> QueueSettings:
    """The settings described; ``before`` are those of the queue that is there.

    Raises MalformedXml, BadValue, Unsupported.
    """
    if name_of(description) == "TopicDescription":
        raise Unsupported("Topics are not supported by this emulator; it has queues only.")
    if description.tag != f"{{{CONNECT}}}QueueDescription":
        raise MalformedXml(f"the content is a QueueDescription in {CONNECT}")
    texts = {name_of(child): (child.text or "").strip() for child in description}
    for name in ("ForwardTo", "ForwardDeadLetteredMessagesTo"):
        if texts.get(name):
            raise Unsupported(f"{name} is not supported by this emulator: leave it out.")
    if _flag(texts, "RequiresSession", default=False):
        raise Unsupported("RequiresSession is not supported by this emulator: leave it out, or say false.")
    kilobytes = _number(texts, "MaxMessageSizeInKilobytes", None)
    if kilobytes is not None and kilobytes * 1024 > max(max_message_size, 1024):
        raise BadValue(
            f"MaxMessageSizeInKilobytes is {kilobytes}; this process takes up to {max_message_size // 1024}. "
            "Start it with a larger --max-message-size."
        )
    metadata = description.findtext(f"{{{CONNECT}}}UserMetadata")
    if metadata is not None and len(metadata) > LONGEST_METADATA:
        raise BadValue(f"UserMetadata has at most {LONGEST_METADATA} characters.")
    status = texts.get("Status", "Active")
    if status not in get_args(Status):
        raise BadValue(f"Status is one of {', '.join(get_args(Status))}.")
    defaults = QueueSettings()
    return QueueSettings(
        lock_duration=_span(texts, "LockDuration") or defaults.lock_duration,
        max_delivery_count=_number(texts, "MaxDeliveryCount", None) or defaults.max_delivery_count,
        default_ttl=_span(texts, "DefaultMessageTimeToLive", least=1000),
        dead_letter_on_expiration=_flag(texts, "DeadLetteringOnMessageExpiration", default=False),
        requires_duplicate_detection=_fixed(
            texts, "RequiresDuplicateDetection", before, "requires_duplicate_detection"
        ),
        duplicate_window=_span(texts, "DuplicateDetectionHistoryTimeWindow") or defaults.duplicate_window,
        max_message_size=None if kilobytes is None else kilobytes * 1024,
        max_size=(_number(texts, "MaxSizeInMegabytes", None) or defaults.max_size // MIB) * MIB,
        status=cast(Status, status),
        rules=_rules(description),
        user_metadata=metadata,
        batched_operations=_flag(texts, "EnableBatchedOperations", default=True),
        partitioning=_fixed(texts, "EnablePartitioning", before, "partitioning"),
        express=_flag(texts, "EnableExpress", default=False),
        delete_on_idle=_span(texts, "AutoDeleteOnIdle", least=5 * MINUTE),
    )


def write_settings(live: LiveQueue, max_message_size: int) -> list[Xml]:
    """The parts of a QueueDescription, in the service's order: settings, and what the queue is like just now."""
    settings, queue = live.queue.settings, live.queue
    counts = queue.counts()
    return [
        tag("LockDuration", _duration(settings.lock_duration)),
        tag("MaxSizeInMegabytes", str(settings.max_size // MIB)),
        tag("RequiresDuplicateDetection", _boolean(settings.requires_duplicate_detection)),
        tag("RequiresSession", "false"),
        tag("DefaultMessageTimeToLive", _duration(settings.default_ttl)),
        tag("DeadLetteringOnMessageExpiration", _boolean(settings.dead_letter_on_expiration)),
        tag("DuplicateDetectionHistoryTimeWindow", _duration(settings.duplicate_window)),
        tag("MaxDeliveryCount", str(settings.max_delivery_count)),
        tag("EnableBatchedOperations", _boolean(settings.batched_operations)),
        tag("SizeInBytes", str(queue.size)),
        tag("MessageCount", str(sum(counts.values()))),
        tag("IsAnonymousAccessible", "false"),
        tag("AuthorizationRules", *map(_rule, settings.rules)),
        tag("Status", settings.status),
        *([] if settings.user_metadata is None else [tag("UserMetadata", settings.user_metadata)]),
        tag("CreatedAt", moment(live.created_at)),
        tag("UpdatedAt", moment(live.updated_at)),
        tag("AccessedAt", moment(live.accessed_at)),
        tag("SupportOrdering", "true"),
        tag("CountDetails", *_counts(counts), xmlns__d2p1=COUNTS),
        tag("AutoDeleteOnIdle", _duration(settings.delete_on_idle)),
        tag("EnablePartitioning", _boolean(settings.partitioning)),
        tag("EntityAvailabilityStatus", "Available"),
        tag("EnableExpress", _boolean(settings.express)),
        tag("MaxMessageSizeInKilobytes", str((settings.max_message_size or max_message_size) // 1024)),
    ]


def _counts(counts: Mapping[str, int]) -> list[Xml]:
    kinds = {
        "Active": counts["active"],
        "DeadLetter": counts["dead"],
        "Scheduled": counts["scheduled"],
        "TransferDeadLetter": 0,
        "Transfer": 0,
    }
    return [tag(f"d2p1:{kind}MessageCount", str(count)) for kind, count in kinds.items()]


def _rules(description: Element) -> tuple[Rule, ...]:
    rules = []
    for element in description.findall(f"{{{CONNECT}}}AuthorizationRules/{{{CONNECT}}}AuthorizationRule"):
        texts = {name_of(child): (child.text or "").strip() for child in element}
        name = texts.get("KeyName", "")
        keys = tuple(texts[key] for key in ("PrimaryKey", "SecondaryKey") if texts.get(key))
        rights = [(right.text or "").strip() for right in element.findall(f"{{{CONNECT}}}Rights/*")]
        if not name or not texts.get("PrimaryKey"):
            raise BadValue("An AuthorizationRule has a KeyName and a PrimaryKey.")
        if not rights or not set(rights) <= set(Right):
            raise BadValue(f"The AuthorizationRule {name} has Rights: {', '.join(Right)}.")
        rules.append(Rule(name, keys, frozenset(map(Right, rights))))
    if len({rule.name for rule in rules}) != len(rules):
        raise BadValue("Two AuthorizationRules have the same KeyName.")
    if len(rules) > MOST_RULES:
        raise BadValue(f"A queue has at most {MOST_RULES} AuthorizationRules.")
    return tuple(rules)


def _rule(rule: Rule) -> Xml:
    primary, *others = rule.keys
    return tag(
        "AuthorizationRule",
        tag("ClaimType", "SharedAccessKey"),
        tag("ClaimValue", "None"),
        tag("Rights", *(tag("AccessRights", right) for right in Right if right in rule.rights)),
        tag("KeyName", rule.name),
        tag("PrimaryKey", primary),
        *(tag("SecondaryKey", key) for key in others),
        i__type="SharedAccessAuthorizationRule",
    )


def _flag(texts: Mapping[str, str], name: str, *, default: bool) -> bool:
    match texts.get(name, "").lower():
        case "":
            return default
        case "true" | "1":
            return True
        case "false" | "0":
            return False
    raise BadValue(f"{name} is true or false.")


def _fixed(texts: Mapping[str, str], name: str, before: QueueSettings | None, field: str) -> bool:
    """What cannot change any more once a queue is there."""
    was = False if before is None else bool(getattr(before, field))
    value = _flag(texts, name, default=was)
    if before is not None and value is not was:
        raise BadValue(f"The value for the {name} property of an existing Queue cannot be changed.")
    return value


def _number(texts: Mapping[str, str], name: str, default: int | None) -> int | None:
    text = texts.get(name)
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= MOST):
        raise BadValue(f"{name} is a whole number from 1 to {MOST}.")
    return int(text)


def _span(texts: Mapping[str, str], name: str, *, least: int = 1) -> int | None:
    """Milliseconds; None for what is not said, and where there is no limit for what has no end."""
    text, most = texts.get(name), LONGEST.get(name)
    if not text:
        return None
    try:
        span = parse_duration(text)
    except (ConfigError, OverflowError):
        raise BadValue(f"{name} is a duration like PT1M or P14D.") from None
    if span < least or (most is not None and span > most):
        limit = "" if most is None else f" and at most {_duration(most)}"
        raise BadValue(f"{name} is {text}; it is at least {_duration(least)}{limit}.")
    return None if most is None and span >= LONGEST_TTL else span


def _duration(milliseconds: int | None) -> str:
    """ISO 8601, as XML Schema and the service write it."""
    if milliseconds is None:
        return FOR_EVER
    seconds, rest = divmod(milliseconds, 1000)
    days, seconds = divmod(seconds, 86_400)
    hours, minutes, seconds = seconds // 3600, seconds // 60 % 60, seconds % 60
    fraction = f".{rest:03}".rstrip("0") if rest else ""
    time = "".join(f"{value}{unit}" for value, unit in ((hours, "H"), (minutes, "M")) if value)
    if seconds or fraction:
        time += f"{seconds}{fraction}S"
    date = f"{days}D" if days else ""
    return f"P{date}T{time}" if time or not days else f"P{date}"


def _boolean(value: bool) -> str:
    return "true" if value else "false"
