"""What is known of an update's change, and whether that is within an experiment's bounds. Pure.

A change is an update's floating-point tensors minus the weights that its round started from, as one long vector. A set
is judged once, by the changes of all that are in it: were those that are left judged again, each that goes would move
the median and the mean for the next, until tight bounds left nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from pydantic import BaseModel, ConfigDict

from messages.experiments import Checks


class Change(BaseModel):
    """What was measured; None where nobody asked for it, or where it has no meaning."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    norm: float | None = None
    """Its length (L2)."""
    cosine: float | None = None
    """To the mean direction of the round's other changes, each of which counts the same however long it is.

    None of a change of length 0, and where the others have no direction in common.
    """
    cosine_last: float | None = None
    """To that of the silo's last update that counted; None where that is gone, or was none."""


def beyond(checks: Checks | None, change: Change | None) -> str | None:
    """Why an update is left out as soon as it arrives; None when it is not."""
    if checks is None or checks.max_norm is None or change is None or change.norm is None:
        return None
    if change.norm <= checks.max_norm:
        return None
    return f"its change has norm {change.norm:.6g}, and max_norm is {checks.max_norm:g}"


def odd_ones(checks: Checks, changes: Mapping[str, Change]) -> dict[str, str]:
    """Those of a frozen set that are left out, and why; nobody where too few are left to say who is odd."""
    if len(changes) < checks.least:
        return {}
    norms = [change.norm for change in changes.values() if change.norm is not None]
    usual = median(norms) if norms else 0.0
    found = {}
    for silo, change in changes.items():
        if why := _too_long(checks, change, usual) or _against_the_others(checks, change):
            found[silo] = why
    return found


def _too_long(checks: Checks, change: Change, usual: float) -> str | None:
    """Where most changed nothing (`usual` is 0), nobody is too long by any number of times."""
    if checks.max_norm_ratio is None or change.norm is None or usual == 0.0:
        return None
    if change.norm / usual <= checks.max_norm_ratio:
        return None
    return (
        f"its change has norm {change.norm:.6g}, {change.norm / usual:.3g} times the round's median of {usual:.6g}, "
        f"and max_norm_ratio is {checks.max_norm_ratio:g}"
    )


def _against_the_others(checks: Checks, change: Change) -> str | None:
    if checks.min_cosine is None or change.cosine is None or change.cosine >= checks.min_cosine:
        return None
    return f"its change has cosine {change.cosine:.3f} to the others, and min_cosine is {checks.min_cosine:g}"
