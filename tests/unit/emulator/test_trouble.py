"""What faults look like frame by frame; which strikes when is tried with `faults`."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from servicebus_emulator.codec import Described, ULong, encode
from servicebus_emulator.frames import write_frame
from servicebus_emulator.performatives import ACCEPTED_STATE, Attach, Detach, Disposition, Transfer, outcome_code
from tests.unit.emulator.wire_peer import Bench, Peer, bench, flow, message

REJECTED = 0x25
FORCED, EXPIRED = "amqp:link:detach-forced", "amqp:unauthorized-access"


@pytest_asyncio.fixture
async def made(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as running:
        yield running


def condition(detached: Detach) -> str:
    assert detached.error is not None
    return str(detached.error.value[0])


async def sender(made: Bench) -> Peer:
    peer = await made.peer()
    await peer.attach_sender()
    return peer


async def holder(made: Bench) -> Peer:
    """Has one message, delivery 0."""
    await (await sender(made)).send("a")
    peer = await made.peer()
    await peer.attach_receiver()
    await peer.credit(1)
    assert len(peer.take(Transfer)) == 1
    return peer


@pytest.mark.parametrize(("fault", "why"), [("detach", FORCED), ("token-expired", EXPIRED)])
async def test_a_link_that_is_detached_has_not_taken_the_message(made: Bench, fault: str, why: str) -> None:
    peer = await sender(made)
    made.namespace.faults.change([f"{fault}@send=1x"])
    await peer.send("a")
    assert [condition(detached) for detached in peer.take(Detach)] == [why]
    assert peer.take(Disposition) == []
    assert made.texts() == []


@pytest.mark.parametrize(("fault", "why"), [("detach", FORCED), ("token-expired", EXPIRED)])
async def test_a_message_whose_link_is_detached_before_it_left_is_free(made: Bench, fault: str, why: str) -> None:
    await (await sender(made)).send("a")
    peer = await made.peer()
    await peer.attach_receiver()
    made.namespace.faults.change([f"{fault}@deliver=1x"])
    await peer.credit(1)
    assert [condition(detached) for detached in peer.take(Detach)] == [why]
    assert peer.take(Transfer) == []
    assert (made.texts(), made.locked()) == (["a"], [])


@pytest.mark.parametrize("fault", ["detach", "token-expired", "drop-connection"])
async def test_what_was_to_be_settled_stays_locked_when_it_is_struck(made: Bench, fault: str) -> None:
    peer = await holder(made)
    made.namespace.faults.change([f"{fault}@settle=1x"])
    await peer.say(Disposition(role=True, first=0, settled=False, state=ACCEPTED_STATE))
    assert peer.take(Disposition) == []
    assert made.locked() == ["a"]


async def test_a_busy_server_refuses_to_settle_and_the_lock_stays(made: Bench) -> None:
    peer = await holder(made)
    made.namespace.faults.change(["server-busy@settle=1x"])
    await peer.say(Disposition(role=True, first=0, settled=False, state=ACCEPTED_STATE))
    (refused,) = peer.take(Disposition)
    assert refused.state is not None
    assert (outcome_code(refused.state), refused.state.value[0].value[0]) == (REJECTED, "com.microsoft:server-busy")
    assert made.locked() == ["a"]


@pytest.mark.parametrize("seed", [1, 2])
async def test_an_answer_is_not_lost_twice(made: Bench, seed: int) -> None:
    """The link is gone before the answer was due: nothing is left to lose."""
    peer = await sender(made)
    peer.heard.clear()
    made.namespace.faults.change(["ack-lost@send=1x"], seed=seed)
    transfer = Transfer(handle=0, delivery_id=0, delivery_tag=b"t", message_format=0)
    peer.connection.data_received(
        write_frame(1, transfer, message("a")) + write_frame(1, Detach(handle=0, closed=True))
    )
    await peer.listen()
    assert [body for body, _ in peer.heard] == [Detach(handle=0, closed=True)]
    assert made.texts() == ["a"]
    assert not peer.wire.closed


async def test_a_range_that_is_struck_in_the_middle_ends_there(made: Bench) -> None:
    first = await sender(made)
    for number in range(3):
        await first.send("abc"[number], delivery_id=number)
    peer = await made.peer()
    await peer.attach_receiver()
    await peer.credit(3)
    made.namespace.faults.change(["server-busy@settle=1x", "detach@settle=1x"])
    await peer.say(Disposition(role=True, first=0, last=2, settled=False, state=ACCEPTED_STATE))
    assert len(peer.take(Disposition)) == 1
    assert made.locked() == ["a", "b", "c"]
    assert not peer.wire.closed


@pytest.mark.parametrize(
    ("fault", "why"),
    [("detach", FORCED), ("token-expired", EXPIRED), ("server-busy", "com.microsoft:server-busy")],
)
async def test_an_attach_is_refused(made: Bench, fault: str, why: str) -> None:
    peer = await made.peer()
    made.namespace.faults.change([f"{fault}@attach=1x"])
    await peer.attach_sender()
    (attached,) = peer.take(Attach)
    assert attached.target is None
    assert [condition(detached) for detached in peer.take(Detach)] == [why]


async def test_cbs_is_spared(made: Bench) -> None:
    made.namespace.faults.change(["all=100%"])
    peer = await made.peer()
    await peer.attach_receiver(0, "$cbs")
    await peer.attach_sender(1, "$cbs")
    assert len(peer.take(Attach)) == 2
    await peer.credit(1)
    sections = ((0x73, ["r-1"]), (0x74, {"operation": "put-token", "name": "sb://bus/q"}), (0x77, "token"))
    payload = b"".join(encode(Described(ULong(code), value)) for code, value in sections)
    await peer.say(Transfer(handle=1, delivery_id=0, delivery_tag=b"t"), payload=payload)
    assert len(peer.take(Transfer)) == 1
    assert peer.take(Detach) == []
    assert not made.namespace.faults.struck


async def test_a_dropped_connection_says_nothing_more(made: Bench) -> None:
    peer = await sender(made)
    made.namespace.faults.change(["drop-connection@send=1x"])
    peer.heard.clear()
    await peer.send("a")
    assert peer.wire.closed
    assert peer.heard == []
    assert made.texts() == []


async def test_what_is_delayed_keeps_its_order_and_is_not_held_for_ever(made: Bench) -> None:
    peer = await sender(made)
    made.namespace.faults.change(["delay@send=100%:0.2s"])
    loop = asyncio.get_running_loop()
    began, first = loop.time(), 0.0
    for number in range(10):  # every one asks to be held
        await peer.send(f"{number}", delivery_id=number)
        await asyncio.sleep(0.05)
        await peer.listen()
        if not first and any(isinstance(body, Disposition) for body, _ in peer.heard):
            first = loop.time() - began
    assert first, "it was held for as long as others came"
    assert first > 0.19
    await asyncio.sleep(0.25)
    await peer.listen()
    assert [disposition.first for disposition in peer.take(Disposition)] == list(range(10))
    assert made.texts() == [f"{number}" for number in range(10)]


async def test_an_idle_link_is_detached_with_the_reason(made: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's clock is the test's: a machine that stood still would look like a link on which nothing moves."""
    loop = asyncio.get_running_loop()
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now)
    made.namespace.faults.change(["idle-detach=1x:10s"])
    peer = await sender(made)
    for number in range(4):
        await peer.send("x", delivery_id=number)
        now += 6
        await peer.listen()
    assert peer.take(Detach) == []
    now += 11
    await peer.listen()
    (detached,) = peer.take(Detach)
    assert detached.error is not None
    assert detached.error.value[0] == FORCED
    assert "IdleTimerExpired" in detached.error.value[1]


async def test_without_faults_nothing_is_struck(made: Bench) -> None:
    peer = await holder(made)
    await peer.say(Disposition(role=True, first=0, settled=False, state=ACCEPTED_STATE), flow())
    assert made.texts() == []
