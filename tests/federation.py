"""A whole federation for tests: embedded Service Bus, orchestrators, agents as real processes; trainers without torch.

It is laid out and run as `silobus up` does it, but with short locks, and nothing is started again unless a test does
so. Tests speak to it with azure-servicebus itself and read the store's documents; nothing is asked of the processes.
Whoever may do a thing does it: a message to the orchestrator is sent with the key of the silo that it is from.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

import numpy as np
import yaml
from azure.servicebus import (
    ServiceBusClient,
    ServiceBusMessage,
    ServiceBusReceivedMessage,
    ServiceBusReceiver,
    ServiceBusSender,
    ServiceBusSubQueue,
)
from azure.servicebus.exceptions import ServiceBusError

from messages import names
from messages.errors import InvalidWeights, NotFound
from messages.ports import Store
from messages.rights import OPERATOR, Right, principals
from messages.settings import StoreSettings
from messages.transport.connect import open_store
from messages.weights import parse_layout, read_tensors, write_file
from orchestrator.cli.folder import (
    Folder,
    keys_of,
    make,
    write_connections,
    write_operator,
    write_orchestrator,
    write_queues,
    write_silo,
)
from orchestrator.cli.keys import connection_string
from orchestrator.cli.processes import die_with_parent
from orchestrator.documents import ExperimentDocument, Presence
from orchestrator.experiment.state import Collecting, Ended, RoundRecord, State, Tombstone
from silo_agent.code_digest import code_digest
from silo_agent.runners.processes import marked

T = TypeVar("T")
Array = np.ndarray[Any, np.dtype[Any]]

TRAINERS = Path(__file__).parent / "trainers"
TASK = "add"
PATIENCE = 120.0
"""Seconds for what must come."""
DIGEST = "ab" * 32
"""A digest of nothing."""
SOON = 0.04
"""Seconds between two looks."""


@dataclass(frozen=True, slots=True)
class Silo:
    """A silo whose trainer adds `adds` to all weights, weighing `samples`; `tasks` are more tasks of its owner's."""

    name: str
    adds: float = 1.0
    samples: int = 64
    tasks: Mapping[str, Mapping[str, Any]] | None = None
    agent: bool = True
    """False: enrolled, but a test plays it by hand."""


