"""The table of rights: what no version of it may say, and what it comes to in a federation of three silos."""

from __future__ import annotations

from itertools import combinations

import pytest

from messages import names
from messages.rights import AGENT, OPERATOR, ORCHESTRATOR, Principal, Right, Verb, parse, principals, table

SILOS = ["east", "north", "south"]
EVERYBODY = principals(SILOS)
AGENTS = [p for p in EVERYBODY if p.role == AGENT]


def the(role: str) -> Principal:
    [found] = [p for p in EVERYBODY if p.role == role]
    return found


def who_may(right: Right, queue: str) -> set[str]:
    return {p.name for p in EVERYBODY if p.may(right, queue)}


def row(**changes: object) -> str:
    """A table of one row."""
    said = {"queue": "work", "rights": ["Send"], "why": "a good reason"} | changes
    return str({"someone": {"is": "a process", "queues": [{k: v for k, v in said.items() if v is not None}]}})


def test_everybody_has_a_name_of_their_own() -> None:
    assert [p.name for p in EVERYBODY] == ["orchestrator", "agent-east", "agent-north", "agent-south", "operator"]


def test_nobody_has_manage() -> None:
    assert {right for p in EVERYBODY for rights in p.queues.values() for right in rights} == {"Send", "Listen"}
    with pytest.raises(ValueError, match="Manage"):
        parse(row(rights=["Manage"]))


def test_only_the_orchestrator_deletes_blobs_and_never_what_it_knows_or_what_operators_put_there() -> None:
    deleting = {(p.name, place) for p in EVERYBODY for place, verbs in p.containers.items() if Verb.DELETE in verbs}
    assert {who for who, _ in deleting} == {ORCHESTRATOR}
    assert {place for _, place in deleting} == {names.GLOBAL, *map(names.updates_of, SILOS)}


@pytest.mark.parametrize("silo", SILOS)
def test_an_agent_hears_its_own_queue_speaks_on_its_own_and_nothing_else(silo: str) -> None:
    [agent] = [p for p in AGENTS if p.silo == silo]

    assert agent.queues == {f"to-{silo}": {Right.LISTEN}, f"from-{silo}": {Right.SEND}}
    assert agent.containers.keys() == {names.GLOBAL, f"updates-{silo}"}
    assert agent.containers[names.GLOBAL] == {Verb.READ}


def test_no_two_silos_share_a_queue_or_a_container_they_may_change() -> None:
    for one, other in combinations(AGENTS, 2):
        assert not one.queues.keys() & other.queues.keys()
        assert one.containers.keys() & other.containers.keys() == {names.GLOBAL}


def test_only_the_operator_posts_experiments() -> None:
    assert who_may(Right.SEND, names.EXPERIMENTS) == {OPERATOR}


@pytest.mark.parametrize("silo", SILOS)
def test_only_a_silo_speaks_as_itself(silo: str) -> None:
    """The orchestrator believes whatever comes on this queue to be that silo's, the operator's included."""
    assert who_may(Right.SEND, names.from_silo(silo)) == {f"agent-{silo}"}
    assert [p.name for p in EVERYBODY if Verb.CREATE in p.containers.get(names.updates_of(silo), ())] == [
        f"agent-{silo}"
    ]


def test_every_queue_has_somebody_who_sends_and_somebody_who_listens() -> None:
    for queue in names.queues(SILOS):
        assert who_may(Right.SEND, queue), queue
        assert who_may(Right.LISTEN, queue) - {OPERATOR}, queue


def test_only_the_orchestrator_writes_state_and_weights_of_rounds() -> None:
    for container in (names.STATE, names.GLOBAL):
        assert [p.name for p in EVERYBODY if {Verb.CREATE, Verb.WRITE} & p.containers.get(container, frozenset())] == [
            ORCHESTRATOR
        ]
    assert the(OPERATOR).containers[names.INITIAL] == {Verb.READ, Verb.CREATE}


def test_every_row_says_why() -> None:
    rows = [row for role in table().root.values() for row in (*role.queues, *role.containers)]
    assert all(row.why for row in rows)
    with pytest.raises(ValueError, match="why"):
        parse(row(why=None))


@pytest.mark.parametrize(
    "wrong",
    [
        row(queue="to-{sillo}"),
        row(queue="wrok"),
        row(queue="to-north"),
        row(rights=[]),
        row(right=["Send"]),
        f"{row()[:-1]}, someone: {{is: there twice}}}}",
        "{someone: {is: both, queues: [{queue: 'to-{own}', rights: [Send], why: because I say so}, "
        "{queue: 'to-{silo}', rights: [Send], why: because I say so}]}}",
        "{someone: {is: twice, queues: [{queue: work, rights: [Send], why: because I say so}, "
        "{queue: work, rights: [Listen], why: because I say so}]}}",
    ],
)
def test_a_table_with_a_slip_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="someone"):
        parse(wrong)
