"""How a round ends in a silo: said to the orchestrator if need be, remembered at home, and cleared away.

Here lives what comes after the last phase. An update was said before, by the publication; everything else is said here,
in one word of a closed list.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from messages.log import EventLog
from messages.schemas import Purpose, RoundAnnounced, RoundDeclined, TrainingFailed
from silo_agent.policy import Declined
from silo_agent.rounds import Ended, Failed, Published
from silo_agent.silo import Silo

_log = EventLog(__name__)


async def answer(silo: Silo, announced: RoundAnnounced, ended: Ended, *, ran: bool, notes: tuple[str, ...]) -> None:
    """Says how a round ended. `ran`: a script was started. `notes` stay at home."""
    run, number = announced.run, announced.round
    message: RoundDeclined | TrainingFailed | None = None
    why: str | None = None
    match ended:
        case Declined(reason, about):
            why, message = ended.words, RoundDeclined(run=run, round=number, reason=reason, about=about)
        case Failed(category, tries):
            asked = announced.announcement
            why = category
            message = TrainingFailed(run=run, round=number, category=category, tries=tries, announcement=asked)
        case _:
            pass
    if message is not None:
        say = functools.partial(silo.voice.say, message, run=run, asked=announced)
        await silo.patiently(say, missing="the queue to the orchestrator")
    word = {"how": type(ended).__name__.lower(), "why": why}
    _log.info("round.ended", run=run, round=number, **word)
    entry = {**word, "task": announced.task, "notes": list(notes), "at": silo.clock.now().isoformat()}
    await asyncio.to_thread(_clear_away, silo, announced, entry)
    over = announced.purpose is Purpose.EVALUATE
    await silo.runner.abandon(run, number)
    if ran and (over or not isinstance(ended, Published)):
        await silo.runner.end(run)  # nothing more will be asked of it, or its memory was never committed


def _clear_away(silo: Silo, announced: RoundAnnounced, entry: dict[str, Any]) -> None:
    run, number = announced.run, announced.round
    # Whoever charged it, if anybody did: an agent that died may find the round closed when it is back.
    if not silo.egress.tries_published(run, number):
        silo.budget.give_back(announced.task, (run, number))
    silo.home.end(run, number, entry, silo.keep_rounds)
