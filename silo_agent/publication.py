"""How an update becomes public: once per round and silo, by the one blob that is created and never replaced.

Here lives the order that makes it exactly once: log what will leave, upload the payloads, create `update.json` (whoever
creates it first decides), commit the private state that belongs to it, send it. A crash anywhere in between is repaired
by whoever comes next and finds `update.json`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
from pathlib import Path
from typing import final

from messages import names
from messages.codec import encode
from messages.errors import AlreadyExists, NotFound
from messages.log import EventLog
from messages.schemas import Payload, RoundAnnounced, UpdatePublished
from silo_agent.home import RoundDirectory
from silo_agent.policy import Accepted
from silo_agent.result import Allowed
from silo_agent.roles import form
from silo_agent.silo import Silo
from silo_agent.voice import asker

_log = EventLog(__name__)


@final
class Publisher:
    """Publishes one round's result, or finds that it has been."""

    def __init__(self, silo: Silo, announced: RoundAnnounced, directory: RoundDirectory) -> None:
        self._silo = silo
        self._announced = announced
        self._directory = directory
        self._container = names.updates_of(silo.name)
        self._blob = names.publication_blob(announced.run, announced.round)
        self._body: bytes | None = None
        self._logged = False

    async def find(self) -> bool:
        """Whether this silo has published for this round, whichever of its agents did."""
        try:
            found = await self._silo.patiently(lambda: self._silo.store.read(self._container, self._blob))
        except NotFound:
            return False
        self._body = found.data
        return True

    async def publish(self, result: Allowed, accepted: Accepted, number: int) -> None:
        """Returns when the publication is in the store: this one, or one that was there before."""
        body = encode(self._message(result, accepted))
        await asyncio.to_thread(self._log, body, result, number)
        for made in result.update.values():
            blob = names.weights_blob(self._announced.run, self._announced.round, made.scan.sha256)
            with contextlib.suppress(AlreadyExists):  # named by content: it is this very file
                await self._create(blob, made.path)
        try:
            await self._create(self._blob, body)
        except AlreadyExists:
            await self.find()
        else:
            self._body = body

    async def send(self) -> None:
        """Commits the private state that belongs to the publication, and sends it."""
        if self._body is None:
            raise NotFound("the publication has vanished from the store")
        body, run, number = self._body, self._announced.run, self._announced.round
        if await asyncio.to_thread(self._commit, body):
            self._silo.runner.committed(run, self._silo.state.version(run, before=number + 1))
        if not self._logged:
            await asyncio.to_thread(self._log_again, body)
        send = functools.partial(self._silo.voice.send, body, run=run)
        await self._silo.patiently(send, missing="the queue to the orchestrator")
        _log.info("round.published", run=run, round=number, again=not self._logged)

    async def _create(self, blob: str, source: Path | bytes) -> None:
        create = functools.partial(self._silo.store.create, self._container, blob, source)
        await self._silo.patiently(create, missing=f"the container {self._container}")

    def _message(self, result: Allowed, accepted: Accepted) -> UpdatePublished:
        payloads = {
            role: Payload(
                sha256=made.scan.sha256,
                bytes=made.scan.bytes,
                form=form(role, self._announced),
                layout=made.scan.layout.digest,
            )
            for role, made in result.update.items()
        }
        return UpdatePublished(
            run=self._announced.run,
            round=self._announced.round,
            purpose=self._announced.purpose,
            announcement=self._announced.announcement,
            payloads=payloads,
            samples=result.samples,
            steps=result.steps,
            metrics=list(result.metrics),
            hyperparameters=accepted.hyperparameters,
            code=accepted.task.code.sha256,
            policy=self._silo.policy_digest,
            seconds=result.seconds,
        )

    def _log(self, body: bytes, result: Allowed, number: int) -> None:
        files: dict[str, object] = {
            r: {"sha256": made.scan.sha256, "bytes": made.scan.bytes} for r, made in result.update.items()
        }
        self._silo.egress.append(
            self._silo.clock.now(),
            {
                "what": "update",
                "asked": asker(self._announced),
                "to": [self._container, names.from_silo(self._silo.name)],
                "sha256": hashlib.sha256(body).hexdigest(),
                "bytes": len(body),
                "message": json.loads(body),
                "weights": None,
                **files,
                "try": number,
                "notes": list(result.notes),
            },
        )
        self._logged = True

    def _log_again(self, body: bytes) -> None:
        entry = {
            "what": "resent",
            "asked": asker(self._announced),
            "to": [names.from_silo(self._silo.name)],
            "sha256": hashlib.sha256(body).hexdigest(),
            "bytes": len(body),
        }
        self._silo.egress.append(self._silo.clock.now(), entry)

    def _commit(self, body: bytes) -> bool:
        """Commits the state of the try that made this very message; False when it was not made in this home."""
        run, number = self._announced.run, self._announced.round
        made_by = self._silo.egress.tries_published(run, number).get(hashlib.sha256(body).hexdigest())
        if made_by is None:
            return False
        self._silo.state.commit(run, number, self._directory.attempt(made_by).output / "state")
        return True
