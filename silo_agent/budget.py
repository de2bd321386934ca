"""How many rounds each task has taken part in, over all experiments and restarts.

Here lives the count alone; how many are allowed is the policy's. A round is charged before its training starts, once
however often it is tried, and given back only when nothing of it has left the silo.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import final

from messages.errors import SilobusError
from silo_agent.journal import Journal

Charge = tuple[str, int]
"""Run and round."""


class BudgetBroken(SilobusError):
    """The ledger cannot be read: how much was spent is not known, and nothing more may be."""


@final
class Budget:
    """The ledger in one file. Blocks: use it in a thread."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)
        self._lock = threading.Lock()
        self._charged: dict[str, set[Charge]] = {}
        for number, line in enumerate(self._journal.found, 1):
            try:
                entry = json.loads(line)
                self._count(entry["task"], (entry["run"], entry["round"]), charged=entry["charged"])
            except (ValueError, TypeError, KeyError):
                raise BudgetBroken(
                    f"{path}, line {number}: is no line of the ledger; restore it from a backup"
                ) from None

    def spent(self, task: str, *, besides: Charge | None = None) -> int:
        """Rounds charged to a task, not counting the one under decision."""
        with self._lock:
            return len(self._charged.get(task, set()) - {besides})

    def charge(self, task: str, charge: Charge) -> None:
        """Charges a round; durable on return. Nothing happens when it is charged already."""
        self._note(task, charge, charged=True)

    def give_back(self, task: str, charge: Charge) -> None:
        """Undoes a charge. Nothing happens when there is none."""
        self._note(task, charge, charged=False)

    def close(self) -> None:
        """Closes the file."""
        self._journal.close()

    def _note(self, task: str, charge: Charge, *, charged: bool) -> None:
        run, number = charge
        with self._lock:
            if (charge in self._charged.get(task, set())) is charged:
                return
            entry = {"task": task, "run": run, "round": number, "charged": charged}
            self._journal.append(json.dumps(entry, separators=(",", ":")).encode())
            self._count(task, charge, charged=charged)

    def _count(self, task: str, charge: Charge, *, charged: bool) -> None:
        charges = self._charged.setdefault(task, set())
        if charged:
            charges.add(charge)
        else:
            charges.discard(charge)
