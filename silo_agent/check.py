"""`silobus-agent check`: tries what the agent will need, and says what to do where it fails.

Here lives the list of what is tried, cheapest first. Every task is run twice, to initialise and to train on that, in
`home/check`; nothing of it is published, committed or charged.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from messages import names
from messages.errors import Forbidden, NotFound, SilobusError, Transient
from messages.fields import Scalar
from messages.ports import Bus, Store
from messages.schemas import Offer, Purpose, RoundAnnounced, SiloHello
from messages.settings import SettingsError
from messages.transport.connect import open_bus, open_store
from silo_agent import given
from silo_agent.app import opened
from silo_agent.approval import measured
from silo_agent.home import HomeInUse, RoundDirectory
from silo_agent.policy import Accepted, Range, Task
from silo_agent.private_state import PrivateState
from silo_agent.rerun import announcement_of, what_would_leave
from silo_agent.result import Allowed, examine
from silo_agent.runners.port import Failed, Job, OverBudget
from silo_agent.settings import SiloSettings
from silo_agent.silo import Silo

RUN = "check_00000000"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was tried and what was found."""

    good: bool
    what: str
    found: str
    details: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return asdict(self)


async def check(settings: SiloSettings) -> list[Finding]:
    """Everything, tried once. Raises SettingsError when there is nothing to connect to."""
    bus, store = open_bus(settings.bus), open_store(settings.store)
    findings = []
    try:
        findings.append(await _tried(f"read {names.to_silo(settings.silo)}", lambda: _can_receive(settings.silo, bus)))
        findings.append(await _tried(f"read {names.GLOBAL}", lambda: _can_read(store)))
        try:
            async with opened(settings, bus, store) as silo:
                findings.append(Finding(True, "home", f"{settings.home} is ours and its egress log holds"))
                for what, attempt in _ways_out(silo):
                    findings.append(await _tried(what, attempt))
                for name, task in settings.tasks.items():
                    findings.append(await _task(silo, name, task))
        except HomeInUse:
            findings.append(Finding(True, "home", "an agent is running here; stop it to check sending and the tasks"))
    finally:
        await bus.close()
        await store.close()
    if not settings.tasks:
        findings.append(Finding(False, "tasks", "silo.yaml offers none; add one under `tasks`"))
    return findings


async def _tried(what: str, attempt: Callable[[], Awaitable[str]]) -> Finding:
    try:
        return Finding(True, what, await attempt())
    except Forbidden:
        return Finding(False, what, "no right to do this; ask the operator to grant it to this silo's identity")
    except NotFound:
        return Finding(False, what, "is not there; ask the operator to enrol this silo under this very name")
    except Transient as error:
        return Finding(False, what, f"cannot be reached ({error}); look at address, proxy and firewall")
    except SettingsError:
        raise
    except SilobusError as error:
        return Finding(False, what, str(error))


async def _can_receive(silo: str, bus: Bus) -> str:
    waiting = await bus.peek(names.to_silo(silo), count=1)
    return "can be read, messages are waiting" if waiting else "can be read, nothing is waiting"


async def _can_read(store: Store) -> str:
    try:
        await store.read(names.GLOBAL, "check/nothing-is-here")
    except NotFound:
        return "can be read"
    return "can be read"


def _ways_out(silo: Silo) -> list[tuple[str, Callable[[], Awaitable[str]]]]:
    container, blob = names.updates_of(silo.name), f"check/{uuid.uuid4().hex}.json"

    async def create() -> str:
        body = json.dumps({"check": silo.clock.now().isoformat()}).encode()
        entry = {"what": "check", "asked": None, "to": [container], "bytes": len(body)}
        await asyncio.to_thread(silo.egress.append, silo.clock.now(), entry)
        await silo.store.create(container, blob, body)
        return "a blob can be created"

    async def compare_clocks() -> str:
        rows = await silo.store.list(container, blob)
        if not rows:
            return "unknown: what was created is not listed"
        skew = (silo.clock.now() - rows[0].modified).total_seconds()
        if abs(skew) > 60:
            raise SilobusError(f"this machine's clock is off by {skew:.0f} s; have it set over the network (NTP)")
        return f"within {abs(skew):.1f} s of the store's"

    async def send() -> str:
        offers = [
            Offer(task=name, code=task.code.sha256)
            for name, task in silo.policy.tasks.items()
            if await asyncio.to_thread(measured, task.code) == task.code.sha256
        ]
        hello = SiloHello(
            instance=uuid.uuid4().hex,
            agent_version="check",
            policy=silo.policy_digest,
            offers=offers,
            at=silo.clock.now(),
        )
        await silo.voice.say(hello)
        return f"said hello, offering {', '.join(o.task for o in offers) or 'nothing'}"

    return [
        (f"create in {container}", create),
        ("clock", compare_clocks),
        (f"send to {names.from_silo(silo.name)}", send),
    ]


