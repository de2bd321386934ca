"""The process from outside, without an SDK: how it starts and stops, and what nonsense does to it."""

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from servicebus_emulator.codec import Described, ULong
from servicebus_emulator.frames import write_frame
from servicebus_emulator.performatives import SOURCE, TARGET, Attach, Transfer
from tests.emulator_process import EmulatorProcess
from tests.unit.emulator.wire_peer import message

AMQP = b"AMQP\x00\x01\x00\x00"
SASL = b"AMQP\x03\x01\x00\x00"
FRAMING, DECODING = b"amqp:connection:framing-error", b"amqp:decode-error"


def frame(body: bytes, channel: int = 0, kind: int = 0) -> bytes:
    return struct.pack(">IBBH", 8 + len(body), 2, kind, channel) + body


OPEN = frame(b"\x00\x53\x10\xc0\x04\x01\xa1\x01c")
BEGIN = frame(b"\x00\x53\x11\xc0\x0b\x04\x40\x52\x00\x70\x00\x00\x10\x00\x52\x01", channel=1)
DETACH_5 = b"\x00\x53\x16\xc0\x03\x01\x52\x05"


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatorProcess]:
    with EmulatorProcess(tmp_path_factory.mktemp("emulator"), ["q"]) as running:
        yield running


def converse(emulator: EmulatorProcess, sent: bytes) -> bytes:
    """Everything the emulator answers until it hangs up."""
    with socket.create_connection(("127.0.0.1", emulator.port), timeout=30) as raw:
        raw.sendall(sent)
        answer = b""
        while part := raw.recv(65536):
            answer += part
    return answer


@pytest.mark.parametrize(
    ("sent", "condition"),
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01", b"", id="tls"),
        pytest.param(b"AMQP\x00\x00\x09\x01", b"", id="another-amqp"),
        pytest.param(bytes(range(256)) * 16, b"", id="noise"),
        pytest.param(SASL + AMQP, b"", id="sasl-skipped"),
        pytest.param(SASL + frame(b"\x00\x53\x41\xc0\x05\x01\xa3\x02NO", kind=1), b"", id="sasl-unknown"),
        pytest.param(AMQP + b"\x01" * 64, FRAMING, id="noise-frames"),
        pytest.param(AMQP + struct.pack(">IBBH", 1 << 31, 2, 0, 0), FRAMING, id="huge-frame"),
        pytest.param(AMQP + struct.pack(">IBBH", 7, 2, 0, 0), FRAMING, id="tiny-frame"),
        pytest.param(AMQP + struct.pack(">IBBH", 8, 1, 0, 0), FRAMING, id="frame-offset"),
        pytest.param(AMQP + struct.pack(">IBBH", 8, 2, 9, 0), FRAMING, id="frame-type"),
        pytest.param(AMQP + frame(b"\x00\x53\x7f\x45"), DECODING, id="unknown-performative"),
        pytest.param(AMQP + frame(b"\x00\x53\x10\xd0" + b"\xff" * 8), DECODING, id="count"),
        pytest.param(AMQP + frame(b"\x00" * 2000), DECODING, id="deep"),
        pytest.param(AMQP + frame(b"\x00\x53\x10\x45"), DECODING, id="open-without-container"),
        pytest.param(AMQP + BEGIN, b"amqp:illegal-state", id="begin-before-open"),
        pytest.param(AMQP + OPEN + OPEN, b"amqp:illegal-state", id="open-twice"),
        pytest.param(AMQP + OPEN + frame(DETACH_5, channel=7), b"amqp:not-allowed", id="channel"),
    ],
)
def test_nonsense_closes_its_connection_with_the_reason(
    emulator: EmulatorProcess, sent: bytes, condition: bytes
) -> None:
    answer = converse(emulator, sent)
    assert answer.startswith(b"AMQP")
    assert condition in answer
    # The process goes on: a proper client is welcome.
    welcome = converse(emulator, AMQP + OPEN + frame(b"\x00\x53\x18\x45"))
    assert b"servicebus-emulator" in welcome
    assert welcome.endswith(b"\x00\x53\x18\x45")


def test_a_wrong_handle_ends_the_session_and_leaves_the_connection(emulator: EmulatorProcess) -> None:
    answer = converse(emulator, AMQP + OPEN + BEGIN + frame(DETACH_5, channel=1) + frame(b"\x00\x53\x18\x45"))
    assert b"amqp:session:unattached-handle" in answer
    assert answer.endswith(b"\x00\x53\x18\x45")


def test_nothing_above_was_a_bug(emulator: EmulatorProcess) -> None:
    converse(emulator, AMQP + BEGIN)
    log = emulator.log_file.read_text()
    assert '"connection.closed"' in log
    assert "connection.bug" not in log
    assert "Traceback" not in log


def test_it_stops_cleanly_when_told_to(tmp_path: Path) -> None:
    emulator = EmulatorProcess(tmp_path, ["q"]).start()
    with socket.create_connection(("127.0.0.1", emulator.port), timeout=30) as raw:
        raw.sendall(AMQP + OPEN)
        assert raw.recv(8) == AMQP
        assert emulator.stop() == 0
        rest = b""
        while part := raw.recv(65536):
            rest += part
    assert b"amqp:connection:forced" in rest


