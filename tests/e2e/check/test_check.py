"""`silobus-agent check` with one thing in the silo broken at a time: that row is red, says what mends it, and no other
row is.
"""

from __future__ import annotations

import re
import shutil
import socket
import sys
from collections.abc import Callable

import pytest

from silo_agent.code_digest import code_digest
from silo_agent.home import Home
from tests.e2e.check.broken_silo import HOME_ROWS, STORE_ROWS, Silo, obeying_permissions, rows_of
from tests.federation import TASK

pytestmark = pytest.mark.slow


# --- nothing is broken ------------------------------------------------------------------------------------------------


def test_a_healthy_silo_is_green_and_sees_what_would_leave(silo: Silo) -> None:
    silo.does_as_people_do()
    checked = silo.types("--json")
    assert checked.status == 0, checked.output
    assert list(checked.rows) == rows_of("north")
    assert checked.are("ok") == rows_of("north")
    details = checked.rows[f"task {TASK}"]["details"]
    assert any("update: 2 tensors" in line for line in details)
    assert any("samples: 64, steps: 1" in line for line in details)


def test_for_people_it_is_a_line_per_row(silo: Silo) -> None:
    silo.data.unlink()
    checked = silo.checks(for_people=True)
    assert checked.status == 1
    assert re.findall(r"^(ok|FAIL|--) ", checked.output, re.MULTILINE).count("FAIL") == 1
    assert f"FAIL task {TASK}: data: data-missing" in checked.output
    assert f"--   task {TASK}: not tried: what it needs comes first" in checked.output


# --- the file and the secrets -----------------------------------------------------------------------------------------


def test_an_unknown_field(silo: Silo) -> None:
    silo.said["heartbeats"] = 3
    silo.checks().blames("settings", str(silo.file), "heartbeats: there is no such field")


@pytest.mark.parametrize("secret", [None, " \n"])
def test_a_secret_that_is_not_there(silo: Silo, secret: str | None) -> None:
    silo.key.unlink() if secret is None else silo.key.write_text(secret)
    told = "cannot be read" if secret is None else "is empty"
    silo.checks().blames(
        "bus", f"bus.connection_string_file: {silo.key} {told}", untried=["read to-north", "send to from-north"]
    )


def test_a_secret_of_the_stores_that_is_not_there(silo: Silo) -> None:
    silo.said["store"] = {"account_url": "http://127.0.0.1:9/x", "sas_file": str(silo.path / "sas")}
    silo.checks().blames("store", "store.sas_file:", str(silo.path / "sas"), untried=STORE_ROWS)


# --- the home ---------------------------------------------------------------------------------------------------------


def test_a_home_that_cannot_be_written(silo: Silo) -> None:
    silo.home.mkdir(mode=0o500)
    with obeying_permissions():
        checked = silo.checks()
    checked.blames("home", str(silo.home), "Permission denied", "`home`", untried=HOME_ROWS)


def test_a_home_that_cannot_even_be_looked_at(silo: Silo) -> None:
    silo.home.mkdir(mode=0o000)
    silo.said["home"] = str(silo.home / "below")
    with obeying_permissions():
        checked = silo.checks()
    silo.home.chmod(0o700)
    checked.blames(
        "home", str(silo.home), "Permission denied", "`home`", untried=[HOME_ROWS[0], "disk", *HOME_ROWS[1:]]
    )
    assert "may not look at" in checked.rows["disk"]["found"]


def test_a_home_whose_egress_log_was_changed(silo: Silo) -> None:
    assert silo.checks().status == 0
    log = silo.home / "egress.jsonl"
    log.write_text(log.read_text().replace('"bytes":', '"bytes":1', 1))
    silo.checks().blames("home", "egress.jsonl is not as it was written", untried=HOME_ROWS)


def test_an_agent_that_is_running_is_no_fault_and_what_it_keeps_from_being_tried_is_said(silo: Silo) -> None:
    home = Home(silo.home)
    home.take()
    try:
        checked = silo.checks()
    finally:
        home.leave()
    assert checked.status == 0
    assert checked.are("FAIL") == []
    assert checked.are("not tried") == [HOME_ROWS[0], "home", *HOME_ROWS[1:]]
    assert "stop it" in checked.rows["home"]["found"]


