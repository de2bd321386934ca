"""An agent and its orchestrator: what it answers, what it never does, what it lets out."""

import asyncio
import io
import json
import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from messages import names
from messages.log import configure
from messages.schemas import ClosedBecause, Payload, Purpose
from silo_agent.egress import read, verify
from tests.scenario.agent_world import HERE, RUN, World, payload, until, vector


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def log() -> Any:
    """All that the agent logs."""
    handlers, stream = logging.getLogger().handlers[:], io.StringIO()
    configure("agent", level="DEBUG", stream=stream)
    yield stream
    logging.getLogger().handlers[:] = handlers


# --- taking part ------------------------------------------------------------------------------------------------------


async def test_a_run_from_initialising_to_evaluating(world: World) -> None:
    async with world.agent() as agent:
        await world.announce(0, Purpose.INITIALISE, silos=1, quorum=1)
        first = await world.hear()
        await world.announce(1)
        second = await world.hear()
        await world.announce(2, Purpose.EVALUATE)
        third = await world.hear()
        await world.settled()
        assert not world.lives(world.ran()[0][0]), "the run is over"
        assert agent.silo.budget.spent("bc") == 2
    kinds = [(said["kind"], said["round"], said["purpose"]) for said in (first, second, third)]
    assert kinds == [
        ("update-published", 0, "initialise"),
        ("update-published", 1, "train"),
        ("update-published", 2, "evaluate"),
    ]
    assert first["metrics"] == []
    assert second["payloads"]["weights"]["sha256"] == payload(vector(2.0, 1.0)).sha256
    assert third["payloads"] == {}
    assert [metric["value"] for metric in third["metrics"]] == [0.12]
    assert (second["samples"], second["steps"], second["hyperparameters"]) == (50, 3, {})
    blobs = {row.name for row in await world.store.list(names.updates_of(HERE), "")}
    assert blobs == {
        names.weights_blob(RUN, 0, first["payloads"]["weights"]["sha256"]),
        names.weights_blob(RUN, 1, second["payloads"]["weights"]["sha256"]),
        *(names.publication_blob(RUN, number) for number in (0, 1, 2)),
    }
    assert [json.loads(await world.publication(n)) for n in (0, 1, 2)] == [first, second, third]
    assert world.committed() == {"00001": "2", "00002": "3"}
    assert len({pid for pid, _ in world.ran()}) == 1, "the process was kept warm"


async def test_everything_that_left_is_in_the_egress_log(world: World) -> None:
    async with world.agent():
        await world.announce(1)
        await world.hear()
        await world.announce(1, task="other", run="other_00000000")
        await world.hear()
        await world.settled()
    lines = read(world.home / "egress.jsonl")
    assert verify(world.home / "egress.jsonl") is None
    logged = [line["message"] for line in lines]
    assert logged == [json.loads(body) for body in world.sent]
    update = next(line for line in lines if line["what"] == "update")
    assert update["asked"] == {"experiment": "bc", "run": RUN, "round": 1, "announcement": 1, "task": "bc"}
    assert update["weights"] == {"sha256": payload(vector(2.0, 1.0)).sha256, "bytes": len(vector(0, 0))}
    assert any("CANARY_metric" in note for note in update["notes"])


async def test_a_hello_offers_only_what_is_approved(world: World) -> None:
    for offered in (True, False):
        async with world.agent(world.settings()):
            delivery = await world.bus.receive(names.from_silo(HERE), wait=120)
            assert delivery is not None
            await world.bus.complete(delivery)
            hello = json.loads(delivery.body)
        assert hello["kind"] == "silo-hello"
        assert [offer["task"] for offer in hello["offers"]] == (["bc"] if offered else [])
        settings = world.settings()
        world.code.write_text("changed")
        world.settings = lambda settings=settings: settings  # type: ignore[assignment,misc]


async def test_per_round_mode_takes_any_language(world: World) -> None:
    script = world.code.with_name("train.sh")
    metric = '{"name": "loss", "phase": "received", "kind": "mean", "count": 50, "value": 1}'
    report = f'{{"schema_version": 1, "samples": 0, "steps": 0, "update": null, "metrics": [{metric}]}}'
    script.write_text(f"test -f $SILOBUS_INPUT/weights.safetensors && echo '{report}' > $SILOBUS_OUTPUT/report.json\n")
    async with world.agent(world.settings(command=["sh", "train.sh"], mode="per-round")):
        await world.announce(1, Purpose.EVALUATE)
        assert [metric["value"] for metric in (await world.hear())["metrics"]] == [1.0]