THREE = (Silo("north", 1, 64), Silo("south", 3, 64), Silo("east", 4, 128))
"""Weighed a quarter, a quarter and a half: together they add exactly 3 in a round, in any floating-point arithmetic."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A message, as queue tooling shows it."""

    queue: str
    message_id: str
    body: bytes
    reason: str
    description: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Federation:
    """Use it in a `with` block. Processes are `bus`, `orchestrator` (and `orchestrator-2`, …) and `agent-<silo>`."""

    def __init__(
        self,
        silos: Sequence[Silo] = THREE,
        *,
        lock: float = 4,
        heartbeat: float = 1,
        store: Callable[[str], Mapping[str, Any]] | None = None,
    ) -> None:
        """`store` says what stands under `store` in the settings of `orchestrator`, `operator` and `agent-<silo>`, and
        how the `test` looks at it; without it there is a directory for all."""
        # Not pytest's tmp_path: sockets lie below, and their paths may not be longer than about a hundred bytes.
        self._top = Path(tempfile.mkdtemp(prefix="silobus-test-"))
        self.folder = Folder(self._top / "fed")
        self.silos = {silo.name: silo for silo in silos}
        self.port = 0
        self.faults: tuple[str, ...] = ()
        """What the bus is asked to go wrong with, from its next start on."""
        self.keys = keys_of(self.folder, list(self.silos))
        self._lock, self._heartbeat = lock, heartbeat
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.store_of = store or (lambda _: {"directory": str(self.folder.store)})
        self._clients: dict[str, ServiceBusClient] = {}
        self._links: dict[tuple[str, str], ServiceBusSender | ServiceBusReceiver] = {}

    # --- starting and ending -----------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self.lay_out()
            self.start("bus")
            for name in ("orchestrator", *self.agents):
                self.start(name)
            self.ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            sys.stderr.write(self.tails())
        self._disconnect()
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait(60)
        for silo in self.silos:
            for pid in self.trainers(silo):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self._top, ignore_errors=True)

    @property
    def agents(self) -> list[str]:
        """Names of the agents' processes."""
        return [f"agent-{silo.name}" for silo in self.silos.values() if silo.agent]

    def lay_out(self) -> None:
        """The folder, as `silobus up` makes it; then locks are made short."""
        make(self.folder)
        write_queues(self.folder, list(self.silos), self.keys)
        queues = json.loads(self.folder.queues.read_text())
        for queue in queues["UserConfig"]["Namespaces"][0]["Queues"]:
            queue["Properties"]["LockDuration"] = f"PT{self._lock:g}S"
        self.folder.queues.write_text(json.dumps(queues))
        write_orchestrator(self.folder, list(self.silos))
        write_operator(self.folder, list(self.silos))
        for container in names.containers(list(self.silos)):
            (self.folder.store / container).mkdir(parents=True, exist_ok=True)
        for silo in self.silos.values():
            self.control(silo.name).mkdir(parents=True)
            tasks = {TASK: self.task(silo)} | {n: self.task(silo, **t) for n, t in (silo.tasks or {}).items()}
            write_silo(self.folder, silo.name, {"heartbeat": self._heartbeat, "tasks": tasks})
        everybody = {"orchestrator": self.folder.orchestrator, "operator": self.folder.operator}
        for name, path in (everybody | {f"agent-{silo}": self.folder.silo(silo) for silo in self.silos}).items():
            said = yaml.safe_load(path.read_text())
            path.write_text(yaml.safe_dump(said | {"store": dict(self.store_of(name))}))

    def task(
        self,
        silo: Silo,
        *,
        script: Path = TRAINERS / "add.py",
        limits: Mapping[str, Any] | None = None,
        outbound: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """An owner's rules for one task; generous unless said otherwise."""
        own = {"ADD": str(silo.adds), "SAMPLES": str(silo.samples), "CONTROL": str(self.control(silo.name))}
        generous = {"rounds": 10_000, "quorum": 1, "silos": 1, "hyperparameters": {"delay": {"min": 0, "max": 600}}}
        leaves = {"tensors": ["*"], "dtypes": ["float32", "float16"], "max_bytes": 1_000_000, "metrics": {"level": {}}}
        return {
            "command": [sys.executable, script.name],
            "directory": str(script.parent),
            "code": {"path": str(script), "sha256": code_digest(script)},
            "mode": "warm",
            "timeout": 120,
            "environment": own | dict(environment or {}),
            "limits": generous | dict(limits or {}),
            "outbound": leaves | dict(outbound or {}),
            **more,
        }

    def ready(self) -> None:
        """Returns when every agent has been heard of."""
        waiting = [silo.name for silo in self.silos.values() if silo.agent]
        self.until(lambda: all(self.presence(silo) for silo in waiting), "not every silo has said hello")

    # --- processes ---------------------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Starts a process (again). The bus is ready on return; the others begin to be."""
        assert name not in self._processes, f"{name} is running already"
        if name == "bus":
            self._start_bus()
        elif name.startswith("orchestrator"):
            self._spawn(name, "orchestrator", "--config", str(self.folder.orchestrator))
        else:
            config = self.folder.silo(name.removeprefix("agent-"))
            self._spawn(name, "silo_agent", "run", "--config", str(config))

    def kill(self, name: str) -> None:
        """As a power cut ends it."""
        self._end(name, signal.SIGKILL)

    def stop(self, name: str) -> int:
        """As an operator stops it; the exit status."""
        return self._end(name, signal.SIGTERM)

    def restart(self, name: str) -> None:
        """Killed, and started again."""
        self.kill(name)
        self.start(name)

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def alive(self, name: str) -> bool:
        return name in self._processes and self._processes[name].poll() is None

    def trainers(self, silo: str) -> list[int]:
        """Process ids of what trains in a silo."""
        return marked(f"CONTROL={self.control(silo)}")

    def _start_bus(self) -> None:
        log = self.folder.log("bus")
        before = log.stat().st_size if log.exists() else 0
        arguments = ("--port", str(self.port), "--data", str(self.folder.bus), "--config", str(self.folder.queues))
        asked = (option for fault in self.faults for option in ("--fault", fault))
        process = self._spawn("bus", "servicebus_emulator", *arguments, "--seed", "1", *asked)

        def port_told() -> int | None:
            assert process.poll() is None, "the bus did not start"
            said = log.read_bytes()[before:].partition(b"listening on ")[2].partition(b"\n")
            return int(said[0].rpartition(b":")[2]) if said[1] else None

        self.port = self.until(port_told, "the bus does not listen")
        write_connections(self.folder, list(self.silos), self.keys, self.port)

    def _spawn(self, name: str, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = self.folder.log(name)
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509  # it calls prctl and nothing else
            )
        return self._processes[name]

    def _end(self, name: str, number: signal.Signals) -> int:
        process = self._processes.pop(name)
        process.send_signal(number)
        return process.wait(60)

    # --- training held by a test -------------------------------------------------------------------------------------

    def control(self, silo: str) -> Path:
        """Where tests and a silo's trainer meet (`tests/trainers/add.py`)."""
        return self.folder.root / "silos" / silo / "control"

    @contextlib.contextmanager
    def held(self, *silos: str) -> Iterator[None]:
        """Training in these silos (all of them when none is named) goes on for as long as the block lasts."""
        files = [self.control(silo) / "hold" for silo in silos or self.silos]
        for file in files:
            file.touch()
        try:
            yield
        finally:
            for file in files:
                file.unlink()

    def allow(self, experiment: str, last_round: int) -> None:
        """Training of this experiment goes on in the rounds after this one, everywhere, until more are allowed."""
        for silo in self.silos:
            fresh = self.control(silo) / f"allow-{experiment}.new"
            fresh.write_text(str(last_round))
            fresh.replace(fresh.with_suffix(""))

    def training(self, silo: str, experiment: str | None = None, round_number: int | None = None) -> int:
        """Waits until a held trainer trains (for this experiment, in this round); its process id."""

        def pid() -> int | None:
            with contextlib.suppress(FileNotFoundError):
                told = (self.control(silo) / "training").read_text().split()
                right = experiment in (None, names.experiment_of(told[1])) and round_number in (None, int(told[2]))
                return int(told[0]) if right and int(told[0]) in self.trainers(silo) else None
            return None

        return self.until(pid, f"{silo} does not train")

    # --- queues, through the SDK -------------------------------------------------------------------------------------

    def post(self, message: Mapping[str, Any] | bytes, queue: str = names.EXPERIMENTS, *, id: str | None = None) -> str:
        """Sends a message as queue tooling would: a body, nothing else. Returns its id."""
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        outgoing = ServiceBusMessage(body, message_id=id or str(uuid4()), content_type="application/json")
        self._with_link("send", queue, lambda sender: sender.send_messages(outgoing))
        return str(outgoing.message_id)

    def start_experiment(self, experiment: str, *, rounds: int = 1, task: str = TASK, **more: Any) -> str:
        """Posts a start-experiment and returns the id that its run will have."""
        message = {"kind": "start-experiment", "experiment": experiment, "task": task, "rounds": rounds, **more}
        body = json.dumps(message).encode()
        return names.run_id(experiment, self.post(body), body)

    def peek(self, queue: str) -> list[Letter]:
        """All messages of a queue, locked and scheduled ones included."""
        return self._peek(queue, "peek")

    def dead_letters(self, queue: str) -> list[Letter]:
        """All dead letters of a queue."""
        return self._peek(queue, "dead")

    def dead_letter(self, queue: str, message_id: str) -> Letter:
        """Waits until this message is dead-lettered."""
        return self.until(
            lambda: next((i for i in self.dead_letters(queue) if i.message_id == message_id), None),
            f"{message_id} is not among the dead letters of {queue}",
        )

    def quietly_completed(self, queue: str, message_id: str) -> None:
        """Waits until this message is gone, and sees that it is no dead letter."""
        self.until(
            lambda: all(i.message_id != message_id for i in self.peek(queue)), f"{message_id} is still in {queue}"
        )
        found = [i for i in self.dead_letters(queue) if i.message_id == message_id]
        assert not found, f"dead-lettered instead: {found[0].reason}: {found[0].description}"

    def receive(self, queue: str, wait: float = PATIENCE) -> Letter:
        """Takes the next message of a queue, as the one it is meant for."""

        def take(receiver: ServiceBusReceiver) -> Letter:
            received = receiver.receive_messages(max_message_count=1, max_wait_time=wait)
            assert received, f"nothing came on {queue}"
            receiver.complete_message(received[0])
            return _letter(queue, received[0])

        return self._with_link("take", queue, take)

    def _peek(self, queue: str, how: str) -> list[Letter]:
        def read(receiver: ServiceBusReceiver) -> list[Letter]:
            found: list[Letter] = []
            start = 1
            while page := receiver.peek_messages(200, sequence_number=start):
                found += [_letter(queue, message) for message in page]
                start = max(message.sequence_number or 0 for message in page) + 1
            return found

        return self._with_link(how, queue, read)

    def _with_link(self, how: str, queue: str, use: Callable[[Any], T]) -> T:
        """Opening and closing a link takes the SDK half a second each: they are kept until they break."""
        try:
            return use(self._link(how, queue))
        except (ServiceBusError, OSError):
            self._disconnect()
            return use(self._link(how, queue))

    def _link(self, how: str, queue: str) -> ServiceBusSender | ServiceBusReceiver:
        if (how, queue) not in self._links:
            client = self._client(self._who(how, queue))
            kinds: dict[str, Callable[[str], ServiceBusSender | ServiceBusReceiver]] = {
                "send": client.get_queue_sender,
                "take": partial(client.get_queue_receiver, prefetch_count=0),
                "peek": partial(client.get_queue_receiver, prefetch_count=0),
                "dead": partial(client.get_queue_receiver, sub_queue=ServiceBusSubQueue.DEAD_LETTER),
            }
            self._links[how, queue] = kinds[how](queue)
        return self._links[how, queue]

    def _who(self, how: str, queue: str) -> str:
        """The operator looks; whatever else is done, the first of the others does it that has the right."""
        if how in ("peek", "dead"):
            return OPERATOR
        right = Right.SEND if how == "send" else Right.LISTEN
        return next(who.name for who in principals(list(self.silos)) if who.may(right, queue))

    def _client(self, name: str) -> ServiceBusClient:
        if name not in self._clients:
            connection = connection_string(self.port, name, self.keys[name]).get_secret_value()
            self._clients[name] = ServiceBusClient.from_connection_string(connection)
        return self._clients[name]

    def _disconnect(self) -> None:
        def close(link: ServiceBusSender | ServiceBusReceiver) -> None:
            with contextlib.suppress(Exception):
                link.close()

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(close, self._links.values()))
        self._links.clear()
        self._clients.clear()

    # --- the store ---------------------------------------------------------------------------------------------------

    def document(self, container: str, name: str) -> bytes | None:
        """A small blob, or None when it is not there."""
        try:
            return self._in_store(lambda store: store.read(container, name)).data
        except NotFound:
            return None

    def create(self, container: str, name: str, data: bytes) -> None:
        """Creates a blob."""
        self._in_store(lambda store: store.create(container, name, data))

    def _in_store(self, use: Callable[[Store], Awaitable[T]]) -> T:
        async def used() -> T:
            store = open_store(StoreSettings.model_validate(self.store_of("test")))
            try:
                return await use(store)
            finally:
                await store.close()

        return asyncio.run(used())

    def status(self, experiment: str) -> State | None:
        """Where an experiment stands."""
        found = self.document(names.STATE, names.experiment_blob(experiment))
        return None if found is None else ExperimentDocument.model_validate_json(found).state

    def presence(self, silo: str) -> Presence | None:
        """When a silo was last heard of, and what it said."""
        found = self.document(names.STATE, names.presence_blob(silo))
        return None if found is None else Presence.model_validate_json(found)

    def record(self, run: str, round_number: int) -> RoundRecord | None:
        """What became of a round that is over."""
        found = self.document(names.STATE, names.round_blob(run, round_number))
        return None if found is None else RoundRecord.model_validate_json(found)

    def wait_for(self, experiment: str, outcome: str = "completed", timeout: float = PATIENCE) -> Ended:
        """Waits until the experiment has ended, which must be so."""

        def ended() -> Ended | None:
            state = self.status(experiment)
            return state if isinstance(state, Ended) else None

        found = self.until(ended, f"{experiment} goes on", timeout)
        assert found.outcome == outcome, f"{experiment} {found.outcome}: {found.reason}"
        return found

    def wait_for_round(self, experiment: str, round_number: int) -> Collecting:
        """Waits until this round is open."""

        def is_open() -> Collecting | None:
            state = self.status(experiment)
            assert not isinstance(state, Ended | Tombstone), f"{experiment} is over: {state}"
            return state if isinstance(state, Collecting) and state.round == round_number else None

        return self.until(is_open, f"round {round_number} of {experiment} does not open")

    def weights(self, run: str, round_number: int) -> dict[str, Array]:
        """The global weights that a round made; there must be exactly one file of them."""
        found = self._in_store(lambda store: store.list(names.GLOBAL, f"{run}/{round_number:05d}/"))
        assert len(found) == 1, f"{len(found)} results of round {round_number} of {run}"
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "file"
            self._in_store(lambda store: store.fetch(names.GLOBAL, found[0].name, target))
            return read_tensors(target)

    def egress(self, silo: str) -> list[dict[str, Any]]:
        """A silo's own log of what left. The line that is being written is left out."""
        written, _, _ = (self.folder.home(silo) / "egress.jsonl").read_bytes().rpartition(b"\n")
        return [json.loads(line) for line in written.splitlines()]

    def until(self, what: Callable[[], T | None], otherwise: str, timeout: float = PATIENCE) -> T:
        """What `what()` returns, once that is neither None nor false."""
        end = time.monotonic() + timeout
        while not (found := what()):
            assert time.monotonic() < end, f"after {timeout:g} s: {otherwise}\n{self.tails()}"
            time.sleep(SOON)
        return found

    # --- looking at everything ---------------------------------------------------------------------------------------

    def shared_files(self) -> Iterator[Path]:
        """Every file of the federation but those in the silos: queues, blobs, state, settings, logs."""
        inside = self.folder.root / "silos"
        return (p for p in everything_in(self.folder.root) if p.is_file() and not p.is_relative_to(inside))

    def files_with(self, text: str, files: Iterable[Path] | None = None) -> list[Path]:
        """Which of these files (all there are, if none are named) hold `text`, or have it in their path."""
        found = []
        for path in everything_in(self.folder.root) if files is None else files:
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                if text in str(path) or (path.is_file() and text.encode() in path.read_bytes()):
                    found.append(path)
        return found

    @property
    def secrets(self) -> list[str]:
        """Every key."""
        return [key.get_secret_value() for key in self.keys.values()]

    def tails(self, lines: int = 15) -> str:
        """The ends of all logs, for a person whose test has failed."""
        printed = (self.folder.root / "silos").glob("*/home/rounds/*/*/tries/*/output.txt")
        logs = [*sorted((self.folder.root / "logs").glob("*.log")), *list(printed)[-3:]]
        return "".join(f"--- {p.name}\n" + "".join(p.open(errors="replace").readlines()[-lines:]) for p in logs)


