"""A real emulator process for tests: started, killed, started again over the same data."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent


class EmulatorProcess:
    """``queues`` are names, or names with settings; ``defaults`` are settings for all of them.

    Settings are the properties of the configuration file: ``LockDuration="PT5S"``, ``MaxDeliveryCount=3``. ``rules``
    are authorization rules by queue, those of the namespace under ``""``; without any everybody may do all. The port
    stays the same from one start to the next, so clients with the old connection string find it again.
    """

    def __init__(
        self,
        data_dir: Path | str,
        queues: Iterable[str] | Mapping[str, Mapping[str, Any]] = (),
        *,
        options: Iterable[str] = (),
        rules: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        **defaults: Any,
    ) -> None:
        self.data_dir = Path(data_dir)
        self.port = 0
        self._options = list(options)
        self._rules = rules or {}
        named = queues if isinstance(queues, Mapping) else {name: {} for name in queues}
        self._queues = {name: {**defaults, **properties} for name, properties in named.items()}
        self._process: subprocess.Popen[str] | None = None

    @property
    def connection_string(self) -> str:
        return (
            f"Endpoint=sb://127.0.0.1:{self.port};SharedAccessKeyName=any;SharedAccessKey=any;"
            "UseDevelopmentEmulator=true;"
        )

    @property
    def pid(self) -> int:
        assert self._process is not None, "the emulator is not running"
        return self._process.pid

    @property
    def log_file(self) -> Path:
        return self.data_dir / "emulator.log"

    def start(self) -> Self:
        assert self._process is None, "the emulator is running already"
        self.data_dir.mkdir(parents=True, exist_ok=True)
        config = self.data_dir / "config.json"
        config.write_text(
            json.dumps(
                {
                    "UserConfig": {
                        "Namespaces": [
                            {
                                "Name": "test",
                                "AuthorizationRules": self._rules.get("", []),
                                "Queues": [
                                    {
                                        "Name": name,
                                        "Properties": properties,
                                        "AuthorizationRules": self._rules.get(name, []),
                                    }
                                    for name, properties in self._queues.items()
                                ],
                            }
                        ]
                    }
                }
            )
        )
        command = [sys.executable, "-m", "servicebus_emulator", "--port", str(self.port)]
        command += ["--data", str(self.data_dir / "data"), "--config", str(config), *self._options]
        with self.log_file.open("a") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        watchdog = threading.Timer(60, self._process.kill)  # readline below has no timeout of its own
        watchdog.start()
        line = self._process.stdout.readline()
        watchdog.cancel()
        if not line.startswith("listening on "):
            self.kill()
            raise RuntimeError(f"the emulator did not start:\n{self.log_file.read_text()[-4000:]}")
        self.port = int(line.rsplit(":", 1)[1])
        return self

    def stop(self) -> int:
        """As an operator stops it; the exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As a power cut stops it."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(number)
        status = self._process.wait(timeout=60)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None
        return status

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
