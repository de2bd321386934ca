"""What only Azurite can show: tokens and delegated signatures over TLS, and a whole experiment with a Blob store.

`make test-azurite` installs Azurite and runs this, with the store's contract tests over it. Where it is not installed
all of this is left out, which one line says.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.storage.blob import BlobServiceClient, generate_container_sas

from messages import names
from messages.errors import Forbidden, Transient
from messages.rights import Verb, principals
from messages.settings import StoreSettings
from messages.transport import azure_blob, connect
from messages.weights import read_tensors
from tests.certificates import Certificates, make_certificates
from tests.e2e import command
from tests.fakes import azurite
from tests.fakes.azurite import Azurite
from tests.federation import THREE, TRAINERS, Federation

LEFT_OUT = azurite.left_out()
pytestmark = [pytest.mark.slow, *([pytest.mark.skip(reason=LEFT_OUT)] if LEFT_OUT else [])]

MB = 1 << 20
ROUNDS = 3
LETTERS = {Verb.READ: "r", Verb.LIST: "l", Verb.CREATE: "c", Verb.WRITE: "w", Verb.DELETE: "d"}


# --- tokens ------------------------------------------------------------------------------------------------------


class Token:
    """A credential that makes its own tokens: Azurite looks at what they say, and not at who has signed them."""

    def __init__(self, lifetime: float = 3600) -> None:
        self._lifetime = lifetime
        self.asked: list[tuple[str, ...]] = []
        self.closed = False

    def get_token_now(self, *scopes: str) -> AccessToken:
        self.asked.append(scopes)
        now = int(time.time())
        until = int(now + self._lifetime)
        claims = {
            "aud": "https://storage.azure.com",
            "iss": "https://sts.windows.net/11111111-1111-1111-1111-111111111111/",
            "iat": now - 7200,
            "nbf": now - 7200,
            "exp": until,
            "oid": "22222222-2222-2222-2222-222222222222",
            "tid": "11111111-1111-1111-1111-111111111111",
        }
        parts = ({"alg": "HS256", "typ": "JWT"}, claims)
        texts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
        return AccessToken(".".join((*texts, "c2lnbmF0dXJl")), now + 3600)

    async def get_token(self, *scopes: str, **_: object) -> AccessToken:
        return self.get_token_now(*scopes)

    async def close(self) -> None:
        self.closed = True

    async def __aenter__(self) -> Token:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class TokenNow(Token):
    """The same, for the SDK's clients that block."""

    def get_token(self, *scopes: str, **_: object) -> AccessToken:  # type: ignore[override]
        return self.get_token_now(*scopes)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def secure(certificates: Certificates) -> Iterator[Azurite]:
    """Azurite with TLS, vouched for by an authority that nobody knows, and a container `place`."""
    started = Azurite(cert=certificates.cert, key=certificates.key)
    with BlobServiceClient.from_connection_string(
        started.connection_string, connection_verify=str(certificates.ca)
    ) as service:
        service.create_container("place")
        service.create_container("other")
    yield started
    started.stop()


def by_token(secure: Azurite, ca: Path | None) -> StoreSettings:
    return StoreSettings(account_url=secure.url, credential="managed-identity", ca_file=ca)


