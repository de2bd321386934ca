"""What clients of an emulator were told while it was killed again and again, and whether it makes sense.

Clients write down what they ask for and what is answered, with the time before they asked and after they heard. An
answer that did not come leaves the matter open: then either is right. `problems` are sentences; there should be none.
Clients and emulator run on one machine, so there is one clock. A lock counts as held from when its holder heard of it
until it lapses or its holder asked to give it up: less than it was, never more.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise


class Answer(StrEnum):
    YES = "yes"
    LOST = "lost"  # the lock, says the emulator
    NONE = "none"  # it died, or something else went wrong: perhaps it was done


@dataclass
class Lock:
    """One message in one client's hands."""

    queue: str
    text: str
    token: str
    sequence: int
    delivery_count: int
    received: float
    told_until: float  # when it was handed out; says which lock came first, too
    until: float = 0.0  # with renewals
    released: float = float("inf")  # when its holder asked to give it up
    open_renewals: int = 0
    settled: tuple[str, Answer] | None = None

    @property
    def held(self) -> tuple[float, float]:
        return self.received, min(self.until, self.released)

    @property
    def next_count(self) -> int:
        """The least delivery count that its message has from now on: one more, if this delivery came to nothing."""
        match self.settled:
            case None | (_, Answer.LOST) | ("abandon", _) | ("complete", Answer.NONE):
                return self.delivery_count + 1
            case _:
                return self.delivery_count


@dataclass
class Sent:
    """One message: its text says which."""

    queue: str
    text: str
    asked: float
    due: float = 0.0  # of a scheduled one
    after: str | None = None  # the one before it in its batch
    answered: float | None = None
    cancelled: Answer | None = None
    scheduled_as: int | None = None
    locks: list[Lock] = field(default_factory=list)

    def asked_to(self, what: str, *answers: Answer) -> list[Lock]:
        return [lock for lock in self.locks if lock.settled and lock.settled[0] == what and lock.settled[1] in answers]


@dataclass(frozen=True)
class Found:
    """A message that is there in the end."""

    queue: str
    text: str
    sequence: int
    dead: bool
    state: str
    delivery_count: int
    reason: str | None


