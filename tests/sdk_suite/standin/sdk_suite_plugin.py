"""The pytest plugin of the suite: clients that come here, a limit on each test's time, and its outcome in a file."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.servicebus import ServiceBusClient, TransportType, aio

OUTCOMES = "SDK_SUITE_OUTCOMES"  # the file to write
LIMIT = "SDK_SUITE_LIMIT"  # seconds for one test
CA = str(Path(os.environ["SDK_SUITE_FOLDER"], "ca.pem"))


def point_here(client: Any) -> None:
    """Clients of this class go to where their namespace says: a port of this machine.

    AMQP goes without TLS, as a connection string with UseDevelopmentEmulator has it. AMQP over WebSocket always goes
    with TLS, and to port 443 unless another endpoint is named.
    """
    begin = client.__init__

    def init(self: Any, fully_qualified_namespace: str, *arguments: Any, **options: Any) -> None:
        here: dict[str, Any] = {"use_tls": False}
        if options.get("transport_type") is TransportType.AmqpOverWebsocket:
            here = {"custom_endpoint_address": f"sb://{fully_qualified_namespace}", "connection_verify": CA}
        begin(self, fully_qualified_namespace, *arguments, **{**here, **options})

    client.__init__ = init


point_here(ServiceBusClient)
point_here(aio.ServiceBusClient)

SLOWEST = ("keep_conn_alive", "link_timeout")  # minutes each: they begin first


def pytest_configure(config: pytest.Config) -> None:
    for name in ("liveTest", "live_test_only", "playback_test_only"):
        config.addinivalue_line("markers", f"{name}: of the SDK's tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(part in item.name for part in SLOWEST))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A test that hangs fails."""

    def give_up(_number: int, _frame: object) -> None:
        raise TimeoutError("the test takes too long")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(int(os.environ[LIMIT]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        note(report.nodeid, "not collected", report.longreprtext.strip().splitlines()[-1])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.passed:
        return
    name = report.nodeid.removesuffix("[pyamqp]").rpartition("::")[2]
    module = "async" if "_async.py" in report.nodeid else "sync"
    why = ""
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        why = crash.message if crash is not None else report.longreprtext.strip().splitlines()[-1]
    elif report.skipped and isinstance(report.longrepr, tuple):
        why = str(report.longrepr[2])
    note(f"{module}::{name}", str(report.outcome), why)


def note(test: str, outcome: str, why: str) -> None:
    """A line of the outcomes. Workers report to the process that started them, and only that one writes."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        line = json.dumps([test, outcome, " ".join(why.split())[:300]])
        with Path(os.environ[OUTCOMES]).open("a") as file:
            file.write(line + "\n")
