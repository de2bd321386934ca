"""Every row of the error table, on a virtual clock: what becomes of a message, decided by what its handler raised."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from messages.consumer import Consumer
from messages.errors import Duplicate, Forbidden, LockLost, Poison, SilobusError, Stale, Transient
from messages.names import dead_letters_of
from messages.ports import Delivery, Outgoing
from messages.transport.memory_bus import MemoryBroker, MemoryBus, QueueOptions
from tests.virtual_clock import VirtualClock, rest

QUEUE = "to-north"
LOCK = 60.0


@dataclass
class World:
    """A broker, a consumer and what its handler did."""

    clock: VirtualClock = field(default_factory=VirtualClock)
    handled: list[str] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    verdicts: dict[str, list[Exception]] = field(default_factory=dict)
    """By message id: what its handler raises, time after time; then it succeeds."""
    handler: Callable[[Delivery], Awaitable[None]] | None = None
    on_poison: Callable[[Delivery, Poison], Awaitable[None]] | None = None
    broken: set[str] = field(default_factory=set)
    """Operations of the bus that fail."""
    failure: type[Exception] = Transient
    operations: list[str] = field(default_factory=list)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        options = QueueOptions(lock_duration=LOCK, max_delivery_count=5)
        self.broker = MemoryBroker(self.clock, [QUEUE], options=options)
        self.bus = MemoryBus(self.broker, faults=self._faults)
        self.outside = MemoryBus(self.broker)

    def _faults(self, when: str, operation: str, queue: str) -> None:
        if when == "before":
            self.operations.append(operation)
            if operation in self.broken:
                raise self.failure("the broker is away")

    consumer: Consumer | None = None

    async def start(self, **options: Any) -> None:
        async def handler(delivery: Delivery) -> None:
            self.handled.append(delivery.message_id)
            if self.handler is not None:
                await self.handler(delivery)
            if self.verdicts.get(delivery.message_id):
                raise self.verdicts[delivery.message_id].pop(0)

        async def on_poison(delivery: Delivery, poison: Poison) -> None:
            self.rejected.append((delivery.message_id, poison.reason))
            if self.on_poison is not None:
                await self.on_poison(delivery, poison)

        chosen: dict[str, Any] = {"max_delivery_count": 5} | options
        consumer = Consumer(self.bus, QUEUE, handler, on_poison=on_poison, clock=self.clock, **chosen)
        self.consumer = consumer
        self.task = asyncio.create_task(consumer.run(self.stop))
        await rest()

    async def send(self, message_id: str, *verdicts: Exception) -> None:
        self.verdicts[message_id] = list(verdicts)
        await self.outside.send(QUEUE, Outgoing(body=b"secret body", message_id=message_id, subject="round-closed"))
        await rest()

    async def left(self) -> list[str]:
        return [d.message_id for d in await self.outside.peek(QUEUE, count=100)]

    async def dead(self) -> list[Delivery]:
        return list(await self.outside.peek(dead_letters_of(QUEUE), count=100))

    async def stopped(self) -> None:
        assert self.task is not None
        self.stop.set()
        await self.clock.until(self.task.done, within=600)
        self.task.result()


@pytest.fixture
async def world(caplog: pytest.LogCaptureFixture) -> AsyncIterator[World]:
    caplog.set_level(logging.DEBUG, logger="messages")
    world = World()
    yield world
    if world.task is not None:
        await world.stopped()
    left = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
    await rest()
    assert [t for t in left if not t.done()] == [], "the consumer left tasks behind"
    assert "secret body" not in caplog.text


def events(caplog: pytest.LogCaptureFixture, name: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage() == name]


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", [None, Stale("round 3 is closed"), Duplicate("seen")])
async def test_a_handled_stale_or_duplicate_message_is_completed(
    world: World, verdict: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    await world.start()
    await world.send("m", *([verdict] if verdict else []))
    assert world.handled == ["m"]
    assert (await world.left(), await world.dead(), world.rejected) == ([], [], [])
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_a_transient_error_is_retried_under_the_lock_with_growing_waits(world: World) -> None:
    times: list[datetime] = []

    async def note(delivery: Delivery) -> None:
        times.append(world.clock.now())

    world.handler = note
    await world.start()
    await world.send("m", *[Transient("blob is throttling")] * 10)
    await world.clock.until(lambda: len(times) == 11)
    waits = [(b - a).total_seconds() for a, b in itertools.pairwise(times)]
    for n, wait in enumerate(waits):
        full = min(30.0, 0.2 * 2**n)
        assert full / 2 <= wait <= full
    assert len({round(w / min(30.0, 0.2 * 2**n), 6) for n, w in enumerate(waits)}) > 3, "the waits are not jittered"
    assert sum(waits) > LOCK, "the lock was to lapse if it were not renewed"
    await rest()
    assert await world.left() == []
    assert "abandon" not in world.operations


async def test_a_right_that_is_refused_for_a_while_is_waited_for_and_counts_as_no_bug(world: World) -> None:
    await world.start()
    await world.send("m", *[Forbidden("the token has expired")] * 3)
    await world.clock.advance(10)
    assert world.handled == ["m"] * 4
    assert await world.left() == []
    assert await world.dead() == []


async def test_poison_tells_the_run_and_then_is_dead_lettered_with_reason_and_description(world: World) -> None:
    async def nothing_is_dead_yet(delivery: Delivery, poison: Poison) -> None:
        assert await world.dead() == []

    world.on_poison = nothing_is_dead_yet
    await world.start()
    await world.send("m", Poison("wrong-digest", "The weights are others."))
    assert world.rejected == [("m", "wrong-digest")]
    (dead,) = await world.dead()
    assert (dead.message_id, dead.dead_letter_reason) == ("m", "wrong-digest")
    assert dead.dead_letter_description == "The weights are others."
    assert await world.left() == []
    assert "complete" not in world.operations


async def test_telling_the_run_is_retried_before_the_message_is_dead_lettered(world: World) -> None:
    failures = [Transient("state is away")] * 3

    async def fail(delivery: Delivery, poison: Poison) -> None:
        if failures:
            raise failures.pop()

    world.on_poison = fail
    await world.start()
    await world.send("m", Poison("not-json", "d"))
    assert await world.dead() == []
    await world.clock.advance(10)
    assert [d.dead_letter_reason for d in await world.dead()] == ["not-json"]
    assert world.handled == ["m"]


@pytest.mark.parametrize("over", [Stale("over"), Duplicate("told"), Poison("unknown-run", "there is none")])
async def test_poison_nobody_needs_to_hear_of_is_dead_lettered_for_its_own_reason(
    world: World, over: Exception
) -> None:
    async def nobody(delivery: Delivery, poison: Poison) -> None:
        raise over

    world.on_poison = nobody
    await world.start()
    await world.send("m", Poison("not-json", "d"))
    assert [d.dead_letter_reason for d in await world.dead()] == ["not-json"]


async def test_a_bug_is_logged_whole_and_the_lock_lapses(world: World, caplog: pytest.LogCaptureFixture) -> None:
    times: list[datetime] = []

    async def note(delivery: Delivery) -> None:
        times.append(world.clock.now())

    world.handler = note
    await world.start()
    await world.send("m", KeyError("a bug"))
    (record,) = events(caplog, "message.bug")
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)
    assert {"complete", "abandon", "dead_letter", "renew"} & set(world.operations) == set()
    await world.clock.advance(LOCK + 1)
    assert (times[1] - times[0]).total_seconds() == LOCK  # it came again when its lock lapsed, not before
    assert await world.left() == []


async def test_a_bug_does_not_hold_up_other_messages(world: World) -> None:
    await world.start(concurrency=1)
    await world.send("bad", ZeroDivisionError())
    await world.send("good")
    assert world.handled == ["bad", "good"]
    assert await world.left() == ["bad"]


async def test_near_the_delivery_limit_a_bug_is_dead_lettered_and_its_run_told(world: World) -> None:
    await world.start()
    await world.send("m", *[KeyError("a bug")] * 10)
    await world.clock.advance(10 * LOCK)
    assert world.handled == ["m"] * 3  # of five deliveries two are kept back
    assert world.rejected == [("m", "bug")]
    (dead,) = await world.dead()
    assert dead.dead_letter_reason == "bug"
    assert dead.dead_letter_description is not None
    assert "KeyError at test_consumer.py:" in dead.dead_letter_description
    assert "a bug" not in dead.dead_letter_description, "an exception's text may hold data"


async def test_a_message_that_killed_its_process_each_time_is_dead_lettered_unhandled(world: World) -> None:
    await world.send("m")
    for _ in range(3):
        assert await world.outside.receive(QUEUE, wait=1) is not None
        await world.clock.advance(LOCK + 1)
    await world.start()
    assert (world.handled, world.rejected) == ([], [("m", "bug")])
    assert [d.dead_letter_reason for d in await world.dead()] == ["bug"]


async def test_an_error_of_ours_that_decides_nothing_stands_in_the_dead_letter_with_what_to_do(world: World) -> None:
    await world.start()
    await world.send("m", *[SilobusError("state/experiments/e.json is by a later version: use that one.")] * 10)
    await world.clock.advance(10 * LOCK)
    (dead,) = await world.dead()
    assert dead.dead_letter_description
    assert "the last failure seen was this: state/experiments/e.json is by a later version: use that one. Look" in (
        dead.dead_letter_description
    )


async def test_when_telling_the_run_has_a_bug_too_the_message_is_dead_lettered_in_the_end(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(delivery: Delivery, poison: Poison) -> None:
        raise ValueError("another bug")

    world.on_poison = fail
    await world.start()
    await world.send("m", *[Poison("not-json", "d")] * 10)
    assert await world.dead() == []
    await world.clock.advance(10 * LOCK)
    assert [d.dead_letter_reason for d in await world.dead()] == ["bug"]
    assert len(events(caplog, "message.bug")) == 4


# --- what counts against a message, and what does not ----------------------------------------------------------------


async def delivered(world: World, message_id: str, times: int) -> None:
    """It comes to the consumer for the first time after others died of it, or with it, so many times."""
    await world.send(message_id)
    for _ in range(times):
        assert await world.outside.receive(QUEUE, wait=1) is not None
        await world.clock.advance(LOCK + 1)


def making_room(world: World, answer: bool) -> tuple[list[str], Callable[[Delivery], Awaitable[bool]]]:
    made: list[str] = []

    async def again(delivery: Delivery) -> bool:
        assert [d.message_id for d in await world.outside.peek(QUEUE, count=1)] == [delivery.message_id]
        made.append(delivery.message_id)
        return answer

    return made, again


async def test_near_the_limit_a_message_makes_room_for_a_new_one(world: World) -> None:
    made, again = making_room(world, True)
    await delivered(world, "m", 3)
    await world.start(again=again)
    assert (made, world.handled, world.rejected) == (["m"], [], [])
    assert (await world.left(), await world.dead()) == ([], [])


async def test_where_nothing_can_take_its_place_it_is_dead_lettered(world: World) -> None:
    made, again = making_room(world, False)
    await delivered(world, "m", 3)
    await world.start(again=again)
    assert (made, world.handled, world.rejected) == (["m"], [], [("m", "bug")])


async def test_what_cannot_be_read_makes_no_room(world: World) -> None:
    async def again(delivery: Delivery) -> bool:
        raise Poison("not-json", "d")

    await delivered(world, "m", 3)
    await world.start(again=again)
    assert world.rejected == [("m", "bug")]


async def test_a_bug_in_the_last_delivery_is_its_last_whoever_had_the_others(world: World) -> None:
    made, again = making_room(world, True)
    await delivered(world, "m", 2)
    world.verdicts["m"] = [KeyError("a bug")]
    await world.start(again=again)
    assert (made, world.handled, world.rejected) == ([], ["m"], [("m", "bug")])
    assert [d.dead_letter_reason for d in await world.dead()] == ["bug"]


async def test_a_message_with_a_bug_makes_no_room(world: World) -> None:
    made, again = making_room(world, True)
    failures: list[Exception] = [ValueError("another bug")]

    async def fail(delivery: Delivery, poison: Poison) -> None:
        if poison.reason == "not-json" and failures:
            raise failures.pop()

    world.on_poison = fail
    await delivered(world, "m", 2)
    world.verdicts["m"] = [Poison("not-json", "d")]
    await world.start(again=again)
    assert world.handled == ["m"]
    await world.clock.advance(LOCK + 1)
    assert (made, world.handled) == ([], ["m"])
    assert [d.dead_letter_reason for d in await world.dead()] == ["bug"]


@pytest.mark.parametrize(("message_id", "ends"), [("m~49", False), ("m~50", True)])
async def test_a_message_that_kills_whoever_takes_it_has_an_end(world: World, message_id: str, ends: bool) -> None:
    made, again = making_room(world, True)
    await delivered(world, message_id, 3)
    await world.start(again=again)
    assert (bool(made), world.handled, bool(world.rejected)) == (not ends, [], ends)


@pytest.mark.parametrize("room", [True, False, None])
async def test_what_is_worked_on_is_never_given_up_for_its_deliveries(
    world: World, room: bool | None, caplog: pytest.LogCaptureFixture
) -> None:
    finished = []

    async def train(delivery: Delivery) -> None:
        await world.clock.sleep(20 * LOCK)
        finished.append(delivery.message_id)

    _, again = making_room(world, bool(room))
    world.handler = train
    world.broken.add("renew")
    await world.start(again=None if room is None else again)
    await world.send("m")
    await world.clock.advance(21 * LOCK)
    assert (world.handled, finished, world.rejected) == (["m"], ["m"], [])
    assert events(caplog, "message.bug") == []
    world.broken.clear()
    if room:
        assert (await world.left(), await world.dead()) == ([], [])
    else:  # the broker's own doing, and nobody took it for a bug
        assert [d.dead_letter_reason for d in await world.dead()] == ["MaxDeliveryCountExceeded"]


async def test_what_came_in_its_place_joins_what_is_going_on(world: World) -> None:
    async def train(delivery: Delivery) -> None:
        await world.clock.sleep(100)

    world.handler = train
    await world.start()
    for message_id in ("m", "m~2", "m~3", "n"):
        await world.send(message_id)
    assert world.handled == ["m", "n"]
    await world.clock.advance(101)
    assert await world.left() == []


async def test_what_lost_its_lock_is_in_hand_all_the_same(world: World) -> None:
    async def train(delivery: Delivery) -> None:
        await world.outside.abandon(delivery)
        taken = await world.outside.receive(QUEUE, wait=1)
        assert taken is not None
        await world.outside.complete(taken)
        await world.clock.sleep(500)

    world.handler = train
    await world.start(receive_wait=10)
    await world.send("m")
    await world.clock.advance(400)
    assert world.consumer is not None
    assert world.consumer.idle_since is None
    await world.clock.advance(200)
    assert world.consumer.idle_since == world.clock.now() - timedelta(seconds=100)


# --- locks -----------------------------------------------------------------------------------------------------------


async def test_a_lock_is_renewed_for_as_long_as_the_handler_works(world: World) -> None:
    async def train(delivery: Delivery) -> None:
        await world.clock.sleep(6 * 3600)

    world.handler = train
    await world.start()
    await world.send("m")
    await world.clock.advance(6 * 3600 + 1)
    assert world.handled == ["m"]
    assert await world.left() == []
    renewals = world.operations.count("renew")
    assert 6 * 3600 / LOCK * 1.8 < renewals < 6 * 3600 / LOCK * 2.2, "not at half of the lock's duration"
    await world.clock.advance(LOCK * 2)
    assert world.operations.count("renew") == renewals, "renewing went on after the message was done"


async def test_losing_the_lock_neither_cancels_the_handler_nor_counts_as_a_bug(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    finished = []

    async def train(delivery: Delivery) -> None:
        await world.clock.sleep(100)
        finished.append(delivery.delivery_count)

    world.handler = train
    world.broken.add("renew")
    await world.start()
    await world.send("m")
    await world.clock.advance(99)
    world.broken.clear()
    await world.clock.advance(300)
    assert finished == [0], "what came again was handled once more, and not joined to what was going on"
    assert await world.left() == []
    assert events(caplog, "message.lock-lost")
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("failure", [Transient, Forbidden])
async def test_renewing_goes_on_after_the_broker_was_away_for_a_while(world: World, failure: type[Exception]) -> None:
    world.failure = failure

    async def train(delivery: Delivery) -> None:
        await world.clock.sleep(500)

    world.handler = train
    await world.start()
    await world.send("m")
    for _ in range(10):  # away for half of every lock
        world.broken.add("renew")
        await world.clock.advance(25)
        world.broken.clear()
        await world.clock.advance(25)
    await world.clock.advance(10)
    assert world.handled == ["m"]
    assert await world.left() == []


async def test_a_clock_that_is_off_costs_a_few_locks_and_not_every_one(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    class Ahead(MemoryBus):  # type: ignore[misc]  # final for everyone else
        """A broker whose clock is an hour ahead of the consumer's."""

        async def receive(self, queue: str, *, wait: float) -> Delivery | None:
            delivery = await super().receive(queue, wait=wait)
            if delivery is None or delivery.locked_until is None:
                return delivery
            return replace(delivery, locked_until=delivery.locked_until + timedelta(hours=1))

        async def renew(self, delivery: Delivery) -> datetime:
            return await super().renew(delivery) + timedelta(hours=1)

    async def train(delivery: Delivery) -> None:
        await world.clock.sleep(600)

    world.bus, world.handler = Ahead(world.broker), train
    await world.start(concurrency=1)
    for n in range(10):
        await world.send(f"m{n}")
    await world.clock.advance(20 * 600)
    assert await world.left() == []
    assert 0 < len({vars(r)["silobus_fields"]["message"] for r in events(caplog, "message.lock-lost")}) <= 3


