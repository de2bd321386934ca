"""The decorators with which the SDK's tests ask for a namespace and queues: here, an emulator of their own each.

A decorator adds to the keyword arguments of its test. The queue's stands below the namespace's, so the namespace knows
its queues when it starts.
"""

import functools
import inspect
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.certificates import Certificates
from tests.emulator_process import EmulatorProcess

SERVICEBUS_ENDPOINT_SUFFIX = ""  # a namespace's name is its host and port
FOLDER = "SDK_SUITE_FOLDER"  # where emulators keep their data and logs, and find the certificates
MOST_BYTES = 256 * 1024  # of a message, in the namespaces of the tests: those of the Standard tier
QUEUE = "queue"


@dataclass(frozen=True)
class Resource:
    """As the tests know it: they ask for its name."""

    name: str


class Preparer:
    """Wraps a test, which may be a coroutine, in `provide`."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    @contextmanager
    def provide(self, test: Callable[..., Any]) -> Iterator[dict[str, Any]]:
        """What is added to the test's arguments."""
        yield {}

    def __call__(self, test: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(test)
        def run(*arguments: Any, **given: Any) -> Any:
            with self.provide(test) as added:
                return test(*arguments, **given, **added)

        @functools.wraps(test)
        async def run_async(*arguments: Any, **given: Any) -> Any:
            with self.provide(test) as added:
                return await test(*arguments, **given, **added)

        return run_async if inspect.iscoroutinefunction(test) else run


class NamespacePreparer(Preparer):
    """One emulator for one test."""

    @contextmanager
    def provide(self, test: Callable[..., Any]) -> Iterator[dict[str, Any]]:
        place = Path(os.environ[FOLDER])
        certificates = Certificates(*(place / f"{name}.pem" for name in ("ca", "cert", "key")))
        options = ["--max-message-size", str(MOST_BYTES), *certificates.options]
        folder = tempfile.mkdtemp(prefix=f"{test.__name__[:40]}-", dir=place)
        with EmulatorProcess(folder, getattr(test, "queues", {}), options=options) as emulator:
            yield {
                "servicebus_namespace": Resource(f"127.0.0.1:{emulator.port}"),
                "servicebus_namespace_connection_string": emulator.connection_string,
                "servicebus_namespace_key_name": "any",
                "servicebus_namespace_primary_key": "any",
            }
            bugs = [line for line in emulator.log_file.read_text().splitlines() if '"connection.bug"' in line]
            assert not bugs, bugs


class ServiceBusQueuePreparer(Preparer):
    @contextmanager
    def provide(self, test: Callable[..., Any]) -> Iterator[dict[str, Any]]:
        yield {"servicebus_queue": Resource(QUEUE)}

    def __call__(self, test: Callable[..., Any]) -> Callable[..., Any]:
        prepared = super().__call__(test)
        prepared.__dict__["queues"] = {QUEUE: settings_of(**self.options)}
        return prepared


def settings_of(
    *,
    lock_duration: str = "PT30S",
    requires_duplicate_detection: bool = False,
    dead_lettering_on_message_expiration: bool = False,
    requires_session: bool = False,
    **_ignored: object,
) -> dict[str, Any]:
    """The properties in the emulator's configuration."""
    return {
        "LockDuration": lock_duration,
        "RequiresDuplicateDetection": requires_duplicate_detection,
        "DeadLetteringOnMessageExpiration": dead_lettering_on_message_expiration,
        "RequiresSession": requires_session,
    }


CachedServiceBusResourceGroupPreparer = Preparer
CachedServiceBusNamespacePreparer = NamespacePreparer
CachedServiceBusQueuePreparer = ServiceBusQueuePreparer
