"""How many node hours the jobs of each task have cost, over all experiments and restarts, and which are still open.

Here lives the count alone; how many are allowed is the policy's. A job is charged with the most that it can cost before
it is submitted, and with what it did cost when it has ended. The last line of a job counts.
"""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import final

from silo_agent.budget import BudgetBroken
from silo_agent.journal import Journal


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What is known of one job."""

    job: str
    task: str
    run: str
    round: int
    hours: float
    at: str
    """When it was charged first, as ISO 8601."""
    open: bool
    """Whether its end was not seen yet; then `hours` is the most that it can cost."""

    @property
    def since(self) -> datetime:
        """When it was charged first: it began no earlier."""
        return datetime.fromisoformat(self.at)


@final
class NodeHours:
    """The ledger in one file. Blocks: use it in a thread."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)
        self._lock = threading.Lock()
        self._charges: dict[str, Charge] = {}
        for number, line in enumerate(self._journal.found, 1):
            try:
                charge = Charge(**json.loads(line))
                self._charges[charge.job] = charge
                _ = charge.since, charge.hours + 0.0
            except (ValueError, TypeError):
                raise BudgetBroken(
                    f"{path}, line {number}: is no line of the ledger; restore it from a backup"
                ) from None

    def spent(self, task: str) -> float:
        """Node hours charged to a task."""
        with self._lock:
            return self._spent(task)

    def reserve(self, charge: Charge, *, most: float | None) -> bool:
        """Charges a job that may be about to run; durable on return. False, and nothing is charged, if the task would
        then have cost more than `most`. A job that is charged already is not charged again."""
        with self._lock:
            if charge.job in self._charges:
                return True
            if most is not None and self._spent(charge.task) + charge.hours > most:
                return False
            self._note(charge)
            return True

    def settle(self, job: str, hours: float) -> None:
        """The job has ended, and has cost so much."""
        with self._lock:
            charge = self._charges.get(job)
            if charge is not None and charge.open:
                self._note(Charge(**{**asdict(charge), "hours": round(max(0.0, hours), 6), "open": False}))

    def of(self, job: str) -> Charge | None:
        """What is known of a job; None: it was never charged here."""
        with self._lock:
            return self._charges.get(job)

    def open_of(self, run: str, round_number: int) -> list[Charge]:
        """The jobs of a round whose end was not seen."""
        with self._lock:
            return [c for c in self._charges.values() if c.open and (c.run, c.round) == (run, round_number)]

    def close(self) -> None:
        """Closes the file."""
        self._journal.close()

    def _spent(self, task: str) -> float:
        return sum(charge.hours for charge in self._charges.values() if charge.task == task)

    def _note(self, charge: Charge) -> None:
        self._journal.append(json.dumps(asdict(charge), separators=(",", ":")).encode())
        self._charges[charge.job] = charge