def everything_in(top: Path) -> Iterator[Path]:
    """All files and directories below `top`, while processes add and remove some: those that vanish are left out."""
    for folder, folders, files in os.walk(top):
        yield from (Path(folder) / name for name in (*folders, *files))


def result_of(record: RoundRecord, silos: Mapping[str, Silo]) -> float:
    """What a round adds to every weight: the mean of its silos' constants, weighed by their samples."""
    taken = [silos[update.silo] for update in record.updates]
    return sum(silo.adds * silo.samples for silo in taken) / sum(silo.samples for silo in taken)


def safetensors(tensors: Mapping[str, Array]) -> bytes:
    """The bytes of a weights file."""
    with tempfile.TemporaryDirectory() as folder:
        write_file(Path(folder) / "file", tensors)
        return (Path(folder) / "file").read_bytes()


def payload_of(data: bytes) -> dict[str, Any]:
    """The claim check for a weights file, as far as it is one."""
    try:
        layout = parse_layout(data, len(data)).digest
    except InvalidWeights:
        layout = DIGEST
    return {"sha256": sha256(data).hexdigest(), "bytes": len(data), "form": "weights", "layout": layout}


def announcement(run: str, payload: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A round-announced for the first training round, as an orchestrator would send it, but for `more`."""
    return {
        "kind": "round-announced",
        "experiment": names.experiment_of(run),
        "run": run,
        "round": 1,
        "purpose": "train",
        "announcement": 1,
        "task": TASK,
        "payloads": {"weights": payload},
        "silos": 2,
        "quorum": 2,
        "deadline": "2999-01-01T00:00:00Z",
        **more,
    }


def _letter(queue: str, message: ServiceBusReceivedMessage) -> Letter:
    reason, description = message.dead_letter_reason, message.dead_letter_error_description
    return Letter(queue, str(message.message_id), b"".join(message.body), reason or "", description or "")
