"""`silobus-agent check` with one thing broken at a time: that row is red, says what mends it, and no other row is.

The bus is the embedded one with everybody's keys, laid out as `silobus up` does it. Silos other than `north` are there
to have something wrong with their queues or keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from messages import names
from messages.transport.clock import SystemClock
from silo_agent.cli import app
from silo_agent.code_digest import code_digest
from silo_agent.home import Home
from tests.certificates import make_certificates
from tests.e2e.command import ROOT
from tests.emulator_process import EmulatorProcess
from tests.fakes.blob_server import BlobServer, Container
from tests.federation import TASK, Federation
from tests.federation import Silo as Enrolled

pytestmark = pytest.mark.slow

DEAF, MUTE, NO_TO, NO_FROM = "deaf", "mute", "no-to", "no-from"
SILOS = ("north", DEAF, MUTE, NO_TO, NO_FROM)
STORE_ROWS = ["read global", "create in updates-north", "read updates-north", "list updates-north", "clock"]
BUS_ROWS = ["read to-north", "send to from-north"]
TASK_ROWS = [f"task {TASK}: code", f"task {TASK}: data", f"task {TASK}: command", f"task {TASK}"]
HOME_ROWS = ["send to from-north", *STORE_ROWS[1:], f"task {TASK}"]


def rows_of(silo: str) -> list[str]:
    """All that is tried in a silo with one task on its own machine, in the order shown."""
    to, out, updates = names.to_silo(silo), names.from_silo(silo), names.updates_of(silo)
    exchange = ["store", "read global", f"create in {updates}", f"read {updates}", f"list {updates}", "clock"]
    return ["settings", "bus", f"read {to}", f"send to {out}", "home", "disk", *exchange, *TASK_ROWS]


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    federation = Federation([Enrolled(name, agent=False) for name in SILOS])
    with contextlib.ExitStack() as stack:
        stack.push(federation.__exit__)
        federation.lay_out()
        config = json.loads(federation.folder.queues.read_text())
        namespace = config["UserConfig"]["Namespaces"][0]
        lost = (names.to_silo(NO_TO), names.from_silo(NO_FROM))
        namespace["Queues"] = [queue for queue in namespace["Queues"] if queue["Name"] not in lost]
        for queue in namespace["Queues"]:
            if queue["Name"] in (names.to_silo(DEAF), names.from_silo(MUTE)):
                rules = queue["AuthorizationRules"]
                queue["AuthorizationRules"] = [rule for rule in rules if not rule["Name"].startswith("agent-")]
        federation.folder.queues.write_text(json.dumps(config))
        federation.start("bus")
        yield federation


@dataclass
class Silo:
    """A silo's files, its own to break, and what `check` says of them."""

    federation: Federation
    path: Path
    name: str = "north"

    def __post_init__(self) -> None:
        self.file = self.path / "silo.yaml"
        self.home = self.path / "home"
        self.key = self.path / "connection"
        self.store = self.path / "store"
        self.script = self.path / "code" / "add.py"
        self.data = self.path / "rows.csv"
        for container in (names.GLOBAL, names.updates_of(self.name)):
            (self.store / container).mkdir(parents=True, exist_ok=True)
        self.script.parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / "tests" / "trainers" / "add.py", self.script)
        self.data.write_text("1,2\n")
        self.said: dict[str, Any] = yaml.safe_load(self.federation.folder.silo(self.name).read_text())
        theirs = Path(self.said["bus"]["connection_string_file"])
        self.key.write_text(theirs.read_text())
        self.said |= {"home": str(self.home), "store": {"directory": str(self.store)}}
        self.said["bus"] = {"connection_string_file": str(self.key)}
        self.task.update(directory=str(self.script.parent), data={"rows": str(self.data)}, mode="per-round")
        self.task["code"] = {"path": str(self.script), "sha256": code_digest(self.script)}
        self.environment: dict[str, str] = {}

    @property
    def task(self) -> dict[str, Any]:
        task: dict[str, Any] = self.said["tasks"][TASK]
        return task

    def does(self, script: str) -> None:
        """The owner approves another script."""
        self.script.write_text(script)
        self.task["code"]["sha256"] = code_digest(self.script)

    def write(self) -> None:
        self.file.write_text(yaml.safe_dump(self.said))

    def checks(self) -> Checked:
        """In this process, which is quicker."""
        self.write()
        asked = ["check", "--json", "--config", str(self.file)]
        result = CliRunner().invoke(app, asked, env=self.environment)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return Checked(result.exit_code, result.output, self.secrets)

    def types(self, *options: str, powerless: bool = False) -> Checked:
        """As an owner types it. `powerless`: file permissions hold for it even where the tests are root's."""
        self.write()
        done = subprocess.run(
            [sys.executable, "-m", "silo_agent", "check", *options, "--config", str(self.file)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60,
            check=False,
            preexec_fn=obey_permissions if powerless else None,  # it calls prctl and nothing else
        )
        return Checked(done.returncode, done.stdout + done.stderr, self.secrets)

    @property
    def secrets(self) -> list[str]:
        return [*self.federation.secrets, *self.environment.values(), "SharedAccessKey="]


def obey_permissions() -> None:
    """Without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, which root has. Others have neither, and nothing happens."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


class Checked:
    """What `check` said."""

    def __init__(self, status: int, output: str, secrets: Sequence[str]) -> None:
        self.status, self.output = status, output
        for secret in secrets:
            assert secret not in output

    @property
    def rows(self) -> dict[str, Mapping[str, Any]]:
        return {row["what"]: row for row in json.loads(self.output)}

    def are(self, state: str) -> list[str]:
        return [what for what, row in self.rows.items() if row["state"] == state]

    def blames(self, red: str, *told: str, untried: Sequence[str] = ()) -> None:
        """Exactly this row is red, and says so much; exactly these could not be tried."""
        assert self.are("FAIL") == [red], self.output
        assert self.are("not tried") == list(untried), self.output
        row = self.rows[red]
        text = " ".join([row["found"], *row["details"]])
        for words in told:
            assert words in text
        assert self.status == 1


@pytest.fixture
def silo(federation: Federation, tmp_path: Path) -> Silo:
    return Silo(federation, tmp_path)


@pytest.fixture
def other(federation: Federation, tmp_path: Path) -> Callable[[str], Silo]:
    def made(name: str) -> Silo:
        (tmp_path / name).mkdir()
        return Silo(federation, tmp_path / name, name)

    return made


# --- nothing is broken ------------------------------------------------------------------------------------------------


def test_a_healthy_silo_is_green_and_sees_what_would_leave(silo: Silo) -> None:
    checked = silo.types("--json")
    assert checked.status == 0, checked.output
    assert list(checked.rows) == rows_of("north")
    assert checked.are("ok") == rows_of("north")
    details = checked.rows[f"task {TASK}"]["details"]
    assert any("update: 2 tensors" in line for line in details)
    assert any("samples: 64, steps: 1" in line for line in details)


def test_for_people_it_is_a_line_per_row(silo: Silo) -> None:
    silo.data.unlink()
    checked = silo.types()
    assert checked.status == 1
    assert re.findall(r"^(ok|FAIL|--) ", checked.output, re.MULTILINE).count("FAIL") == 1
    assert f"FAIL task {TASK}: data: data-missing" in checked.output
    assert f"--   task {TASK}: not tried: what it needs comes first" in checked.output


# --- the file and the secrets -----------------------------------------------------------------------------------------


def test_an_unknown_field(silo: Silo) -> None:
    silo.said["heartbeats"] = 3
    silo.checks().blames("settings", str(silo.file), "heartbeats: there is no such field")


@pytest.mark.parametrize("secret", [None, " \n"])
def test_a_secret_that_is_not_there(silo: Silo, secret: str | None) -> None:
    silo.key.unlink() if secret is None else silo.key.write_text(secret)
    told = "cannot be read" if secret is None else "is empty"
    silo.checks().blames(
        "bus", f"bus.connection_string_file: {silo.key} {told}", untried=["read to-north", "send to from-north"]
    )


def test_a_secret_of_the_stores_that_is_not_there(silo: Silo) -> None:
    silo.said["store"] = {"account_url": "http://127.0.0.1:9/x", "sas_file": str(silo.path / "sas")}
    silo.checks().blames("store", "store.sas_file:", str(silo.path / "sas"), untried=STORE_ROWS)


# --- the bus ----------------------------------------------------------------------------------------------------------


def test_a_wrong_key(silo: Silo) -> None:
    key = silo.key.read_text()
    silo.key.write_text(re.sub(r"SharedAccessKey=[^;]+", "SharedAccessKey=d3Jvbmc=", key))
    silo.checks().blames("bus", f"bus.connection_string_file ({silo.key})", "agent north", untried=BUS_ROWS)


def test_somebody_elses_key(silo: Silo) -> None:
    silo.key.write_text(silo.federation.folder.connection("agent", MUTE).read_text())
    silo.checks().blames("bus", f"bus.connection_string_file ({silo.key})", untried=BUS_ROWS)


def test_no_listen(other: Callable[[str], Silo]) -> None:
    other(DEAF).checks().blames(
        "read to-deaf", "needs Listen on queue to-deaf", "Azure Service Bus Data Receiver", "takes announcements"
    )


def test_no_send(other: Callable[[str], Silo]) -> None:
    other(MUTE).checks().blames(
        "send to from-mute", "needs Send on queue from-mute", "Azure Service Bus Data Sender", "signs of life"
    )


@pytest.mark.parametrize(
    ("silo_name", "red"), [(NO_TO, "read to-no-to"), (NO_FROM, "send to from-no-from")], ids=[NO_TO, NO_FROM]
)
def test_a_queue_that_is_not_there(other: Callable[[str], Silo], silo_name: str, red: str) -> None:
    """A key of one queue's is told no more than that it may not; the row says both."""
    other(silo_name).checks().blames(red, f"is there no queue {red.rsplit(maxsplit=1)[-1]}?", "enrol")


@pytest.mark.parametrize(
    ("there", "red"), [("to-north", "send to from-north"), ("from-north", "read to-north"), (None, "bus")]
)
def test_a_queue_that_is_not_there_for_one_who_would_be_told(silo: Silo, there: str | None, red: str) -> None:
    with EmulatorProcess(silo.path / "bus", [there] if there else ["work"]) as bus:
        silo.key.write_text(bus.connection_string)
        missing = "no queue of `silo: north`" if there is None else f"queue {red.rsplit(maxsplit=1)[-1]} is not there"
        silo.checks().blames(red, missing, "enrol this silo", untried=[] if there else BUS_ROWS)


def test_another_port(silo: Silo) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        silo.key.write_text(re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{unused.getsockname()[1]}", silo.key.read_text()))
        silo.checks().blames("bus", "cannot be reached", "endpoint in bus.connection_string_file", untried=BUS_ROWS)


def test_another_host(silo: Silo) -> None:
    silo.key.write_text(silo.key.read_text().replace("127.0.0.1", "nowhere.invalid"))
    silo.checks().blames("bus", "cannot be reached", "endpoint in bus.connection_string_file", untried=BUS_ROWS)


def test_a_ca_file_without_certificates(silo: Silo) -> None:
    (silo.path / "ca.pem").write_text("nothing")
    silo.said["bus"]["ca_file"] = str(silo.path / "ca.pem")
    silo.checks().blames("bus", "bus.ca_file", str(silo.path / "ca.pem"), untried=BUS_ROWS)


def test_a_ca_file_of_another_authority(silo: Silo) -> None:
    right, wrong = make_certificates(silo.path / "right"), make_certificates(silo.path / "wrong")
    queues = [names.to_silo("north"), names.from_silo("north")]
    with EmulatorProcess(silo.path / "bus", queues, options=right.options) as tls:
        silo.key.write_text(f"Endpoint=sb://localhost:{tls.port};SharedAccessKeyName=any;SharedAccessKey=any")
        silo.said["bus"]["ca_file"] = str(wrong.ca)
        silo.checks().blames("bus", "cannot be reached", "bus.ca_file", untried=BUS_ROWS)


# --- the store --------------------------------------------------------------------------------------------------------


def test_no_directory(silo: Silo) -> None:
    shutil.rmtree(silo.store)
    silo.checks().blames("store", f"no directory {silo.store}", "store.directory", untried=STORE_ROWS)
    assert not silo.store.exists()


def test_a_container_that_cannot_be_written(silo: Silo) -> None:
    container = silo.store / "updates-north"
    container.chmod(0o500)
    checked = silo.types("--json", powerless=True)
    checked.blames("create in updates-north", f"create in {container}", untried=["clock"])


def test_a_container_that_cannot_be_read(silo: Silo) -> None:
    (silo.store / "global").chmod(0)
    silo.types("--json", powerless=True).blames("read global", f"read in {silo.store / 'global'}")


@dataclass
class Blobs:
    """The store over HTTP, with a signature for each container."""

    silo: Silo
    server: BlobServer

    def lets(self, on_global: str, on_own: str) -> None:
        files = {}
        for container, verbs in ((names.GLOBAL, on_global), (names.updates_of("north"), on_own)):
            files[container] = str(self.silo.path / f"sas-{container}")
            Path(files[container]).write_text(f"sv=2024-11-04&sp={verbs}&sig=canary-of-a-signature")
        self.silo.said["store"] = {"account_url": self.server.url, "sas_files": files}


@pytest.fixture
def blobs(silo: Silo) -> Iterator[Blobs]:
    """In a thread with a loop of its own: what is tested has its own, too."""
    loop, server = asyncio.new_event_loop(), BlobServer()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(20)
    for container in (names.GLOBAL, names.updates_of("north")):
        server.containers[container] = Container()
    yield Blobs(silo, server)
    asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(20)
    loop.close()


def test_signatures_with_just_the_verbs_needed(blobs: Blobs) -> None:
    blobs.lets("r", "rlc")
    checked = blobs.silo.checks()
    assert checked.status == 0, checked.output
    assert "canary" not in checked.output


@pytest.mark.parametrize(
    ("verbs", "red", "role", "untried"),
    [
        (("l", "rlc"), "read global", "Storage Blob Data Reader", []),
        (("r", "rl"), "create in updates-north", "Silobus Blob Creator", ["clock"]),
        (("r", "lc"), "read updates-north", "Silobus Blob Creator", []),
        (("r", "rc"), "list updates-north", "Silobus Blob Creator", ["clock"]),
    ],
)
def test_a_signature_that_lacks_a_verb(
    blobs: Blobs, verbs: tuple[str, str], red: str, role: str, untried: list[str]
) -> None:
    blobs.lets(*verbs)
    checked = blobs.silo.checks()
    verb, *_, container = red.split()
    checked.blames(red, f"needs {verb} on container {container}", f"`{verb[0]}`", role, untried=untried)
    assert "canary" not in checked.output


def test_signatures_that_are_good_for_nothing(blobs: Blobs) -> None:
    blobs.lets("x", "x")
    blobs.silo.checks().blames("store", "store.sas_files", untried=STORE_ROWS)


@pytest.mark.parametrize("container", ["global", "updates-north"])
def test_a_container_that_is_not_there(blobs: Blobs, container: str) -> None:
    blobs.lets("r", "rlc")
    del blobs.server.containers[container]
    red = "read global" if container == "global" else "create in updates-north"
    untried = [] if container == "global" else ["read updates-north", "list updates-north", "clock"]
    blobs.silo.checks().blames(red, f"the container {container} is not there", "enrol", untried=untried)


def test_a_clock_that_is_off(silo: Silo, monkeypatch: pytest.MonkeyPatch) -> None:
    late = lambda _: datetime.now(UTC) - timedelta(hours=2)  # noqa: E731
    monkeypatch.setattr(SystemClock, "now", late)
    silo.checks().blames("clock", "off by -7200 s", "NTP")


# --- the home ---------------------------------------------------------------------------------------------------------


def test_a_home_that_cannot_be_written(silo: Silo) -> None:
    silo.home.mkdir(mode=0o500)
    checked = silo.types("--json", powerless=True)
    checked.blames("home", str(silo.home), "Permission denied", "`home`", untried=HOME_ROWS)


def test_a_home_whose_egress_log_was_changed(silo: Silo) -> None:
    assert silo.checks().status == 0
    log = silo.home / "egress.jsonl"
    log.write_text(log.read_text().replace('"bytes":', '"bytes":1', 1))
    silo.checks().blames("home", "egress.jsonl is not as it was written", untried=HOME_ROWS)


def test_an_agent_that_is_running_is_no_fault_and_what_it_keeps_from_being_tried_is_said(silo: Silo) -> None:
    home = Home(silo.home)
    home.take()
    try:
        checked = silo.checks()
    finally:
        home.leave()
    assert checked.status == 0
    assert checked.are("FAIL") == []
    assert checked.are("not tried") == [HOME_ROWS[0], "home", *HOME_ROWS[1:]]
    assert "stop it" in checked.rows["home"]["found"]


def test_a_disk_that_is_nearly_full(silo: Silo, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage
    monkeypatch.setattr("silo_agent.check.shutil.disk_usage", lambda at: real(at)._replace(free=900_000_000))
    silo.checks().blames("disk", "0.90 GB are free", "may need 1.00", str(silo.home))


def test_a_disk_without_room_for_the_largest_model_seen(silo: Silo, monkeypatch: pytest.MonkeyPatch) -> None:
    silo.home.mkdir()
    with (silo.home / "update.safetensors").open("wb") as large:
        large.truncate(3_000_000_000)  # it takes no room itself
    real = shutil.disk_usage
    monkeypatch.setattr("silo_agent.check.shutil.disk_usage", lambda at: real(at)._replace(free=5_000_000_000))
    silo.checks().blames("disk", "5.00 GB are free", "may need 6.00")


# --- the task ---------------------------------------------------------------------------------------------------------


def code_is_gone(silo: Silo) -> None:
    silo.script.rename(silo.script.with_name("other.py"))


def code_differs(silo: Silo) -> None:
    with silo.script.open("a") as script:
        script.write("# one more line\n")


def data_is_gone(silo: Silo) -> None:
    silo.data.unlink()


def no_directory(silo: Silo) -> None:
    silo.task["directory"] = str(silo.path / "nowhere")


def no_command(silo: Silo) -> None:
    silo.task["command"] = ["no-such-program", "add.py"]


def no_command_by_path(silo: Silo) -> None:
    silo.task["command"] = ["./no-such-program"]


def fails(silo: Silo) -> None:
    silo.does("raise SystemExit(3)\n")


def reports_nothing(silo: Silo) -> None:
    silo.does("print('done')\n")


def tensor_may_not_leave(silo: Silo) -> None:
    silo.task["outbound"]["tensors"] = ["layer.weight"]


def too_few_samples(silo: Silo) -> None:
    silo.task["outbound"]["min_samples"] = 65


@pytest.mark.parametrize(
    ("breaks", "red", "told"),
    [
        (code_is_gone, "code", ["there is no", "tasks.add.code.path"]),
        (code_differs, "code", ["not the approved one", "its digest is", "tasks.add.code.sha256"]),
        (data_is_gone, "data", ["data-missing", "rows: ", "rows.csv", "tasks.add.data"]),
        (no_directory, "command", ["nowhere", "tasks.add.directory"]),
        (no_command, "command", ["no-such-program", "tasks.add.command"]),
        (no_command_by_path, "command", ["./no-such-program", "tasks.add.command"]),
        (fails, "", ["script-error", "what it printed is in", "output.txt"]),
        (reports_nothing, "", ["no-report", "silobus.rounds()"]),
        (tensor_may_not_leave, "", ["outbound-forbidden", "tensor layer.bias: not named", "tasks.add.outbound"]),
        (too_few_samples, "", ["too-few-samples", "min_samples is 65", "tasks.add.outbound"]),
    ],
)
def test_a_task(silo: Silo, breaks: Callable[[Silo], None], red: str, told: list[str]) -> None:
    breaks(silo)
    row = f"task {TASK}: {red}" if red else f"task {TASK}"
    silo.checks().blames(row, *told, untried=[f"task {TASK}"] if red else [])


def test_a_command_in_the_tasks_own_directory(silo: Silo) -> None:
    program = silo.script.with_name("train")
    program.write_text(f"#!/bin/sh\nexec {sys.executable} add.py\n")
    program.chmod(0o700)
    silo.task["command"] = ["./train"]
    silo.task["code"] = {"path": str(silo.script.parent), "sha256": code_digest(silo.script.parent)}
    checked = silo.checks()
    assert checked.status == 0, checked.output


def test_a_metric_that_may_not_leave_stays_and_is_named(silo: Silo) -> None:
    """The update leaves without it: nothing is red."""
    silo.task["outbound"]["metrics"] = {}
    checked = silo.checks()
    assert checked.status == 0, checked.output
    assert "stays here: metric level (received): not named by the outbound rules, left out" in checked.output
