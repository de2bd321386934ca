"""What one version wrote the next reads, takes for the same, and goes on from. tests/golden/README.md has the rules."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from messages.codec import FromSilo, OperatorMessage, ToSilo, Work, decode
from messages.errors import Poison
from orchestrator.experiment.state import Collecting, Ended, RunOutcome
from silo_agent import egress
from silo_agent.result import _Report
from tests.golden import examples, live
from tests.golden.folder import ROOT, Golden, all_versions, contents, derived

VERSIONS = [pytest.param(golden, id=golden.path.name) for golden in all_versions()]
OF_MACHINES = [*examples._models(ToSilo), *examples._models(FromSilo), *examples._models(Work)]


def lost(old: Any, new: Any, where: str = "") -> list[str]:
    """What stands in `old` and is not in `new`, or is another value there."""
    match old, new:
        case dict(), dict():
            gone = [f"{where}.{key} is gone" for key in old.keys() - new.keys()]
            return gone + [
                each for key in old.keys() & new.keys() for each in lost(old[key], new[key], f"{where}.{key}")
            ]
        case list(), list() if len(old) == len(new):
            return [each for n, (a, b) in enumerate(zip(old, new, strict=True)) for each in lost(a, b, f"{where}[{n}]")]
        case _:
            return [] if old == new and type(old) is type(new) else [f"{where} was {old!r} and is {new!r}"]


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("golden", VERSIONS)
def test_todays_code_reads_every_message_and_loses_nothing_of_it(golden: Golden) -> None:
    known = examples.messages()
    for kind, old in golden.named("messages").items():
        read = decode(json.dumps(old).encode(), type(known[kind]))
        assert lost(old, read.model_dump(mode="json"), kind) == []


@pytest.mark.parametrize("golden", VERSIONS)
def test_todays_code_reads_every_document_and_loses_nothing_of_it(golden: Golden) -> None:
    known = examples.kept()
    for name, old in golden.named("documents").items():
        read = type(known[name]).model_validate_json(json.dumps(old))
        assert lost(old, read.model_dump(mode="json"), name) == []


@pytest.mark.parametrize("golden", VERSIONS)
def test_nothing_of_the_schema_was_taken_away(golden: Golden) -> None:
    """Names of fields, values of closed lists, and what is required of a writer: a reader must not ask for more."""
    old, new = golden.read("schema.json")["$defs"], contents()["schema.json"]["$defs"]
    for name, was in old.items():
        now = new[name]
        assert set(was.get("properties", {})) <= set(now.get("properties", {})), name
        assert set(was.get("enum", [])) <= set(now.get("enum", [])), name
        assert set(now.get("required", [])) <= set(was.get("required", [])), name


@pytest.mark.parametrize("golden", VERSIONS)
def test_both_halves_derive_the_same_names(golden: Golden) -> None:
    assert lost(golden.read("names.json"), derived()) == []


@pytest.mark.parametrize("golden", VERSIONS)
def test_a_training_script_of_that_version_is_told_what_it_knows(golden: Golden) -> None:
    assert lost(golden.read("contract", "round.json"), contents()["contract/round.json"]) == []


@pytest.mark.parametrize("golden", VERSIONS)
def test_the_report_of_a_script_of_that_version_is_read(golden: Golden) -> None:
    reports = list((golden.path / "live" / "homes").rglob("report.json"))
    assert reports
    for path in reports:
        assert lost(json.loads(path.read_text()), _Report.model_validate_json(path.read_text()).model_dump()) == []


def test_the_version_being_made_has_a_golden_file_of_everything() -> None:
    """A new kind, phase, document or field is not in them: `python -m tests.golden`."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    golden = Golden.of(version)
    made = contents()
    there = {str(p.relative_to(golden.path)) for p in golden.path.rglob("*.json") if "live" not in p.parts}
    assert there == set(made), "run `python -m tests.golden`"
    for name, value in made.items():
        assert golden.read(*name.split("/")) == json.loads(json.dumps(value)), f"{name}: run `python -m tests.golden`"