# --- declining --------------------------------------------------------------------------------------------------------


def code_changes(world: World) -> None:
    world.code.write_text(world.code.read_text() + "\n")


def owner_pauses(world: World) -> None:
    (world.home / "paused").touch()


def trains_on_few(world: World) -> None:
    world.does("few")


def nothing(world: World) -> None:
    pass


ELSEWHERE = Payload(sha256="0" * 64, bytes=8, layout="0" * 64)
LYING = payload(vector(1.0, 0.0)).model_copy(update={"layout": "0" * 64})


@pytest.mark.parametrize(
    ("reason", "asked", "happens", "trains"),
    [
        ("task-not-offered", {"task": "other"}, nothing, False),
        ("code-not-approved", {}, code_changes, False),
        ("hyperparameter-forbidden", {"hyperparameters": {"lr": 2}}, nothing, False),
        ("quorum-too-small", {"quorum": 1}, nothing, False),
        ("too-few-silos", {"silos": 1, "quorum": 1}, nothing, False),
        ("transfer-forbidden", {"transfer": {"dtype": "float16"}}, nothing, False),
        ("outbound-forbidden", {"share": ["head.weight"]}, nothing, False),
        ("weights-missing", {"payloads": {"weights": ELSEWHERE}}, nothing, False),
        ("weights-invalid", {"payloads": {"weights": LYING}}, nothing, False),
        ("message-invalid", {"payloads": {}}, nothing, False),
        ("paused-by-owner", {}, owner_pauses, False),
        ("too-few-samples", {}, trains_on_few, True),
    ],
)
async def test_declining(
    world: World, reason: str, asked: dict[str, Any], happens: Callable[[World], None], trains: bool
) -> None:
    async with world.agent() as agent:
        happens(world)
        await world.announce(1, **asked)
        said = await world.hear()
        await world.settled()
        assert agent.silo.budget.spent("bc") == 0, "nothing has left, so nothing was spent"
    about = {"hyperparameter-forbidden": "lr", "transfer-forbidden": "float16"}.get(reason)
    word = {"reason": reason, "about": about}
    assert said == {"schema_version": 1, "kind": "round-declined", "run": RUN, "round": 1, **word}
    assert bool(world.ran()) is trains
    assert await world.store.list(names.updates_of(HERE), "") == []
    assert world.committed() == {}


async def test_a_spent_budget_stays_spent_after_a_restart(world: World) -> None:
    settings = world.settings(limits={"rounds": 1, "quorum": 2, "silos": 2})
    async with world.agent(settings):
        await world.announce(1)
        assert (await world.hear())["kind"] == "update-published"
        await world.settled()
    async with world.agent(settings):
        await world.announce(2)
        assert (await world.hear())["reason"] == "budget-spent"


async def test_tensors_that_may_not_leave_are_seen_before_anything_is_trained(world: World) -> None:
    outbound = {"tensors": ["other"], "dtypes": ["float32"], "max_bytes": 1000, "min_samples": 1}
    async with world.agent(world.settings(outbound=outbound)):
        await world.announce(1)
        assert (await world.hear())["reason"] == "outbound-forbidden"
    assert world.ran() == []


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (json.dumps({"kind": "round-announced", "run": RUN, "round": 4}).encode(), True),
        (json.dumps({"kind": "new-kind", "run": RUN, "round": 4}).encode(), True),
        (json.dumps({"kind": "round-announced", "run": "../../etc", "round": 4}).encode(), False),
        (b"\xff\xfe", False),
        (b"[" * 100_000, False),
    ],
)
async def test_nonsense_is_dead_lettered_and_its_run_told_if_there_is_one(
    world: World, body: bytes, told: bool
) -> None:
    async with world.agent():
        await world.tell(body)
        await world.settled()
        dead = await world.bus.peek(names.dead_letters_of(names.to_silo(HERE)), count=10)
        assert [letter.body for letter in dead] == [body]
        assert dead[0].dead_letter_reason
        if told:
            said = await world.hear()
            assert (said["run"], said["round"], said["reason"]) == (RUN, 4, "message-invalid")
        else:
            await world.hears_nothing(0.2)
        await world.announce(1)  # and the agent goes on
        assert (await world.hear())["kind"] == "update-published"


# --- closing, and being asked again -----------------------------------------------------------------------------------


async def running(world: World) -> None:
    await until(lambda: asyncio.to_thread(lambda: bool(world.ran())), True)


