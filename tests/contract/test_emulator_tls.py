"""TLS as clients of all kinds see it: openssl, Python's ssl, the unmodified SDK; and the options that ask for it."""

import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.servicebus import ServiceBusClient as SyncClient
from azure.servicebus import ServiceBusMessage, TransportType
from azure.servicebus.aio import ServiceBusClient
from azure.servicebus.exceptions import ServiceBusError

from tests.certificates import NAMESPACE, Certificates, make_certificates
from tests.emulator_process import EmulatorProcess

AMQP = b"AMQP\x00\x01\x00\x00"
PATIENTLY = 10.0
KEYS = f"Endpoint=sb://{NAMESPACE};SharedAccessKeyName=any;SharedAccessKey=any"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[EmulatorProcess]:
    directory = tmp_path_factory.mktemp("emulator")
    with EmulatorProcess(directory, ["sync", "aio"], options=certificates.options) as running:
        yield running
    log = running.log_file.read_text()
    assert "bug" not in log
    assert "Traceback" not in log


# ------------------------------------------------------------------------------------------------------- clients


def test_openssl_shakes_hands_and_speaks_amqp(emulator: EmulatorProcess, certificates: Certificates) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl here")
    command = [openssl, "s_client", "-connect", f"127.0.0.1:{emulator.port}", "-CAfile", str(certificates.ca)]
    command += ["-servername", "localhost", "-verify_hostname", "localhost", "-verify_return_error", "-quiet"]
    talk = subprocess.run(command, input=b"AMQP\x00\x00\x09\x01", capture_output=True, timeout=PATIENTLY, check=False)
    assert talk.stdout == AMQP, talk.stderr.decode()  # another version is answered with ours, and the end


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_python_speaks_amqp_inside_tls(
    emulator: EmulatorProcess, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    context = ssl.create_default_context(cafile=str(certificates.ca))
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", emulator.port), timeout=PATIENTLY) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as client,
    ):
        client.sendall(AMQP)
        assert client.recv(8) == AMQP


def test_the_sdk_sends_and_receives(emulator: EmulatorProcess, certificates: Certificates) -> None:
    client = SyncClient.from_connection_string(
        KEYS,
        transport_type=TransportType.Amqp,
        custom_endpoint_address=f"sb://localhost:{emulator.port}",
        connection_verify=str(certificates.ca),
        retry_total=0,
    )
    with client, client.get_queue_sender("sync") as sender, client.get_queue_receiver("sync") as receiver:
        sender.send_messages(ServiceBusMessage(b"x" * 300_000))
        (message,) = receiver.receive_messages(max_wait_time=PATIENTLY)
        assert b"".join(message.body) == b"x" * 300_000
        receiver.complete_message(message)


async def test_the_asynchronous_sdk_sends_and_receives(emulator: EmulatorProcess, certificates: Certificates) -> None:
    client = ServiceBusClient.from_connection_string(
        KEYS,
        transport_type=TransportType.Amqp,
        custom_endpoint_address=f"sb://localhost:{emulator.port}",
        connection_verify=str(certificates.ca),
        retry_total=0,
    )
    async with client, client.get_queue_sender("aio") as sender, client.get_queue_receiver("aio") as receiver:
        await sender.send_messages(ServiceBusMessage(b"x" * 300_000))
        (message,) = await receiver.receive_messages(max_wait_time=PATIENTLY)
        assert b"".join(message.body) == b"x" * 300_000
        await receiver.complete_message(message)


async def test_the_sdk_does_not_trust_an_authority_it_was_not_told_of(emulator: EmulatorProcess) -> None:
    client = ServiceBusClient.from_connection_string(
        KEYS,
        transport_type=TransportType.Amqp,
        custom_endpoint_address=f"sb://localhost:{emulator.port}",
        retry_total=0,
    )
    async with client:
        with pytest.raises(ServiceBusError, match="certificate verify failed"):
            async with client.get_queue_sender("aio"):
                pass


