"""Rules, keys and tokens, without a socket."""

from collections.abc import Iterator
from urllib.parse import quote_plus

import pytest

from servicebus_emulator.rights import Claims, Keyring, Right, Rule, Unauthorized, is_of, sign

NOW = 1_700_000_000_000
RULES = {
    "": Rule("root", ("root-key", "second-root-key"), frozenset({Right.MANAGE})),
    "q": Rule("reader", ("reader-key",), frozenset({Right.LISTEN})),
    "other": Rule("reader", ("other-key",), frozenset({Right.LISTEN, Right.SEND})),
}


def rules_of(path: str) -> Iterator[tuple[str, Rule]]:
    for at, rule in RULES.items():
        if not path or is_of(path, at):
            yield at, rule


KEYRING = Keyring(rules_of, enforced=True)


def token(resource: str, key: str, name: str, seconds: int = 60, **changed: str) -> str:
    expiry = NOW // 1000 + seconds
    encoded = quote_plus(resource)
    parts = {"sr": encoded, "sig": quote_plus(sign(encoded, key, expiry)), "se": str(expiry), "skn": name} | changed
    return "SharedAccessSignature " + "&".join(f"{name}={value}" for name, value in parts.items())


def claims(*tokens: tuple[str, str]) -> Claims:
    made = Claims(KEYRING)
    for said, audience in tokens:
        made.put_token(said, audience, NOW)
    return made


def test_a_token_grants_what_its_rule_says_there_and_below_until_it_expires() -> None:
    granted = claims((token("sb://host/q", "reader-key", "reader"), "amqps://host:5671/q"))
    assert granted.allow("q", Right.LISTEN, NOW)
    assert granted.allow("Q/$DeadLetterQueue", Right.LISTEN, NOW)
    assert not granted.allow("q", Right.SEND, NOW)
    assert not granted.allow("q", Right.MANAGE, NOW)
    assert not granted.allow("q2", Right.LISTEN, NOW)
    assert not granted.allow("other", Right.LISTEN, NOW)
    assert granted.allow("q", Right.LISTEN, NOW + 59_999)
    assert not granted.allow("q", Right.LISTEN, NOW + 60_000)
    assert granted.next_expiry(NOW) == NOW + 60_000
    assert granted.next_expiry(NOW + 60_000) is None


def test_manage_includes_everything_and_a_namespaces_rule_reaches_every_queue() -> None:
    granted = claims((token("sb://host/", "second-root-key", "root"), "sb://host"))
    assert all(granted.allow(path, right, NOW) for path in ("", "q", "any/thing") for right in Right)
    narrowed = claims((token("sb://host/q", "root-key", "root"), "sb://host/q"))
    assert narrowed.allow("q", Right.MANAGE, NOW)
    assert not narrowed.allow("other", Right.LISTEN, NOW)


@pytest.mark.parametrize(
    ("said", "audience", "why"),
    [
        (token("sb://host/q", "wrong", "reader"), "sb://host/q", "InvalidSignature"),
        (token("sb://host/q", "other-key", "reader"), "sb://host/q", "InvalidSignature"),
        (token("sb://host/q", "reader-key", "stranger"), "sb://host/q", "InvalidSignature"),
        (token("sb://host/", "reader-key", "reader"), "sb://host/q", "InvalidSignature"),
        (token("sb://host/q", "reader-key", "reader", se="9999999999"), "sb://host/q", "InvalidSignature"),
        (
            token("sb://host/q", "reader-key", "reader", sr=quote_plus("sb://host/other")),
            "sb://host/other",
            "Signature",
        ),
        (token("sb://host/q", "reader-key", "reader", seconds=0), "sb://host/q", "ExpiredToken"),
        (token("sb://host/q", "reader-key", "reader"), "sb://host/other", "InvalidAudience"),
        (token("sb://host/q", "reader-key", "reader"), "sb://host/", "InvalidAudience"),
        (token("sb://host/q", "reader-key", "reader"), "sb://elsewhere/q", "InvalidAudience"),
        (token("sb://host/q", "root-key", "root"), "sb://host/queue", "InvalidAudience"),
        (token("sb://host/q", "reader-key", "reader", se="soon"), "sb://host/q", "MalformedToken"),
        ("SharedAccessSignature sr=x&sig=y", "sb://host/q", "MalformedToken"),
        ("eyJhbGciOiJub25lIn0.e30.", "sb://host/q", "MalformedToken"),
        ("", "sb://host/q", "MalformedToken"),
    ],
)
def test_what_proves_nothing_is_refused_without_repeating_it(said: str, audience: str, why: str) -> None:
    with pytest.raises(Unauthorized, match=why) as refused:
        Claims(KEYRING).put_token(said, audience, NOW)
    assert "key" not in str(refused.value)
    assert "sig=" not in str(refused.value)


