"""`silobus-agent check` with one thing on the exchange broken at a time: that row is red, says what mends it, and no
other row is.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from messages import names
from messages.transport.clock import SystemClock
from tests.certificates import make_certificates
from tests.e2e.check.broken_silo import BUS_ROWS, DEAF, MUTE, NO_FROM, NO_TO, STORE_ROWS, Silo, obeying_permissions
from tests.emulator_process import EmulatorProcess
from tests.fakes.blob_server import BlobServer, Container

pytestmark = pytest.mark.slow


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
    with obeying_permissions():
        checked = silo.checks()
    checked.blames("create in updates-north", f"create in {container}", untried=["clock"])


def test_a_container_that_cannot_be_read(silo: Silo) -> None:
    (silo.store / "global").chmod(0)
    with obeying_permissions():
        checked = silo.checks()
    checked.blames("read global", f"read in {silo.store / 'global'}")


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
    checked = silo.checks()
    checked.blames("clock", "off by -7", "NTP")
    [told] = re.findall(r"off by -(\d+) s", checked.rows["clock"]["found"])
    assert 7000 < int(told) <= 7200, "less what it took from one look to the other"
