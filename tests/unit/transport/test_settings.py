"""Settings: every mistake is told with file, line, field and what to do; no secret is ever repeated."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from messages.settings import BusSettings, Settings, SettingsError, SettingsPath, StoreSettings, load_yaml
from messages.transport.connect import open_bus, open_store
from messages.transport.directory import DirectoryStore
from tests.certificates import make_certificates
from tests.e2e.check.broken_silo import obeying_permissions

SECRET = "c2VjcmV0c2VjcmV0"


class Both(Settings):
    bus: BusSettings
    store: StoreSettings
    scratch: SettingsPath = Path("scratch")
    silos: tuple[str, ...] = ()


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "orchestrator.yaml"
    file.write_text(text)
    return file


GOOD = """\
bus:
  connection_string_env: SILOBUS_CONNECTION
store:
  directory: store
"""


def test_relative_paths_mean_the_files_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    written(tmp_path, GOOD + "scratch: ../up/./x\n")
    settings = load_yaml(Path("../orchestrator.yaml"), Both)
    assert settings.store.directory == tmp_path / "store"
    assert settings.scratch == tmp_path.parent / "up" / "x"


def test_absolute_paths_stay_as_they_are(tmp_path: Path) -> None:
    settings = load_yaml(written(tmp_path, GOOD.replace("directory: store", "directory: /data/store")), Both)
    assert settings.store.directory == Path("/data/store")


def test_home_directories_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert load_yaml(written(tmp_path, GOOD + "scratch: ~/x\n"), Both).scratch == Path("/home/someone/x")


def test_settings_are_frozen(tmp_path: Path) -> None:
    settings = load_yaml(written(tmp_path, GOOD), Both)
    with pytest.raises(ValidationError):
        settings.bus.transport = "amqp"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        (GOOD + "  colour: red\n", ["line 5: store.colour: there is no such field"]),
        (GOOD.replace("SILOBUS_CONNECTION", "Endpoint=sb://x"), ["line 2: bus.connection_string_env:"]),
        (
            GOOD.replace("connection_string_env: SILOBUS_CONNECTION", f"connection_string: {SECRET}"),
            ["line 2: bus.connection_string: secrets never stand in this file", "connection_string_env"],
        ),
        ("store:\n  directory: x\n", ["line 1: bus: is missing; add it"]),
        (GOOD.replace("  directory: store", "  {}"), ["line 3: store: set exactly one of `directory`", "none given"]),
        (GOOD.replace("  connection_string_env: SILOBUS_CONNECTION", "  {}"), ["line 1: bus: set exactly one of"]),
        (GOOD.replace("store:", "  connection_string_file: x\nstore:"), ["line 1: bus: set exactly one", "2 given"]),
        (GOOD + "  account_url: https://x\n", ["line 3: store: set exactly one of", "2 given"]),
        (GOOD.replace("directory: store", "account_url: https://x"), ["exactly one of `credential`, `sas_env`"]),
        (GOOD + "  credential: environment\n", ["`credential` belongs to `account_url`"]),
        (
            "bus: {namespace: x.servicebus.windows.net}\nstore: {directory: x}\n",
            ["line 1: bus: `namespace` and `credential` go together"],
        ),
        (
            "bus:\n  namespace: sb://x/\n  credential: guess\nstore: {directory: x}\n",
            ["line 2: bus.namespace:", "line 3: bus.credential: Input should be 'managed-identity'"],
        ),
        (
            GOOD.replace("store:", "  proxy: {host: p, port: 70000}\nstore:"),
            ["line 3: bus.proxy.port: Input should be less than or equal to 65535"],
        ),
        (GOOD + "silos: [a, {}]\n", ["line 5: silos.1: Input should be a valid string"]),
        (GOOD + "silos: [a]\nsilos: [b]\n", ["line 6: `silos` is there twice"]),
        (GOOD + "  directory: other\n", ["line 5: `directory` is there twice"]),
        ("just a word", ["it should hold `field: value` lines"]),
        ("", ["it should hold `field: value` lines"]),
        ("bus: [\n", ["not YAML"]),
        ("a: !!python/object:os.system {}\n", ["not YAML"]),
    ],
)
def test_mistakes_are_told_with_file_line_field_and_what_to_do(
    tmp_path: Path, text: str, complaints: list[str]
) -> None:
    file = written(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        load_yaml(file, Both)
    assert str(file) in str(caught.value)
    for complaint in complaints:
        assert complaint in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_secret_put_where_none_belongs_is_not_repeated() -> None:
    with pytest.raises(ValidationError) as caught:
        BusSettings.model_validate({"connection_string_env": f"SharedAccessKey={SECRET}", "key": SECRET})
    assert SECRET not in str(caught.value)


def test_a_file_that_is_not_there_or_not_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no\.yaml: there is no such file"):
        load_yaml(tmp_path / "no.yaml", Both)
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="UTF-8"):
        load_yaml(tmp_path / "bad.yaml", Both)
    with pytest.raises(SettingsError, match=r"cannot be read \(Is a directory\)"):
        load_yaml(tmp_path, Both)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{a: " * 3000 + "1" + "}" * 3000, "nested too deeply"),
        ("a: 2026-13-45", "month must be in 1..12"),
        (f"a: {'9' * 5000}", "5000 digits"),
        ("a: &a [*a]", "there is no such field"),
    ],
    ids=["deep", "no such date", "long number", "in itself"],
)
def test_what_yaml_cannot_hold_is_told(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(SettingsError, match=rf"orchestrator\.yaml.*(\n.*)*{told}"):
        load_yaml(written(tmp_path, text), Both)


def test_a_file_of_references_to_references_is_told_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))]
    with pytest.raises(SettingsError, match="line 1: a0: there is no such field"):
        load_yaml(written(tmp_path, "\n".join(lines)), Both)


def test_files_of_another_user_are_told_as_such(tmp_path: Path) -> None:
    file = written(tmp_path, "a: 1")
    file.chmod(0o000)
    with obeying_permissions():
        with pytest.raises(SettingsError, match=r"orchestrator\.yaml: this user may not read it"):
            load_yaml(file, Both)
        with pytest.raises(SettingsError, match=r"store\.sas_file: this user may not read .*orchestrator\.yaml"):
            StoreSettings(account_url="https://x", sas_file=file).sas()


def test_a_secret_comes_from_the_environment_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = BusSettings(connection_string_env="SILOBUS_TEST_CONNECTION")
    monkeypatch.delenv("SILOBUS_TEST_CONNECTION", raising=False)
    with pytest.raises(SettingsError, match=r"bus\.connection_string_env: .*SILOBUS_TEST_CONNECTION is not set"):
        settings.connection_string()
    monkeypatch.setenv("SILOBUS_TEST_CONNECTION", f" {SECRET}\n")
    assert settings.connection_string() == SecretStr(SECRET)
    assert SECRET not in repr(settings) + repr(settings.connection_string()) + settings.model_dump_json()


def test_a_secret_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "connection"
    settings = StoreSettings(account_url="https://x", sas_file=file)
    with pytest.raises(SettingsError, match=r"store\.sas_file: .*cannot be read"):
        settings.sas()
    file.write_text("\n")
    with pytest.raises(SettingsError, match=r"store\.sas_file: .*is empty"):
        settings.sas()
    file.write_text(f"{SECRET}\n")
    assert settings.sas() == SecretStr(SECRET)
    assert settings.connection_string() is None


async def test_a_directory_is_a_store(tmp_path: Path) -> None:
    store = open_store(StoreSettings(directory=tmp_path))
    assert isinstance(store, DirectoryStore)
    await store.close()


@pytest.mark.parametrize("text", ["junk", f"Endpoint=sb://x;SharedAccessKey={SECRET}", f"AccountKey={SECRET}"])
async def test_a_malformed_connection_string_is_told_and_not_repeated(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SILOBUS_TEST_CONNECTION", text)
    with pytest.raises(SettingsError, match="bus: the connection string is malformed") as of_bus:
        open_bus(BusSettings(connection_string_env="SILOBUS_TEST_CONNECTION"))
    with pytest.raises(SettingsError, match="store: the connection string is malformed") as of_store:
        open_store(StoreSettings(connection_string_env="SILOBUS_TEST_CONNECTION"))
    for caught in (of_bus, of_store):
        assert SECRET not in str(caught.value)
        assert caught.value.__cause__ is None


async def test_the_way_through_the_network_reaches_the_sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXY_USER", "someone")
    monkeypatch.setenv("PROXY_PASSWORD", SECRET)
    proxy: Any = {"host": "proxy.example", "port": 3128, "user_env": "PROXY_USER", "password_env": "PROXY_PASSWORD"}
    bus: Any = open_bus(
        BusSettings.model_validate(
            {
                "namespace": "x.servicebus.windows.net",
                "credential": "azure-cli",
                "proxy": proxy,
                "ca_file": str(make_certificates(tmp_path).ca),
            }
        )
    )
    config = bus._client._config
    assert config.transport_type.name == "AmqpOverWebsocket"
    assert config.http_proxy == {
        "proxy_hostname": "http://proxy.example",
        "proxy_port": 3128,
        "username": "someone",
        "password": SECRET,
    }
    (trusted,) = bus._client._ssl_context.get_ca_certs()
    assert "an authority for tests" in str(trusted["subject"])
    assert bus._client._ssl_context.verify_mode is ssl.CERT_REQUIRED
    assert bus._client._ssl_context.check_hostname
    assert config.retry_total == 0
    await bus.close()


@pytest.mark.parametrize("text", [None, "", "not a certificate"])
def test_a_file_without_certificates_is_told(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "ca.pem"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError, match=rf"bus.ca_file: {file} holds no certificates"):
        open_bus(BusSettings(namespace="x.servicebus.windows.net", credential="azure-cli", ca_file=file))


async def test_a_credential_this_machine_does_not_offer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingsError, match="workload-identity is not set up"):
        open_bus(BusSettings(namespace="x.servicebus.windows.net", credential="workload-identity"))


async def test_a_store_entered_with_a_credential_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from azure.identity.aio import AzureCliCredential

    closed: list[object] = []

    async def close(self: object) -> None:
        closed.append(self)

    monkeypatch.setattr(AzureCliCredential, "close", close)
    store = open_store(StoreSettings(account_url="https://x.blob.core.windows.net", credential="azure-cli"))
    await store.close()
    assert len(closed) == 1
