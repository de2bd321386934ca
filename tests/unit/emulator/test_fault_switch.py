"""Faults switched while the emulator runs: by whom, with what, and what is told."""

import json
from collections.abc import Callable
from urllib.parse import quote_plus

import pytest

from servicebus_emulator.fault_switch import FaultSwitch
from servicebus_emulator.faults import Fault, Faults, Operation
from servicebus_emulator.http import HttpRequest, HttpResponse
from servicebus_emulator.rights import Keyring, Right, Rule, sign

NOW = 1_800_000_000_000
RULES = [("", Rule(str(right), ("key",), frozenset({right}))) for right in Right]


class Behind:
    def answer(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(299)

    def after_commit(self, act: Callable[[], None]) -> None:
        act()


class Switch:
    def __init__(self, *, enforced: bool = False) -> None:
        self.faults = Faults()
        keyring = Keyring(lambda _: RULES, enforced=enforced)
        self.site = FaultSwitch(self.faults, keyring, lambda: NOW, Behind())

    def ask(self, method: str, body: object = "", path: str = "/$faults", **headers: str) -> HttpResponse:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.site.answer(HttpRequest(method, path, {}, {"host": "bus:5673", **headers}, raw))


def token(rule: Right, *, path: str = "") -> str:
    resource, expiry = quote_plus(f"https://bus/{path}"), NOW // 1000 + 60
    signature = quote_plus(sign(resource, "key", expiry))
    return f"SharedAccessSignature sr={resource}&sig={signature}&se={expiry}&skn={rule}"


def test_faults_are_changed_and_told() -> None:
    switch = Switch()
    put = switch.ask("PUT", {"faults": ["detach@send=1x", "lock-max-age=2s"], "seed": 7})
    assert put.status == 200
    assert switch.faults.lock_max_age == 2000
    assert switch.faults.strike(Operation.SEND) is Fault.DETACH
    got = switch.ask("GET", path="/$Faults/")
    expected = {"faults": ["detach@send=1x", "lock-max-age=2s"], "seed": 7, "struck": {"detach": 1}}
    assert json.loads(got.body) == expected
    assert got.content_type == "application/json"
    switch.ask("PUT", {})
    assert not switch.faults.are_on


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 100_000, [], {"fault": []}, {"faults": "x"}, {"faults": [1]}, {"faults": ["flood=1%"]}]
)
def test_nonsense_changes_nothing(body: object) -> None:
    switch = Switch()
    switch.ask("PUT", {"faults": ["detach=2%"]})
    refused = switch.ask("PUT", body)
    assert refused.status == 400
    assert "error" in json.loads(refused.body)
    assert switch.faults.asked == ["detach=2%"]


@pytest.mark.parametrize("seed", ["1", True, 1.5])
def test_a_seed_is_a_number(seed: object) -> None:
    assert Switch().ask("PUT", {"faults": [], "seed": seed}).status == 400


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_only_who_manages_the_namespace_may(method: str) -> None:
    switch = Switch(enforced=True)
    for refused in ("", "nonsense", token(Right.SEND), token(Right.LISTEN), token(Right.MANAGE, path="q")):
        assert switch.ask(method, {"faults": ["detach=2%"]}, authorization=refused).status == 401
    assert not switch.faults.are_on
    assert switch.ask(method, {"faults": ["detach=2%"]}, authorization=token(Right.MANAGE)).status == 200


def test_everything_else_is_for_the_site_behind() -> None:
    switch = Switch(enforced=True)
    assert switch.ask("GET", path="/q").status == 299
    assert switch.ask("GET", path="/$faults/q").status == 299
    assert switch.ask("DELETE", authorization=token(Right.MANAGE)).status == 405
