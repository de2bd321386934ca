"""The administration interface, asked without a socket: every operation, every refusal, and XML that nobody trusts."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus
from xml.etree import ElementTree

import pytest
import pytest_asyncio

from servicebus_emulator.administration import Administration
from servicebus_emulator.atom import ATOM, CONNECT, DEEPEST, MOST_BYTES
from servicebus_emulator.config import MIB, Config, QueueSettings
from servicebus_emulator.descriptions import COUNTS, FOR_EVER
from servicebus_emulator.http import HttpRequest, HttpResponse
from servicebus_emulator.journal import GroupCommit
from servicebus_emulator.message import Arrival
from servicebus_emulator.namespace import LiveQueue, Namespace
from servicebus_emulator.rights import Keyring, Right, Rule, sign
from servicebus_emulator.store import Store

HOST = "bus.local:5673"
NOW = 1_800_000_000_000


class Office:
    """An administration with what it administers."""

    def __init__(self, directory: Path, config: Config | None = None) -> None:
        self.now = NOW
        self._store = Store(directory)
        self.journal = GroupCommit(self._store, _fail)
        self.namespace = Namespace(self._store, self.journal, config or Config(), lambda: self.now)
        keyring = Keyring(self.namespace.rules_of, enforced=self.namespace.has_rules())
        self.site = Administration(self.namespace, keyring, MIB)

    def ask(self, method: str, path: str, body: bytes | str = b"", **more: Any) -> HttpResponse:
        headers = {"host": HOST, **more.pop("headers", {})}
        raw = body.encode() if isinstance(body, str) else body
        return self.site.answer(HttpRequest(method, path, more.pop("query", {}), headers, raw))

    def create(self, name: str, inner: str = "", **more: Any) -> HttpResponse:
        return self.ask("PUT", f"/{name}", description(inner), **more)

    def update(self, name: str, inner: str = "") -> HttpResponse:
        return self.create(name, inner, headers={"if-match": "*"})

    def queue(self, name: str) -> LiveQueue:
        live = self.namespace.find(name)
        assert live is not None
        return live

    async def close(self) -> None:
        self.namespace.close()
        await self.journal.close()
        self._store.close()


def _fail(error: BaseException) -> None:
    raise AssertionError from error


def description(inner: str, *, name: str = "QueueDescription", namespace: str = CONNECT) -> str:
    content = f'<content type="application/xml"><{name} xmlns="{namespace}">{inner}</{name}></content>'
    return f'<?xml version="1.0" encoding="utf-8"?><entry xmlns="{ATOM}">{content}</entry>'


def xml(response: HttpResponse) -> ElementTree.Element:
    return ElementTree.fromstring(response.body)  # noqa: S314 - our own


def parts(response: HttpResponse) -> dict[str, str]:
    """The texts of the description in an entry."""
    found = xml(response).find(f"{{{ATOM}}}content/{{{CONNECT}}}QueueDescription")
    assert found is not None
    return {child.tag.rpartition("}")[2]: child.text or "" for child in found}


def detail(response: HttpResponse) -> str:
    """What an error says, which is in the form of one."""
    root = xml(response)
    assert root.tag == "Error"
    assert root.findtext("Code") == str(response.status)
    return root.findtext("Detail") or ""


def token(key: str, name: str, *, path: str = "", seconds: int = 60, host: str = HOST) -> dict[str, str]:
    resource, expiry = quote_plus(f"https://{host}/{path}".rstrip("/")), NOW // 1000 + seconds
    signature = quote_plus(sign(resource, key, expiry))
    return {"authorization": f"SharedAccessSignature sr={resource}&sig={signature}&se={expiry}&skn={name}"}


@pytest_asyncio.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    made = Office(tmp_path)
    yield made
    await made.close()


# ------------------------------------------------------------------------------------------------------ operations


async def test_a_queue_is_created_with_what_it_was_asked_and_the_defaults(office: Office) -> None:
    response = office.create(
        "Some/queue",
        "<LockDuration>PT2M30S</LockDuration><MaxSizeInMegabytes>2048</MaxSizeInMegabytes>"
        "<DefaultMessageTimeToLive>P14D</DefaultMessageTimeToLive><MaxDeliveryCount>3</MaxDeliveryCount>"
        "<DeadLetteringOnMessageExpiration>true</DeadLetteringOnMessageExpiration>"
        "<RequiresDuplicateDetection>true</RequiresDuplicateDetection>"
        "<DuplicateDetectionHistoryTimeWindow>PT20S</DuplicateDetectionHistoryTimeWindow>"
        "<Status>SendDisabled</Status><UserMetadata> &lt;mine&gt; ü </UserMetadata>"
        "<EnableBatchedOperations>false</EnableBatchedOperations><AutoDeleteOnIdle>PT5M</AutoDeleteOnIdle>"
        "<EnablePartitioning>true</EnablePartitioning><EnableExpress>true</EnableExpress>"
        "<MaxMessageSizeInKilobytes>512</MaxMessageSizeInKilobytes><SomethingNew>x</SomethingNew>",
    )
    assert response.status == 201
    assert response.content_type.startswith("application/atom+xml")
    assert office.queue("some/queue").queue.settings == QueueSettings(
        lock_duration=150_000,
        max_delivery_count=3,
        default_ttl=14 * 86_400_000,
        dead_letter_on_expiration=True,
        requires_duplicate_detection=True,
        duplicate_window=20_000,
        max_message_size=512 * 1024,
        max_size=2048 * MIB,
        status="SendDisabled",
        user_metadata=" <mine> ü ",
        batched_operations=False,
        partitioning=True,
        express=True,
        delete_on_idle=300_000,
    )
    again = office.ask("GET", "/SOME/queue")
    assert again.status == 200
    assert xml(again).findtext(f"{{{ATOM}}}title") == "Some/queue"
    said = parts(again)
    assert said == parts(response)
    for name, text in {
        "LockDuration": "PT2M30S",
        "DefaultMessageTimeToLive": "P14D",
        "DuplicateDetectionHistoryTimeWindow": "PT20S",
        "UserMetadata": " <mine> ü ",
        "Status": "SendDisabled",
        "AutoDeleteOnIdle": "PT5M",
        "EnablePartitioning": "true",
        "MaxMessageSizeInKilobytes": "512",
        "MaxSizeInMegabytes": "2048",
    }.items():
        assert said[name] == text
    office.create("plain")
    assert office.queue("plain").queue.settings == QueueSettings()
    said = parts(office.ask("GET", "/plain"))
    assert said["DefaultMessageTimeToLive"] == said["AutoDeleteOnIdle"] == FOR_EVER
    assert said["MaxMessageSizeInKilobytes"] == "1024"
    assert "UserMetadata" not in said


async def test_what_is_told_reads_back_as_what_it_was(office: Office) -> None:
    office.create("q", "<AutoDeleteOnIdle>P1DT2H3M4.5S</AutoDeleteOnIdle><LockDuration>PT0.25S</LockDuration>")
    before = office.queue("q").queue.settings
    told = xml(office.ask("GET", "/q")).find(f"{{{ATOM}}}content/{{{CONNECT}}}QueueDescription")
    assert told is not None
    inner = "".join(ElementTree.tostring(child, encoding="unicode") for child in told)
    assert office.update("q", inner).status == 200
    after = office.queue("q").queue.settings
    assert after.max_message_size == MIB  # which is what no limit means in this process
    assert (before.delete_on_idle, before.lock_duration) == (93_784_500, 250)
    assert (after.delete_on_idle, after.lock_duration, after.default_ttl) == (93_784_500, 250, None)


async def test_an_update_replaces_all_and_what_it_leaves_out_has_its_default(office: Office) -> None:
    office.create(
        "q", "<MaxDeliveryCount>3</MaxDeliveryCount><RequiresDuplicateDetection>1</RequiresDuplicateDetection>"
    )
    office.now += 5000
    response = office.update("q", "<LockDuration>PT5S</LockDuration><Status>Disabled</Status>")
    assert response.status == 200
    settings = office.queue("q").queue.settings
    assert settings == QueueSettings(lock_duration=5000, status="Disabled", requires_duplicate_detection=True)
    said = parts(office.ask("GET", "/q"))
    assert said["CreatedAt"] == "2027-01-15T08:00:00.000Z"
    assert said["UpdatedAt"] == "2027-01-15T08:00:05.000Z"


async def test_runtime_properties_count_by_kind(office: Office) -> None:
    office.create("q", "<MaxDeliveryCount>1</MaxDeliveryCount>")
    assert parts(office.ask("GET", "/q"))["AccessedAt"] == "0001-01-01T00:00:00Z"
    live = office.queue("q")
    live.send([Arrival(b"12345", str(n), None, None) for n in range(3)])
    live.send([Arrival(b"67", "later", None, NOW + 60_000)])

    def fail_one(queue: Any, now: int) -> None:
        message = queue.lock_next(now)
        queue.abandon(message.lock, now)

    live.act(fail_one)
    live.act(lambda queue, now: queue.lock_next(now))  # what is locked is still active
    response = office.ask("GET", "/q", query={"enrich": "False", "api-version": "2021-05"})
    counts = xml(response).find(f".//{{{CONNECT}}}CountDetails")
    assert counts is not None
    assert {child.tag.removeprefix(f"{{{COUNTS}}}"): child.text for child in counts} == {
        "ActiveMessageCount": "2",
        "DeadLetterMessageCount": "1",
        "ScheduledMessageCount": "1",
        "TransferMessageCount": "0",
        "TransferDeadLetterMessageCount": "0",
    }
    assert b"<d2p1:ActiveMessageCount>" in response.body, "some clients look for the prefix"
    said = parts(response)
    assert (said["SizeInBytes"], said["MessageCount"]) == ("17", "4")
    assert said["AccessedAt"] == "2027-01-15T08:00:00.000Z"


async def test_a_list_comes_in_pages_by_name(office: Office) -> None:
    for name in ("c", "B", "a", "e", "d"):
        office.create(name)

    def page(**query: str) -> tuple[list[str], list[str]]:
        response = office.ask("GET", "/$Resources/queues", query={f"${key}": value for key, value in query.items()})
        assert response.status == 200
        root = xml(response)
        titles = [entry.findtext(f"{{{ATOM}}}title") or "" for entry in root.findall(f"{{{ATOM}}}entry")]
        return titles, [link.get("href") or "" for link in root.findall(f"{{{ATOM}}}link")[1:]]

    assert page() == (["a", "B", "c", "d", "e"], [])
    titles, following = page(skip="0", top="2")
    assert titles == ["a", "B"]
    assert following[0].endswith("/$Resources/queues?$skip=2&$top=2")
    assert page(skip="2", top="2")[0] == ["c", "d"]
    assert page(skip="4", top="2") == (["e"], [])
    assert page(skip="7") == ([], [])
    for n in range(120):
        office.create(f"x{n:03}")
    titles, following = page(top="999")
    assert len(titles) == 100
    assert "$skip=100&$top=100" in following[0]
    assert len(xml(office.ask("GET", "/$Resources/topics"))) == 4, "a feed without entries"


async def test_a_queue_is_deleted(office: Office) -> None:
    office.create("q")
    response = office.ask("DELETE", "/Q")
    assert (response.status, response.body) == (200, b"")
    assert office.namespace.find("q") is None


async def test_the_namespace_tells_of_itself(office: Office) -> None:
    office.create("q")
    office.now += 1000
    office.update("q")
    response = office.ask("GET", "/$namespaceinfo")
    info = xml(response).find(f"{{{ATOM}}}content/{{{CONNECT}}}NamespaceInfo")
    assert info is not None
    assert {child.tag.rpartition("}")[2]: child.text for child in info} == {
        "CreatedTime": "2027-01-15T08:00:00.000Z",
        "MessagingSKU": "Standard",
        "ModifiedTime": "2027-01-15T08:00:01.000Z",
        "Name": "bus",
        "NamespaceType": "Messaging",
    }
    addressed = office.ask("GET", "/$namespaceinfo", headers={"host": "127.0.0.1:5673"})
    assert xml(addressed).findtext(f".//{{{CONNECT}}}Name") == "127.0.0.1"


async def test_an_answer_waits_for_the_disk(office: Office) -> None:
    office.create("q")
    told: list[str] = []
    office.site.after_commit(lambda: told.append("told"))
    assert told == []
    for _ in range(3000):
        await asyncio.sleep(0.01)
        if told:
            break
    assert told == ["told"]


# -------------------------------------------------------------------------------------------------------- refusals


async def test_what_is_not_there(office: Office) -> None:
    missing = office.ask("GET", "/nothing")
    assert missing.status == 200, "as the service answers"
    assert xml(missing).tag == f"{{{ATOM}}}feed"
    assert xml(missing).find(f"{{{ATOM}}}entry") is None
    for response in (office.ask("DELETE", "/nothing"), office.update("nothing")):
        assert response.status == 404
        assert "'nothing' could not be found" in detail(response)
    for path in ("/", "/$unknown", "/$Resources/rules"):
        assert office.ask("GET", path).status == 404
    assert office.namespace.queues() == []


async def test_what_is_there_is_not_created_again(office: Office) -> None:
    office.create("q", "<MaxDeliveryCount>3</MaxDeliveryCount>")
    response = office.create("Q")
    assert response.status == 409
    assert detail(response).startswith("SubCode=40900. Conflict. The messaging entity 'q' already exists.")
    assert office.queue("q").queue.settings.max_delivery_count == 3


@pytest.mark.parametrize(
    ("inner", "status", "why"),
    [
        ("<LockDuration>PT5M1S</LockDuration>", 400, "LockDuration is PT5M1S; it is at least"),
        ("<LockDuration>PT0S</LockDuration>", 400, "LockDuration is PT0S"),
        ("<LockDuration>60</LockDuration>", 400, "LockDuration is a duration like PT1M"),
        (f"<LockDuration>P{'9' * 400}D</LockDuration>", 400, "LockDuration is a duration like PT1M"),
        ("<DefaultMessageTimeToLive>PT0.5S</DefaultMessageTimeToLive>", 400, "it is at least PT1S."),
        ("<AutoDeleteOnIdle>PT1M</AutoDeleteOnIdle>", 400, "it is at least PT5M."),
        ("<DuplicateDetectionHistoryTimeWindow>P8D</DuplicateDetectionHistoryTimeWindow>", 400, "at most P7D"),
        ("<MaxDeliveryCount>0</MaxDeliveryCount>", 400, "MaxDeliveryCount is a whole number from 1"),
        ("<MaxDeliveryCount>-1</MaxDeliveryCount>", 400, "MaxDeliveryCount is a whole number"),
        ("<MaxDeliveryCount>2147483648</MaxDeliveryCount>", 400, "MaxDeliveryCount is a whole number"),
        ("<MaxDeliveryCount>99999999999</MaxDeliveryCount>", 400, "MaxDeliveryCount is a whole number"),
        ("<MaxSizeInMegabytes>lots</MaxSizeInMegabytes>", 400, "MaxSizeInMegabytes is a whole number"),
        ("<MaxMessageSizeInKilobytes>1025</MaxMessageSizeInKilobytes>", 400, "this process takes up to 1024"),
        ("<EnableExpress>maybe</EnableExpress>", 400, "EnableExpress is true or false"),
        ("<Status>Creating</Status>", 400, "Status is one of Active"),
        (f"<UserMetadata>{'x' * 1025}</UserMetadata>", 400, "at most 1024 characters"),
        ("<RequiresSession>true</RequiresSession>", 501, "RequiresSession is not supported by this emulator"),
        ("<ForwardTo>sb://bus.local/other</ForwardTo>", 501, "ForwardTo is not supported by this emulator"),
        (
            "<ForwardDeadLetteredMessagesTo>x</ForwardDeadLetteredMessagesTo>",
            501,
            "ForwardDeadLetteredMessagesTo is not",
        ),
    ],
)
async def test_a_setting_that_cannot_be_is_refused_by_name(office: Office, inner: str, status: int, why: str) -> None:
    office.create("there")
    for response in (office.create("q", inner), office.update("there", inner)):
        assert response.status == status
        assert why in detail(response)
    assert office.namespace.find("q") is None
    assert office.queue("there").queue.settings == QueueSettings()


async def test_settings_that_ask_for_nothing_unsupported_are_taken(office: Office) -> None:
    inner = "<RequiresSession>false</RequiresSession><ForwardTo/><LockDuration></LockDuration><MaxDeliveryCount/>"
    assert office.create("q", inner).status == 201
    assert office.queue("q").queue.settings == QueueSettings()


@pytest.mark.parametrize("name", ["RequiresDuplicateDetection", "EnablePartitioning"])
async def test_what_a_queue_was_created_with_cannot_change(office: Office, name: str) -> None:
    for queue, (first, second) in {"on": ("true", "false"), "off": ("false", "true")}.items():
        office.create(queue, f"<{name}>{first}</{name}>")
        assert office.update(queue, f"<{name}>{first}</{name}>").status == 200
        response = office.update(queue, f"<{name}>{second}</{name}>")
        assert response.status == 400
        assert f"{name} property of an existing Queue cannot be changed" in detail(response)


async def test_other_requests_are_refused(office: Office) -> None:
    office.create("q")
    for response, status, why in (
        (office.ask("PUT", "/q", description(""), headers={"if-match": '"etag"'}), 400, "If-Match is *"),
        (office.ask("PUT", "/-q", description("")), 400, "no queue's name"),
        (office.ask("PUT", "/" + "q" * 261, description("")), 400, "no queue's name"),
        (office.ask("PUT", "/t", description("", name="TopicDescription")), 501, "Topics are not supported"),
        (office.ask("GET", "/t/subscriptions/s"), 501, "Topics and their subscriptions"),
        (office.ask("PUT", "/t/subscriptions/s", description("")), 501, "Topics and their subscriptions"),
        (office.ask("POST", "/q/messages", b"hello"), 405, "messages travel by AMQP"),
        (office.ask("GET", "/$Resources/queues", query={"$skip": "-1"}), 400, "$skip is a whole number"),
        (office.ask("GET", "/$Resources/queues", query={"$top": "0"}), 400, "$top is at least 1"),
    ):
        assert response.status == status
        assert why in detail(response)


# ------------------------------------------------------------------------------------------------------ hostile XML

BOMB = '<!DOCTYPE e [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "not XML"),
        (b"not xml", "not XML"),
        (b"\xff\xfe\x00", "not XML"),
        (b'<?xml version="1.0" encoding="rot13"?><a/>', "not XML"),
        (b'<?xml version="1.0" encoding="shift_jis"?><a/>', "not XML"),
        (description("")[:-8].encode(), "not XML"),
        (f"{BOMB}<e>&b;</e>".encode(), "document type declaration"),
        (b"<!DOCTYPE entry><entry/>", "document type declaration"),
        (b'<!DOCTYPE e SYSTEM "file:///etc/passwd"><e/>', "document type declaration"),
        (description("<a>" * 50_000).encode(), f"more than {DEEPEST} levels deep"),
        (description("<a/>" * MOST_BYTES).encode(), f"{MOST_BYTES} are allowed"),
        (b"<entry/>", "an Atom entry whose content is one description"),
        (f'<entry xmlns="{ATOM}"/>'.encode(), "an Atom entry whose content is one description"),
        (f'<entry xmlns="{ATOM}"><content/></entry>'.encode(), "an Atom entry whose content is one description"),
        (description("").replace("entry", "feed").encode(), "an Atom entry whose content is one description"),
        (description("", namespace="urn:other").encode(), f"a QueueDescription in {CONNECT}"),
        (description("", name="Other").encode(), f"a QueueDescription in {CONNECT}"),
        (description("<UserMetadata>&unknown;</UserMetadata>").encode(), "not XML"),
    ],
)
async def test_xml_that_is_not_understood_is_refused_with_the_reason(office: Office, body: bytes, why: str) -> None:
    response = office.ask("PUT", "/q", body)
    assert response.status == 400
    assert why in detail(response)
    assert office.namespace.find("q") is None


async def test_what_is_written_is_always_xml(tmp_path: Path) -> None:
    rule = Rule('<"&\x01\ud800', ("k\x00ey<",), frozenset({Right.SEND}))
    office = Office(tmp_path, Config({"q": QueueSettings(rules=(rule,))}))
    described = {"host": '"<&', **token("no", "no")}
    assert xml(office.ask("GET", "/q", headers=described)).tag == "Error"
    office.site._keyring.enforced = False
    assert xml(office.ask("GET", "/q", headers=described)).findtext(f".//{{{CONNECT}}}PrimaryKey") == "k\ufffdey<"
    assert xml(office.ask("PUT", "/<&\x01", b"")).tag == "Error"
    await office.close()


# ----------------------------------------------------------------------------------------------------------- rights

RULES = (
    Rule("all", ("all-key", "second"), frozenset({Right.MANAGE})),
    Rule("sender", ("send-key",), frozenset({Right.SEND, Right.LISTEN})),
)
OWN = Rule("own", ("own-key",), frozenset({Right.MANAGE}))
OPERATIONS = [
    ("GET", "/$namespaceinfo"),
    ("GET", "/$Resources/queues"),
    ("GET", "/$Resources/topics"),
    ("GET", "/q"),
    ("GET", "/nothing"),
    ("PUT", "/new"),
    ("PUT", "/q"),
    ("DELETE", "/q"),
]


@pytest_asyncio.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Office]:
    made = Office(tmp_path, Config({"q": QueueSettings(rules=(OWN,)), "p": QueueSettings()}, RULES))
    yield made
    await made.close()


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({}, "MissingToken"),
        ({"authorization": "Bearer eyJ0eXAi"}, "Tokens of Microsoft Entra are not understood"),
        ({"authorization": "Basic dTpw"}, "MalformedToken"),
        ({"authorization": "SharedAccessSignature sr=x"}, "MalformedToken"),
        (token("wrong", "all"), "InvalidSignature"),
        (token("all-key", "other"), "InvalidSignature"),
        (token("all-key", "all", host="elsewhere"), "InvalidAudience"),
        (token("all-key", "all", seconds=-1), "ExpiredToken"),
        (token("all-key", "all", path="p"), "InvalidAudience"),
        (token("send-key", "sender"), "Manage claim is required"),
        (token("own-key", "own"), "the key is good, but its rule lacks Manage on"),
    ],
)
async def test_without_the_right_nothing_is_done_and_nothing_is_told(
    guarded: Office, method: str, path: str, headers: dict[str, str], why: str
) -> None:
    response = guarded.ask(
        method, path, description(""), headers={**headers, "if-match": "*"} if path == "/q" else headers
    )
    assert response.status == 401
    assert why in detail(response)
    assert response.headers["WWW-Authenticate"]
    assert not any(key in response.body for key in (b"all-key", b"send-key", b"own-key", b"eyJ0"))
    assert [live.name for live in guarded.namespace.queues()] == ["p", "q"]
    assert guarded.queue("q").updated_at == NOW
    assert guarded.queue("q").queue.settings.rules == (OWN,)


@pytest.mark.parametrize(
    ("headers", "level"),
    [
        (token("own-key", "own"), "DEBUG"),
        (token("send-key", "sender"), "DEBUG"),
        (token("made-up", "own"), "INFO"),
        (token("own-key", "all"), "INFO"),
        (token("own-key", "own", seconds=-1), "INFO"),
        ({}, "INFO"),
    ],
)
async def test_a_good_key_that_lacks_a_right_is_no_attack_in_the_log(
    guarded: Office, headers: dict[str, str], level: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "servicebus_emulator")
    response = guarded.ask("GET", "/$Resources/queues", headers=headers)
    assert response.status == 401
    [record] = [record for record in caplog.records if record.message == "administration.refused"]
    assert record.levelname == level
    is_told = "the key is good, but its rule lacks Manage on the namespace." in detail(response)
    assert is_told == (level == "DEBUG")


@pytest.mark.parametrize("key", ["all-key", "second"])
async def test_manage_on_the_namespace_allows_all(guarded: Office, key: str) -> None:
    headers = token(key, "all")
    statuses = [guarded.ask(method, path, description(""), headers=headers).status for method, path in OPERATIONS]
    assert statuses == [200, 200, 200, 200, 200, 201, 409, 200]


async def test_manage_on_a_queue_allows_to_look_at_that_queue_only(guarded: Office) -> None:
    headers = token("own-key", "own", path="q")
    assert guarded.ask("GET", "/q", headers=headers).status == 200
    refused = [item for item in OPERATIONS if item != ("GET", "/q")]
    for method, path in [*refused, ("GET", "/p"), ("GET", "/q2")]:
        assert guarded.ask(method, path, description(""), headers=headers).status == 401
    assert guarded.ask("PUT", "/q", description(""), headers={**headers, "if-match": "*"}).status == 401
    assert guarded.ask("GET", "/p", headers={**headers, "host": f"{HOST}/q"}).status == 401


async def test_a_rule_that_was_made_works_from_then_on_and_no_longer_than_it_is_there(guarded: Office) -> None:
    manager = token("all-key", "all")
    inner = (
        "<AuthorizationRules><AuthorizationRule><ClaimType>SharedAccessKey</ClaimType><ClaimValue>None</ClaimValue>"
        "<Rights><AccessRights>Manage</AccessRights><AccessRights>Send</AccessRights></Rights>"
        "<KeyName>made</KeyName><PrimaryKey>p&amp;1</PrimaryKey><SecondaryKey>p2</SecondaryKey>"
        "</AuthorizationRule></AuthorizationRules>"
    )
    created = guarded.create("new", inner, headers=manager)
    assert created.status == 201
    assert guarded.queue("new").queue.settings.rules == (
        Rule("made", ("p&1", "p2"), frozenset({Right.MANAGE, Right.SEND})),
    )
    told = xml(guarded.ask("GET", "/new", headers=token("p2", "made", path="new")))
    rule = told.find(f".//{{{CONNECT}}}AuthorizationRule")
    assert rule is not None
    assert [right.text for right in rule.findall(f"{{{CONNECT}}}Rights/*")] == ["Send", "Manage"]
    assert (rule.findtext(f"{{{CONNECT}}}PrimaryKey"), rule.findtext(f"{{{CONNECT}}}SecondaryKey")) == ("p&1", "p2")
    guarded.create("new", headers={**manager, "if-match": "*"})
    assert guarded.ask("GET", "/new", headers=token("p2", "made", path="new")).status == 401


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ("<AuthorizationRule><KeyName>a</KeyName></AuthorizationRule>", "a KeyName and a PrimaryKey"),
        ("<AuthorizationRule><PrimaryKey>k</PrimaryKey></AuthorizationRule>", "a KeyName and a PrimaryKey"),
        ("<AuthorizationRule><KeyName>a</KeyName><PrimaryKey>k</PrimaryKey></AuthorizationRule>", "a has Rights"),
        (
            "<AuthorizationRule><Rights><AccessRights>Own</AccessRights></Rights><KeyName>a</KeyName>"
            "<PrimaryKey>k</PrimaryKey></AuthorizationRule>",
            "a has Rights: Send, Listen, Manage",
        ),
        (
            "<AuthorizationRule><Rights><AccessRights>Send</AccessRights></Rights><KeyName>a</KeyName>"
            "<PrimaryKey>k</PrimaryKey></AuthorizationRule>" * 2,
            "the same KeyName",
        ),
        (
            "".join(
                "<AuthorizationRule><Rights><AccessRights>Send</AccessRights></Rights>"
                f"<KeyName>a{n}</KeyName><PrimaryKey>k</PrimaryKey></AuthorizationRule>"
                for n in range(13)
            ),
            "at most 12",
        ),
    ],
)
async def test_a_rule_that_is_none_is_refused(office: Office, rules: str, why: str) -> None:
    response = office.create("q", f"<AuthorizationRules>{rules}</AuthorizationRules>")
    assert response.status == 400
    assert why in detail(response)
