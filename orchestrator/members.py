"""What silos offer, and who is enrolled, told to the live runs: what they make of it is `experiment.membership`'s.

Hellos may be handled twice, out of order, and by several orchestrators at once. What counts is the newest hello in the
silo's presence: it is told to the runs again until it is still the newest after they know it, so that whoever is last
to tell them tells them that. A hello that is delivered again does the same again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, final

from messages.errors import Forbidden, Stale, Transient
from messages.log import EventLog
from messages.ports import Delivery
from messages.schemas import SiloHello
from orchestrator.documents import Presence
from orchestrator.experiment.events import MembersSeen, SiloAppeared
from orchestrator.presence import Attendance
from orchestrator.store import Documents
from orchestrator.transitions import Experiments

_log: Final = EventLog(__name__)


@final
class Members:
    """Keeps live runs informed."""

    def __init__(
        self, silos: Sequence[str], *, documents: Documents, experiments: Experiments, attendance: Attendance
    ) -> None:
        self._silos = tuple(silos)
        self._documents, self._experiments, self._attendance = documents, experiments, attendance

    async def said_hello(self, silo: str, hello: SiloHello, delivery: Delivery) -> None:
        """Announces open rounds again to a new agent, and has runs know what its silo offers."""
        # First the rounds, then the presence: were it the other way round, a crash in between would lose them.
        if await self._attendance.is_news(silo, hello, delivery.enqueued_at):
            for experiment in await self._documents.live.experiments():
                await self._tell(experiment, SiloAppeared(silo=silo))
        await self._attendance.said_hello(silo, hello, delivery.enqueued_at)
        while True:
            newest = await self._documents.presence(silo)
            if newest is not None and newest.hello is not None:
                for experiment in await self._documents.live.experiments():
                    await self._tell(experiment, MembersSeen(offers=_offers([newest])))
            now = await self._documents.presence(silo)
            if now is None or newest is None or now.hello == newest.hello:
                return

    async def look(self, experiments: Iterable[str], *, enrolled: bool) -> None:
        """Has these runs know what all silos offer; and who is enrolled, if this orchestrator is the latest to start.

        Settings are read when an orchestrator starts, so that is when they count.
        """
        named = list(experiments)
        offers = await self._all_offers() if named else {}
        while named:
            seen = MembersSeen(offers=offers, enrolled=self._silos if enrolled else None)
            for experiment in named:
                await self._tell(experiment, seen)
            told, offers = offers, await self._all_offers()
            if offers == told:
                return

    async def _all_offers(self) -> dict[str, list[str]]:
        return _offers((await self._documents.presences(self._silos)).values())

    async def _tell(self, experiment: str, event: SiloAppeared | MembersSeen) -> None:
        try:
            await self._experiments.apply(experiment, event)
        except Stale:
            return
        except (Transient, Forbidden):  # it may come back, and a right may be given: the message waits
            raise
        except Exception:  # noqa: BLE001  # our bug, or a document somebody edited: the silo is there all the same
            _log.exception("experiment.not-told", experiment=experiment)


def _offers(presences: Iterable[Presence]) -> dict[str, list[str]]:
    return {p.silo: [offer.task for offer in p.hello.offers] for p in presences if p.hello is not None}
