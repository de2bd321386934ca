"""The verdict: what must be so after everything, looked up in the store, in the silos' homes and on disk.

Nothing is asked of the processes. What weights must be is `arithmetic`'s, which dead letters are no violation
`dead_letters`'.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chaos.arithmetic import INITIAL, after
from benchmarks.chaos.dead_letters import Letter, wrong_with
from benchmarks.chaos.load import Asked, state_of
from benchmarks.chaos.logs import Departure, heard
from benchmarks.chaos.stage import MODELS_KEPT, SILOS, UPDATES_KEPT
from messages import names
from messages.experiments import Quorum
from messages.ports import BlobInfo, Store
from messages.schemas import Purpose
from messages.weights import read_tensors
from orchestrator.experiment.state import Ended, RoundOutcome, RoundRecord, RunOutcome
from silo_agent import egress
from silo_agent.home import Home
from silo_agent.journal import complete_lines
from silobus.state import read_state

Files = Mapping[tuple[str, int], Sequence[BlobInfo]]
"""Blobs by run and round."""


class Judge:
    """Collects violations, in words for a person."""

    def __init__(self, store: Store, asked: Sequence[Asked]) -> None:
        self._store, self._asked = store, asked
        self.violations: list[str] = []
        self.records: dict[str, dict[int, RoundRecord]] = {}
        self.completed = 0
        self._given_up: dict[str, datetime] = {}
        """When a process first set a message aside, by its id."""

    def say(self, violation: str) -> None:
        """Adds a violation."""
        self.violations.append(violation)

    async def experiments(self) -> None:
        """Ended, completed, each round recorded once and aggregated once, each weight right, each memory right."""
        made = await self._files(names.GLOBAL)
        updates = {silo.name: await self._files(names.updates_of(silo.name)) for silo in SILOS}
        for asked in self._asked:
            await self._experiment(asked, made, updates)

    async def _experiment(self, asked: Asked, made: Files, updates: Mapping[str, Files]) -> None:
        name, rounds = asked.message.experiment, asked.message.rounds
        state = await state_of(self._store, name)
        if not isinstance(state, Ended):
            self.say(f"{name} has not ended: {type(state).__name__}")
            return
        if state.run.id != asked.run:
            self.say(f"{name} is run {state.run.id} instead of {asked.run}")
        if state.outcome is not RunOutcome.COMPLETED:
            self.say(f"{name} {state.outcome}: {state.reason}")
            return
        self.completed += 1
        run = state.run.id
        self.records[run] = records = await self._records(run)
        if sorted(records) != list(range(rounds + 2)):
            self.say(f"{run} has records of rounds {sorted(records)} instead of 0 to {rounds + 1}")
            return
        for number, record in records.items():
            self._record(asked, number, record)
        for silo in SILOS:
            self._charges(silo.name, records)
        counts = {silo.name: self._counts(asked, silo.name, records, updates[silo.name]) for silo in SILOS}
        await self._weights(asked, run, records, counts, made)

    def _counts(self, asked: Asked, silo: str, records: Mapping[int, RoundRecord], updates: Files) -> dict[int, int]:
        """How many rounds of the run the silo had published, with this one, by the rounds that count an update of it.

        The silo said so itself, out of its private state. Where all silos must answer that is the round's number. Where
        they need not, an update may have come too late: published and committed, and not counted.
        """
        run, rounds = asked.run, asked.message.rounds
        counts: dict[int, int] = {}
        last = (0, 0)
        for number in range(1, rounds + 1):
            for update in records[number].updates:
                if update.silo == silo:
                    (said,) = (int(m.number or 0) for m in update.metrics if m.name == "rounds")
                    if not last[1] < said <= last[1] + number - last[0]:
                        self.say(
                            f"{run} round {number}: {silo} has trained {said} rounds, after {last[1]} in {last[0]}"
                        )
                    counts[number] = said
                    last = (number, said)
        late = [n for n in range(last[0] + 1, rounds + 1) if _names_update(updates.get((run, n), ()))]
        versions = sorted((self._homes[silo].state / run).glob("[0-9]*"))
        if len(versions) > 2:
            self.say(f"{silo} keeps {len(versions)} versions of {run}'s private state")
        committed = _kept(versions[-1])["rounds"] if versions else 0
        everything = rounds - last[0] <= UPDATES_KEPT - 1
        if committed != last[1] + len(late) and (everything or not last[1] <= committed <= rounds):
            self.say(f"{silo} committed {committed} rounds of {run} and published {last[1] + len(late)}")
        if asked.message.quorum.minimum == "all" and counts != {n: n for n in range(1, rounds + 1)}:
            self.say(f"{run}: {silo} must have trained one round more in each, and did {list(counts.values())}")
        return counts

    def _charges(self, silo: str, records: Mapping[int, RoundRecord]) -> None:
        """Once for each round that has the silo's update, never twice for any; the first model is free."""
        run = records[0].run
        charged = {number: times for (of, number), times in charges(self._homes[silo].budget).items() if of == run}
        due = {n for n, record in records.items() if n and any(update.silo == silo for update in record.updates)}
        if free := sorted(due - {number for number, times in charged.items() if times}):
            self.say(f"{silo} published in rounds {free} of {run}, and its budget was not charged")
        if wrong := {number: times for number, times in charged.items() if not number or times not in {0, 1}}:
            self.say(f"{silo}'s budget has charges of {run} that no round explains, by round: {wrong}")

    def _record(self, asked: Asked, number: int, record: RoundRecord) -> None:
        rounds = asked.message.rounds
        purposes = {0: Purpose.INITIALISE, rounds + 1: Purpose.EVALUATE}
        purpose = purposes.get(number, Purpose.TRAIN)
        outcome = RoundOutcome.EVALUATED if purpose is Purpose.EVALUATE else RoundOutcome.AGGREGATED
        if (record.purpose, record.outcome) != (purpose, outcome):
            self.say(f"{record.run} round {number} is {record.purpose}, {record.outcome}")
        told = [update.silo for update in record.updates]
        if len(set(told)) != len(told):
            self.say(f"{record.run} round {number} counts a silo twice: {told}")
        least = fewest(record, asked.message.quorum)
        if len(told) < least:
            self.say(f"{record.run} round {number} closed with {told}: fewer than {least}")

    async def _weights(
        self,
        asked: Asked,
        run: str,
        records: Mapping[int, RoundRecord],
        counts: Mapping[str, Mapping[int, int]],
        made: Files,
    ) -> None:
        due = INITIAL
        for number in range(asked.message.rounds + 1):
            record = records[number]
            if number:
                trained = {update.silo: counts[update.silo][number] for update in record.updates}
                due = after(asked.row, due, record.updates, trained)
            numbers = {"weight": due.weights, **due.kept}
            payloads = {**({"weight": record.model} if record.model else {}), **record.besides}
            if payloads.keys() != numbers.keys():
                self.say(f"{run} round {number} made {sorted(payloads)} instead of {sorted(numbers)}")
                return
            blobs = {what: names.weights_blob(run, number, payload.sha256) for what, payload in payloads.items()}
            there = {info.name for info in made.get((run, number), ())}
            if not there and number <= asked.message.rounds - MODELS_KEPT:
                continue  # its time was over
            if more := there - set(blobs.values()):
                self.say(f"{run} round {number} has {len(more)} results that its record does not name")
            for what, blob in blobs.items():
                if blob not in there:
                    self.say(f"{run} round {number}: its {what} is not in the store")
                elif (found := await self._numbers(blob)) != {numbers[what]}:
                    shown = ", ".join(f"{each:g}" for each in sorted(found)[:3])
                    self.say(f"{run} round {number}: every {what} must be {numbers[what]:.9g}, and there is {shown}")
                    return

    async def _numbers(self, blob: str) -> set[float]:
        """All numbers that there are in a file of weights."""
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "file"
            await self._store.fetch(names.GLOBAL, blob, target)
            return {float(value) for tensor in read_tensors(target).values() for value in np.unique(tensor)}

    _homes: Mapping[str, Home] = {}

    def homes(self, homes: Mapping[str, Home], *, keep: int) -> None:
        """Rounds' directories are within what is kept; call it before `experiments`, which looks into them too."""
        self._homes = homes
        for silo, home in homes.items():
            ended: defaultdict[str, int] = defaultdict(int)
            for _, _, at in home.rounds():
                ended[str((at.ended or {"how": "unfinished"})["how"])] += 1
            if sum(ended.values()) > 3 * keep or ended["published"] > keep:
                self.say(f"{silo} keeps {dict(ended)} directories of rounds; {keep} of a kind is what it may")
            if empty := [at.name for at in (home.path / "rounds").iterdir() if not any(at.iterdir())]:
                self.say(f"{silo} keeps {len(empty)} empty directories of runs, {empty[0]} among them")
            if left := [at.name for at in (home.runtime / "processes").iterdir()]:
                self.say(f"{silo} thinks that it still trains: {left}")
            if problem := egress.verify(home.egress):
                self.say(f"{silo}'s log of what left does not hold: {problem}")

    async def beyond_retention(self) -> list[str]:
        """What is in the store and must not be any more. Sweeping goes on for a moment after a run has ended."""
        places = [(names.GLOBAL, MODELS_KEPT - 1, 0)]
        places += [(names.updates_of(silo.name), UPDATES_KEPT - 1, 1) for silo in SILOS]
        rounds = {asked.run: asked.message.rounds for asked in self._asked}
        found = []
        for container, kept, last in places:
            for run, number in sorted(await self._files(container)):
                if run in rounds and number < rounds[run] + last - kept:
                    found.append(f"{container} keeps round {number} of {run}, which has {rounds[run]}")
        return found

    def logs(self, folder: Path, departures: Iterable[Departure]) -> None:
        """No process said that something of ours went wrong, and none ended that nobody ended; call it before
        `dead_letters`, which asks when messages were given up.
        """
        what = heard(folder, departures)
        self._given_up = what.given_up
        for wrong in what.wrong:
            self.say(wrong)

    def disk(self, scratch: Path, incoming: Path) -> None:
        """Nothing passing is left when every process has ended."""
        for what, place in (("the orchestrators' scratch directory", scratch), ("the store's .incoming", incoming)):
            left = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else []
            if left:
                self.say(f"{what} keeps {len(left)} files, {left[0].relative_to(place)} among them")

    def dead_letters(self, letters: Iterable[Letter]) -> None:
        """Each has a reason that killing explains, and what became of its round is on record."""
        asked = {each.run: each.message.experiment for each in self._asked}
        for letter in letters:
            if wrong := wrong_with(letter, asked, self.records, self._given_up.get(letter.message_id)):
                about = f"{letter.message_id} of {letter.queue} ({letter.kind}, {letter.run}, {letter.round})"
                self.say(f"dead letter {about}: {wrong}")

    async def _records(self, run: str) -> dict[int, RoundRecord]:
        found = await self._store.list(names.STATE, f"rounds/{run}/")
        read = [RoundRecord.model_validate_json((await self._store.read(names.STATE, i.name)).data) for i in found]
        return {record.round: record for record in read}

    async def _files(self, container: str) -> Files:
        found: defaultdict[tuple[str, int], list[BlobInfo]] = defaultdict(list)
        for info in await self._store.list(container, ""):
            run, _, rest = info.name.partition("/")
            number, _, file = rest.partition("/")
            if file:
                found[run, int(number)].append(info)
        return found


def charges(ledger: Path) -> dict[tuple[str, int], int]:
    """How often each round, by run and number, is charged to a budget and was not given back."""
    found: defaultdict[tuple[str, int], int] = defaultdict(int)
    for line in complete_lines(ledger)[0]:
        said = json.loads(line)
        found[said["run"], said["round"]] += 1 if said["charged"] else -1
    return found


def _names_update(files: Iterable[BlobInfo]) -> bool:
    return any(info.name.endswith("/update.json") for info in files)


def _kept(version: Path) -> dict[str, Any]:
    """What the trainer kept (`trainer.py`)."""
    memory: dict[str, Any] = {"rounds": 0}
    read_state(version, "memory", memory)
    return memory


def fewest(record: RoundRecord, quorum: Quorum) -> int:
    """How many updates a round must have been closed with."""
    if record.purpose is Purpose.TRAIN:
        return quorum.needed(len(SILOS))
    lasted = (record.closed_at - record.opened_at).total_seconds()
    # At its deadline an evaluation ends with what there is: the model is there, whoever had time to measure it.
    return 0 if record.purpose is Purpose.EVALUATE and lasted >= quorum.deadline else 1
