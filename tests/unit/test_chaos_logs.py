"""What `benchmarks.chaos` takes for wrong in logs, in how processes ended, in homes and in what is left in queues."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos.judge import Judge, charges
from benchmarks.chaos.leftovers import is_left_over, left_over
from benchmarks.chaos.logs import Departure, heard
from messages import names
from messages.ports import Delivery, Outgoing
from messages.transport.clock import SystemClock
from messages.transport.memory_bus import MemoryBroker, MemoryBus
from messages.transport.memory_store import MemoryStore
from orchestrator.experiment.state import RoundRecord
from orchestrator.live import LiveDocument
from silo_agent.egress import EgressLog
from silo_agent.home import Home
from tests.golden.examples import filled

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\nRuntimeError: our own\n'


def line(event: str, level: str = "info", **fields: Any) -> str:
    return (
        json.dumps({"time": NOW.isoformat(), "level": level, "process": "orchestrator", "event": event, **fields})
        + "\n"
    )


def said(folder: Path, *lines: str, name: str = "orchestrator-1") -> list[str]:
    (folder / f"{name}.log").write_text("".join(lines))
    return heard(folder, ()).wrong


def test_a_log_in_which_all_went_as_it_should_is_in_order(tmp_path: Path) -> None:
    given_up = line("message.dead-lettered", "warning", message="m")
    assert said(tmp_path, line("orchestrator.ready"), "listening on 127.0.0.1:1\n", given_up) == []
    assert heard(tmp_path, ()).given_up == {"m": NOW}


@pytest.mark.parametrize(
    "text",
    [
        TRACEBACK,
        "  + Exception Group Traceback (most recent call last):\n  |   x\n" + line("orchestrator.ready"),
        line("message.bug", "error", traceback=TRACEBACK),
        line("experiment.not-told", "error", traceback=TRACEBACK),
        line("something.new", traceback=TRACEBACK),
        line("message.bug", "error", traceback=TRACEBACK)[:-9],  # cut off by a kill
        line("agent.fault", "error", look="faults/x.txt"),
        line("home.gone", "error"),
        line("store.failed", "error", traceback=TRACEBACK),
        line("library.log", "error", logger="asyncio", text="Task was destroyed but it is pending!"),
        line("library.log", "error", logger="asyncio", text="Task exception was never retrieved", traceback=TRACEBACK),
    ],
)
def test_a_traceback_or_an_error_that_nobody_brought_about_is_a_violation(tmp_path: Path, text: str) -> None:
    (wrong,) = said(tmp_path, line("orchestrator.ready"), text)
    assert wrong.startswith("orchestrator-1.log: ")


@pytest.mark.parametrize(
    "text",
    [
        line("runs.not-taken-up", "error", error="cannot peek into 'work'"),
        line("library.log", "error", logger="azure.servicebus", text="x", traceback=TRACEBACK)[:-9],
        line("home.full", "error"),
        line("store.failed", "error", traceback="OperationalError: database or disk is full"),
        line("bus.refused", "error", error="unauthorized"),
        line("library.log", "error", logger="azure.servicebus.aio", text="Link closed", traceback=TRACEBACK),
    ],
)
def test_what_faults_and_full_disks_have_processes_say_is_none(tmp_path: Path, text: str) -> None:
    assert said(tmp_path, text) == []


def departure(folder: Path, said: str, **changed: Any) -> Departure:
    log = folder / "agent-east.log"
    log.write_text(line("agent.started") + said + line("agent.started"))
    begins = len(line("agent.started"))
    wrote = range(begins, begins + len(said))
    return replace(Departure("agent-east", 1, log, wrote, disk_was_full=False), **changed)


FULL = "Traceback (most recent call last):\n  x\nOSError: [Errno 28] No space left on device\n"


def test_a_process_that_ended_by_itself_is_a_violation_and_its_last_words_are_told(tmp_path: Path) -> None:
    told = heard(tmp_path, [departure(tmp_path, "  | the last straw\n  +----\n", status=-11)]).wrong
    assert told == ["agent-east ended by itself, with status -11: the last straw"]
    assert heard(tmp_path, [departure(tmp_path, line("agent.stopped"), status=0)]).wrong


def test_a_full_disk_excuses_whoever_says_so_and_nobody_else(tmp_path: Path) -> None:
    assert heard(tmp_path, [departure(tmp_path, FULL, disk_was_full=True)]).wrong == []
    assert len(heard(tmp_path, [departure(tmp_path, FULL, disk_was_full=False)]).wrong) == 2
    assert len(heard(tmp_path, [departure(tmp_path, TRACEBACK, disk_was_full=True)]).wrong) == 2


def test_a_full_disk_excuses_no_traceback_of_another_life(tmp_path: Path) -> None:
    it = departure(tmp_path, FULL, disk_was_full=True)
    with it.log.open("a") as log:
        log.write(TRACEBACK)
    assert heard(tmp_path, [it]).wrong == ["agent-east.log: RuntimeError: our own"]


def message(subject: str, scheduled: timedelta | None = None) -> Delivery:
    at = None if scheduled is None else NOW + scheduled
    return Delivery(
        queue="work",
        body=b"{}",
        message_id="m",
        subject=subject,
        correlation_id=None,
        sequence_number=1,
        delivery_count=0,
        enqueued_at=NOW,
        locked_until=None,
        lock_token="",
        scheduled_at=at,
    )


@pytest.mark.parametrize(
    ("subject", "scheduled", "left"),
    [
        ("update-published", None, True),
        ("aggregate-round", None, True),
        ("deadline-passed", timedelta(seconds=-1), True),
        ("sweep-run", None, True),
        ("round-closed", timedelta(seconds=9), True),
        ("deadline-passed", timedelta(seconds=9), False),
        ("sweep-run", timedelta(days=30), False),
        ("silo-heartbeat", None, False),
    ],
)
def test_only_what_waits_for_its_time_may_be_left_in_a_queue(
    subject: str, scheduled: timedelta | None, left: bool
) -> None:
    assert is_left_over(message(subject, scheduled), NOW) is left


async def test_a_message_that_stays_and_a_run_that_is_listed_are_told() -> None:
    federation = Reached()
    await federation.live({})
    assert await left_over(federation) == []  # type: ignore[arg-type]
    await federation.live({"exp": "exp_0123abcd"})
    await federation.bus.send("to-north", Outgoing(body=b"{}", message_id="m", subject="round-announced"))
    assert await left_over(federation) == [  # type: ignore[arg-type]
        "exp is listed as live",
        "to-north still holds m (round-announced, delivered 0 times)",
    ]


class Reached:
    """As much of a federation as is looked at."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.bus = MemoryBus(MemoryBroker(SystemClock(), self.queues()))

    def queues(self) -> list[str]:
        """All."""
        return names.queues(["north"])

    async def live(self, runs: dict[str, str]) -> None:
        """Lists them."""
        data = LiveDocument(runs=dict(runs)).model_dump_json().encode()
        etag = None
        if await self.store.list(names.STATE, names.live_blob()):
            etag = (await self.store.read(names.STATE, names.live_blob())).etag
        await self.store.write(names.STATE, names.live_blob(), data, if_match=etag)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """One in which nothing happened yet."""
    made = Home(tmp_path / "home")
    for name in ("rounds", "state", "runtime/processes"):
        (made.path / name).mkdir(parents=True)
    EgressLog(made.egress).close()
    return made