async def _task(silo: Silo, name: str, task: Task) -> Finding:
    what = f"task {name}"
    found = await asyncio.to_thread(measured, task.code)
    if found != task.code.sha256:
        told = f"its digest is {found}" if found else "it cannot be read"
        return Finding(False, what, f"the code at {task.code.path} is not the approved one: {told}; read it again")
    try:
        good, lines = await _rounds(silo, name, task)
    finally:
        await silo.runner.end(RUN)
    return Finding(good, what, "runs; this would leave:" if good else "does not get through:", lines)


async def _rounds(silo: Silo, name: str, task: Task) -> tuple[bool, list[str]]:
    top = silo.home.path / "check" / name
    await asyncio.to_thread(shutil.rmtree, top, ignore_errors=True)
    lines: list[str] = []
    previous: Allowed | None = None
    for number, purpose in enumerate((Purpose.INITIALISE, Purpose.TRAIN)):
        announced = _announcement(name, number, purpose, previous)
        directory, state = RoundDirectory(top / str(number)), PrivateState(top / "state")
        asked = given.round_json(announced, _accepted(task), silo.name)
        weights = await asyncio.to_thread(given.begin, directory)
        if previous is not None:
            await asyncio.to_thread(shutil.copyfile, previous.path, weights)
        await asyncio.to_thread(given.finish, directory, asked, state, RUN, number)
        attempt = directory.attempt(1)
        await asyncio.to_thread(attempt.start)
        job = Job(
            run=RUN,
            round=number,
            name=name,
            task=task,
            input=directory.input,
            output=attempt.output,
            log=attempt.log,
            version=None,
        )
        outcome = await silo.runner.run(job)
        if isinstance(outcome, Failed):
            return False, [*lines, f"{purpose}: {outcome.category}; what it printed is in {attempt.log}"]
        if isinstance(outcome, OverBudget):
            return False, [
                *lines,
                f"{purpose}: would cost more node hours than the task may; {attempt.log} counts them",
            ]
        received = previous.update.layout if previous and previous.update else None
        result = await asyncio.to_thread(examine, attempt, announced, received, task.outbound)
        if not isinstance(result, Allowed):
            word = getattr(result, "reason", None) or getattr(result, "category", "")
            return False, [*lines, f"{purpose}: {word}", *result.notes]
        silo.runner.committed(RUN, None)
        lines += [f"{purpose}:", *(f"  {line}" for line in what_would_leave(result))]
        previous = result
    return True, lines


def _announcement(task: str, number: int, purpose: Purpose, previous: Allowed | None) -> RoundAnnounced:
    update = previous.update if previous else None
    return announcement_of(
        {
            "experiment": "check",
            "run": RUN,
            "round": number,
            "purpose": purpose,
            "task": task,
            "transfer": {},
            "weights": None if update is None else {"sha256": update.sha256, "bytes": update.bytes},
        }
    )


def _accepted(task: Task) -> Accepted:
    """The cheapest that the owner allows."""
    limits = task.limits.hyperparameters
    least: dict[str, Scalar] = {
        name: limit.min if isinstance(limit, Range) else limit.one_of[0] for name, limit in limits.items()
    }
    return Accepted(task=task, hyperparameters={**least, **task.limits.fixed}, charged=False)
