"""The verdict: what must be so after everything, looked up in the store, in the silos' homes and on disk.

Nothing is asked of the processes, and what must come out is computed here once more, by other code than theirs: each
round's weights are float32 of the float64 mean of what its silos must have added to the round before.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chaos.dead_letters import Letter
from benchmarks.chaos.load import Asked, state_of
from benchmarks.chaos.stage import SILOS
from messages import names
from messages.ports import BlobInfo, Store
from messages.schemas import Purpose
from messages.weights import read_tensors
from orchestrator.experiment.state import Ended, RoundOutcome, RoundRecord, RunOutcome, UpdateRecord
from silo_agent.home import Home
from silobus.state import read_state

EXPLAINED = frozenset({"bug", "MaxDeliveryCountExceeded"})
"""Reasons that killing processes can give: delivered so often that nobody will try again. All others mean that
somebody said something wrong, and here nobody lies."""

Files = Mapping[tuple[str, int], Sequence[BlobInfo]]
"""Blobs by run and round."""


class Judge:
    """Collects violations, in words for a person."""

    def __init__(self, store: Store, asked: Sequence[Asked]) -> None:
        self._store, self._asked = store, asked
        self.violations: list[str] = []
        self.records: dict[str, dict[int, RoundRecord]] = {}
        self.completed = 0

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
        published = {
            silo.name: [n for n in range(1, rounds + 1) if _names_update(updates[silo.name].get((run, n), ()))]
            for silo in SILOS
        }
        for number, record in records.items():
            self._record(asked, number, record)
            for update in record.updates:
                if update.payload is not None and number not in (0, *published[update.silo]):
                    self.say(f"{run} round {number} counts an update that {update.silo} never published")
        await self._weights(asked, run, records, published, made)
        self._memories(run, published)

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
        least = asked.message.quorum.needed(len(SILOS)) if purpose is Purpose.TRAIN else 1
        if len(told) < least:
            self.say(f"{record.run} round {number} closed with {told}: fewer than {least}")

    async def _weights(
        self,
        asked: Asked,
        run: str,
        records: Mapping[int, RoundRecord],
        published: Mapping[str, Sequence[int]],
        made: Files,
    ) -> None:
        adds = str(asked.message.hyperparameters["adds"])
        weights = np.float32(0)
        for number in range(asked.message.rounds + 1):
            if number:
                weights = _mean(weights, adds, number, records[number].updates, published)
            files = made.get((run, number), ())
            if len(files) > 1:
                self.say(f"{run} round {number} has {len(files)} results")
            model = records[number].model
            name = None if model is None else names.weights_blob(run, number, model.sha256)
            if name is None or all(info.name != name for info in files):
                self.say(f"{run} round {number}: its result is not in the store")
                continue
            found = await self._numbers(name)
            if found != {float(weights)}:
                shown = ", ".join(f"{number:g}" for number in sorted(found)[:3])
                self.say(f"{run} round {number}: every weight must be {float(weights):.9g}, and there is {shown}")
                return

    async def _numbers(self, blob: str) -> set[float]:
        """All numbers that there are in a file of weights."""
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "file"
            await self._store.fetch(names.GLOBAL, blob, target)
            return {float(value) for tensor in read_tensors(target).values() for value in np.unique(tensor)}

    def _memories(self, run: str, published: Mapping[str, Sequence[int]]) -> None:
        """A silo's private state counts its published rounds."""
        for silo in SILOS:
            versions = sorted((self._homes[silo.name].state / run).glob("[0-9]*"))
            if len(versions) > 2:
                self.say(f"{silo.name} keeps {len(versions)} versions of {run}'s private state")
            counted = _kept(versions[-1])["rounds"] if versions else 0
            if counted != len(published[silo.name]):
                self.say(f"{silo.name} committed {counted} rounds of {run} and published {len(published[silo.name])}")

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

    def disk(self, scratch: Path, incoming: Path) -> None:
        """Nothing passing is left when every process has ended."""
        for what, place in (("the orchestrators' scratch directory", scratch), ("the store's .incoming", incoming)):
            left = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else []
            if left:
                self.say(f"{what} keeps {len(left)} files, {left[0].relative_to(place)} among them")

    def dead_letters(self, letters: Iterable[Letter]) -> None:
        """Each has a reason that killing explains, and what became of its round is on record."""
        runs = {asked.run for asked in self._asked}
        for letter in letters:
            about = f"dead letter {letter.message_id} of {letter.queue} ({letter.kind}, {letter.run}, {letter.round})"
            if letter.reason not in EXPLAINED or not letter.description:
                self.say(f"{about}: {letter.reason}: {letter.description}")
            elif letter.run is not None and letter.run not in runs:
                self.say(f"{about}: of a run that nobody started")
            elif letter.run in self.records and not self._is_known(letter, self.records[letter.run]):
                self.say(f"{about}: {letter.reason}, and its run does not know")

    def _is_known(self, letter: Letter, records: Mapping[int, RoundRecord]) -> bool:
        """The round went on without it: it is over, and where the letter is a silo's, the silo stands in its record."""
        if letter.round is None or letter.round not in records:
            return letter.round is None
        silo = letter.queue.partition("-")[2]
        record = records[letter.round]
        if not silo or record.purpose is Purpose.INITIALISE:
            return True
        return silo in record.others or any(update.silo == silo for update in record.updates)

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


def _mean(
    before: Any, adds: str, number: int, updates: Sequence[UpdateRecord], published: Mapping[str, Sequence[int]]
) -> Any:
    """The weights after a round: every one of them is this number."""
    silos = {silo.name: silo for silo in SILOS}
    total = sum(silos[update.silo].samples for update in updates)
    mean = np.float64(0)
    for update in updates:
        silo = silos[update.silo]
        trained = sum(1 for n in published[silo.name] if n <= number)
        added = {
            "constant": silo.adds,
            "count": silo.adds * trained,
            "momentum": silo.adds * (2 - 0.5 ** (trained - 1)),
        }[adds]
        mean += np.float64(before + np.float32(added)) * (silo.samples / total)
    return np.float32(mean)


def _names_update(files: Iterable[BlobInfo]) -> bool:
    return any(info.name.endswith("/update.json") for info in files)


def _kept(version: Path) -> dict[str, Any]:
    """What the trainer kept (`trainer.py`)."""
    memory: dict[str, Any] = {"rounds": 0}
    read_state(version, "memory", memory)
    return memory
