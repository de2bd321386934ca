"""Each of the owner's limits, at its edge: the last that is accepted, the first that is not."""

from typing import Any

import pytest
from pydantic import ValidationError

from messages.schemas import DeclineReason, Purpose, RoundDeclined
from messages.share import lets_nothing_through, lets_through
from silo_agent.policy import Accepted, Declined, Facts, OneOf, Policy, Range, decide
from tests.unit.agent.making import CODE, RUN, announced, task

FACTS = Facts(code=CODE, spent=0)


def verdict(announcement: dict[str, Any], facts: Facts = FACTS, **changes: Any) -> DeclineReason | None:
    decision = decide(Policy(tasks={"t": task(**changes)}), announced(**announcement), facts)
    return decision.reason if isinstance(decision, Declined) else None


def test_a_round_inside_every_limit_is_accepted() -> None:
    assert verdict({}) is None


def test_a_task_that_is_not_named_is_declined() -> None:
    assert verdict({"task": "other"}) is DeclineReason.TASK_NOT_OFFERED


@pytest.mark.parametrize("code", ["d" * 64, None])
def test_code_that_was_changed_or_cannot_be_read_is_not_approved(code: str | None) -> None:
    assert verdict({}, Facts(code=code, spent=0)) is DeclineReason.CODE_NOT_APPROVED


def test_an_owner_who_has_paused_takes_part_in_nothing() -> None:
    assert verdict({}, Facts(code=CODE, spent=0, paused=True)) is DeclineReason.PAUSED_BY_OWNER


@pytest.mark.parametrize(("quorum", "reason"), [(3, None), (2, DeclineReason.QUORUM_TOO_SMALL)])
def test_quorum_minimum(quorum: int, reason: DeclineReason | None) -> None:
    assert verdict({"silos": 5, "quorum": quorum}, limits={"rounds": 10, "quorum": 3}) is reason


@pytest.mark.parametrize(("silos", "reason"), [(3, None), (2, DeclineReason.TOO_FEW_SILOS)])
def test_silo_minimum(silos: int, reason: DeclineReason | None) -> None:
    assert verdict({"silos": silos}, limits={"rounds": 10, "silos": 3}) is reason


def test_without_minima_an_update_is_never_summed_alone() -> None:
    assert verdict({"silos": 1, "quorum": 1}) is DeclineReason.TOO_FEW_SILOS
    assert verdict({"silos": 2, "quorum": 1}) is DeclineReason.QUORUM_TOO_SMALL


@pytest.mark.parametrize(("spent", "reason"), [(9, None), (10, DeclineReason.BUDGET_SPENT)])
@pytest.mark.parametrize("purpose", [Purpose.TRAIN, Purpose.EVALUATE])
def test_round_budget(spent: int, reason: DeclineReason | None, purpose: Purpose) -> None:
    assert verdict({"purpose": purpose}, Facts(code=CODE, spent=spent)) is reason


def test_initialising_looks_at_no_data_and_needs_no_company_and_no_budget() -> None:
    decision = decide(
        Policy(tasks={"t": task()}),
        announced(purpose=Purpose.INITIALISE, silos=1, quorum=1),
        Facts(code=CODE, spent=10),
    )
    assert isinstance(decision, Accepted)
    assert not decision.charged


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"lr": 0.1}, None),
        ({"lr": 0.01}, None),
        ({"lr": 1}, None),
        ({"lr": 1.01}, DeclineReason.HYPERPARAMETER_FORBIDDEN),
        ({"lr": 0.0099}, DeclineReason.HYPERPARAMETER_FORBIDDEN),
        ({"lr": True}, DeclineReason.HYPERPARAMETER_FORBIDDEN),
        ({"lr": "0.1"}, DeclineReason.HYPERPARAMETER_FORBIDDEN),
        ({"optimizer": "sgd"}, None),
        ({"optimizer": "lion"}, DeclineReason.HYPERPARAMETER_FORBIDDEN),
        ({"unlisted": 1}, DeclineReason.HYPERPARAMETER_FORBIDDEN),
    ],
)
def test_hyperparameters(asked: dict[str, Any], reason: DeclineReason | None) -> None:
    listed = {"lr": {"min": 0.01, "max": 1.0}, "optimizer": {"one_of": ["sgd", "adam"]}}
    assert verdict({"hyperparameters": asked}, limits={"rounds": 10, "hyperparameters": listed}) is reason


def test_a_value_listed_is_of_the_same_type() -> None:
    assert OneOf(one_of=[1]).allows(1)
    assert not OneOf(one_of=[1]).allows(True)
    assert not OneOf(one_of=[1]).allows(1.0)
    assert Range(min=0, max=2).allows(1.5)


def test_what_is_fixed_replaces_whatever_is_asked_for() -> None:
    limits = {"rounds": 10, "fixed": {"batch": 32, "lr": 0.1}, "hyperparameters": {"epochs": {"min": 1, "max": 5}}}
    decision = decide(
        Policy(tasks={"t": task(limits=limits)}), announced(hyperparameters={"batch": 10**6, "epochs": 2}), FACTS
    )
    assert isinstance(decision, Accepted)
    assert decision.hyperparameters == {"batch": 32, "lr": 0.1, "epochs": 2}


