"""An agent of an earlier version takes part: it says that version's very words, and judges what it hears by them."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pytest
from safetensors.numpy import load, save

from messages import names
from messages.experiments import StartExperiment
from messages.ports import Outgoing
from messages.weights import parse_layout
from orchestrator.experiment.state import RunOutcome
from tests.golden.folder import Golden, all_versions
from tests.scenario.model_silo import TASK
from tests.scenario.test_orchestrator import world
from tests.scenario.world import World

VERSIONS = [pytest.param(golden, id=golden.path.name) for golden in all_versions()]

ROUNDS = ((0, "initialise"), (1, "train"), (2, "train"), (2, "train"), (3, "evaluate"))
"""What it is asked for: in round 2 twice, since it fails once."""


class OldSilo:
    """A silo that knows nothing of today's classes: JSON in, JSON out. It adds its constant."""

    def __init__(self, name: str, constant: float, golden: Golden, w: World) -> None:
        self.name, self.constant, self.w = name, constant, w
        self.schema = golden.read("schema.json")
        self.words = golden.named("messages")
        self.heard: list[str] = []
        self._sent = itertools.count(1)

    async def live(self) -> None:
        """Answers whatever comes, for ever."""
        await self.say("silo-hello", offers=[{**self.words["silo-hello"]["offers"][0], "task": TASK}])
        while True:
            delivery = await self.w.bus.receive(names.to_silo(self.name), wait=60)
            if delivery is not None:
                await self.hear(json.loads(delivery.body))
                await self.w.bus.complete(delivery)

    async def hear(self, told: dict[str, Any]) -> None:
        """Does what a message asks for, which must be what its version knows."""
        definition = "".join(word.capitalize() for word in told["kind"].split("-"))
        jsonschema.validate(told, {"$defs": self.schema["$defs"], "$ref": f"#/$defs/{definition}"})
        number, purpose = told["round"], told.get("purpose", "")
        self.heard.append(f"{told['kind']} {number} {purpose}".strip())
        if told["kind"] != "round-announced":
            return
        about = {"run": told["run"], "round": number}
        await self.say("silo-heartbeat", **about)
        if number == 2 and told["announcement"] == 1:
            await self.say("training-failed", **about, announcement=1)
        elif purpose == "evaluate":
            await self.say("round-declined", **about)
        else:
            await self.say("update-published", **about, **await self._made(told))

    async def _made(self, told: dict[str, Any]) -> dict[str, Any]:
        values = np.full(4, self.constant, np.float32)
        if told["purpose"] == "train":
            name = names.weights_blob(told["run"], told["round"] - 1, told["payloads"]["weights"]["sha256"])
            values = load((await self.w.store.read(names.GLOBAL, name)).data)["w"] + np.float32(self.constant)
        data = save({"w": values})
        sha256 = hashlib.sha256(data).hexdigest()
        name = names.weights_blob(told["run"], told["round"], sha256)
        await self.w.store.create(names.updates_of(self.name), name, data)
        layout = parse_layout(data, len(data)).digest
        words = self.words["update-published"]
        sent = {"sha256": sha256, "bytes": len(data), "layout": layout, "form": told["transfer"]["form"]}
        return {
            "purpose": told["purpose"],
            "announcement": told["announcement"],
            "payloads": {"weights": {**words["payloads"]["weights"], **sent}},
            "metrics": [{**metric, "name": metric["kind"]} for metric in words["metrics"]],
            "samples": 1,
        }

    async def say(self, kind: str, **changes: Any) -> None:
        """Its version's words, about this."""
        body = json.dumps({**self.words[kind], **changes}).encode()
        outgoing = Outgoing(body=body, message_id=f"{self.name}-{next(self._sent)}", subject=kind)
        await self.w.bus.send(names.from_silo(self.name), outgoing)


@pytest.mark.parametrize("golden", VERSIONS)
async def test_an_agent_of_an_earlier_version_completes_a_run(golden: Golden) -> None:
    async with world(silos={"north": 2.0, "south": 4.0}) as w:
        old = OldSilo("north", 2.0, golden, w)
        await w.start()
        living = asyncio.create_task(old.live())
        w.live_silos("south")
        await w.silos["south"].hello()
        await w.clock.until(lambda: len(w.store.named("presence/")) == 2)
        run = await w.post(StartExperiment.model_validate({"experiment": "exp", "task": TASK, "rounds": 2}))
        over = await w.ended()
        assert not living.done(), living.exception()
        assert over.outcome is RunOutcome.COMPLETED
        assert [w.weights(run, number) for number in range(3)] == [[2.0] * 4, [5.0] * 4, [8.0] * 4]
        for silo in ("north", "south"):
            assert await w.dead_letters(names.from_silo(silo)) == []
        announced = [f"round-announced {number} {purpose}" for number, purpose in ROUNDS]
        assert [said for said in old.heard if said.startswith("round-announced")] == announced