async def test_a_closed_round_is_given_up_at_once(world: World) -> None:
    world.does("hold train")
    async with world.agent() as agent:
        await world.announce(1)
        await running(world)
        await world.close(1)
        await world.settled()
        pid, _ = world.ran()[0]
        assert not world.lives(pid)
        assert agent.silo.budget.spent("bc") == 0
        await world.hears_nothing(0.2)
        assert await world.store.list(names.updates_of(HERE), "") == []
        await world.announce(2)
        assert (await world.hear())["kind"] == "update-published"
    assert world.committed() == {"00002": "1"}, "what was not published is not remembered"


async def test_a_round_that_is_over_is_not_even_begun(world: World) -> None:
    async with world.agent():
        await world.announce(1)
        await world.hear()
        await world.settled()
    await world.announce(2)
    await world.head(2, "closed")
    await world.announce(3, run="old_00000000")
    await world.head(3, "ended", "old_00000000")
    async with world.agent():
        await world.settled()
        await world.hears_nothing(0.2)
    assert [number for _, number in world.ran()] == [1]


async def test_a_silo_that_was_down_for_days_trains_the_newest_round_and_no_dead_one(world: World) -> None:
    """In its queue: announcements that expire and such that do not, each round's closing, none of the newest round."""
    async with world.agent():
        await world.announce(1)
        await world.hear()
        await world.close(1)
        await world.settled()
    over = timedelta(milliseconds=1)
    for number in range(2, 8):
        await world.announce(number, lasts=over if number % 2 else None)
        await world.announce(number, lasts=over if number % 2 else None, announcement=2)
        if number % 3:
            await world.close(number, ClosedBecause.AGGREGATED if number != 5 else ClosedBecause.FAILED)
    await world.head(9, "open")
    await asyncio.sleep(0.01)
    assert await world.queue(names.to_silo(HERE)) == 10, "some have expired"
    async with world.agent() as agent:
        hello = await world.greeting()
        await world.announce(9)
        said = await world.hear()
        await world.settled()
        await world.hears_nothing(0.2)
        assert agent.silo.budget.spent("bc") == 2
    assert [offer["task"] for offer in hello["offers"]] == ["bc"]
    assert (said["kind"], said["round"]) == ("update-published", 9)
    assert [number for _, number in world.ran()] == [1, 9]
    blobs = {row.name for row in await world.store.list(names.updates_of(HERE), "")}
    assert {names.round_of_blob(name) for name in blobs} == {1, 9}
    assert world.committed() == {"00001": "1", "00009": "2"}
    assert await world.queue(names.dead_letters_of(names.to_silo(HERE))) == 0


async def test_a_round_that_closes_while_it_is_trained_unnoticed_is_not_uploaded(world: World) -> None:
    world.does("hold")
    async with world.agent():
        await world.announce(1)
        await running(world)
        await world.head(1, "closed")  # the message about it is lost
        (world.control / "go").touch()
        await world.settled()
        await world.hears_nothing(0.2)
    assert await world.store.list(names.updates_of(HERE), "") == []
    assert world.committed() == {}


async def test_what_was_declined_is_forgotten_by_the_warm_process(world: World) -> None:
    world.does("train few train")
    async with world.agent():
        for number in (1, 2, 3):
            await world.announce(number)
            await world.hear()
        await world.settled()
    assert world.committed() == {"00001": "1", "00003": "2"}


async def train(world: World, run: str, number: int) -> int:
    """The process that ran a round of a run."""
    weights = vector(float(number), 0.0)
    given = payload(weights)
    await world.store.create(names.GLOBAL, names.weights_blob(run, number - 1, given.sha256), weights)
    await world.announce(number, run=run, payloads={"weights": given})
    assert (await world.hear())["kind"] == "update-published"
    await world.settled()
    return world.ran()[-1][0]


async def test_runs_that_take_turns_keep_their_warm_processes(world: World) -> None:
    async with world.agent():
        pids = [(await train(world, "a_00000000", n), await train(world, "b_00000000", n)) for n in (1, 2, 3)]
    assert len(set(pids)) == 1, "no round needed a new process"
    assert pids[0][0] != pids[0][1]


@pytest.mark.parametrize(("warm", "stay"), [(1, []), (2, ["a"]), (3, ["a", "b"])])
async def test_the_process_idle_for_longest_makes_room(world: World, warm: int, stay: list[str]) -> None:
    async with world.agent(world.settings(warm=warm)):
        for number, run in ((1, "a_00000000"), (1, "b_00000000"), (2, "a_00000000")):
            await train(world, run, number)
        before = {"a": world.ran()[2][0], "b": world.ran()[1][0]}
        assert world.lives(await train(world, "c_00000000", 1))
        assert [run for run, pid in before.items() if world.lives(pid)] == stay


