"""Faults on request: which one strikes an operation. Off unless asked for, seeded, counted.

Pure: no sockets, no clock; the only chance is a seeded generator. What a fault looks like to a client is in `trouble`;
how long locks live is the broker's.

    detach=2%            the link is detached
    idle-detach=5%:1s    of the links attached, so many are detached once nothing has moved on them for that long
    delay=5%:80ms        what the client hears comes later
    server-busy=1%       refused: try again later
    drop-connection=1%   the connection is gone before anything was done
    ack-lost=1%          it was done and is durable, and the link or the connection is gone before the answer
    token-expired=1%     the connection has no rights any more, and its links are detached
    queue-full=1%        a message is refused
    duplicate=1%         a message arrives twice, as from a sender who tried again
    all=2%               each of these
    lock-max-age=20s     a lock is gone that long after it was given, renewed or not

Any but the last may be told where to strike (``detach@settle=2%``: attach, send, deliver, settle, request), and may be
had a number of times for certain instead of now and then (``detach@settle=1x``).
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum


class FaultsError(ValueError):
    """What was asked for makes no sense; the text says why."""


class Operation(StrEnum):
    """What can be struck."""

    ATTACH = "attach"
    SEND = "send"
    DELIVER = "deliver"
    SETTLE = "settle"
    REQUEST = "request"


class Fault(StrEnum):
    DETACH = "detach"
    IDLE_DETACH = "idle-detach"
    DELAY = "delay"
    SERVER_BUSY = "server-busy"
    DROP_CONNECTION = "drop-connection"
    ACK_LOST = "ack-lost"
    TOKEN_EXPIRED = "token-expired"  # noqa: S105 - a name
    QUEUE_FULL = "queue-full"
    DUPLICATE = "duplicate"


LOCK_MAX_AGE = "lock-max-age"
_STRIKES: Mapping[Fault, frozenset[Operation]] = {
    Fault.DETACH: frozenset(Operation),
    Fault.IDLE_DETACH: frozenset({Operation.ATTACH}),
    Fault.DELAY: frozenset(Operation) - {Operation.ATTACH},
    Fault.SERVER_BUSY: frozenset(Operation) - {Operation.DELIVER},
    Fault.DROP_CONNECTION: frozenset(Operation),
    Fault.ACK_LOST: frozenset({Operation.SEND, Operation.SETTLE, Operation.REQUEST}),
    Fault.TOKEN_EXPIRED: frozenset(Operation),
    Fault.QUEUE_FULL: frozenset({Operation.SEND}),
    Fault.DUPLICATE: frozenset({Operation.SEND}),
}
_NAMES = frozenset(fault.value for fault in Fault)
_PLACES = frozenset(operation.value for operation in Operation)
_SECONDS = {Fault.DELAY: 0.1, Fault.IDLE_DETACH: 1.0}
"""The faults that take a time, and what it is when none is given."""
_NUMBER = r"[0-9]{1,12}(?:\.[0-9]{1,12})?"
_LONGEST = 86_400.0  # seconds
_DURATION = re.compile(rf"({_NUMBER})(ms|s|m)?")
_RATE = re.compile(rf"({_NUMBER})%")
_TIMES = re.compile(r"([0-9]{1,9})x")


@dataclass(slots=True)
class _Certain:
    """Strikes whenever it can, so many times."""

    fault: Fault
    operations: frozenset[Operation]
    left: int


class Faults:
    """What was asked for, and what came of it."""

    def __init__(self, asked: Iterable[str] = (), seed: int | None = None) -> None:
        self.lock_max_age: int | None = None
        """Milliseconds."""
        self.struck: Counter[str] = Counter()
        self.change(asked, seed)

    def change(self, asked: Iterable[str], seed: int | None = None) -> None:
        """Ask for others instead, all or none, and begin again with the seed. Counts go on. Raises FaultsError."""
        asked = list(asked)
        rates: dict[Operation, dict[Fault, float]] = {operation: {} for operation in Operation}
        certain: list[_Certain] = []
        seconds = dict(_SECONDS)
        lock_max_age: int | None = None
        for text in asked:
            what, equals, value = text.partition("=")
            if not equals:
                raise FaultsError(f"{text!r} is not like detach=2%")
            if what == LOCK_MAX_AGE:
                lock_max_age = max(1, round(_duration(text, value) * 1000))
                continue
            faults, operations = _read_what(what)
            often, colon, duration = value.partition(":")
            if colon and (len(faults) > 1 or faults[0] not in _SECONDS):
                raise FaultsError(f"{text!r}: {what} takes no time")
            if colon:
                seconds[faults[0]] = _duration(text, duration)
            times = _TIMES.fullmatch(often)
            for fault in faults:
                if times is not None:
                    certain.append(_Certain(fault, operations & _STRIKES[fault], int(times[1])))
                    continue
                for operation in operations & _STRIKES[fault]:
                    rates[operation][fault] = _rate(text, often)
        self.asked = asked
        self._rates, self._certain, self._seconds, self.lock_max_age = rates, certain, seconds, lock_max_age
        self.seed = random.randrange(1 << 32) if seed is None else seed  # noqa: S311 - not a secret
        self._random = random.Random(self.seed)  # noqa: S311 - must repeat itself

    @property
    def are_on(self) -> bool:
        return bool(self.asked)

    def strike(self, operation: Operation) -> Fault | None:
        """Which fault strikes this one operation: each as often as was asked for, and never two."""
        for certain in self._certain:
            if certain.left and operation in certain.operations:
                certain.left -= 1
                self.struck[certain.fault] += 1
                return certain.fault
        rates = self._rates[operation]
        if not rates:
            return None
        point = self._random.random() * max(1.0, sum(rates.values()))
        for fault, rate in rates.items():
            point -= rate
            if point < 0:
                self.struck[fault] += 1
                return fault
        return None

    def seconds(self, fault: Fault) -> float:
        """The time of a fault that takes one."""
        return self._seconds[fault]

    def toss(self) -> bool:
        """Where there are two ways, which."""
        return self._random.random() < 0.5


def _read_what(what: str) -> tuple[list[Fault], frozenset[Operation]]:
    """Which faults, and where they strike."""
    name, at, place = what.partition("@")
    if name != "all" and name not in _NAMES:
        known = ", ".join([*Fault, "all", LOCK_MAX_AGE])
        raise FaultsError(f"{name!r} is not a fault; there are {known}")
    if at and place not in _PLACES:
        raise FaultsError(f"{what!r}: {place!r} is not {', '.join(Operation)}")
    operations = frozenset({Operation(place)} if at else Operation)
    faults = [fault for fault in Fault if name in ("all", fault) and _STRIKES[fault] & operations]
    if not faults:
        raise FaultsError(f"{what!r}: {name} never strikes there")
    return faults, operations


def _rate(text: str, value: str) -> float:
    match = _RATE.fullmatch(value)
    if match is None or float(match[1]) > 100:
        raise FaultsError(f"{text!r}: {value!r} is not a rate like 2%")
    return float(match[1]) / 100


def _duration(text: str, value: str) -> float:
    """In seconds."""
    match = _DURATION.fullmatch(value)
    if match is None:
        raise FaultsError(f"{text!r}: {value!r} is not a time like 80ms, 20s or 2m")
    seconds = float(match[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0}[match[2] or "s"]
    if seconds > _LONGEST:
        raise FaultsError(f"{text!r}: {value!r} is longer than a day")
    return seconds