async def test_a_token_opens_the_store_over_a_private_authority(
    secure: Azurite, certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = Token()
    monkeypatch.setattr(connect, "open_credential", lambda name: token)
    store = connect.open_store(by_token(secure, certificates.ca))
    (tmp_path / "source").write_bytes(os.urandom(40 * MB))  # more than is sent in one request
    await store.create("place", "token.bin", tmp_path / "source")
    await store.fetch("place", "token.bin", tmp_path / "target")
    assert digest(tmp_path / "target") == digest(tmp_path / "source")
    etag = await store.write("place", "token.json", b"1", if_match=None)
    await store.write("place", "token.json", b"2", if_match=etag)
    assert [row.name for row in await store.list("place", "token")] == ["token.bin", "token.json"]
    await store.close()
    assert set(token.asked) == {("https://storage.azure.com/.default",)}
    assert token.closed


async def test_a_token_that_is_over_is_forbidden(
    secure: Azurite, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "open_credential", lambda name: Token(lifetime=-60))
    store = connect.open_store(by_token(secure, certificates.ca))
    with pytest.raises(Forbidden):
        await store.read("place", "token.json")
    await store.close()


async def test_without_its_authority_the_server_is_not_trusted_and_gets_no_token(
    secure: Azurite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "open_credential", lambda name: Token())
    store = connect.open_store(by_token(secure, None))
    store._service._config.retry_policy.total_retries = 0  # type: ignore[attr-defined]
    with pytest.raises(Transient):
        await store.read("place", "token.json")
    await store.close()


async def test_a_signature_that_a_token_vouches_for_opens_one_container_for_its_verbs(
    secure: Azurite, certificates: Certificates, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    with BlobServiceClient(secure.url, credential=TokenNow(), connection_verify=str(certificates.ca)) as service:
        key = service.get_user_delegation_key(now - timedelta(minutes=5), now + timedelta(hours=1))
    for container in ("place", "other"):
        sas = generate_container_sas(
            azurite.ACCOUNT, "place", user_delegation_key=key, permission="rc", expiry=now + timedelta(hours=1)
        )
        (tmp_path / container).write_text(sas)
    files = {container: tmp_path / container for container in ("place", "other")}
    store = connect.open_store(StoreSettings(account_url=secure.url, sas_files=files, ca_file=certificates.ca))
    await store.create("place", "delegated", b"12345")
    assert (await store.read("place", "delegated")).data == b"12345"
    refused = (
        store.delete("place", "delegated"),
        store.list("place", ""),
        store.write("place", "delegated", b"1", if_match='"0x1"'),
        store.create("other", "delegated", b"1"),  # with the signature for the first
        store.read("other", "delegated"),
    )
    for attempt in refused:
        with pytest.raises(Forbidden):
            await attempt
    await store.close()


async def test_a_signature_opens_no_other_container(secure: Azurite, certificates: Certificates) -> None:
    until = datetime.now(UTC) + timedelta(hours=1)
    sas = generate_container_sas(azurite.ACCOUNT, "place", account_key=azurite.KEY, permission="rlcwd", expiry=until)
    store = azure_blob.connect(account_url=secure.url, sas=sas, ca_file=certificates.ca)
    await store.create("place", "signed", b"1")
    for attempt in (store.create("other", "signed", b"1"), store.read("other", "signed"), store.list("other", "")):
        with pytest.raises(Forbidden):
            await attempt
    await store.close()


# --- a whole experiment ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def silos() -> list[str]:
    return [silo.name for silo in THREE]


@pytest.fixture(scope="module")
def federation(silos: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Everybody has signatures for exactly what `messages/rights.yaml` grants; the test has the account's key."""
    server, folder = Azurite(), tmp_path_factory.mktemp("signatures")
    with BlobServiceClient.from_connection_string(server.connection_string) as service:
        for container in names.containers(silos):
            service.create_container(container)
    (folder / "key").write_text(server.connection_string)
    everybody = {who.name: who for who in principals(silos)}

    def signatures(name: str) -> dict[str, str]:
        files = {}
        for container, verbs in everybody[name].containers.items():
            letters = "".join(letter for verb, letter in LETTERS.items() if verb in verbs)
            until = datetime.now(UTC) + timedelta(hours=1)
            sas = generate_container_sas(
                azurite.ACCOUNT, container, account_key=azurite.KEY, permission=letters, expiry=until
            )
            files[container] = folder / f"{name}.{container}"
            files[container].write_text(sas)
        return {container: str(file) for container, file in files.items()}

    def store(name: str) -> Mapping[str, Any]:
        if name == "test":
            return {"connection_string_file": str(folder / "key")}
        return {"account_url": server.url, "sas_files": signatures(name)}

    try:
        with Federation(store=store) as running:
            yield running
    finally:
        server.stop()


def test_an_experiment_over_blobs_makes_the_very_weights(
    federation: Federation, silos: list[str], tmp_path: Path
) -> None:
    more = {"silos": silos, "quorum": {"minimum": "all", "deadline": 60}}
    run = federation.start_experiment("blobs", rounds=ROUNDS, **more)
    federation.wait_for("blobs")
    for number in range(1, ROUNDS + 1):
        record = federation.record(run, number)
        assert record is not None
        assert [update.silo for update in record.updates] == silos
        tensors = federation.weights(run, number)
        assert tensors
        assert all((tensor == number * 3.0).all() for tensor in tensors.values()), number
    assert federation.document(names.STATE, names.run_blob(run)) is not None
    assert not list(federation.folder.store.rglob("*.safetensors"))  # nothing went through the directory

    model = tmp_path / "model.safetensors"
    done = command.run("model", "blobs", "-o", model, "--config", federation.folder.operator)
    assert done.returncode == 0, done.stderr
    assert all((tensor == ROUNDS * 3.0).all() for tensor in read_tensors(model).values())


def test_an_operator_uploads_initial_weights_with_an_operators_rights(federation: Federation, tmp_path: Path) -> None:
    (tmp_path / "after.yaml").write_text("{kind: start-experiment, experiment: after, task: add, rounds: 1}")
    done = command.run(
        "start", tmp_path / "after.yaml", "--init", TRAINERS / "add.py", "--config", federation.folder.operator
    )
    assert done.returncode == 0, done.stderr
    run = federation.wait_for("after").run
    assert all((tensor == 3.0).all() for tensor in federation.weights(run.id, 1).values())
    assert federation.record(run.id, 0) is None  # no silo was asked to initialise


def test_a_silo_cannot_touch_what_is_anothers(federation: Federation, silos: list[str]) -> None:
    async def touch() -> None:
        store = connect.open_store(StoreSettings.model_validate(federation.store_of(f"agent-{silos[0]}")))
        with pytest.raises(Forbidden):
            await store.list(names.updates_of(silos[1]), "")
        with pytest.raises(Forbidden):
            await store.create(names.GLOBAL, "mine", b"1")
        with pytest.raises(Forbidden):
            await store.read(names.STATE, "presence/north.json")
        await store.close()

    asyncio.run(touch())


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()
