"""Runs a task's rounds as jobs on Azure Machine Learning (docs/azureml.md).

Here lives the life of a round's jobs: which name is next, when one is submitted, followed, taken over from an agent
that is gone, begun again, and paid for. A job's name says run, round, silo, what it was given, and which it is of the
jobs on that; before a name is used it is looked for, so that there is never a second job for the same work. What the
agent itself remembers is the ledger of node hours alone: a job that is open there is this agent's, whoever started it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar, final

from messages.errors import SilobusError
from messages.log import EventLog
from messages.ports import Clock, Store
from messages.retry import Waits, retry_transient
from messages.schemas import FailureCategory
from silo_agent.node_hours import Charge, NodeHours
from silo_agent.policy import Task
from silo_agent.runners.azureml_files import Incomplete
from silo_agent.runners.azureml_log import OwnersLog
from silo_agent.runners.azureml_round import Ready, ready
from silo_agent.runners.azureml_verdict import category, has_lost_its_node, said_no
from silo_agent.runners.azureml_workspace import Rejected, Seen, State, Story, Workspace
from silo_agent.runners.port import Failed, Finished, Job, Outcome, OverBudget, Queued, Runner, Running

T = TypeVar("T")
_log = EventLog(__name__)
_MOST_NAMES: Final = 1000
_ATTEMPTS: Final = 8
"""How often a datastore or workspace is asked that cannot be reached, before the try is given up or a job left
alone."""


@dataclass(frozen=True, slots=True)
class Site:
    """What a task trains on: its workspace, and the store that holds its datastore."""

    workspace: Workspace
    store: Store


@dataclass(frozen=True, slots=True)
class _Work:
    """One try of a round that is worked on."""

    round: Ready
    workspace: Workspace
    log: OwnersLog


@final
class AzureMLRunner(Runner):
    """Jobs of one silo. `sites` has what each task trains on, by the task's name."""

    def __init__(
        self,
        silo: str,
        *,
        tasks: Mapping[str, Task],
        sites: Mapping[str, Site],
        hours: NodeHours,
        clock: Clock,
        waits: Waits | None = None,
    ) -> None:
        self._silo = silo
        self._tasks = tasks
        self._sites = sites
        self._hours = hours
        self._clock = clock
        self._waits = waits or Waits()

    async def run(self, job: Job) -> Outcome:
        """Follows the job that does this round's work, if there is one, or submits it. Cancelled, the job goes on."""
        log = OwnersLog(job.log)
        work = await self._prepare(job, log)
        try:
            return await self._run(work)
        except Rejected as no:
            await log.say(f"AzureML does not take it: {no}")
            return Failed(said_no(no.code, no.message, work.round.names))
        except Incomplete as fault:
            await log.say(f"what the job left does not count: {fault}")
            return Failed(FailureCategory.NO_REPORT)
        except SilobusError as trouble:
            await log.say(f"the datastore or the workspace cannot be used: {trouble}")
            return Failed(FailureCategory.COMPUTE_UNAVAILABLE)

    async def abandon(self, run: str, round_number: int) -> None:
        """Cancels what still runs of the round, and settles what it cost."""
        for charge in await asyncio.to_thread(self._hours.open_of, run, round_number):
            await self._cancel(charge)

    def committed(self, run: str, version: int | None) -> None:
        """No job outlives its round."""

    async def end(self, run: str) -> None:
        """No job outlives its round."""

    async def close(self) -> None:
        """Closes connections; jobs go on, for the agent that is started next."""
        for site in self._sites.values():
            await site.workspace.close()
            await site.store.close()

    # --- one round ---------------------------------------------------------------------------------------------------

    async def _prepare(self, job: Job, log: OwnersLog) -> _Work:
        site = self._sites[job.name]
        return _Work(await ready(job, self._silo, site.store), site.workspace, log)

    async def _run(self, work: _Work) -> Outcome:
        await self._cancel_others(work)
        lost = 0
        for number in range(1, _MOST_NAMES):
            name = work.round.name(number)
            known = await asyncio.to_thread(self._hours.of, name)
            if known is not None and not known.open:
                continue  # an earlier try's: its end was seen
            seen = await self._patiently(lambda name=name: work.workspace.get(name))  # type: ignore[misc]
            if known is None and seen is not None and seen.state in (State.FAILED, State.CANCELED):
                await work.log.say(f"{name} has failed before this agent knew of it: stepped over")
                continue
            if not await self._reserve(work, name, most=work.round.azureml.node_hours if seen is None else None):
                spent = await asyncio.to_thread(self._hours.spent, work.round.job.name)
                await work.log.say(
                    f"not submitted: {spent:.3f} of {work.round.azureml.node_hours:g} node hours are spent"
                )
                return OverBudget()
            if seen is None:
                seen = await self._submit(work, name, number)
            await work.log.say(f"job {name}: {seen.studio}")
            outcome = await self._follow(work, seen, number)
            if outcome is not None:
                return outcome
            lost += 1
            if lost > work.round.azureml.lost:
                return Failed(FailureCategory.PREEMPTED)
        return Failed(FailureCategory.COMPUTE_UNAVAILABLE)

    async def _reserve(self, work: _Work, name: str, *, most: float | None) -> bool:
        job = work.round.job
        charge = Charge(
            job=name,
            task=job.name,
            run=job.run,
            round=job.round,
            hours=work.round.most_hours,
            at=self._clock.now().isoformat(),
            open=True,
        )
        return await asyncio.to_thread(self._hours.reserve, charge, most=most)

    async def _submit(self, work: _Work, name: str, number: int) -> Seen:
        try:
            given = await work.round.given()
            for place, content in given.values():
                await self._patiently(lambda place=place, content=content: work.round.files.put(place, content))  # type: ignore[misc]
            order = work.round.order(number, given)
            return await self._patiently(lambda: work.workspace.submit(order))
        except Rejected:
            await asyncio.to_thread(self._hours.settle, name, 0.0)
            raise

    async def _follow(self, work: _Work, seen: Seen, number: int) -> Outcome | None:
        """Until the job has ended; None: it has lost its node."""
        result = work.round.result(number)
        name = seen.name
        while not seen.state.is_over:
            if seen.state is State.RUNNING:
                if work.round.azureml.output == "mount":
                    await work.round.files.progress(result, work.round.job.output)
                work.round.job.seen(Running())
            elif seen.state is State.WAITING:
                work.round.job.seen(Queued())
            await self._clock.sleep(work.round.azureml.poll)
            found = await self._patiently(lambda: work.workspace.get(name), for_ever=True)
            if found is None:
                await asyncio.to_thread(self._hours.settle, name, work.round.most_hours)
                await work.log.say(f"the job {name} is not there any more")
                return Failed(FailureCategory.KILLED)
            seen = found
        return await self._ended(work, seen, result)

    async def _ended(self, work: _Work, seen: Seen, result: str) -> Outcome | None:
        story = await work.workspace.story(seen)
        seconds = self._seconds(seen.name, story)
        left = await self._patiently(lambda: work.round.files.left(result))
        await work.log.end(seen, story, left)
        finished = seen.state is State.COMPLETED and await self._patiently(lambda: work.round.files.has_report(result))
        try:
            if finished:
                await self._patiently(lambda: work.round.files.take(result, work.round.job.output))
        except Incomplete:
            await self._settle(work, seen.name, seconds)
            raise
        await self._settle(work, seen.name, seconds)  # not before: an agent killed here takes the result again
        if finished:
            return Finished()
        names, timeout = work.round.names, work.round.job.task.timeout
        if has_lost_its_node(seen.state, story, left, names):
            return None
        return Failed(category(seen.state, story, left, seconds=seconds, timeout=timeout, names=names))

    async def _settle(self, work: _Work, name: str, seconds: float) -> None:
        await asyncio.to_thread(self._hours.settle, name, seconds / 3600 * work.round.azureml.instances)

    # --- what is not waited for --------------------------------------------------------------------------------------

    async def _cancel_others(self, work: _Work) -> None:
        """The owner may have changed the task, or the round's input be another: what ran on the old is not wanted."""
        begin = work.round.name(0)[:-1]
        for charge in await asyncio.to_thread(self._hours.open_of, work.round.job.run, work.round.job.round):
            if not charge.job.startswith(begin):
                await self._cancel(charge)

    async def _cancel(self, charge: Charge) -> None:
        site, task = self._sites.get(charge.task), self._tasks.get(charge.task)
        if site is None or task is None or task.compute.azureml is None:
            _log.warning(
                "job.left-alone", run=charge.run, round=charge.round, next="its task is gone; cancel it in the studio"
            )
            return
        try:
            await self._patiently(lambda: site.workspace.cancel(charge.job))
            seen = await self._patiently(lambda: site.workspace.get(charge.job))
            for _ in range(10):
                if seen is None or seen.state.is_over:
                    break
                await self._clock.sleep(task.compute.azureml.poll)
                seen = await self._patiently(lambda: site.workspace.get(charge.job))
            story = await site.workspace.story(seen) if seen is not None else Story()
        except SilobusError:
            _log.warning("job.not-cancelled", run=charge.run, round=charge.round, next="cancel it in the studio")
            return
        hours = self._seconds(charge.job, story) / 3600 * task.compute.azureml.instances if seen is not None else 0.0
        await asyncio.to_thread(self._hours.settle, charge.job, hours)
        _log.info("job.cancelled", run=charge.run, round=charge.round)

    def _seconds(self, name: str, story: Story) -> float:
        """How long a job ran, as the run history says; otherwise the most that it can have been."""
        if story.started is not None and story.ended is not None:
            return max(0.0, (story.ended - story.started).total_seconds())
        if story.ended is not None:
            return 0.0  # it never ran
        charge = self._hours.of(name)
        return 0.0 if charge is None else max(0.0, (self._clock.now() - charge.since).total_seconds())

    async def _patiently(self, operation: Callable[[], Awaitable[T]], *, for_ever: bool = False) -> T:
        attempts = None if for_ever else _ATTEMPTS
        return await retry_transient(operation, clock=self._clock, waits=self._waits, attempts=attempts)
