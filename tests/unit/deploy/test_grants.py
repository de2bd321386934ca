"""What the templates grant is what the table says: not less, and nothing more but what stands here with a reason."""

from __future__ import annotations

import re

import pytest

from deploy.azure import rights
from messages import names
from messages.rights import Right, Verb, principals
from tests.unit.deploy.azure import ABROAD, AZURE, PROFILES, SILOS, SILOS_OWN, Federation, federation

EXCHANGE = ("queue", "container")
ACTIONS = {
    "send": {Right.SEND},
    "receive": {Right.LISTEN},
    "blobs/read": {Verb.READ, Verb.LIST},
    "blobs/add/action": {Verb.CREATE},
    "blobs/write": {Verb.CREATE, Verb.WRITE},
    "blobs/delete": {Verb.DELETE},
}
WIDER = {Verb.LIST: "Azure has one right for reading a blob and for listing its container"}
"""What roles give that the table does not: verb, and why no narrower role is taken."""


def granted(made: Federation) -> dict[tuple[str, str], set[str]]:
    """By who and where: what role assignments and keys allow on queues and containers of the exchange."""
    found: dict[tuple[str, str], set[str]] = {}
    for grant in made.grants():
        if grant.kind in EXCHANGE and grant.place not in SILOS_OWN:
            allowed = {word for action in grant.actions for word in ACTIONS[action]}
            found.setdefault((grant.who, grant.place), set()).update(allowed)
    for rule in made.of("Microsoft.ServiceBus/namespaces/queues/authorizationRules"):
        _, queue, who = rule.name.split("/")
        found.setdefault((who, queue), set()).update(map(Right, rule["properties.rights"]))
    return found


def wanted(silos: list[str]) -> dict[tuple[str, str], set[str]]:
    """The table, for the same silos. To write is to create or to replace."""
    found: dict[tuple[str, str], set[str]] = {}
    for who in principals(silos):
        for queue, granted_rights in who.queues.items():
            found[who.name, queue] = set(granted_rights)
        for container, verbs in who.containers.items():
            found[who.name, container] = {*verbs, *({Verb.CREATE} if Verb.WRITE in verbs else ())}
    return found


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("runs", ["container-app", "cluster"])
@pytest.mark.parametrize("keys", [False, True], ids=["identities", "keys"])
def test_everybody_has_what_the_table_grants_and_nothing_else(profile: str, runs: str, keys: bool) -> None:
    has = granted(federation(profile, runs=runs, keys=keys))
    should = wanted([*SILOS, ABROAD] if keys else SILOS)

    assert has.keys() == should.keys()
    assert {at: words - has[at] for at, words in should.items() if words - has[at]} == {}
    beyond = {at: has[at] - words for at, words in should.items() if has[at] - words}
    assert {word for words in beyond.values() for word in words} == WIDER.keys()
    assert all(Verb.READ in should[at] for at in beyond), beyond


def test_large_models_let_those_who_create_replace_and_change_nothing_else() -> None:
    small, large = granted(federation("open")), granted(federation("open", large_models=True))

    changed = {at: large[at] - small[at] for at in small if large[at] != small[at]}
    assert changed == {
        **{(f"agent-{silo}", names.updates_of(silo)): {Verb.WRITE} for silo in SILOS},
        ("operator", names.INITIAL): {Verb.WRITE},
    }


@pytest.mark.parametrize("profile", PROFILES)
def test_no_role_reaches_further_than_one_queue_or_container(profile: str) -> None:
    for grant in federation(profile, keys=True).grants():
        signs = grant.role == "Storage Blob Delegator"  # who signs, and that alone: it opens no blob by itself
        assert grant.kind in (("account",) if signs else (*EXCHANGE, "registry", "workspace")), grant
        assert (grant.principal_type == "Group") == (grant.who == "operator")


@pytest.mark.parametrize("profile", PROFILES)
def test_what_else_is_granted_stands_in_the_readme(profile: str) -> None:
    rows = re.findall(r"^\| (\w+) \| (\w+) (?:of the |`)(\w+)[^|]* \| ([^|]+) \|", _beyond(), re.MULTILINE)
    found = set()
    for grant in federation(profile, keys=True).grants():
        if grant.kind in EXCHANGE and grant.place not in SILOS_OWN:
            continue
        whose = "hub" if grant.who == "orchestrator" or grant.kind == "account" else "silo"
        place = grant.place if grant.kind == "container" else whose
        found.add((grant.who.partition("-")[0], grant.kind, place, grant.role))

    assert found == set(rows)


@pytest.mark.parametrize("profile", PROFILES)
def test_compute_has_nothing_on_the_exchange(profile: str) -> None:
    own = {(g.kind, g.place) for g in federation(profile).grants() if g.who == "compute-north"}
    assert {place for kind, place in own if kind == "container"} == SILOS_OWN
    assert {kind for kind, _ in own} == {"container", "registry"}


def test_each_row_of_the_table_has_the_narrowest_role_that_will_do() -> None:
    for grant in federation("open").grants():
        if grant.kind == "container" and grant.place not in SILOS_OWN and grant.who != "orchestrator":
            assert "blobs/delete" not in grant.actions
    assert set(rights.ROLES) == {*rights.OF_RIGHT.values(), *rights.OF_VERBS.values()}


def test_what_is_generated_is_not_stale() -> None:
    assert rights.JSON.read_text(encoding="utf-8") == rights.rendered(), "run make rights"
    document = rights.README.read_text(encoding="utf-8")
    assert document == rights.with_table(document), "run make rights"


def _beyond() -> str:
    return (AZURE / "README.md").read_text(encoding="utf-8").partition("### Beyond the exchange")[2].partition("\n#")[0]
