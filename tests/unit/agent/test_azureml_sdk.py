"""The SDK's own logs, which hold what AzureML answers, and an agent's log, which may not."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("azure.ai.ml")

SPEAKS = """
import logging
from azure.ai.ml import MLClient
from silo_agent.runners.azureml_sdk import _silence

_silence()
{then}
for name in sorted(logging.root.manager.loggerDict):
    if name.startswith("azure.ai.ml"):
        logging.getLogger(name).error("ErrorMessage=%s", "no more than 4 nodes of " + name)
"""
MAKES_A_CLIENT = 'logging.getLogger("azure.ai.ml._telemetry").setLevel(logging.INFO)'
"""The first thing that making another client does to it, before it adds a handler."""


@pytest.mark.parametrize("then", ["", MAKES_A_CLIENT], ids=["once silenced", "while a second client is made"])
def test_no_logger_of_the_sdk_says_what_azureml_answered(then: str) -> None:
    """In a process of its own: what is imported here, and how, is other tests' affair."""
    command = [sys.executable, "-c", textwrap.dedent(SPEAKS).format(then=then)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_what_a_second_client_changes_of_the_loggers_is_what_the_test_above_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from azure.ai.ml._telemetry import logging_handler

    logger = logging.getLogger("azure.ai.ml._telemetry")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logging.CRITICAL + 1)
    found: list[tuple[int, int]] = []

    def looks() -> bool:
        found.append((logger.level, len(logger.handlers)))
        return False

    monkeypatch.setattr(logging_handler, "in_jupyter_notebook", looks)
    logging_handler.configure_appinsights_logging(user_agent=None, enable_telemetry=False)
    assert found == [(logging.INFO, 0)]
