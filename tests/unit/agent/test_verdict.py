"""Why a process ended, in one word."""

import pytest

from messages.schemas import FailureCategory
from silo_agent.runners.verdict import verdict

TRACE = b"Traceback (most recent call last):\n"


@pytest.mark.parametrize(
    ("status", "printed", "kernel_killed", "category"),
    [
        (0, b"", False, FailureCategory.NO_REPORT),
        (0, b"MemoryError", False, FailureCategory.NO_REPORT),
        (1, TRACE + b"ValueError: x", False, FailureCategory.SCRIPT_ERROR),
        (1, TRACE + b"MemoryError", False, FailureCategory.OUT_OF_MEMORY),
        (1, b"torch.OutOfMemoryError: CUDA out of memory.", False, FailureCategory.OUT_OF_MEMORY),
        (-6, b"terminate called after throwing an instance of 'std::bad_alloc'", False, FailureCategory.OUT_OF_MEMORY),
        (-9, b"", False, FailureCategory.KILLED),
        (-9, b"", True, FailureCategory.OUT_OF_MEMORY),
        (137, b"", True, FailureCategory.OUT_OF_MEMORY),
        (137, b"", False, FailureCategory.KILLED),
        (-11, b"", True, FailureCategory.KILLED),
        (-15, b"", False, FailureCategory.KILLED),
        (1, b"", True, FailureCategory.SCRIPT_ERROR),
        (1, TRACE + b"silobus.NothingShared: of 9", False, FailureCategory.NOTHING_SHARED),
        (1, TRACE + b"silobus.NoProximalTerm: this", False, FailureCategory.NO_PROXIMAL_TERM),
        (1, TRACE + b"silobus.NotCorrected: this", False, FailureCategory.NOT_CORRECTED),
        (-15, TRACE + b"silobus.NotCorrected: this", False, FailureCategory.KILLED),
        (0, b"silobus.NotCorrected", False, FailureCategory.NO_REPORT),
        (
            1,
            b"silobus.NotCorrected: x\n\nDuring handling of the above exception, another exception occurred:\n" + TRACE,
            False,
            FailureCategory.SCRIPT_ERROR,
        ),
        (75, b"", False, FailureCategory.SCRIPT_ERROR),
    ],
)
def test_verdict(status: int, printed: bytes, kernel_killed: bool, category: FailureCategory) -> None:
    assert verdict(status, printed, kernel_killed=kernel_killed) is category
