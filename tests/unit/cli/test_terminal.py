"""What commands say of errors that are expected."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from messages.errors import Forbidden, NoCredential, NotFound, Poison, SilobusError, Transient
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
        "Not allowed: cannot send to 'work'\nThe identity in use needs the right for this queue or container."
    ),
    NotFound("state/live.json"): "Not found: state/live.json",
    Poison("too-large", "The message is too large."): "The message is too large. (too-large)",
    Complaint("There is no queue."): "There is no queue.",
}


@pytest.mark.parametrize("error", SAYS, ids=lambda error: type(error).__name__)
def test_an_error_says_what_happened_and_what_to_do_next(error: Complaint | SilobusError) -> None:
    assert explain(error) == SAYS[error]


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
