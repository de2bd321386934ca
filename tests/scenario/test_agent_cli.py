"""What an owner types, against a real bus: check, run, look, run again."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from messages import names
from silo_agent.cli import app
from tests.e2e.check.broken_silo import obeying_permissions
from tests.emulator_process import EmulatorProcess
from tests.scenario.agent_world import HERE, RUN, World


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatorProcess]:
    with EmulatorProcess(tmp_path_factory.mktemp("bus"), names.queues([HERE])) as process:
        yield process


class Owner:
    """An owner with a silo.yaml."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.file = world.path / "silo.yaml"
        (world.path / "store").mkdir()
        self.write()

    def write(self, **changes: Any) -> None:
        said = json.loads(self.world.settings(**changes).model_dump_json(exclude_none=True))
        said["bus"] = {"connection_string_env": "SILOBUS_CONNECTION"}
        self.file.write_text(yaml.safe_dump(said))

    def types(self, *words: str) -> Result:
        return CliRunner().invoke(app, [*words, "--config", str(self.file)])


@pytest.fixture
def owner(tmp_path: Path, emulator: EmulatorProcess, monkeypatch: pytest.MonkeyPatch) -> Owner:
    monkeypatch.setenv("SILOBUS_CONNECTION", emulator.connection_string)
    return Owner(World(tmp_path))


def test_check_shows_what_works_and_what_would_leave(owner: Owner) -> None:
    result = owner.types("check")
    assert result.exit_code == 0, result.output
    assert "FAIL" not in result.output
    for tried in ("to-north", "global", "updates-north", "from-north", "clock", "task bc"):
        assert tried in result.output
    assert "metric loss (received): mean 0.12 over 50 items" in result.output
    assert "CANARY_metric (received): not named" in result.output
    assert owner.types("egress", "--verify").exit_code == 0
    said = [line["message"]["kind"] for line in json.loads(owner.types("egress", "--json").output) if "message" in line]
    assert said == ["silo-hello"]
    assert json.loads(owner.types("rounds", "--json").output) == []


def code_changes(owner: Owner) -> None:
    owner.world.code.write_text("print()")


def data_is_gone(owner: Owner) -> None:
    owner.world.data.unlink()


def script_crashes(owner: Owner) -> None:
    owner.world.does("crash")


def another_name(owner: Owner) -> None:
    owner.file.write_text(owner.file.read_text().replace("silo: north", "silo: elsewhere"))


def tensor_not_named(owner: Owner) -> None:
    owner.write(outbound={"tensors": ["v"], "dtypes": ["float32"], "max_bytes": 1000})


@pytest.mark.parametrize(
    ("happens", "told"),
    [
        (code_changes, "not the approved one"),
        (data_is_gone, "data-missing"),
        (script_crashes, "script-error"),
        (another_name, "ask the operator to enrol this silo"),
        (tensor_not_named, "tensor w: not named by the outbound rules"),
    ],
)
def test_check_fails_where_something_does_not_work_and_says_what(
    owner: Owner, happens: Callable[[Owner], None], told: str
) -> None:
    happens(owner)
    result = owner.types("check", "--json")
    assert result.exit_code == 1
    assert told in result.output


def test_without_an_approved_file_there_is_a_sentence_and_no_traceback(owner: Owner) -> None:
    owner.file.write_text("silo: north\ntaks: {}\n")
    for command in ("run", "check", "rounds", "egress"):
        result = owner.types(command)
        assert result.exit_code == 1
        assert "taks" in (result.output if command == "check" else result.stderr)
        assert "Traceback" not in result.output + result.stderr


def test_a_home_that_cannot_be_used_is_told_in_a_sentence(owner: Owner) -> None:
    owner.world.home.write_text("a file where the directory should be")
    refused = owner.types("run")
    assert refused.exit_code == 1
    assert f"home {owner.world.home} cannot be used (Not a directory on " in refused.stderr
    assert "change `home`" in refused.stderr
    assert "Traceback" not in refused.output + refused.stderr


@pytest.mark.parametrize("command", ["rounds", "egress", "pause", "resume", "run"])
def test_a_home_of_another_user_is_told_in_a_sentence(owner: Owner, command: str) -> None:
    closed = owner.world.home.parent / "closed"
    closed.mkdir(mode=0o000)
    owner.file.write_text(owner.file.read_text().replace(str(owner.world.home), str(closed / "home")))
    with obeying_permissions():
        refused = owner.types(command)
    closed.chmod(0o700)
    assert refused.exit_code == 1
    assert str(closed / "home") in refused.stderr
    assert "user" in refused.stderr
    assert "Traceback" not in refused.output + refused.stderr


