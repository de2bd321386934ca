"""Log lines are JSON with an event and ids, and what looks like a secret does not get out by them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from messages.log import EventLog, configure, redact

KEY = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0MDA="
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzaWxvIn0.c2lnbmF0dXJlc2lnbmF0dXJl"


@pytest.fixture
def lines() -> Iterator[Any]:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    stream = io.StringIO()
    configure("orchestrator", stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:], _ = before
    root.setLevel(before[1])


@pytest.mark.parametrize(
    "text",
    [
        f"Endpoint=sb://x.servicebus.windows.net/;SharedAccessKeyName=root;SharedAccessKey={KEY}",
        f"Endpoint=sb://x/;sharedaccesskey = {KEY};EntityPath=q",
        f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={KEY};EndpointSuffix=core.windows.net",
        f"SharedAccessSignature=sv=2024&sig={KEY}",
        f"SharedAccessSignature sr=sb%3a%2f%2fx&sig={KEY}&se=1&skn=root",
        f"https://a.blob.core.windows.net/c/b?sv=2024-01-01&sr=b&sig={KEY}&se=2026",
        f"https://a.blob.core.windows.net/c/b?SIG={KEY}",
        f"Authorization: Bearer {JWT}",
        f"Authorization: Bearer {KEY}",
        f"token {JWT} expired",
        f"grant_type=client_credentials&client_secret={KEY}&scope=x",
        f"http://user:{KEY}@proxy.example:3128",
        f"1 validation error [type=x, input_value='{KEY}', input_type=str]",
    ],
)
def test_secrets_are_redacted(text: str) -> None:
    assert KEY not in redact(text)
    assert KEY.rstrip("=") not in redact(text)
    assert JWT not in redact(text)
    assert "[redacted]" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "round.aggregated mnist_0123abcd 3",
        "Endpoint=sb://x.servicebus.windows.net/;SharedAccessKeyName=root",
        "https://a.blob.core.windows.net/c/b?sv=2024-01-01",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "cannot send to 'to-north': ServiceBusConnectionError (amqp:socket-error)",
    ],
)
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    assert redact(text) == text


def test_an_event_is_one_line_of_json_with_its_ids(lines: Any) -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    EventLog("orchestrator.service").info("round.aggregated", run="mnist_0123abcd", round=3, silos=("a", "b"), at=at)
    (line,) = lines()
    assert abs((datetime.fromisoformat(line.pop("time")) - datetime.now(UTC)).total_seconds()) < 10
    assert line == {
        "level": "info",
        "process": "orchestrator",
        "event": "round.aggregated",
        "run": "mnist_0123abcd",
        "round": 3,
        "silos": ["a", "b"],
        "at": "2026-01-02T00:00:00+00:00",
    }


def test_a_traceback_stays_on_its_line_without_secrets(lines: Any) -> None:
    try:
        raise RuntimeError(f"cannot connect\nwith SharedAccessKey={KEY}")
    except RuntimeError:
        EventLog("messages.consumer").exception("message.bug", error=f"sig={KEY}", nested={"a": [f"sig={KEY}"]})
    (line,) = lines()
    assert line["event"] == "message.bug"
    assert "RuntimeError: cannot connect" in line["traceback"]
    assert KEY not in json.dumps(line)


def test_what_pydantic_repeats_of_a_message_is_not_logged(lines: Any) -> None:
    class Model(BaseModel):
        weight: int

    received = json.loads('{"weight": "patient \\u0034711"}')
    try:
        Model.model_validate(received)
    except ValidationError:
        EventLog("messages.consumer").exception("message.bug")
    assert "4711" not in json.dumps(lines())


def test_libraries_are_heard_from_warning_on_in_their_own_words(lines: Any) -> None:
    library = logging.getLogger("azure.servicebus._pyamqp")
    library.info("-> OpenFrame()")
    logging.getLogger("some.other.library").info("hello")
    library.error("Failed with %s", f"SharedAccessKey={KEY}")
    (line,) = lines()
    assert line["event"] == "library.log"
    assert line["logger"] == "azure.servicebus._pyamqp"
    assert line["text"] == "Failed with SharedAccessKey=[redacted]"


def test_debug_events_are_left_out_unless_asked_for(lines: Any) -> None:
    EventLog("messages.consumer").debug("message.over")
    assert lines() == []
    stream = io.StringIO()
    configure("orchestrator", level="DEBUG", stream=stream)
    EventLog("messages.consumer").debug("message.over")
    assert json.loads(stream.getvalue())["event"] == "message.over"


def test_a_field_may_be_anything(lines: Any) -> None:
    EventLog("messages").info("x", error=ValueError(f"sig={KEY}"), nothing=None, path=io)
    (line,) = lines()
    assert line["error"] == "sig=[redacted]"
    assert line["nothing"] is None