def test_a_queues_key_opens_what_belongs_to_the_queue_and_no_queue_below_it() -> None:
    granted = claims((token("sb://host/q", "reader-key", "reader"), "sb://host/q"))
    for path in ("q/$management", "q/$DeadLetterQueue", "q/$DeadLetterQueue/$management"):
        assert granted.allow(path, Right.LISTEN, NOW)
        assert claims((token(f"sb://host/{path}", "reader-key", "reader"), f"sb://host/{path}"))
    for path in ("q/sub", "q/sub/$DeadLetterQueue", "q2"):
        assert not granted.allow(path, Right.LISTEN, NOW)
        for signed in ("q", path):
            with pytest.raises(Unauthorized):
                claims((token(f"sb://host/{signed}", "reader-key", "reader"), f"sb://host/{path}"))
    shown = Claims(KEYRING)
    shown.login("reader", "reader-key")
    assert shown.allow("q", Right.LISTEN, NOW)
    assert not shown.allow("q/sub", Right.LISTEN, NOW)
    assert claims((token("sb://host/", "root-key", "root"), "sb://host/q/sub")).allow("q/sub", Right.SEND, NOW)


def test_a_key_is_known_by_its_signature_wherever_its_rule_is() -> None:
    assert KEYRING.is_known(token("sb://host/", "other-key", "reader"))
    assert not KEYRING.is_known(token("sb://host/", "other-key", "root"))
    assert not KEYRING.is_known(token("sb://host/", "made-up", "reader"))
    assert not KEYRING.is_known("SharedAccessSignature sr=x")


def test_a_new_token_for_the_same_place_replaces_the_last() -> None:
    granted = claims(
        (token("sb://host/q", "reader-key", "reader"), "sb://host/q"),
        (token("sb://host/q", "reader-key", "reader", seconds=120), "sb://host/q"),
    )
    assert granted.allow("q", Right.LISTEN, NOW + 90_000)
    assert granted.next_expiry(NOW) == NOW + 120_000


def test_a_key_shown_itself_grants_what_its_rules_say() -> None:
    granted = Claims(KEYRING)
    granted.login("reader", "other-key")
    assert granted.allow("other", Right.SEND, NOW)
    assert not granted.allow("q", Right.LISTEN, NOW)
    granted.login("root", "reader-key")
    assert not granted.allow("q", Right.LISTEN, NOW)


def test_nobody_is_restricted_where_there_are_no_rules_until_all_is_revoked() -> None:
    changes: list[None] = []
    granted = Claims(Keyring(rules_of, enforced=False), lambda: changes.append(None))
    assert granted.allow("q", Right.MANAGE, NOW)
    granted.revoke()
    assert not granted.allow("q", Right.LISTEN, NOW)
    granted.put_token("anything", "sb://host/q", NOW)
    assert granted.allow("q", Right.LISTEN, NOW)
    assert len(changes) == 2


def test_a_rule_never_shows_its_keys() -> None:
    assert "key" not in repr(RULES[""])