@pytest.mark.parametrize("command", ["pause", "egress", "rounds"])
def test_a_home_that_is_no_directory_is_told_in_a_sentence(owner: Owner, command: str) -> None:
    owner.world.home.write_text("a file where the directory should be")
    told = owner.types(command)
    assert "Traceback" not in told.output + told.stderr
    assert told.exception is None or isinstance(told.exception, SystemExit)
    if command == "pause":
        assert told.exit_code == 1
        assert f"{owner.world.home}: File exists. Look what is there" in told.stderr


@pytest.mark.parametrize("words", [["egress", "--json"], ["rounds"]], ids=" ".join)
@pytest.mark.parametrize("stdout", ["/dev/full", None])
def test_output_that_nobody_can_take_is_no_traceback(owner: Owner, words: list[str], stdout: str | None) -> None:
    to = f"> {stdout}" if stdout else ">&-"
    line = f"{sys.executable} -m silo_agent {' '.join(words)} --config {owner.file} {to}"
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}  # as people have it
    done = subprocess.run(line, shell=True, env=buffered, capture_output=True, text=True, timeout=60, check=False)  # noqa: S602
    assert "Traceback" not in done.stderr
    assert done.returncode == (1 if stdout else 0)
    assert done.stderr.count("\n") == (1 if stdout else 0), done.stderr


def test_a_changed_egress_log_is_reported_and_stops_the_agent(owner: Owner) -> None:
    owner.types("check")
    log = owner.world.home / "egress.jsonl"
    log.write_text(log.read_text().replace('"bytes":', '"bytes":1', 1))
    result = owner.types("egress", "--verify")
    assert result.exit_code == 1
    assert "line 1: was changed" in result.stderr
    refused = owner.types("run")
    assert refused.exit_code == 1
    assert "move egress.jsonl and egress.head aside" in refused.stderr


def test_code_digest_prints_what_goes_into_the_file(owner: Owner) -> None:
    result = CliRunner().invoke(app, ["code-digest", str(owner.world.code)])
    assert yaml.safe_load(result.output)["code"] == {
        "path": str(owner.world.code),
        "sha256": owner.world.settings().tasks["bc"].code.sha256,
    }
    assert CliRunner().invoke(app, ["code-digest", "/nowhere"]).exit_code == 1


async def test_a_round_that_failed_is_run_again_from_its_directory(owner: Owner) -> None:
    owner.world.does("crash")
    async with owner.world.agent(owner.world.settings(tries=1)):
        await owner.world.announce(1)
        await owner.world.hear()
        await owner.world.settled()

    def type_all() -> tuple[Result, Result, Result, Any, Any]:
        failed = owner.types("rerun", RUN, "1")
        owner.world.does("train")
        good = owner.types("rerun", RUN, "1")
        nothing = owner.types("rerun", RUN, "7")
        owner.types("pause")
        paused = (owner.world.home / "paused").exists()
        owner.types("resume")
        return failed, good, nothing, json.loads(owner.types("rounds", "--json").output), paused

    failed, good, nothing, rounds, paused = await asyncio.to_thread(type_all)
    assert failed.exit_code == 1
    assert "failed: script-error" in failed.output
    assert good.exit_code == 0, good.output
    assert "update: 1 tensors" in good.output
    assert nothing.exit_code == 1
    assert [(row["run"], row["round"], row["how"], row["why"]) for row in rounds] == [
        (RUN, 1, "failed", "script-error")
    ]
    assert paused
    assert not (owner.world.home / "paused").exists()
    assert owner.world.committed() == {}


def test_an_agent_that_was_killed_leaves_no_trainer_to_the_next(owner: Owner, emulator: EmulatorProcess) -> None:
    """The whole agent as a process, over the real protocol; its trainer does not notice that it is gone."""
    owner.world.does("hold train")
    log = (owner.world.path / "agent.log").open("wb")
    command = [sys.executable, "-m", "silo_agent", "run", "--config", str(owner.file)]
    first = subprocess.Popen(command, stderr=log)
    try:
        asyncio.run(_announce(owner, emulator))
        until(lambda: bool(owner.world.ran()))
        trainer = owner.world.ran()[0][0]
        first.kill()
        first.wait()
        time.sleep(0.1)
        assert owner.world.lives(trainer)
        second = subprocess.Popen(command, stderr=log)
        try:
            until(lambda: not owner.world.lives(trainer))
        finally:
            second.send_signal(signal.SIGTERM)
            assert second.wait(timeout=20) == 0
    finally:
        first.kill()


async def _announce(owner: Owner, emulator: EmulatorProcess) -> None:
    from pydantic import SecretStr

    from messages.transport.servicebus import ServiceBus

    bus = ServiceBus.from_connection_string(SecretStr(emulator.connection_string))
    owner.world.bus = bus  # type: ignore[assignment]
    await owner.world.announce(1)
    await bus.close()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