def judged(home: Home) -> Judge:
    judge = Judge(MemoryStore(), [])
    judge.homes({"east": home}, keep=3)
    return judge


def test_a_log_of_what_left_must_hold(home: Home) -> None:
    log = EgressLog(home.egress)
    log.append(NOW, {"what": "hello"})
    log.close()
    assert judged(home).violations == []
    home.egress.write_text(home.egress.read_text().replace("hello", "HELLO"))
    assert "line 1: was changed" in judged(home).violations[0]


@pytest.mark.parametrize(
    ("charged", "says"),
    [
        ([(1, True)], None),
        ([(1, True), (2, True), (2, False)], None),
        ([], "was not charged"),
        ([(1, True), (1, False)], "was not charged"),
        ([(1, True), (1, True)], "no round explains"),
        ([(0, True), (1, True)], "no round explains"),
        ([(1, True), (2, False)], "no round explains"),
    ],
)
def test_a_budget_has_one_charge_for_each_round_with_an_update(
    home: Home, charged: list[tuple[int, bool]], says: str | None
) -> None:
    lines = [json.dumps({"task": "t", "run": "exp_0123abcd", "round": n, "charged": c}) for n, c in charged]
    home.budget.write_text("".join(f"{line}\n" for line in lines))
    assert sum(charges(home.budget).values()) == sum(1 if c else -1 for _, c in charged)
    example = filled(RoundRecord)
    assert isinstance(example, RoundRecord)
    mine = example.updates[0].model_copy(update={"silo": "east"})
    records = {n: example.model_copy(update={"run": "exp_0123abcd", "updates": (mine,)}) for n in (0, 1)}
    judge = judged(home)
    judge._charges("east", records)
    assert (says is None) is (judge.violations == [])
    assert says is None or says in judge.violations[0]
