"""What commands say of errors that are expected."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from messages.errors import Forbidden, NoCredential, NotFound, Poison, SilobusError, Transient
from orchestrator.cli import main
from orchestrator.cli.terminal import Complaint, explain

SAYS: dict[Complaint | SilobusError, str] = {
    NoCredential("no token can be had with azure-cli (CredentialUnavailableError): did you `az login`?"): (
        "Not signed in: no token can be had with azure-cli (CredentialUnavailableError): did you `az login`?\n"
        "The settings name this credential, under `bus` or `store`."
    ),
    Transient("cannot send to 'work': ServiceBusError"): (
        "Not reachable right now: cannot send to 'work': ServiceBusError\n"
        "Is the federation running (`silobus up`)? Is the network down?"
    ),
    Forbidden("cannot send to 'work'"): (
        "Not allowed: cannot send to 'work'\nThe identity in use needs the right for this queue, container or folder."
    ),
    NotFound("state/live.json"): "Not found: state/live.json",
    Poison("too-large", "The message is too large."): "The message is too large. (too-large)",
    Complaint("There is no queue."): "There is no queue.",
}


@pytest.mark.parametrize("error", SAYS, ids=lambda error: type(error).__name__)
def test_an_error_says_what_happened_and_what_to_do_next(error: Complaint | SilobusError) -> None:
    assert explain(error) == SAYS[error]


def typed(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command as a shell runs it, with the streams that the shell gives it."""
    line = line.replace("silobus-agent", f"{sys.executable} -m silo_agent")
    line = line.replace("silobus ", f"{sys.executable} -c 'from orchestrator.cli import main; main()' ")
    environment = {**os.environ, **variables}
    command = ["bash", "-c", line]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)


@pytest.mark.parametrize("command", ["silobus schema", "silobus --help"])
def test_output_that_nobody_can_take_is_told_in_a_line(command: str) -> None:
    done = typed(f"{command} > /dev/full")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "could not be written: No space left on device. Make room" in done.stderr


@pytest.mark.parametrize("command", ["silobus schema >&-", "silobus start - --print <&-", "silobus schema >&- 2>&-"])
def test_a_stream_that_was_closed_before_is_no_trouble(command: str) -> None:
    done = typed(command)
    assert "Traceback" not in done.stderr
    assert done.returncode == (1 if "start" in command else 0)


def test_what_a_terminal_has_no_letters_for_is_printed_as_it_can(tmp_path: Path) -> None:
    done = typed(
        f"silobus start --print {tmp_path}/$(printf 'gr\\303\\266\\337e')", PYTHONIOENCODING="ascii", LC_ALL="C"
    )
    assert "cannot be read: No such file" in done.stderr
    (tmp_path / "start.yaml").write_text("experiment: a\ntask: b\nrounds: 1\nhyperparameters: {a: ü}\n")
    done = typed(f"silobus start --print {tmp_path}/start.yaml", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\xfc" in done.stdout


@pytest.mark.parametrize("command", ["up", "demo"])
def test_a_folder_that_is_there_and_cannot_be_written_is_told(tmp_path: Path, command: str) -> None:
    (tmp_path / ("lock" if command == "up" else "logs")).symlink_to("/proc/nowhere/x")
    done = typed(f"silobus {command} --dir {tmp_path}")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"{tmp_path}/l" in done.stderr


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise TimeoutError

    monkeypatch.setattr("orchestrator.cli.app", broken)
    with pytest.raises(TimeoutError):
        main()


def test_what_azures_libraries_log_is_not_on_the_screen_of_a_command() -> None:
    code = """
        import logging
        from typer.testing import CliRunner
        from orchestrator.cli import app
        assert CliRunner().invoke(app, ["schema"]).exit_code == 0
        logging.getLogger("azure.servicebus.aio").error("a traceback")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("module", "loads"),
    [("orchestrator", "messages.ports"), ("silo_agent", "typer"), ("servicebus_emulator", "servicebus_emulator.door")],
)
def test_ctrl_c_while_a_program_is_only_being_loaded_is_no_traceback(tmp_path: Path, module: str, loads: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
        import os, signal, sys
        class Finder:
            def find_spec(self, name, *rest):
                if name == {loads!r}:
                    os.kill(os.getpid(), signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs these tests may have had it ignored
        sys.meta_path.insert(0, Finder())
        """)
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert (done.returncode, done.stderr) == (130, "Stopped.\n")