def test_a_second_process_on_the_same_data_refuses_to_start(emulator: EmulatorProcess) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "servicebus_emulator", "--port", "0", "--data", emulator.data_dir / "data"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 1
    assert "in use" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_taken_port_is_said_so(emulator: EmulatorProcess, tmp_path: Path) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "servicebus_emulator", "--port", str(emulator.port), "--data", tmp_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 1
    assert "cannot listen" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_wrong_configuration_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="q: LockDuration is longer than nothing"):
        EmulatorProcess(tmp_path, ["q"], LockDuration="PT0S").start()


@pytest.mark.parametrize("port", ["99999", "65536", "-1", "amqp", "٣"])
def test_a_port_that_is_none_is_said_so(tmp_path: Path, port: str) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "servicebus_emulator", f"--port={port}", "--data", tmp_path / "data"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 2
    assert f"{port} is no port; ports are 0 (a free one) to 65535" in refused.stderr
    assert "Traceback" not in refused.stderr


RULES = {"": [{"Name": "k", "Rights": ["Manage"], "PrimaryKey": "a-key"}]}


def test_data_that_were_restricted_are_opened_by_the_option_only(tmp_path: Path) -> None:
    EmulatorProcess(tmp_path, ["q"], rules=RULES).start().stop()
    with pytest.raises(RuntimeError, match="the data is restricted by AuthorizationRules") as refused:
        EmulatorProcess(tmp_path, ["q"]).start()
    assert "Traceback" not in str(refused.value)
    EmulatorProcess(tmp_path, ["q"], options=["--unrestricted"]).start().stop()
    log = (tmp_path / "emulator.log").read_text()
    assert '"level": "warning", "event": "rights.unrestricted"' in log
    assert [line.partition('"restricted": ')[2][:5] for line in log.splitlines() if "emulator.listening" in line] == [
        "true,",
        "false",
    ]


def test_another_hosts_name_is_answered_where_keys_are_asked_for_only(tmp_path: Path) -> None:
    said = b"GET /$namespaceinfo HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    with EmulatorProcess(tmp_path / "open") as running:
        assert converse(running, said).startswith(b"HTTP/1.1 421 ")
        assert converse(running, said.replace(b"evil.example", b"localhost")).startswith(b"HTTP/1.1 200 ")
    with EmulatorProcess(tmp_path / "guarded", rules=RULES) as running:
        assert converse(running, said).startswith(b"HTTP/1.1 401 ")


def test_it_imports_the_standard_library_and_the_two_that_parse_http_only() -> None:
    listed = subprocess.run(
        [sys.executable, "-c", "import sys, servicebus_emulator.__main__; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    tops = {name.partition(".")[0] for name in listed.stdout.split()}
    tops -= {"servicebus_emulator", "__main__", "h11", "wsproto"}
    foreign = {name for name in tops if name not in sys.stdlib_module_names and not name.startswith("_")}
    assert foreign <= {"sitecustomize", "usercustomize", "google", "sphinxcontrib"}


HANGING = """
import sys, threading
from servicebus_emulator import __main__ as program, store
program.PATIENCE = 1.0
def write(self, batch):
    print("writing", flush=True)
    threading.Event().wait()
store.Store.write = write
sys.exit(program.main())
"""


def test_it_ends_even_if_the_disk_does_not_answer(tmp_path: Path) -> None:
    arguments = ["--port", "0", "--data", str(tmp_path / "data"), "--config", str(tmp_path / "config.json")]
    (tmp_path / "config.json").write_text('{"UserConfig": {"Namespaces": [{"Name": "n", "Queues": [{"Name": "q"}]}]}}')
    with subprocess.Popen(
        [sys.executable, "-c", HANGING, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    ) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
                attach = Attach(
                    name="s",
                    handle=0,
                    role=False,
                    source=Described(ULong(SOURCE), ["here"]),
                    target=Described(ULong(TARGET), ["q"]),
                    initial_delivery_count=0,
                )
                transfer = Transfer(handle=0, delivery_id=0, delivery_tag=b"t")
                raw.sendall(AMQP + OPEN + BEGIN + write_frame(1, attach) + write_frame(1, transfer, message("a")))
                assert process.stdout.readline() == "writing\n"
                process.terminate()
                assert process.wait(60) == 1
        finally:
            process.kill()


def started(arguments: str) -> subprocess.CompletedProcess[str]:
    """As a shell starts it, with the streams that the shell gives it."""
    line = f"exec {sys.executable} -m servicebus_emulator --port 0 {arguments}"
    return subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60, check=False)  # noqa: S602


def test_data_that_cannot_be_used_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the directory should be")
    refused = started(f"--data {tmp_path}/data")
    assert refused.returncode == 1
    assert f"--data {tmp_path}/data cannot be used: File exists" in refused.stderr
    assert "give another --data" in refused.stderr


@pytest.mark.parametrize("stdout", [">/dev/full", ">&-"])
def test_it_serves_though_nobody_can_be_told_where(tmp_path: Path, stdout: str) -> None:
    line = f"exec {sys.executable} -m servicebus_emulator --port 0 --data {tmp_path} {stdout}"
    process = subprocess.Popen(line, shell=True, stderr=subprocess.PIPE, text=True)  # noqa: S602
    assert process.stderr is not None
    said = ""
    while "emulator.listening" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    process.terminate()
    said += process.communicate(timeout=60)[1]
    assert process.returncode == 0
    assert "Traceback" not in said
