"""The verdict: what must be so after everything, looked up in the store, in the silos' homes and on disk.

Nothing is asked of the processes, and what must come out is computed here once more, by other code than theirs: each
round's weights are float32 of the float64 mean of what its silos must have added to the round before.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chaos.dead_letters import Letter
from benchmarks.chaos.load import Asked, state_of
from benchmarks.chaos.stage import MODELS_KEPT, SILOS, UPDATES_KEPT
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

_BUGS = frozenset({"agent.fault", "experiment.not-reconciled", "experiment.not-announced"})
"""Words for it in logs, besides those that end with `bug`."""

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
        for number, record in records.items():
            self._record(asked, number, record)
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
        counts: Mapping[str, Mapping[int, int]],
        made: Files,
    ) -> None:
        adds = str(asked.message.hyperparameters["adds"])
        weights = np.float32(0)
        for number in range(asked.message.rounds + 1):
            if number:
                weights = _mean(weights, adds, number, records[number].updates, counts)
            files = made.get((run, number), ())
            if not files and number <= asked.message.rounds - MODELS_KEPT:
                continue  # its time was over
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

    def logs(self, folder: Path) -> None:
        """No process met a bug of ours."""
        for log in sorted(folder.glob("*.log")):
            for line in log.read_text(errors="replace").splitlines():
                said = _event(line)
                word = str(said.get("event", ""))
                if word.endswith("bug") or word in _BUGS:
                    told = str(said.get("traceback", said.get("error", ""))).strip().rpartition("\n")[2]
                    self.say(f"{log.name}: {word} at {said.get('time')}: {told[:200]}")

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
    before: Any, adds: str, number: int, updates: Sequence[UpdateRecord], counts: Mapping[str, Mapping[int, int]]
) -> Any:
    """The weights after a round: every one of them is this number."""
    silos = {silo.name: silo for silo in SILOS}
    total = sum(silos[update.silo].samples for update in updates)
    mean = np.float64(0)
    for update in updates:
        silo = silos[update.silo]
        trained = counts[silo.name][number]
        added = {
            "constant": silo.adds,
            "count": silo.adds * trained,
            "momentum": silo.adds * (2 - 0.5 ** (trained - 1)),
        }[adds]
        mean += np.float64(before + np.float32(added)) * (silo.samples / total)
    return np.float32(mean)


def _names_update(files: Iterable[BlobInfo]) -> bool:
    return any(info.name.endswith("/update.json") for info in files)


def _event(line: str) -> dict[str, Any]:
    """A line of a log; empty for what is none, or was cut off by a kill."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _kept(version: Path) -> dict[str, Any]:
    """What the trainer kept (`trainer.py`)."""
    memory: dict[str, Any] = {"rounds": 0}
    read_state(version, "memory", memory)
    return memory