class History:
    """Of all queues of one emulator."""

    def __init__(self, max_delivery_count: dict[str, int]) -> None:
        self.sent: dict[tuple[str, str], Sent] = {}
        self.kills: list[float] = []
        self.problems: list[str] = []
        self._max_delivery_count = max_delivery_count

    # ------------------------------------------------------------------------------------------ writing it down

    def sends(self, queue: str, texts: Iterable[str], due: float = 0.0) -> list[Sent]:
        now, before, messages = time.time(), None, []
        for text in texts:
            message = self.sent[queue, text] = Sent(queue, text, now, due, before)
            messages.append(message)
            before = None if due else text
        return messages

    def receives(self, lock: Lock) -> None:
        lock.until = lock.told_until
        message = self.sent.get((lock.queue, lock.text))
        if message is None:
            self.problems.append(f"{lock.queue}: {lock.text} was received and never sent")
            return
        if lock.received < message.due - 0.002:
            self.problems.append(f"{lock.queue}: {lock.text} came {message.due - lock.received:.3f} s too early")
        message.locks.append(lock)

    def renewed(self, lock: Lock, asked: float, answer: Answer, until: float) -> None:
        if answer is Answer.YES:
            self._check_alive(lock, asked, "renewed")
            lock.until = until
        elif answer is Answer.LOST:
            self._check_lost(lock, asked)
        else:
            lock.open_renewals += 1

    def settles(self, lock: Lock, what: str) -> None:
        lock.settled = what, Answer.NONE
        lock.released = time.time()

    def settled(self, lock: Lock, what: str, answer: Answer) -> None:
        lock.settled = what, answer
        if answer is Answer.YES:
            self._check_alive(lock, lock.released, what)
        elif answer is Answer.LOST:
            self._check_lost(lock, lock.released)

    def _check_alive(self, lock: Lock, asked: float, what: str) -> None:
        if asked > lock.until + 0.001 and not lock.open_renewals:
            self.problems.append(f"{lock.queue}: {lock.text} was {what} {asked - lock.until:.3f} s after its lock")

    def _check_lost(self, lock: Lock, asked: float) -> None:
        """While it lasts, a lock is not lost; but what was asked of an emulator that died may have been done."""
        now = time.time()
        if now < lock.until and not any(asked <= kill <= now for kill in self.kills):
            self.problems.append(f"{lock.queue}: {lock.text} lost its lock {lock.until - now:.3f} s early")

    # -------------------------------------------------------------------------------------------------- judging

    def judge(self, found: list[Found]) -> list[str]:
        """Everything that is wrong, given what is there in the end."""
        there: dict[tuple[str, str], list[Found]] = defaultdict(list)
        for each in found:
            there[each.queue, each.text].append(each)
        strangers = [f"{queue}: {text} is there and was never sent" for queue, text in there.keys() - self.sent.keys()]
        told = [line for key, message in self.sent.items() for line in self._judge(message, there[key])]
        return [*self.problems, *strangers, *told, *self._judge_sequences(found)]

    def _judge(self, message: Sent, found: list[Found]) -> Iterator[str]:
        name = f"{message.queue}: {message.text}"
        message.locks.sort(key=lambda lock: (lock.told_until, lock.delivery_count))
        if len(found) > 1:
            yield f"{name} is there {len(found)} times"
        completed = message.asked_to("complete", Answer.YES)
        gone = bool(completed) or message.cancelled is Answer.YES
        last = message.locks[-1].settled if message.locks else None
        perhaps = last == ("complete", Answer.NONE) or message.cancelled is Answer.NONE
        known = message.answered is not None or bool(message.locks)
        if gone and found:
            yield f"{name} was removed, and is there"
        if known and not gone and not perhaps and not found:
            yield f"{name} is lost"
        buried = message.asked_to("dead-letter", Answer.YES)
        for end in (*completed, *buried):
            if message.locks[-1] is not end:
                yield f"{name} was received again after it had been settled for good"
        for each in found:
            yield from self._judge_place(name, message, each, buried=bool(buried))
        yield from _judge_locks(name, message.locks)

    def _judge_place(self, name: str, message: Sent, found: Found, *, buried: bool) -> Iterator[str]:
        if buried and not found.dead:
            yield f"{name} was dead-lettered, and is not in the dead letter queue"
        asked = bool(message.asked_to("dead-letter", Answer.YES, Answer.NONE))
        worn_out = found.delivery_count >= self._max_delivery_count[message.queue]
        if found.dead and not (asked and found.reason == "asked") and not (worn_out and found.reason != "asked"):
            yield f"{name} is a dead letter for no reason (deliveries: {found.delivery_count}, {found.reason})"
        if message.locks and found.delivery_count < message.locks[-1].next_count:
            yield f"{name}: delivery count {found.delivery_count} after {message.locks[-1].delivery_count}"
        if not found.dead and (message.asked_to("defer", Answer.YES) and found.state != "DEFERRED"):
            yield f"{name} was deferred, and is {found.state}"
        if found.state == "SCHEDULED":
            yield f"{name} is still scheduled"

    def _judge_sequences(self, found: list[Found]) -> Iterator[str]:
        """Each number is of one message; each message has one, and those sent later have higher ones."""
        owners: dict[tuple[str, int], set[str]] = defaultdict(set)
        numbers: dict[tuple[str, str], set[int]] = defaultdict(set)
        for message in self.sent.values():
            if message.scheduled_as is not None:
                owners[message.queue, message.scheduled_as].add(message.text)
        seen = [(lock.queue, lock.text, lock.sequence) for message in self.sent.values() for lock in message.locks]
        for queue, text, sequence in (*seen, *((each.queue, each.text, each.sequence) for each in found)):
            owners[queue, sequence].add(text)
            numbers[queue, text].add(sequence)
        for (queue, sequence), texts in owners.items():
            if len(texts) > 1:
                yield f"{queue}: sequence number {sequence} was given to {sorted(texts)}"
        for (queue, text), all_numbers in numbers.items():
            if len(all_numbers) > 1:
                yield f"{queue}: {text} had the sequence numbers {sorted(all_numbers)}"
        for queue in self._max_delivery_count:
            yield from _judge_order(list(self._numbered(queue, numbers)))

    def _numbered(self, queue: str, numbers: dict[tuple[str, str], set[int]]) -> Iterator[Numbered]:
        for message in self.sent.values():
            if message.queue != queue:
                continue
            if message.scheduled_as is not None:
                yield Numbered(message.text, message.scheduled_as, message.asked, message.answered)
            number = max(numbers.get((queue, message.text), ()), default=0)
            if number and message.due:
                yield Numbered(message.text, number, message.due, None)
            elif number:
                first = max(numbers.get((queue, message.after or ""), ()), default=0)
                yield Numbered(message.text, number, message.asked, message.answered, more_than=first)

    def counts(self) -> dict[str, int]:
        """What happened, to be printed."""
        locks = [lock for message in self.sent.values() for lock in message.locks]
        answers = Counter(lock.settled for lock in locks if lock.settled)
        return {
            "kills": len(self.kills),
            "messages": len(self.sent),
            "acknowledged": sum(message.answered is not None for message in self.sent.values()),
            "scheduled": sum(message.due > 0 for message in self.sent.values()),
            "cancelled": sum(message.cancelled is Answer.YES for message in self.sent.values()),
            "locks": len(locks),
            "held over a kill": sum(any(a < kill < b for kill in self.kills) for a, b in (lock.held for lock in locks)),
            "renewed": sum(lock.until > lock.told_until for lock in locks),
            "completed": answers["complete", Answer.YES],
            "abandoned": answers["abandon", Answer.YES],
            "dead-lettered": answers["dead-letter", Answer.YES],
            "deferred": answers["defer", Answer.YES],
            "not answered": sum(count for (_, answer), count in answers.items() if answer is Answer.NONE),
            "locks lost": sum(count for (_, answer), count in answers.items() if answer is Answer.LOST),
        }


