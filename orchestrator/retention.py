"""What may be deleted of a run: the rule, from its state, its settings, the time and what an operator holds. Pure.

A tombstone says it before the first blob goes: updates and weights of rounds below a number, but for the rounds spared.
It only ever grows, and names nothing that a round in progress could need: what is needed later is the latest weights,
or was the best, or belongs to a round that is not over. So an old tombstone, or a sweeper that was asleep, does no
harm. Deleting is `orchestrator.sweeping`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final, assert_never

from orchestrator.documents import Retained
from orchestrator.experiment.state import Aggregating, Collecting, Ended, Live, Paused
from orchestrator.settings import RetentionSettings

MOST_ROUNDS: Final = 100
"""Rounds that one sweep puts into its tombstone: a hold protects all that is not in it."""


def is_due(round_number: int, settings: RetentionSettings) -> bool:
    """Whether there may be something to delete once this round is over."""
    kept = [number for number in (settings.updates, settings.models) if number is not None]
    return bool(kept) and round_number + 1 > min(kept)


def expires_at(ended_at: datetime, settings: RetentionSettings) -> datetime | None:
    """When a run that ended then is swept for the last time; None: never."""
    return None if settings.days is None else ended_at + timedelta(days=settings.days)


def has_expired(state: Live | Ended, settings: RetentionSettings, now: datetime) -> bool:
    """Whether the run has been over for so long that only its last and its best weights are kept."""
    if not isinstance(state, Ended):
        return False
    expires = expires_at(state.ended_at, settings)
    return expires is not None and expires <= now


def tombstone(state: Live | Ended, known: Retained, settings: RetentionSettings, now: datetime) -> Retained:
    """What of the run is to go from now on, in at most `MOST_ROUNDS` rounds more; `known` if nothing more is.

    Of a run that is held that is nothing.
    """
    if known.held_at is not None:
        return known
    run, over = state.run, _over(state)
    made = run.model.round + 1 if run.model else 0
    if has_expired(state, settings, now):
        updates, models = over, over
        because = f"{settings.days:g} days after the end only the last and the best weights are kept"
    else:
        updates = 0 if settings.updates is None else over - settings.updates
        models = 0 if settings.models is None else made - settings.models
        because = (
            f"updates of the last {_number(settings.updates)} rounds are kept, weights of {_number(settings.models)}"
        )
    updates = max(known.updates_before, min(updates, known.updates_before + MOST_ROUNDS))
    models = max(known.models_before, min(models, known.models_before + MOST_ROUNDS))
    spared = {number for number in _needed(state) if number < models}
    outdated = {*known.outdated, *known.spared} - spared
    after = known.model_copy(
        update={
            "updates_before": updates,
            "models_before": models,
            "spared": tuple(sorted(spared)),
            "outdated": tuple(sorted(outdated)),
        }
    )
    return known if after == known else after.model_copy(update={"because": because})


def is_complete(state: Live | Ended, known: Retained, settings: RetentionSettings, now: datetime) -> bool:
    """Whether the tombstone names all that will ever be deleted of this run."""
    over = _over(state)
    reaches = known.updates_before >= over and known.models_before >= over
    return reaches and has_expired(state, settings, now)


def _over(state: Live | Ended) -> int:
    """Rounds below this one are over."""
    match state:
        case Collecting() | Paused():
            return state.round
        case Aggregating(closed=closed):
            return closed.round
        case Ended():
            return state.round + 1
        case _:
            assert_never(state)


def _needed(state: Live | Ended) -> Iterable[int]:
    """Rounds whose weights are spared: the latest, the best, and the first for as long as the run goes on."""
    run = state.run
    return {
        *((run.model.round,) if run.model else ()),
        *((run.best.round,) if run.best else ()),
        *(() if isinstance(state, Ended) else (0,)),
    }


def _number(kept: int | None) -> str:
    return "all" if kept is None else str(kept)