def test_there_is_a_predecessor() -> None:
    """Without one, all that these tests show is that a version reads what it wrote itself."""
    assert [golden.path.name for golden in all_versions() if golden.is_released]


def test_what_was_released_stays() -> None:
    assert [golden.path.name for golden in all_versions() if golden.is_released and not golden.is_intact] == []


def test_released_files_are_not_written_again(tmp_path: Path) -> None:
    golden = Golden(tmp_path / "0.1.0")
    golden.path.mkdir()
    (golden.path / "names.json").write_text("{}")
    golden.release()
    assert golden.is_released
    assert golden.is_intact
    (golden.path / "names.json").write_text("{ }")
    assert not golden.is_intact


# --- versions of messages ----------------------------------------------------------------------------------------


def newer(value: Any) -> Any:
    """With a field nobody knows in every object."""
    match value:
        case dict():
            return {**{key: newer(each) for key, each in value.items()}, "of_tomorrow": {"deep": [1]}}
        case list():
            return [newer(each) for each in value]
        case _:
            return value


@pytest.mark.parametrize("model", OF_MACHINES, ids=lambda model: model.__name__)
def test_machines_pass_by_fields_of_a_newer_version(model: Any) -> None:
    known = examples.filled(model)
    said = newer(known.model_dump(mode="json"))
    for name in ("hyperparameters", "payloads"):  # what is in these is named by people, or by roles
        if name in said:
            said[name] = known.model_dump(mode="json")[name]
    if "agent_version" in said:
        said["agent_version"] = "0.9.17"
        known = known.model_copy(update={"agent_version": "0.9.17"})
    assert decode(json.dumps(said).encode(), model) == known


@pytest.mark.parametrize(
    ("side", "reader", "writer"),
    [
        (OperatorMessage, "the orchestrator", "the tool that posted it"),
        (ToSilo, "this silo's agent", "the orchestrator"),
        (FromSilo, "the orchestrator", "that silo's agent"),
        (Work, "this orchestrator", "the orchestrator that sent it"),
    ],
)
def test_a_message_of_an_unknown_version_says_which_side_to_upgrade(side: Any, reader: str, writer: str) -> None:
    for model in examples._models(side):
        for version, behind in ((2, reader), (0, writer)):
            said = examples.filled(model).model_dump(mode="json") | {"schema_version": version}
            with pytest.raises(Poison) as poison:
                decode(json.dumps(said).encode(), model)
            assert poison.value.reason == "unknown-version"
            assert poison.value.description.endswith(f"{reader} reads 1: upgrade {behind}.")


# --- a federation goes on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("golden", VERSIONS)
async def test_a_run_that_was_begun_by_that_version_is_finished_exactly(golden: Golden, tmp_path: Path) -> None:
    shutil.copytree(golden.path / "live", tmp_path, dirs_exist_ok=True, symlinks=True)
    federation = live.Federation(tmp_path)
    before = await federation.state()
    assert isinstance(before, Collecting)
    assert (before.round, set(before.answers)) == (2, {"north"})
    async with federation.running():
        over = await federation.until(lambda state: isinstance(state, Ended))
        assert isinstance(over, Ended)
        assert over.outcome is RunOutcome.COMPLETED
        assert await federation.weights(over) == live.FINAL
    for silo in live.SILOS:
        home = federation.home(silo)
        assert [path.read_text() for path in sorted(home.glob("state/*/00003/rounds"))] == ["1 2 3 "]
        assert egress.verify(home / "egress.jsonl") is None
        charged = [json.loads(line) for line in (home / "budget.jsonl").read_text().splitlines()]
        assert sorted(each["round"] for each in charged if each["charged"]) == [1, 2, 3, 4]
    then = [line for line in live.egress(golden.path / "live" / "homes" / "north") if _is_update(line)]
    now = [line for line in live.egress(federation.home("north")) if _is_update(line)]
    assert [line["message"]["round"] for line in now] == [0, 1, 2, 3, 4]  # what was published is not made again
    assert now[:3] == then


def _is_update(line: dict[str, Any]) -> bool:
    return bool(line.get("message", {}).get("kind") == "update-published")