def _judge_locks(name: str, locks: list[Lock]) -> Iterator[str]:
    by_time = sorted((lock.held for lock in locks if lock.held[0] < lock.held[1]), key=lambda held: held[0])
    for (_, end), (begin, _) in pairwise(by_time):
        if begin < end:
            yield f"{name} was locked for two at once, for {end - begin:.3f} s"
    if len({lock.token for lock in locks}) != len(locks):
        yield f"{name} was delivered twice under one token"
    for before, after in pairwise(locks):
        if after.delivery_count < before.next_count:
            yield f"{name}: delivery count {after.delivery_count} after {before.delivery_count}"


@dataclass(frozen=True)
class Numbered:
    """A sequence number, given after `asked` and, if that was told, before `answered`."""

    text: str
    number: int
    asked: float
    answered: float | None
    more_than: int = 0


def _judge_order(numbered: list[Numbered]) -> Iterator[str]:
    """Whatever was acknowledged before another was sent has a lower number than it."""
    answered = sorted((each.answered, each.number) for each in numbered if each.answered is not None)
    highest, position = 0, 0
    for each in sorted(numbered, key=lambda each: each.asked):
        while position < len(answered) and answered[position][0] < each.asked:
            highest = max(highest, answered[position][1])
            position += 1
        if each.number <= max(highest, each.more_than):
            yield f"{each.text} got sequence number {each.number} after {max(highest, each.more_than)} had been given"
