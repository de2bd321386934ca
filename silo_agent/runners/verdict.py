"""Why a process ended without a report, in one word of the closed list: from its exit status and the evidence.

CORE: pure. The evidence is looked at for a few telltale words; none of it goes into the verdict.
"""

from __future__ import annotations

import signal

from messages.schemas import FailureCategory

_UNMET = {
    b"silobus.NothingShared": FailureCategory.NOTHING_SHARED,
    b"silobus.NoProximalTerm": FailureCategory.NO_PROXIMAL_TERM,
    b"silobus.NotCorrected": FailureCategory.NOT_CORRECTED,
}
_OUT_OF_MEMORY = (b"MemoryError", b"OutOfMemoryError", b"out of memory", b"Cannot allocate memory", b"bad_alloc")


def verdict(status: int, printed: bytes, *, kernel_killed: bool) -> FailureCategory:
    """The category for an exit status (negative: minus a signal's number; shells say 128 plus it).

    `printed` is the end of what the process printed; `kernel_killed` says whether the kernel killed something of ours
    for lack of memory meanwhile.
    """
    by_signal = -status if status < 0 else status - 128 if 128 < status < 160 else 0
    if by_signal == signal.SIGKILL and kernel_killed:
        return FailureCategory.OUT_OF_MEMORY
    if status != 0 and any(word in printed for word in _OUT_OF_MEMORY):
        return FailureCategory.OUT_OF_MEMORY
    if by_signal:
        return FailureCategory.KILLED
    if status == 0:
        return FailureCategory.NO_REPORT
    return next((found for name, found in _UNMET.items() if _ended_with(name, printed)), FailureCategory.SCRIPT_ERROR)


def _ended_with(name: bytes, printed: bytes) -> bool:
    """Whether this exception was printed, and none that came of dealing with it."""
    _, there, after = printed.rpartition(name)
    return bool(there) and b"During handling of the above exception" not in after