async def test_being_asked_again_joins_the_work_that_is_going_on(world: World) -> None:
    world.does("hold")
    async with world.agent():
        await world.announce(1)
        await running(world)
        await world.announce(1, announcement=2)
        await world.announce(1, announcement=2)
        (world.control / "go").touch()
        assert (await world.hear())["kind"] == "update-published"
        await world.settled()
        await world.hears_nothing(0.2)
    assert len(world.ran()) == 1


async def test_a_lost_lock_costs_no_second_training(world: World) -> None:
    world.does("hold")
    bus = world.bus
    async with world.agent():
        await world.announce(1)
        await running(world)
        queue = world.broker._queue(names.to_silo(HERE))
        world.broker._unlock(queue, queue.messages[0])  # as if a renewal had come too late
        await asyncio.sleep(0.2)
        (world.control / "go").touch()
        assert (await world.hear())["kind"] == "update-published"
        await world.settled()
        await world.hears_nothing(0.2)
    assert len(world.ran()) == 1
    assert await bus.peek(names.dead_letters_of(names.to_silo(HERE)), count=1) == []


async def test_being_asked_again_after_publishing_sends_the_very_same_message(world: World) -> None:
    async with world.agent():
        await world.announce(1)
        first = await world.hear()
        await world.settled()
        await world.announce(1, announcement=2)
        assert await world.hear() == first
        await world.settled()
    assert len(world.ran()) == 1
    left = [line["what"] for line in read(world.home / "egress.jsonl")]
    assert left == ["message", "update", "resent"], "each time that it leaves"


async def test_the_orchestrator_ends_a_run(world: World) -> None:
    async with world.agent():
        await world.announce(1)
        await world.hear()
        await world.settled()
        pid, _ = world.ran()[0]
        assert world.lives(pid)
        await world.close(1, ClosedBecause.CANCELLED)
        await world.settled()
        assert not world.lives(pid)


# --- what never leaves ------------------------------------------------------------------------------------------------

CANARY = b"CANARY"


@pytest.mark.parametrize("behaviour", ["tell", "crash", "train"])
async def test_no_word_of_the_silos_leaves_it(
    world: World, log: io.StringIO, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY_AGENT", "CANARY-agent")
    data = world.path / "CANARY-path"
    data.mkdir()
    (data / "CANARY-rows.csv").write_text("CANARY-row\n")
    environment = {"CONTROL": str(world.control), "CANARY_VARIABLE": "CANARY-value"}
    world.home = world.path / "CANARY-home"
    world.does(behaviour)
    async with world.agent(world.settings(data={"train": data / "CANARY-rows.csv"}, environment=environment)):
        await world.announce(1)
        said = await world.hear()
        await world.settled()
    assert (
        said["kind"]
        == {
            "tell": "training-failed",  # a tensor that was not received
            "crash": "training-failed",
            "train": "update-published",
        }[behaviour]
    )
    outside = [*world.sent, log.getvalue().encode()]
    for queue in names.queues([HERE]):
        for name in (queue, names.dead_letters_of(queue)):
            for letter in await world.bus.peek(name, count=100):
                outside += [letter.body, (letter.dead_letter_description or "").encode()]
    outside += [file.read_bytes() for file in (world.path / "store").rglob("*") if file.is_file()]
    outside += [str(file).encode() for file in (world.path / "store").rglob("*")]
    for seen in outside:
        assert CANARY not in seen
    printed = [file.read_bytes() for file in world.home.glob("rounds/*/*/tries/*/output.txt")]
    if behaviour == "tell":
        assert b"CANARY-agent" not in b"".join(printed), "nothing of the agent's environment is passed on"
        assert b"CANARY-value" in b"".join(printed), "the owner sees all of it"


async def test_a_bug_of_ours_is_told_in_full_at_home_and_in_a_word_elsewhere(
    world: World, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("CANARY: we did not think of that")

    monkeypatch.setattr("silo_agent.work.examine", broken)
    async with world.agent():
        await world.announce(1)
        await until(lambda: asyncio.to_thread(lambda: "message.bug" in log.getvalue()), True)
    assert "CANARY" not in log.getvalue()
    assert "CANARY" in next((world.home / "faults").iterdir()).read_text()
