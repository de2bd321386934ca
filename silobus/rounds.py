"""The loop: alone, as one job per round, or kept warm by the agent.

Here lives which of the three this process is, decided from the environment alone. Reading the environment happens
nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from silobus.alone import alone_rounds
from silobus.channel import Channel
from silobus.federated import FederatedRound
from silobus.round import Round
from silobus.state import Origins


def rounds(
    *, rounds: int = 1, params: Mapping[str, Any] | None = None, data: Mapping[str, Any] | None = None
) -> Iterator[Round]:
    """The rounds this script is to run.

    Without an agent: so many rounds of local training with these params and data, and an evaluation at the end.
    With one: what the agent asks for; `params` are then defaults under the experiment's hyperparameters, and
    `rounds` and `data` are not used. A round counts when the loop body has returned: after a `break` it does not.
    """
    source, target, socket = (os.environ.get(f"SILOBUS_{name}") for name in ("INPUT", "OUTPUT", "SOCKET"))
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    defaults = dict(params or {})
    if (source is None) != (target is None):
        raise RuntimeError("SILOBUS_INPUT and SILOBUS_OUTPUT go together: only one of them is set")
    if source is not None and target is not None:
        if socket is not None:
            Channel(socket)  # for its watch alone
        # An agent on this machine has just verified what it hands out, read-only, and verifies what it is given.
        hashes = socket is None
        rnd = FederatedRound(Path(source), Path(target), defaults=defaults, writes=rank == 0, hashes=hashes)
        yield rnd
        rnd.finish()
    elif socket is not None:
        origins = Origins()
        for into, out in Channel(socket).rounds(rank=rank, world_size=world_size):
            rnd = FederatedRound(into, out, defaults=defaults, writes=rank == 0, hashes=False, origins=origins)
            yield rnd
            rnd.finish()
    else:
        yield from alone_rounds(rounds, defaults, dict(data or {}), prints=rank == 0)