@pytest.mark.parametrize(
    ("named", "purpose", "reason"),
    [
        (["weights", "control"], Purpose.TRAIN, None),
        (["weights"], Purpose.TRAIN, DeclineReason.ROLE_FORBIDDEN),
        (["control"], Purpose.TRAIN, DeclineReason.ROLE_FORBIDDEN),
        (["control"], Purpose.INITIALISE, DeclineReason.ROLE_FORBIDDEN),
        ([], Purpose.EVALUATE, None),
    ],
)
def test_control_variates_leave_only_where_the_owner_names_them(
    named: list[str], purpose: Purpose, reason: DeclineReason | None
) -> None:
    asked = {"roles": ["weights", "control"], "purpose": purpose}
    assert verdict(asked, outbound={"roles": named, "dtypes": ["float32"]}) is reason


def test_only_weights_leave_unless_the_owner_names_more() -> None:
    assert verdict({"roles": ["weights", "control"]}) is DeclineReason.ROLE_FORBIDDEN


@pytest.mark.parametrize(("dtype", "reason"), [("float32", None), ("float16", DeclineReason.TRANSFER_FORBIDDEN)])
def test_transfer_dtype(dtype: str, reason: DeclineReason | None) -> None:
    assert verdict({"transfer": {"dtype": dtype}}) is reason


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"hyperparameters": {"lr": 0.1, "proximal_mu": 5}}, "hyperparameter-forbidden: proximal_mu"),
        ({"hyperparameters": {"lr": 2}}, "hyperparameter-forbidden: lr"),
        ({"roles": ["weights", "control"]}, "role-forbidden: control"),
        ({"transfer": {"dtype": "bfloat16"}}, "transfer-forbidden: bfloat16"),
        ({"share": ["head.weight"]}, "outbound-forbidden"),
        ({"silos": 1}, "too-few-silos"),
        ({"task": "other"}, "task-not-offered"),
    ],
)
def test_what_is_forbidden_is_told_by_the_name_that_the_announcement_has_for_it(
    asked: dict[str, Any], words: str
) -> None:
    listed = {"lr": {"min": 0.01, "max": 1.0}, "of_the_owner": {"min": 1, "max": 1}}
    limits = {"rounds": 10, "hyperparameters": listed, "fixed": {"batch": 32}}
    outbound = {"tensors": ["*", "!head.*"], "dtypes": ["float32"], "max_bytes": 10}
    declined = decide(Policy(tasks={"t": task(limits=limits, outbound=outbound)}), announced(**asked), FACTS)
    assert isinstance(declined, Declined)
    assert declined.words == words
    told = RoundDeclined(run=RUN, round=1, reason=declined.reason, about=declined.about)
    assert told.words == words, "both halves say it alike"


def test_transfer_does_not_matter_where_no_update_is_sent() -> None:
    assert verdict({"transfer": {"dtype": "float16"}, "purpose": Purpose.EVALUATE}) is None


@pytest.mark.parametrize(
    ("share", "reason"),
    [
        (["body.weight"], None),
        (["body.*", "head.*"], None),
        (["head.weight"], DeclineReason.OUTBOUND_FORBIDDEN),
        (["head.weight", "!head.*"], None),
    ],
)
def test_a_tensor_asked_for_by_name_that_may_never_leave(share: list[str], reason: DeclineReason | None) -> None:
    outbound = {"tensors": ["*", "!head.*"], "dtypes": ["float32"], "max_bytes": 10}
    assert verdict({"share": share}, outbound=outbound) is reason


@pytest.mark.parametrize(
    ("patterns", "name", "through"),
    [
        ([], "a", False),
        (["*"], "a.b", True),
        (["a.*"], "b.a", False),
        (["*", "!a.*"], "a.b", False),
        (["!a.*", "*"], "a.b", True),
        (["A"], "a", False),
    ],
)
def test_the_last_pattern_that_matches_decides(patterns: list[str], name: str, through: bool) -> None:
    assert lets_through(name, patterns) is through


@pytest.mark.parametrize(
    "changes",
    [
        {"limits": {"round": 10}},
        {"limits": {}},
        {"limits": {"rounds": 10, "hyperparameters": {"lr": {"min": 0}}}},
        {"outbound": {"tensor": ["*"]}},
        {"outbound": {"metrics": {"loss": {"digit": 3}}}},
        {"environment": {"SILOBUS_OUTPUT": "/tmp"}},
    ],
)
def test_a_misspelt_rule_is_an_error_and_never_a_rule_that_does_not_hold(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        task(**changes)


def test_the_digest_changes_with_what_is_allowed_and_tells_nothing_of_paths_and_secrets() -> None:
    digest = Policy(tasks={"t": task()}).digest()
    assert Policy(tasks={"t": task(environment={"TOKEN": "x"}, directory="/else", data={"d": "/x"})}).digest() == digest
    assert Policy(tasks={"t": task(limits={"rounds": 11})}).digest() != digest
    assert Policy(tasks={"t": task(code={"path": "/nowhere/train.py", "sha256": "e" * 64})}).digest() != digest
    assert Policy(tasks={"t": task(outbound={"tensors": ["*"]})}).digest() != digest


@pytest.mark.parametrize(
    ("patterns", "nothing"),
    [
        (["!*"], True),
        (["!head.*"], True),
        (["*", "!*"], True),
        (["*", "!**"], True),
        (["a.*", "!a.*"], True),
        (["a.b.*", "b", "!a*", "!?"], True),
        (["head.w", "!head.[vw]"], True),
        (["*"], False),
        (["!*", "*"], False),
        (["*", "!*", "head.*"], False),
        (["*", "!head.*"], False),
        (["a.*", "!a.b"], False),
        (["h*d", "!h?d"], False),  # heard
        (["[ab]c", "!*b]c"], False),  # ac
    ],
)
def test_patterns_that_let_nothing_through_whatever_tensors_are_called(patterns: list[str], nothing: bool) -> None:
    assert lets_nothing_through(patterns) is nothing
