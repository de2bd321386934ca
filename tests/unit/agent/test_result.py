"""What a script wrote, judged: no file of it is trusted."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from messages.schemas import DeclineReason, FailureCategory, MeanMetric, Purpose
from messages.weights import Layout, parse_layout
from silo_agent.home import TryDirectory
from silo_agent.policy import Outbound
from silo_agent.result import Allowed, Unsound, Withheld, examine
from tests.unit.agent.making import announced, safetensors

RULES = Outbound.model_validate(
    {"tensors": ["w"], "dtypes": ["float32"], "max_bytes": 1000, "metrics": {"loss": {}}, "min_samples": 1}
)
UPDATE = safetensors({"w": [1.0, 2.0]})
RECEIVED: Layout = parse_layout(UPDATE, len(UPDATE))
LOSS = {"name": "loss", "phase": "received", "kind": "mean", "count": 5, "value": 0.5}


class Try:
    def __init__(self, path: Path) -> None:
        self.directory = TryDirectory(path)
        self.directory.start()
        self.write()

    def write(self, file: bytes | None = UPDATE, /, **changes: Any) -> None:
        if file is not None:
            (self.directory.output / "update.safetensors").write_bytes(file)
        told = file and {"sha256": hashlib.sha256(file).hexdigest(), "bytes": len(file)}
        report = {"schema_version": 1, "samples": 30, "steps": 3, "update": told, "metrics": [LOSS], **changes}
        self.report.write_text(json.dumps(report))

    @property
    def report(self) -> Path:
        return self.directory.output / "report.json"

    def judged(
        self, received: Layout | None = RECEIVED, rules: Outbound = RULES, **asked: Any
    ) -> Allowed | Withheld | Unsound:
        return examine(self.directory, announced(**asked), received, rules)

    def category(self, **asked: Any) -> FailureCategory | None:
        found = self.judged(**asked)
        return found.category if isinstance(found, Unsound) else None


@pytest.fixture
def tried(tmp_path: Path) -> Try:
    return Try(tmp_path / "1")


def test_a_sound_result_is_allowed_with_its_numbers(tried: Try) -> None:
    found = tried.judged()
    assert isinstance(found, Allowed)
    assert found.update["weights"].scan.sha256 == hashlib.sha256(UPDATE).hexdigest()
    assert (found.samples, found.steps) == (30, 3)
    assert found.metrics == (MeanMetric.model_validate(LOSS),)


def test_without_a_report_there_is_no_result(tried: Try) -> None:
    tried.report.unlink()
    assert tried.category() is FailureCategory.NO_REPORT


@pytest.mark.parametrize(
    "report", ["", "[]", "{}", '{"schema_version": 2}', "NaN", '{"schema_version": 1, "samples": -1}']
)
def test_a_report_that_is_none(tried: Try, report: str) -> None:
    tried.report.write_text(report)
    assert tried.category() is FailureCategory.REPORT_INVALID


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": -1},
        {"samples": None},
        {"metrics": [{**LOSS, "value": None}]},
        {"metrics": [{**LOSS, "name": "a b"}]},
        {"metrics": [LOSS] * 201},
        {"update": {"sha256": "x", "bytes": 1}},
        {"update": None},
    ],
)
def test_a_report_with_wrong_fields(tried: Try, changes: dict[str, Any]) -> None:
    tried.write(**changes)
    assert tried.category() is FailureCategory.REPORT_INVALID


def test_a_report_that_is_a_link_is_not_read(tried: Try, tmp_path: Path) -> None:
    tried.report.rename(tmp_path / "elsewhere.json")
    tried.report.symlink_to(tmp_path / "elsewhere.json")
    assert tried.category() is FailureCategory.REPORT_INVALID


def test_an_update_that_is_a_link_is_not_read(tried: Try, tmp_path: Path) -> None:
    update = tried.directory.output / "update.safetensors"
    update.rename(tmp_path / "elsewhere")
    update.symlink_to(tmp_path / "elsewhere")
    assert tried.category() is FailureCategory.UPDATE_INVALID


def test_a_pipe_in_the_private_state_is_no_state_that_could_be_given_again(tried: Try) -> None:
    kept = tried.directory.output / "state" / "part"
    kept.mkdir(parents=True)
    (kept / "counts.json").write_text("{}")
    assert tried.category() is None
    os.mkfifo(kept / "pipe")
    assert tried.category() is FailureCategory.REPORT_INVALID


def test_an_update_that_is_not_there_or_not_the_one_reported(tried: Try) -> None:
    update = tried.directory.output / "update.safetensors"
    update.write_bytes(safetensors({"w": [1.0, 3.0]}))
    assert tried.category() is FailureCategory.UPDATE_INVALID
    update.unlink()
    assert tried.category() is FailureCategory.UPDATE_INVALID


def test_a_digest_in_the_report_holds_and_none_is_needed(tried: Try) -> None:
    tried.write(update={"bytes": len(UPDATE)})
    found = tried.judged()
    assert isinstance(found, Allowed)
    assert found.update["weights"].scan.sha256 == hashlib.sha256(UPDATE).hexdigest()
    for wrong in ({"bytes": len(UPDATE) - 1}, {"bytes": len(UPDATE), "sha256": "0" * 64}):
        tried.write(update=wrong)
        assert tried.category() is FailureCategory.UPDATE_INVALID


@pytest.mark.parametrize("tensors", [{"w": [1.0]}, {"v": [1.0, 2.0]}, {"w": [1.0, 2.0], "v": [1.0]}, {}])
def test_an_update_laid_out_otherwise_than_what_was_received(tried: Try, tensors: dict[str, list[float]]) -> None:
    tried.write(safetensors(tensors))
    assert tried.category() is FailureCategory.UPDATE_INVALID


def test_an_update_that_was_not_converted_as_asked(tried: Try) -> None:
    assert tried.category(transfer={"dtype": "float16"}) is FailureCategory.UPDATE_INVALID


def test_an_update_that_is_not_finite(tried: Try) -> None:
    tried.write(safetensors({"w": [1.0, float("nan")]}))
    assert tried.category() is FailureCategory.UPDATE_NOT_FINITE


def test_metadata_says_anything_and_may_not_leave(tried: Try) -> None:
    tried.write(safetensors({"w": [1.0, 2.0]}, metadata={"patient": "Jane"}))
    found = tried.judged()
    assert isinstance(found, Withheld)
    assert found.reason is DeclineReason.OUTBOUND_FORBIDDEN


def test_outbound_rules_hold_for_what_is_initialised_too(tried: Try) -> None:
    tried.write(safetensors({"secret": [1.0]}))
    found = tried.judged(received=None, purpose=Purpose.INITIALISE)
    assert isinstance(found, Withheld)


def test_initialising_says_nothing_that_was_learnt_from_data(tried: Try) -> None:
    found = tried.judged(received=None, purpose=Purpose.INITIALISE)
    assert isinstance(found, Allowed)
    assert (found.samples, found.steps, found.metrics) == (0, 0, ())


def test_evaluating_gives_metrics_and_no_update(tried: Try) -> None:
    tried.write(None, samples=0)
    found = tried.judged(purpose=Purpose.EVALUATE)
    assert isinstance(found, Allowed)
    assert not found.update
    assert len(found.metrics) == 1
    tried.write()
    assert tried.category(purpose=Purpose.EVALUATE) is FailureCategory.REPORT_INVALID


def test_metrics_that_no_message_could_carry(tried: Try) -> None:
    zeros = [0] * 1000
    big = {"name": "loss", "phase": "received", "kind": "confusion", "count": 40_000 * 10**6}
    tried.write(metrics=[{**big, "matrix": [[10**6] * 200] * 200}])
    assert tried.category() is FailureCategory.REPORT_INVALID
    histogram = {"name": "loss", "phase": "received", "kind": "histogram", "count": 40}
    tried.write(metrics=[{**histogram, "positive": [40, *zeros[1:]], "negative": zeros}])
    assert tried.category() is None


# --- control variates beside the weights -----------------------------------------------------------------------------

BOTH = RULES.model_copy(update={"roles": ["weights", "control"]})
ROLES = ["weights", "control"]


def write_both(tried: Try, control: bytes | None, **told: Any) -> None:
    described = control and {"sha256": hashlib.sha256(control).hexdigest(), "bytes": len(control)}
    tried.write(control=described, **told)
    if control is not None:
        (tried.directory.output / "control.safetensors").write_bytes(control)


def test_control_variates_are_judged_as_weights_are(tried: Try) -> None:
    control = safetensors({"w": [0.5, -0.5]})
    write_both(tried, control)
    found = tried.judged(rules=BOTH, roles=ROLES)
    assert isinstance(found, Allowed)
    assert {role: made.scan.sha256 for role, made in found.update.items()} == {
        "weights": hashlib.sha256(UPDATE).hexdigest(),
        "control": hashlib.sha256(control).hexdigest(),
    }
    for bad, category in (
        ({"w": [0.5]}, FailureCategory.UPDATE_INVALID),
        ({"v": [0.5, 0.5]}, FailureCategory.UPDATE_INVALID),
        ({"w": [0.5, float("inf")]}, FailureCategory.UPDATE_NOT_FINITE),
    ):
        write_both(tried, safetensors(bad))
        found = tried.judged(rules=BOTH, roles=ROLES)
        assert isinstance(found, Unsound)
        assert found.category is category
    write_both(tried, safetensors({"w": [0.5, 0.5]}, metadata={"patient": "Jane"}))
    assert isinstance(tried.judged(rules=BOTH, roles=ROLES), Withheld)
    write_both(tried, control)
    (tried.directory.output / "control.safetensors").write_bytes(safetensors({"w": [9.0, 9.0]}))
    assert isinstance(tried.judged(rules=BOTH, roles=ROLES), Unsound)


def test_control_variates_are_there_when_they_are_asked_for_and_only_then(tried: Try) -> None:
    write_both(tried, None)
    assert tried.category(roles=ROLES) is FailureCategory.NOT_CORRECTED
    write_both(tried, safetensors({"w": [0.5, 0.5]}))
    assert tried.category() is FailureCategory.REPORT_INVALID


def test_control_variates_leave_only_where_the_owner_names_them_and_count_in_max_bytes(tried: Try) -> None:
    control = safetensors({"w": [0.5, -0.5]})
    write_both(tried, control)
    found = tried.judged(roles=ROLES)
    assert isinstance(found, Withheld)
    assert found.notes == ("control: not named by `roles` of the outbound rules",)
    size = len(UPDATE) + len(control)
    exactly = BOTH.model_copy(update={"max_bytes": size})
    assert isinstance(tried.judged(rules=exactly, roles=ROLES), Allowed)
    found = tried.judged(rules=BOTH.model_copy(update={"max_bytes": size - 1}), roles=ROLES)
    assert isinstance(found, Withheld)