def test_tls_to_a_server_without_a_certificate_is_answered_with_amqp(tmp_path: Path) -> None:
    with (
        EmulatorProcess(tmp_path, ["q"]) as plain,
        socket.create_connection(("127.0.0.1", plain.port), timeout=PATIENTLY) as raw,
        pytest.raises(ssl.SSLError, match=r"(?i)wrong.version.number"),
    ):
        ssl.create_default_context().wrap_socket(raw, server_hostname="localhost")


def test_it_stops_cleanly_while_tls_is_spoken(tmp_path: Path, certificates: Certificates) -> None:
    context = ssl.create_default_context(cafile=str(certificates.ca))
    emulator = EmulatorProcess(tmp_path, ["q"], options=certificates.options).start()
    with (
        socket.create_connection(("127.0.0.1", emulator.port), timeout=PATIENTLY) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as client,
        socket.create_connection(("127.0.0.1", emulator.port), timeout=PATIENTLY),
        socket.create_connection(("127.0.0.1", emulator.port), timeout=PATIENTLY) as half,
    ):
        half.sendall(b"\x16\x03")
        client.sendall(AMQP + bytes.fromhex("0000001102000000005310c00401a10163"))  # open
        assert client.recv(8) == AMQP
        assert emulator.stop() == 0
        rest = b""
        while part := client.recv(65536):
            rest += part
    assert b"amqp:connection:forced" in rest
    assert "Traceback" not in emulator.log_file.read_text()


# ------------------------------------------------------------------------------------------------------- options


def refused(tmp_path: Path, *options: str) -> str:
    """Why a process with these options did not start."""
    command = [sys.executable, "-m", "servicebus_emulator", "--port", "0", "--data", str(tmp_path / "data"), *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr


def test_options_that_do_not_make_sense_are_refused_in_one_line(tmp_path: Path, certificates: Certificates) -> None:
    cert, key = certificates.options[:2], certificates.options[2:]
    assert "--cert and --key go together" in refused(tmp_path, *cert)
    assert "--cert and --key go together" in refused(tmp_path, *key)
    assert "missing.pem cannot be read: No such file" in refused(tmp_path, *cert, "--key", "missing.pem")
    assert "cannot be used" in refused(tmp_path, *cert, "--key", str(certificates.ca))
    assert "--plain-anywhere" in refused(tmp_path, "--host", "0.0.0.0")  # noqa: S104
    assert "means nothing here" in refused(tmp_path, "--host", "no.such.host.invalid")
    assert not (tmp_path / "data").exists(), "nothing was touched"


def own_address() -> str:
    """An address of this machine that is not its loopback; asking for it sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but its loopback")
        address: str = probe.getsockname()[0]
        return address


def greeted(address: str, port: int) -> bytes:
    with socket.create_connection((address, port), timeout=PATIENTLY) as client:
        try:
            client.sendall(AMQP)
            return client.recv(8)
        except ConnectionError:
            return b""


def test_plain_tcp_is_for_this_machine_unless_told_otherwise(tmp_path: Path, certificates: Certificates) -> None:
    address, everywhere = own_address(), ["--host", "0.0.0.0"]  # noqa: S104
    context = ssl.create_default_context(cafile=str(certificates.ca))
    with EmulatorProcess(tmp_path / "1", ["q"], options=[*everywhere, *certificates.options]) as guarded:
        assert greeted("127.0.0.1", guarded.port) == AMQP
        assert greeted(address, guarded.port) == b""
        with (
            socket.create_connection((address, guarded.port), timeout=PATIENTLY) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as client,
        ):
            client.sendall(AMQP)
            assert client.recv(8) == AMQP
        assert "door.plain_refused" in guarded.log_file.read_text()
    with EmulatorProcess(tmp_path / "2", ["q"], options=[*everywhere, "--plain-anywhere"]) as open_to_all:
        assert greeted(address, open_to_all.port) == AMQP
