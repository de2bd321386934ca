"""`silobus reconcile` says that it sent again only what it could send."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from messages import names
from messages.errors import Transient
from messages.transport.memory_bus import MemoryBus
from orchestrator.cli import maintenance
from tests.unit.cli.conftest import SILOS, Federation
from tests.unit.experiment.given import training


async def refuses(*_: Any, **__: Any) -> None:
    raise Transient("to-north")


async def hangs(*_: Any, **__: Any) -> None:
    await asyncio.sleep(600)


@pytest.mark.parametrize("answer", [refuses, hangs])
def test_a_bus_that_is_away_is_said_in_a_line(
    silobus: Federation, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    monkeypatch.setattr(MemoryBus, "peek", answer)
    monkeypatch.setattr(maintenance, "PATIENCE", 0.1)

    result = silobus("reconcile")

    assert result.exit_code == 1
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("The bus cannot be reached, so nothing was sent.")


def test_what_a_live_round_waits_for_is_sent_again(silobus: Federation) -> None:
    silobus.save("exp", training())

    result = silobus("reconcile")

    assert result.exit_code == 0
    assert result.stdout == "Sent again what every live experiment needs.\n"
    assert any(silobus.bodies(names.to_silo(silo)) for silo in SILOS)
