"""A queue's behaviour, in virtual time and without a disk."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from uuid import UUID, uuid4

import pytest

from servicebus_emulator.broker import Queue
from servicebus_emulator.config import QueueSettings
from servicebus_emulator.faults import Faults
from servicebus_emulator.message import Arrival
from servicebus_emulator.record import Disabled, LockLost, Message, NotFound, QueueFull, Refused, State

SECOND = 1000
LOCK = 60 * SECOND


@dataclass
class MemoryJournal:
    """Keeps what it is told, as a disk would: what is restored from it is all that survives."""

    rows: dict[int, Message] = field(default_factory=dict)
    last_sequence: int = 0
    seen: dict[str, int] = field(default_factory=dict)
    last_id: int = 0

    def new_id(self) -> int:
        self.last_id += 1
        return self.last_id

    def save(self, queue: int, message: Message, *, is_new: bool = False) -> None:
        assert is_new == (message.id not in self.rows)
        self.rows[message.id] = replace(message, added=dict(message.added))

    def delete(self, queue: int, message: Message) -> None:
        del self.rows[message.id]

    def sequence(self, queue: int, last: int) -> None:
        assert last > self.last_sequence
        self.last_sequence = last

    def remember(self, queue: int, message_id: str, at: int) -> None:
        self.seen[message_id] = at

    def forget(self, queue: int, before: int) -> None:
        self.seen = {key: at for key, at in self.seen.items() if at > before}


class Bench:
    """A queue with a clock that is turned by hand. Every turn lets due things happen."""

    def __init__(self, **settings: object) -> None:
        self.journal = MemoryJournal()
        self.settings = replace(QueueSettings(), **settings)  # type: ignore[arg-type]
        self.faults = Faults()
        self.queue = Queue(1, "q", self.settings, self.journal, self.faults)
        self.now = 1_000_000

    def send(self, text: str, *, ttl: int | None = None, at: int | None = None, key: str | None = None) -> int:
        arrival = Arrival(text.encode(), key or uuid4().hex, ttl, at)
        return self.queue.send([arrival], self.now)[0]

    def lock(self, *, dead: bool = False) -> Message | None:
        return self.queue.lock_next(self.now, dead=dead)

    def take(self, *, dead: bool = False) -> tuple[str, UUID]:
        message = self.lock(dead=dead)
        assert message is not None, "nothing to lock"
        assert message.lock is not None
        return message.payload.decode(), message.lock

    def wait(self, milliseconds: int) -> None:
        """Turn the clock, ringing at every deadline on the way, as a timer would."""
        until = self.now + milliseconds
        while (due := self.queue.next_deadline()) is not None and due <= until:
            self.now = max(self.now, due)
            self.queue.tick(self.now)
        self.now = until

    def restart(self) -> None:
        rows = sorted(self.journal.rows.values(), key=lambda message: message.sequence)
        self.queue = Queue(1, "q", self.settings, self.journal, self.faults)
        self.queue.restore(self.journal.last_sequence, [replace(row) for row in rows], self.journal.seen.items())
        self.queue.tick(self.now)

    def texts(self, *, dead: bool = False) -> list[str]:
        return [message.payload.decode() for message in self.queue.peek(0, 1000, dead=dead)]


def test_messages_come_in_the_order_they_were_sent() -> None:
    bench = Bench()
    for text in "abc":
        bench.send(text)
    assert [bench.take()[0] for _ in range(3)] == ["a", "b", "c"]
    assert bench.lock() is None


def test_a_locked_message_is_nobody_elses_until_it_is_settled() -> None:
    bench = Bench()
    bench.send("a")
    _, token = bench.take()
    assert bench.lock() is None
    bench.queue.complete(token, bench.now)
    assert bench.lock() is None
    assert bench.texts() == []
    assert bench.journal.rows == {}


def test_an_abandoned_message_goes_back_to_its_place_and_counts() -> None:
    bench = Bench()
    bench.send("a")
    bench.send("b")
    _, token = bench.take()
    bench.queue.abandon(token, bench.now)
    again = bench.lock()
    assert again is not None
    assert (again.payload, again.delivery_count, again.sequence) == (b"a", 1, 1)
    assert again.lock != token


def test_a_released_message_goes_back_without_counting() -> None:
    bench = Bench(max_delivery_count=1)
    bench.send("a")
    _, token = bench.take()
    bench.queue.release(token, bench.now)
    again = bench.lock()
    assert again is not None
    assert again.delivery_count == 0


SETTLEMENTS: dict[str, Callable[[Queue, UUID, int], object]] = {
    "complete": lambda queue, token, now: queue.complete(token, now),
    "abandon": lambda queue, token, now: queue.abandon(token, now),
    "release": lambda queue, token, now: queue.release(token, now),
    "defer": lambda queue, token, now: queue.defer(token, now),
    "dead_letter": lambda queue, token, now: queue.dead_letter(token, now, "r", None),
    "renew": lambda queue, token, now: queue.renew(token, now),
}


@pytest.mark.parametrize("how", SETTLEMENTS)
def test_nothing_can_be_done_with_a_lock_at_the_moment_it_expires(how: str) -> None:
    bench = Bench()
    bench.send("a")
    _, token = bench.take()
    with pytest.raises(LockLost):  # even when the timer has not rung yet
        SETTLEMENTS[how](bench.queue, token, bench.now + LOCK)
    SETTLEMENTS[how](bench.queue, token, bench.now + LOCK - 1)


@pytest.mark.parametrize("how", SETTLEMENTS)
@pytest.mark.parametrize("first", [how for how in SETTLEMENTS if how != "renew"])
def test_nothing_can_be_done_with_a_lock_twice(first: str, how: str) -> None:
    bench = Bench()
    bench.send("a")
    _, token = bench.take()
    SETTLEMENTS[first](bench.queue, token, bench.now)
    with pytest.raises(LockLost):
        SETTLEMENTS[how](bench.queue, token, bench.now)


def test_an_expired_lock_frees_the_message_and_counts() -> None:
    bench = Bench()
    bench.send("a")
    bench.take()
    assert bench.queue.next_deadline() == bench.now + LOCK
    bench.wait(LOCK - 1)
    assert bench.lock() is None
    bench.wait(1)
    again = bench.lock()
    assert again is not None
    assert again.delivery_count == 1


def test_a_renewed_lock_expires_later_and_not_before() -> None:
    bench = Bench()
    bench.send("a")
    _, token = bench.take()
    bench.wait(LOCK - 1)
    assert bench.queue.renew(token, bench.now) == bench.now + LOCK
    bench.wait(LOCK - 1)
    assert bench.lock() is None
    bench.wait(1)
    assert bench.lock() is not None


@pytest.mark.parametrize("how", ["abandon", "expiry"])
def test_the_last_allowed_delivery_that_fails_makes_a_dead_letter(how: str) -> None:
    bench = Bench(max_delivery_count=3)
    bench.send("a")
    for attempt in range(3):
        message = bench.lock()
        assert message is not None
        assert message.delivery_count == attempt
        if how == "abandon":
            bench.queue.abandon(message.lock or uuid4(), bench.now)
        else:
            bench.wait(LOCK)
    assert bench.lock() is None
    letter = bench.lock(dead=True)
    assert letter is not None
    assert letter.added["DeadLetterReason"] == "MaxDeliveryCountExceeded"


def test_a_dead_letter_keeps_its_number_and_never_leaves_by_itself() -> None:
    bench = Bench(max_delivery_count=2, default_ttl=10 * SECOND)
    number = bench.send("a")
    _, token = bench.take()
    bench.queue.dead_letter(token, bench.now, "Poison", "digest")
    for _ in range(5):
        bench.take(dead=True)
        bench.wait(LOCK)
    letter = bench.lock(dead=True)
    assert letter is not None
    assert (letter.sequence, letter.delivery_count) == (number, 5)
    assert letter.added == {"DeadLetterReason": "Poison", "DeadLetterErrorDescription": "digest"}
    with pytest.raises(Refused):
        bench.queue.dead_letter(letter.lock or uuid4(), bench.now, "again", None)
    assert bench.texts() == []


def test_an_expired_message_is_dropped() -> None:
    bench = Bench()
    bench.send("short", ttl=5 * SECOND)
    bench.send("long")
    bench.wait(5 * SECOND - 1)
    assert bench.texts() == ["short", "long"]
    bench.wait(1)
    assert bench.texts() == ["long"]
    assert bench.texts(dead=True) == []


def test_an_expired_message_is_not_delivered_even_before_the_timer_rings() -> None:
    bench = Bench()
    bench.send("short", ttl=5 * SECOND)
    bench.now += 5 * SECOND
    assert bench.lock() is None
    assert bench.texts() == []


def test_an_expired_message_is_dead_lettered_where_the_queue_says_so() -> None:
    bench = Bench(dead_letter_on_expiration=True, default_ttl=5 * SECOND)
    bench.send("a", ttl=60 * SECOND)  # the queue's limit is the shorter one
    bench.wait(5 * SECOND)
    letter = bench.lock(dead=True)
    assert letter is not None
    assert letter.added["DeadLetterReason"] == "TTLExpiredException"


def test_a_locked_message_expires_only_when_its_lock_ends() -> None:
    bench = Bench()
    bench.send("a", ttl=5 * SECOND)
    _, token = bench.take()
    bench.wait(30 * SECOND)
    assert bench.texts() == ["a"]
    bench.queue.abandon(token, bench.now)
    assert bench.texts() == []


def test_a_scheduled_message_comes_up_with_a_new_number_as_if_sent_then() -> None:
    bench = Bench()
    due = bench.now + 10 * SECOND
    number = bench.send("later", at=due, ttl=5 * SECOND)
    bench.send("now")
    assert bench.take()[0] == "now"
    (scheduled, _) = bench.queue.peek(0, 9)
    assert (scheduled.sequence, scheduled.state) == (number, State.SCHEDULED)
    bench.wait(10 * SECOND - 1)
    assert bench.lock() is None
    bench.wait(1)
    message = bench.lock()
    assert message is not None
    assert (message.sequence, message.enqueued_at, message.state) == (3, due, State.ACTIVE)
    assert message.expires_at == due + 5 * SECOND


def test_a_schedule_in_the_past_is_now() -> None:
    bench = Bench()
    bench.send("a", at=bench.now)
    assert bench.take()[0] == "a"


def test_schedules_are_cancelled_together_or_not_at_all() -> None:
    bench = Bench()
    first, second = (bench.send(text, at=bench.now + SECOND) for text in "ab")
    active = bench.send("c")
    with pytest.raises(NotFound):
        bench.queue.cancel_scheduled([first, active])
    bench.queue.cancel_scheduled([first, second])
    bench.wait(SECOND)
    assert bench.texts() == ["c"]


def test_a_deferred_message_is_had_by_its_number_only() -> None:
    bench = Bench()
    number = bench.send("a")
    other = bench.send("b")
    _, token = bench.take()
    bench.queue.defer(token, bench.now)
    assert bench.take()[0] == "b"
    with pytest.raises(NotFound):
        bench.queue.receive_deferred([number, other], bench.now, dead=False, lock=True)
    (message,) = bench.queue.receive_deferred([number], bench.now, dead=False, lock=True)
    with pytest.raises(NotFound):  # it is locked
        bench.queue.receive_deferred([number], bench.now, dead=False, lock=True)
    bench.queue.abandon(message.lock or uuid4(), bench.now)
    assert bench.lock() is None  # still deferred
    (message,) = bench.queue.receive_deferred([number], bench.now, dead=False, lock=False)
    assert message.delivery_count == 1
    assert bench.texts() == ["b"]


def test_a_deferred_message_can_be_dead_lettered_and_is_then_had_as_any_other() -> None:
    bench = Bench()
    number = bench.send("a")
    bench.queue.defer(bench.take()[1], bench.now)
    (message,) = bench.queue.receive_deferred([number], bench.now, dead=False, lock=True)
    bench.queue.dead_letter(message.lock or uuid4(), bench.now, "why", None)
    assert bench.take(dead=True)[0] == "a"


def test_a_duplicate_within_the_window_is_dropped_and_does_not_prolong_it() -> None:
    bench = Bench(requires_duplicate_detection=True, duplicate_window=10 * SECOND)
    assert bench.send("a", key="k") == 1
    bench.wait(9 * SECOND)
    assert bench.send("b", key="k") == 0
    assert bench.send("c", key="other") == 2
    bench.wait(SECOND)
    assert bench.send("d", key="k") == 3
    assert bench.texts() == ["a", "c", "d"]


def test_duplicates_in_one_batch_are_dropped_too() -> None:
    bench = Bench(requires_duplicate_detection=True)
    same = Arrival(b"a", "k", None, None)
    assert bench.queue.send([same, same], bench.now) == [1, 0]


def test_peeking_starts_at_a_number_and_sees_everything_of_its_side() -> None:
    bench = Bench()
    for text in "abcde":
        bench.send(text)
    _, token = bench.take()
    bench.queue.dead_letter(token, bench.now, None, None)
    bench.take()
    assert [message.sequence for message in bench.queue.peek(3, 2)] == [3, 4]
    assert [message.sequence for message in bench.queue.peek(0, 100)] == [2, 3, 4, 5]
    assert [message.sequence for message in bench.queue.peek(0, 100, dead=True)] == [1]
    assert bench.queue.peek(0, 0) == []


def test_a_restart_brings_back_locks_counts_schedules_dead_letters_and_duplicates() -> None:
    bench = Bench(requires_duplicate_detection=True)
    for text in ("locked", "counted", "deferred", "dead", "done"):
        bench.send(text, key=text)
    bench.send("later", at=bench.now + LOCK // 2, key="later")
    tokens = dict(bench.take() for _ in range(5))
    bench.queue.abandon(tokens["counted"], bench.now)
    bench.queue.defer(tokens["deferred"], bench.now)
    bench.queue.dead_letter(tokens["dead"], bench.now, "why", "because")
    bench.queue.complete(tokens["done"], bench.now)
    bench.restart()
    assert bench.send("again", key="done") == 0
    message = bench.lock()
    assert message is not None
    assert (message.payload, message.delivery_count) == (b"counted", 1)
    assert bench.lock() is None
    bench.queue.complete(tokens["locked"], bench.now)
    letter = bench.lock(dead=True)
    assert letter is not None
    assert letter.added == {"DeadLetterReason": "why", "DeadLetterErrorDescription": "because"}
    (deferred,) = bench.queue.receive_deferred([3], bench.now, dead=False, lock=True)
    assert deferred.payload == b"deferred"
    bench.wait(LOCK // 2)
    later = bench.lock()
    assert later is not None
    assert (later.payload, later.sequence) == (b"later", 7)


def test_a_restart_catches_up_with_what_came_due_meanwhile() -> None:
    bench = Bench(max_delivery_count=1)
    bench.send("locked")
    bench.send("short", ttl=SECOND)
    bench.send("later", at=bench.now + SECOND)
    bench.take()
    bench.now += 10 * LOCK
    bench.restart()
    assert bench.texts() == ["later"]
    assert bench.texts(dead=True) == ["locked"]


def test_sequence_numbers_go_on_after_everything_is_gone() -> None:
    bench = Bench()
    for expected in (1, 2, 3):
        assert bench.send("x") == expected
        bench.queue.complete(bench.take()[1], bench.now)
        bench.restart()


def test_deadlines_that_are_over_do_not_pile_up() -> None:
    bench = Bench()
    for _ in range(5000):
        bench.send("x", ttl=3600 * SECOND)
        bench.queue.complete(bench.take()[1], bench.now)
    assert len(bench.queue._deadlines) < 2000
    assert bench.queue.next_deadline() is None


ADDING: dict[str, Callable[[Queue, UUID, int, dict[str, object]], object]] = {
    "abandon": lambda queue, token, now, added: queue.abandon(token, now, added),
    "defer": lambda queue, token, now, added: queue.defer(token, now, added),
    "dead_letter": lambda queue, token, now, added: queue.dead_letter(token, now, "why", None, added),
}


@pytest.mark.parametrize("how", ADDING)
def test_properties_of_receivers_add_up_and_last(how: str) -> None:
    bench = Bench()
    bench.send("a")
    bench.queue.abandon(bench.take()[1], bench.now, {"first": 1, "both": 1})
    ADDING[how](bench.queue, bench.take()[1], bench.now, {"second": 2, "both": 2})
    bench.restart()
    (message,) = bench.queue.peek(0, 9, dead=how == "dead_letter")
    told = {"DeadLetterReason": "why"} if how == "dead_letter" else {}
    assert message.added == {"first": 1, "second": 2, "both": 2, **told}


def test_a_full_queue_takes_nothing_until_something_has_left() -> None:
    bench = Bench(max_size=10)
    bench.send("1234")
    bench.send("56789")
    bench.send("this is the last")
    assert bench.queue.size == 25
    for at in (None, bench.now + SECOND):
        with pytest.raises(QueueFull):
            bench.send("x", at=at)
    token = bench.take()[1]
    bench.queue.dead_letter(token, bench.now, None, None)
    bench.restart()
    with pytest.raises(QueueFull):  # dead letters take room too
        bench.send("x")
    bench.queue.complete(bench.take()[1], bench.now)
    bench.queue.complete(bench.take()[1], bench.now)
    assert bench.queue.size == 4
    bench.send("x")


def test_a_full_queue_does_not_remember_what_it_refused() -> None:
    bench = Bench(max_size=1, requires_duplicate_detection=True)
    bench.send("a", key="a")
    with pytest.raises(QueueFull):
        bench.send("b", key="b")
    bench.queue.complete(bench.take()[1], bench.now)
    assert bench.send("b", key="b") == 2


@pytest.mark.parametrize("status", ["Active", "SendDisabled", "ReceiveDisabled", "Disabled"])
def test_a_disabled_queue_neither_takes_nor_gives(status: str) -> None:
    bench = Bench()
    number = bench.send("deferred")
    bench.queue.defer(bench.take()[1], bench.now)
    bench.send("held")
    token = bench.take()[1]
    bench.send("free")
    bench.queue.settings = replace(bench.settings, status=status)  # type: ignore[arg-type]
    if status in ("SendDisabled", "Disabled"):
        with pytest.raises(Disabled):
            bench.send("x")
    else:
        bench.send("x")
    assert bench.queue.has_available(dead=False) is (status in ("Active", "SendDisabled"))
    if status in ("ReceiveDisabled", "Disabled"):
        assert bench.lock() is None
        assert bench.queue.take_next(bench.now) is None
        with pytest.raises(Disabled):
            bench.queue.receive_deferred([number], bench.now, dead=False, lock=True)
    else:
        assert bench.take()[0] == "free"
        bench.queue.receive_deferred([number], bench.now, dead=False, lock=True)
    bench.queue.complete(token, bench.now)  # what is held can be settled


def test_a_lock_ends_at_its_greatest_age_whatever_renewal_says() -> None:
    bench = Bench()
    bench.faults.change(["lock-max-age=90s"])
    bench.send("a")
    token = bench.take()[1]
    bench.wait(LOCK - SECOND)
    assert bench.queue.renew(token, bench.now) == bench.now + LOCK
    bench.wait(30 * SECOND)
    assert bench.lock() is None
    bench.wait(SECOND)
    with pytest.raises(LockLost):
        bench.queue.renew(token, bench.now)
    again = bench.lock()
    assert again is not None
    assert again.delivery_count == 1
    bench.faults.change([])
    assert again.lock is not None
    bench.queue.abandon(again.lock, bench.now)
    token = bench.take()[1]
    for _ in range(5):
        bench.wait(LOCK - SECOND)
        bench.queue.renew(token, bench.now)