async def test_locks_that_an_outage_cost_are_no_reason_to_renew_others_sooner(world: World) -> None:
    async def train(delivery: Delivery) -> None:
        await world.clock.sleep(3 * 3600)

    world.handler = train
    await world.start()
    await world.send("m")
    world.broken.add("renew")
    await world.clock.advance(2 * LOCK)
    world.broken.clear()
    await world.clock.advance(LOCK)
    before = world.operations.count("renew")
    await world.clock.advance(3600)
    assert world.operations.count("renew") - before < 3600 / LOCK * 2.2
    await world.clock.advance(2 * 3600)


async def test_a_lock_lost_when_settling_is_not_an_error(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def lose_it(delivery: Delivery) -> None:
        if delivery.delivery_count == 0:
            await world.outside.abandon(delivery)

    world.handler = lose_it
    await world.start(concurrency=1)
    await world.send("m")
    assert world.handled == ["m", "m"]
    assert await world.left() == []
    assert len(events(caplog, "message.lock-lost")) == 1
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_a_handler_that_raises_lock_lost_is_left_to_redelivery(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    await world.start()
    await world.send("m", LockLost("gone"))
    assert events(caplog, "message.bug") == []
    assert "complete" not in world.operations


async def test_settling_is_retried_while_the_broker_is_away_for_a_moment(world: World) -> None:
    world.broken.add("complete")
    await world.start()
    await world.send("m")
    await world.clock.advance(2)
    world.broken.clear()
    await world.clock.advance(5)
    assert world.handled == ["m"]
    assert await world.left() == []


@pytest.mark.parametrize("failure", [Transient, Forbidden])
async def test_settling_that_never_succeeds_leaves_the_message_to_come_again(
    world: World, caplog: pytest.LogCaptureFixture, failure: type[Exception]
) -> None:
    world.failure = failure
    world.broken.add("complete")
    await world.start()
    await world.send("m")
    await world.clock.advance(100)
    world.broken.clear()
    await world.clock.advance(1000)
    assert len(world.handled) >= 2
    assert await world.left() == []
    assert events(caplog, "message.bug") == []


# --- concurrency, outages --------------------------------------------------------------------------------------------


async def test_a_busy_consumer_keeps_receiving(world: World) -> None:
    async def train(delivery: Delivery) -> None:
        await world.clock.sleep(3600 if delivery.message_id == "train" else 0)

    world.handler = train
    await world.start()
    await world.send("train")
    await world.send("round-closed")
    assert world.handled == ["train", "round-closed"]
    assert await world.left() == ["train"]
    await world.clock.advance(3601)


@pytest.mark.parametrize(("concurrency", "at_once"), [(1, 1), (3, 3), (None, 8)])
async def test_concurrency_bounds_how_many_are_handled_at_once(
    world: World, concurrency: int | None, at_once: int
) -> None:
    async def work(delivery: Delivery) -> None:
        await world.clock.sleep(10)

    world.handler = work
    await world.start(concurrency=concurrency)
    for n in range(8):
        await world.send(f"m{n}")
    assert len(world.handled) == at_once
    locked = [d for d in world.broker._queues[QUEUE].messages if d.lock_token]
    assert len(locked) == at_once, "more messages are locked than are handled"
    await world.clock.advance(100)
    assert len(world.handled) == 8


async def test_while_a_dependency_is_down_nothing_new_is_received(world: World) -> None:
    down = [True]

    async def work(delivery: Delivery) -> None:
        if down[0]:
            raise Transient("blob storage is away")

    world.handler = work
    await world.start(probe_every=30.0)
    await world.send("m0")
    await world.clock.advance(3)
    for n in range(1, 20):
        await world.send(f"m{n}")
    await world.clock.advance(20)
    assert set(world.handled) <= {"m0", "m1"}  # one was being waited for when it went down
    await world.clock.advance(30)
    assert len(set(world.handled)) == 3, "one message is let in to see whether it is up again"
    down[0] = False
    await world.clock.advance(40)
    assert len(set(world.handled)) == 20
    assert await world.left() == []


async def test_one_message_that_stays_transient_for_ever_does_not_stop_the_others(world: World) -> None:
    async def train(delivery: Delivery) -> None:
        await world.clock.sleep(3600 if delivery.message_id.startswith("train") else 0)

    world.handler = train
    await world.start()
    await world.send("cursed", *[Transient("for ever")] * 100_000)
    await world.clock.advance(60)
    await world.send("probe")
    await world.clock.advance(120)
    assert "probe" in world.handled
    for name in ("train 1", "train 2", "round-closed"):
        await world.send(name)
    # A message succeeded meanwhile, so whatever ails the cursed one is no concern of these.
    assert [m for m in world.handled if m != "cursed"] == ["probe", "train 1", "train 2", "round-closed"]
    await world.clock.advance(3600)
    assert await world.left() == ["cursed"]
    world.verdicts["cursed"].clear()
    await world.clock.advance(60)


async def test_a_broker_that_is_away_is_logged_once_and_once_when_it_is_back(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.broken.add("receive")
    await world.start()
    await world.clock.advance(600)
    assert 15 < world.operations.count("receive") < 60, "the waits do not grow, or grow beyond measure"
    assert len(events(caplog, "bus.unreachable")) == 1
    assert events(caplog, "bus.reachable") == []
    world.broken.clear()
    await world.clock.advance(600)
    assert len(events(caplog, "bus.reachable")) == 1
    await world.send("m")
    assert world.handled == ["m"]
    world.broken.add("receive")
    await world.send("n")
    await world.clock.advance(100)
    assert len(events(caplog, "bus.unreachable")) == 2
    world.broken.clear()


@pytest.mark.parametrize("error", [Forbidden("no right to listen"), RuntimeError("a bug in the adapter")])
async def test_no_failure_of_the_bus_ends_the_process(
    world: World, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    failing = [True]

    def faults(when: str, operation: str, queue: str) -> None:
        if failing[0] and operation == "receive":
            raise error

    world.bus.faults = faults
    await world.start()
    await world.clock.advance(100)
    assert len([r for r in caplog.records if r.levelno >= logging.ERROR]) == 1
    failing[0] = False
    await world.send("m")
    await world.clock.advance(31)
    assert world.handled == ["m"]


# --- stopping --------------------------------------------------------------------------------------------------------


async def test_stopping_waits_for_handlers_and_settles_their_messages(world: World) -> None:
    async def work(delivery: Delivery) -> None:
        await world.clock.sleep(8)

    world.handler = work
    await world.start(grace=10.0)
    await world.send("m")
    await world.stopped()
    assert (world.clock.now() - VirtualClock().now()).total_seconds() == 8
    assert await world.left() == []
    assert "abandon" not in world.operations


async def test_a_handler_still_at_work_after_the_grace_is_cancelled_and_its_message_abandoned(world: World) -> None:
    cancelled = []

    async def work(delivery: Delivery) -> None:
        try:
            await world.clock.sleep(3600)
        except asyncio.CancelledError:
            cancelled.append(delivery.message_id)
            raise

    world.handler = work
    await world.start(grace=10.0)
    await world.send("m")
    await world.stopped()
    assert cancelled == ["m"]
    assert (world.clock.now() - VirtualClock().now()).total_seconds() == 10
    again = await world.outside.receive(QUEUE, wait=0)
    assert again is not None
    assert again.delivery_count == 1


async def test_a_message_waiting_to_be_retried_is_abandoned_at_once_when_stopping(world: World) -> None:
    await world.start(grace=10.0)
    await world.send("m", *[Transient("away")] * 1000)
    await world.clock.advance(40)
    before = world.clock.now()
    await world.stopped()
    assert world.clock.now() == before
    assert world.operations[-1] == "abandon"


async def test_a_broker_that_is_away_does_not_hinder_stopping(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await world.start()
    await world.send("m", *[Transient("away")] * 1000)
    world.broken.add("abandon")
    await world.stopped()
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


async def test_nothing_is_received_after_the_stop(world: World) -> None:
    await world.start()
    await world.stopped()
    await world.send("m")
    await world.clock.advance(100)
    assert world.handled == []
    again = await world.outside.receive(QUEUE, wait=0)
    assert again is not None
    assert again.delivery_count == 0


async def test_cancelling_is_like_killing_the_process(world: World) -> None:
    async def work(delivery: Delivery) -> None:
        await world.clock.sleep(3600)

    world.handler = work
    await world.start()
    await world.send("m")
    assert world.task is not None
    world.task.cancel()
    await world.clock.until(world.task.done)
    assert world.task.cancelled()
    assert {"complete", "abandon"} & set(world.operations) == set()
    world.task = None


def test_a_delivery_limit_too_low_to_tell_the_run_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="at least 3"):
        Consumer(world.bus, QUEUE, None, on_poison=None, clock=world.clock, max_delivery_count=2)  # type: ignore[arg-type]


# --- having nothing to do ----------------------------------------------------------------------------------------


async def test_a_consumer_is_idle_since_its_last_work_was_done(world: World) -> None:
    await world.start(receive_wait=10, aside=lambda delivery: delivery.message_id == "aside")
    assert world.consumer is not None
    assert world.consumer.idle_since is None, "nobody knows yet what is in the queue"
    await world.clock.advance(11)
    began = world.consumer.idle_since
    assert began is not None
    await world.send("aside")
    assert world.consumer.idle_since == began

    async def slowly(delivery: Delivery) -> None:
        await world.clock.sleep(200)

    world.handler = slowly
    await world.send("m")
    await world.clock.advance(100)
    assert world.consumer.idle_since is None
    await world.clock.advance(150)
    assert world.consumer.idle_since == began + timedelta(seconds=201)


async def test_a_consumer_whose_broker_is_away_is_not_idle(world: World) -> None:
    await world.start(receive_wait=10)
    assert world.consumer is not None
    await world.clock.advance(11)
    world.broken.add("receive")
    await world.clock.advance(60)
    assert world.consumer.idle_since is None
    world.broken.clear()
    await world.clock.advance(60)
    assert world.consumer.idle_since is not None
