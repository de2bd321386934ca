"""Which fault strikes: as often as was asked for, the same again with the same seed, and nothing unasked."""

import pytest

from servicebus_emulator.faults import Fault, Faults, FaultsError, Operation

EVERYWHERE = {Fault.DETACH, Fault.DROP_CONNECTION, Fault.TOKEN_EXPIRED}
EXPECTED = {
    Operation.ATTACH: EVERYWHERE | {Fault.IDLE_DETACH, Fault.SERVER_BUSY},
    Operation.SEND: set(Fault) - {Fault.IDLE_DETACH},
    Operation.DELIVER: EVERYWHERE | {Fault.DELAY},
    Operation.SETTLE: EVERYWHERE | {Fault.DELAY, Fault.SERVER_BUSY, Fault.ACK_LOST},
    Operation.REQUEST: EVERYWHERE | {Fault.DELAY, Fault.SERVER_BUSY, Fault.ACK_LOST},
}


def strikes(faults: Faults, operation: Operation, count: int) -> list[Fault | None]:
    return [faults.strike(operation) for _ in range(count)]


def test_nothing_unasked_ever_strikes() -> None:
    faults = Faults()
    assert not faults.are_on
    assert all(set(strikes(faults, operation, 100)) == {None} for operation in Operation)
    assert faults.lock_max_age is None
    assert not faults.struck


@pytest.mark.parametrize("operation", Operation)
def test_each_operation_is_struck_by_what_can_strike_it(operation: Operation) -> None:
    found = set(strikes(Faults(["all=5%"], seed=1), operation, 5000))
    assert found - {None} == EXPECTED[operation]
    assert None in found


def test_a_fault_strikes_as_often_as_was_asked_for() -> None:
    faults = Faults(["detach=10%", "server-busy=30%"], seed=7)
    found = strikes(faults, Operation.SEND, 10_000)
    assert 900 < found.count(Fault.DETACH) < 1100
    assert 2800 < found.count(Fault.SERVER_BUSY) < 3200
    assert faults.struck == {"detach": found.count(Fault.DETACH), "server-busy": found.count(Fault.SERVER_BUSY)}


def test_rates_beyond_all_are_shared() -> None:
    found = strikes(Faults(["detach=100%", "ack-lost=100%"], seed=7), Operation.SEND, 1000)
    assert 400 < found.count(Fault.DETACH) < 600
    assert None not in found


def test_the_same_seed_gives_the_same_and_another_does_not() -> None:
    runs = [strikes(Faults(["all=8%"], seed=seed), Operation.SEND, 200) for seed in (5, 5, 6)]
    assert runs[0] == runs[1] != runs[2]


def test_without_a_seed_there_is_one_that_can_be_asked_for() -> None:
    faults = Faults(["all=8%"])
    found = strikes(faults, Operation.SEND, 200)
    assert strikes(Faults(["all=8%"], faults.seed), Operation.SEND, 200) == found


def test_times_are_read() -> None:
    faults = Faults(["delay=5%:80ms", "lock-max-age=20s"])
    assert faults.seconds(Fault.DELAY) == pytest.approx(0.08)
    assert faults.seconds(Fault.IDLE_DETACH) == 1.0
    assert faults.lock_max_age == 20_000
    assert faults.are_on
    assert Faults(["lock-max-age=1.5m"]).lock_max_age == 90_000
    assert Faults(["lock-max-age=2"]).lock_max_age == 2000


def test_what_comes_later_overrides_all() -> None:
    faults = Faults(["all=100%", *(f"{fault}=0%" for fault in Fault if fault is not Fault.DETACH)])
    assert set(strikes(faults, Operation.SEND, 50)) == {Fault.DETACH}


def test_a_fault_strikes_only_where_it_was_told_to() -> None:
    faults = Faults(["detach@settle=100%", "all@deliver=100%"])
    assert set(strikes(faults, Operation.SETTLE, 20)) == {Fault.DETACH}
    assert set(strikes(faults, Operation.SEND, 20)) == {None}
    assert set(strikes(faults, Operation.DELIVER, 200)) == EXPECTED[Operation.DELIVER]


def test_a_fault_for_certain_strikes_so_many_times() -> None:
    faults = Faults(["server-busy@send=2x", "queue-full=1x"])
    assert faults.are_on
    assert strikes(faults, Operation.REQUEST, 2) == [None, None]
    assert strikes(faults, Operation.SEND, 4) == [Fault.SERVER_BUSY, Fault.SERVER_BUSY, Fault.QUEUE_FULL, None]
    assert faults.struck == {"server-busy": 2, "queue-full": 1}


def test_a_change_is_whole_and_keeps_the_counts() -> None:
    faults = Faults(["detach=100%", "lock-max-age=20s"], seed=1)
    faults.strike(Operation.SEND)
    with pytest.raises(FaultsError):
        faults.change(["server-busy=100%", "nonsense=1%"])
    assert faults.strike(Operation.SEND) is Fault.DETACH
    assert faults.asked == ["detach=100%", "lock-max-age=20s"]
    faults.change(["server-busy=100%"], seed=9)
    assert faults.strike(Operation.SEND) is Fault.SERVER_BUSY
    assert (faults.lock_max_age, faults.seed) == (None, 9)
    assert faults.struck == {"detach": 2, "server-busy": 1}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("detach", "is not like detach=2%"),
        ("detach=2", "'2' is not a rate like 2%"),
        ("detach=101%", "is not a rate"),
        ("detach=-1%", "is not a rate"),
        ("detach=", "is not a rate"),
        ("detach=2%:1s", "detach takes no time"),
        ("delay=2%:", "is not a time like 80ms, 20s or 2m"),
        ("delay=2%:1h", "is not a time"),
        ("lock-max-age=2%", "is not a time"),
        ("all=2%:1s", "all takes no time"),
        ("detach@peek=2%", "'peek' is not attach, send, deliver, settle, request"),
        ("queue-full@settle=2%", "queue-full never strikes there"),
        ("detach=x", "is not a rate"),
        ("flood=2%", "'flood' is not a fault; there are detach, idle-detach, .*, all, lock-max-age"),
    ],
)
def test_nonsense_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(FaultsError, match=why):
        Faults([text])


@pytest.mark.parametrize(
    "text",
    [
        "delay=1%:99999999999999999999s",
        "lock-max-age=" + "9" * 400 + "s",
        "lock-max-age=1441m",
        "detach=" + "9" * 5000 + "x",
        "detach=\u0661%",
    ],
)
def test_a_number_without_measure_is_refused(text: str) -> None:
    with pytest.raises(FaultsError):
        Faults([text])
