"""Any sequence of steps, with restarts anywhere, against a model that is too simple to be wrong."""

from dataclasses import dataclass
from uuid import UUID

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from servicebus_emulator.record import LockLost
from tests.unit.emulator.test_broker import Bench

LOCK = 10_000


@dataclass
class Expected:
    """What must be true of one message."""

    text: str
    position: int  # its place among all that were ever sent
    count: int = 0
    dead: bool = False
    token: UUID | None = None
    until: int = 0
    expires: int | None = None
    due: int | None = None


class QueueModel(RuleBasedStateMachine):
    """A list of messages, looked through from the start at every step."""

    @initialize(deliveries=st.integers(1, 4), to_dead=st.booleans())
    def begin(self, deliveries: int, to_dead: bool) -> None:
        self.bench = Bench(lock_duration=LOCK, max_delivery_count=deliveries, dead_letter_on_expiration=to_dead)
        self.deliveries = deliveries
        self.to_dead = to_dead
        self.expected: list[Expected] = []
        self.lost: list[UUID] = []
        self.positions = 0

    def place(self) -> int:
        self.positions += 1
        return self.positions

    @rule(ttl=st.none() | st.integers(1, 40_000), delay=st.none() | st.integers(1, 40_000))
    def send(self, ttl: int | None, delay: int | None) -> None:
        position = self.place()
        text = f"m{position}"
        now = self.bench.now
        self.bench.send(text, ttl=ttl, at=None if delay is None else now + delay)
        due = None if delay is None else now + delay
        expires = None if ttl is None else (due or now) + ttl
        self.expected.append(Expected(text, position, expires=expires, due=due))

    def free(self, *, dead: bool) -> list[Expected]:
        return sorted(
            (m for m in self.expected if m.dead is dead and m.token is None and m.due is None),
            key=lambda message: message.position,
        )

    @rule(dead=st.booleans())
    def lock(self, dead: bool) -> None:
        message = self.bench.lock(dead=dead)
        free = self.free(dead=dead)
        if not free:
            assert message is None
            return
        assert message is not None
        assert (message.payload.decode(), message.delivery_count) == (free[0].text, free[0].count)
        free[0].token, free[0].until = message.lock, self.bench.now + LOCK

    def locked(self) -> list[Expected]:
        return [message for message in self.expected if message.token is not None]

    @precondition(lambda self: self.locked())
    @rule(data=st.data(), how=st.sampled_from(["complete", "abandon", "release", "renew", "dead_letter"]))
    def settle(self, data: st.DataObject, how: str) -> None:
        message = data.draw(st.sampled_from(self.locked()))
        token, now, queue = message.token, self.bench.now, self.bench.queue
        assert token is not None
        match how:
            case "renew":
                queue.renew(token, now)
                message.until = now + LOCK
                return
            case "complete":
                queue.complete(token, now)
                self.expected.remove(message)
            case "abandon":
                queue.abandon(token, now)
                self.fail(message)
            case "release":
                queue.release(token, now)
                message.token = None
                self.expire(message)
            case "dead_letter" if not message.dead:
                queue.dead_letter(token, now, "r", None)
                message.token, message.dead = None, True
            case _:
                return
        self.lost.append(token)

    def fail(self, message: Expected) -> None:
        message.token = None
        message.count += 1
        if not message.dead and message.count >= self.deliveries:
            message.dead = True
        self.expire(message)

    def expire(self, message: Expected) -> None:
        over = message.expires is not None and message.expires <= self.bench.now
        if over and not message.dead and message.token is None and message.due is None:
            if self.to_dead:
                message.dead = True
            else:
                self.expected.remove(message)

    @rule(milliseconds=st.integers(1, 15_000))
    def wait(self, milliseconds: int) -> None:
        until = self.bench.now + milliseconds
        self.bench.wait(milliseconds)
        for message in sorted(self.expected, key=lambda m: (m.due or 0, m.position)):
            if message.due is not None and message.due <= until:
                message.due = None
                message.position = self.place()
            elif message.token is not None and message.until <= until:
                self.lost.append(message.token)
                self.fail(message)
        for message in list(self.expected):
            self.expire(message)

    @rule()
    def restart(self) -> None:
        self.bench.restart()

    @precondition(lambda self: self.lost)
    @rule(data=st.data())
    def settle_too_late(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(self.lost))
        try:
            self.bench.queue.complete(token, self.bench.now)
        except LockLost:
            return
        raise AssertionError("a lost lock was good")

    @invariant()
    def both_sides_hold_what_they_should(self) -> None:
        if not hasattr(self, "bench"):
            return
        for dead in (False, True):
            found = sorted(self.bench.texts(dead=dead))
            assert found == sorted(m.text for m in self.expected if m.dead is dead)
        numbers = [m.sequence for dead in (False, True) for m in self.bench.queue.peek(0, 1000, dead=dead)]
        assert len(set(numbers)) == len(numbers)

    @invariant()
    def the_journal_has_what_the_queue_has(self) -> None:
        if not hasattr(self, "bench"):
            return
        held = {m.id: m for dead in (False, True) for m in self.bench.queue.peek(0, 1000, dead=dead)}
        assert held == self.bench.journal.rows
        assert self.bench.queue.size == sum(len(m.payload) for m in held.values())


TestQueueModel = QueueModel.TestCase
TestQueueModel.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