def test_a_disk_that_is_nearly_full(silo: Silo, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage
    monkeypatch.setattr("silo_agent.check.shutil.disk_usage", lambda at: real(at)._replace(free=900_000_000))
    silo.checks().blames("disk", "0.90 GB are free", "may need 1.00", str(silo.home))


def test_a_disk_without_room_for_the_largest_model_seen(silo: Silo, monkeypatch: pytest.MonkeyPatch) -> None:
    silo.home.mkdir()
    with (silo.home / "update.safetensors").open("wb") as large:
        large.truncate(3_000_000_000)  # it takes no room itself
    real = shutil.disk_usage
    monkeypatch.setattr("silo_agent.check.shutil.disk_usage", lambda at: real(at)._replace(free=5_000_000_000))
    silo.checks().blames("disk", "5.00 GB are free", "may need 6.00")


# --- health -----------------------------------------------------------------------------------------------------------


def test_health_that_can_be_answered_and_a_port_that_is_taken(silo: Silo) -> None:
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        port = theirs.getsockname()[1]
        silo.said["health"] = {"port": port}
        silo.checks().blames("health", f"cannot listen on 127.0.0.1:{port}: Address already in use", "health.port")
    assert silo.checks().rows["health"]["good"]


def test_an_agent_that_is_running_has_the_port_itself(silo: Silo) -> None:
    home = Home(silo.home)
    home.take()
    try:
        with socket.create_server(("127.0.0.1", 0)) as its_own:
            silo.said["health"] = {"port": its_own.getsockname()[1]}
            checked = silo.checks()
    finally:
        home.leave()
    assert checked.status == 0
    assert checked.rows["health"]["state"] == "not tried"


# --- the task ---------------------------------------------------------------------------------------------------------


def code_is_gone(silo: Silo) -> None:
    silo.script.rename(silo.script.with_name("other.py"))


def code_differs(silo: Silo) -> None:
    with silo.script.open("a") as script:
        script.write("# one more line\n")


def data_is_gone(silo: Silo) -> None:
    silo.data.unlink()


def no_directory(silo: Silo) -> None:
    silo.task["directory"] = str(silo.path / "nowhere")


def no_command(silo: Silo) -> None:
    silo.task["command"] = ["no-such-program", "add.py"]


def no_command_by_path(silo: Silo) -> None:
    silo.task["command"] = ["./no-such-program"]


def fails(silo: Silo) -> None:
    silo.does("raise SystemExit(3)\n")


def reports_nothing(silo: Silo) -> None:
    silo.does("print('done')\n")


def tensor_may_not_leave(silo: Silo) -> None:
    silo.task["outbound"]["tensors"] = ["layer.weight"]


def too_few_samples(silo: Silo) -> None:
    silo.task["outbound"]["min_samples"] = 65


@pytest.mark.parametrize(
    ("breaks", "red", "told"),
    [
        (code_is_gone, "code", ["there is no", "tasks.add.code.path"]),
        (code_differs, "code", ["not the approved one", "its digest is", "tasks.add.code.sha256"]),
        (data_is_gone, "data", ["data-missing", "rows: ", "rows.csv", "tasks.add.data"]),
        (no_directory, "command", ["nowhere", "tasks.add.directory"]),
        (no_command, "command", ["no-such-program", "tasks.add.command"]),
        (no_command_by_path, "command", ["./no-such-program", "tasks.add.command"]),
        (fails, "", ["script-error", "what it printed is in", "output.txt"]),
        (reports_nothing, "", ["no-report", "silobus.rounds()"]),
        (tensor_may_not_leave, "", ["outbound-forbidden", "tensor layer.bias: not named", "tasks.add.outbound"]),
        (too_few_samples, "", ["too-few-samples", "min_samples is 65", "tasks.add.outbound"]),
    ],
)
def test_a_task(silo: Silo, breaks: Callable[[Silo], None], red: str, told: list[str]) -> None:
    breaks(silo)
    row = f"task {TASK}: {red}" if red else f"task {TASK}"
    silo.checks().blames(row, *told, untried=[f"task {TASK}"] if red else [])


def test_a_command_in_the_tasks_own_directory(silo: Silo) -> None:
    program = silo.script.with_name("train")
    program.write_text(f"#!/bin/sh\nexec {sys.executable} add.py\n")
    program.chmod(0o700)
    silo.task["command"] = ["./train"]
    silo.task["code"] = {"path": str(silo.script.parent), "sha256": code_digest(silo.script.parent)}
    checked = silo.checks()
    assert checked.status == 0, checked.output


def test_a_metric_that_may_not_leave_stays_and_is_named(silo: Silo) -> None:
    """The update leaves without it: nothing is red."""
    silo.does_as_people_do()
    silo.task["outbound"]["metrics"] = {}
    checked = silo.checks()
    assert checked.status == 0, checked.output
    assert "stays here: metric level (received): not named by the outbound rules, left out" in checked.output
