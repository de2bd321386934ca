"""Where everything is: queue names, container names, blob paths, ids. Pure functions; the only place that spells them.

Nobody accepts a location from a message. A receiver derives it here from what it knows: the run, the round, the silo
whose queue the message came from, and a digest.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

NAME_PATTERN: Final = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"
"""Experiments, silos and tasks: 1 to 40 lower-case letters, digits and inner hyphens."""
RUN_PATTERN: Final = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?_[0-9a-f]{8}$"
"""A run: the experiment's name, an underscore, eight hex digits."""
DIGEST_PATTERN: Final = r"^[0-9a-f]{64}$"
"""SHA-256 in lower-case hex."""

EXPERIMENTS: Final = "experiments"
WORK: Final = "work"
DEAD_LETTERS: Final = "$DeadLetterQueue"

INITIAL: Final = "initial"
GLOBAL: Final = "global"
STATE: Final = "state"


def to_silo(silo: str) -> str:
    """The queue on which the orchestrator speaks to `silo`."""
    return f"to-{silo}"


def from_silo(silo: str) -> str:
    """The queue on which `silo` speaks to the orchestrator; who may send to it is what makes a message that silo's."""
    return f"from-{silo}"


def dead_letters_of(queue: str) -> str:
    """The sub-queue that holds the dead letters of `queue`."""
    return f"{queue}/{DEAD_LETTERS}"


def updates_of(silo: str) -> str:
    """The container in which `silo` creates its updates."""
    return f"updates-{silo}"


def queues(silos: list[str]) -> list[str]:
    """Every queue of a federation, in a stable order."""
    return [EXPERIMENTS, WORK, *(q for s in silos for q in (to_silo(s), from_silo(s)))]


def containers(silos: list[str]) -> list[str]:
    """Every container of a federation, in a stable order."""
    return [INITIAL, GLOBAL, STATE, *(updates_of(s) for s in silos)]


def weights_blob(run: str, round_number: int, sha256: str) -> str:
    """`<run>/<round>/<sha256>.safetensors`, in `global` and in `updates-<silo>` alike."""
    return f"{run}/{round_number:05d}/{sha256}.safetensors"


def round_of_blob(name: str) -> int | None:
    """The round a blob of `global` or `updates-<silo>` belongs to; None for one that belongs to none, as a head."""
    parts = name.split("/")
    return int(parts[1]) if len(parts) == 3 and re.fullmatch(r"[0-9]{5}", parts[1]) else None


def round_prefix(run: str, round_number: int) -> str:
    """What the names of a round's blobs begin with, in `global` and in `updates-<silo>` alike."""
    return f"{run}/{round_number:05d}/"


def publication_blob(run: str, round_number: int) -> str:
    """In `updates-<silo>`: the one update-published message this silo ever sends for a round. Create-only."""
    return f"{run}/{round_number:05d}/update.json"


def initial_blob(sha256: str) -> str:
    """In `initial`: weights an operator uploaded for new experiments."""
    return f"{sha256}.safetensors"


def head_blob(run: str) -> str:
    """In `global`: where the run stands; agents look here before they train and before they upload."""
    return f"{run}/head.json"


def experiment_blob(experiment: str) -> str:
    """In `state`: the live run of an experiment's name (or its last one, or a tombstone)."""
    return f"experiments/{experiment}.json"


def round_blob(run: str, round_number: int) -> str:
    """In `state`: what became of one round; written once, when it is over."""
    return f"rounds/{run}/{round_number:05d}.json"


def live_blob() -> str:
    """In `state`: the runs that go on."""
    return "live.json"


def run_blob(run: str) -> str:
    """In `state`: the summary of an ended run; written once."""
    return f"runs/{run}.json"


def retained_blob(run: str) -> str:
    """In `state`: what of a run is deleted or about to be, and whether an operator holds it."""
    return f"retention/{run}.json"


def swept_blob(run: str) -> str:
    """In `state`: nothing of this run is left that retention would delete; written once."""
    return f"swept/{run}.json"


def kept_blob(updates: int | None, models: int | None, run: str) -> str:
    """In `state`: this run is over, and nothing more of it goes while so many rounds of each are kept for ever."""
    return f"kept/{'all' if updates is None else updates}-{'all' if models is None else models}/{run}.json"


def presence_blob(silo: str) -> str:
    """In `state`: what a silo offers and when it was last heard of."""
    return f"presence/{silo}.json"


def run_id(experiment: str, message_id: str, body: bytes) -> str:
    """The run that a start message becomes: a function of the message, so that redelivery finds the same run.

    The name alone would let a reused name meet old results; message id and body make it the run's own.
    """
    digest = hashlib.sha256(message_id.encode() + b"\0" + body).hexdigest()
    return f"{experiment}_{digest[:8]}"


def experiment_of(run: str) -> str:
    """The experiment's name inside a run id. Raises ValueError for anything that is not a run id."""
    if not re.fullmatch(RUN_PATTERN, run):  # match() would let a newline follow
        raise ValueError(f"not a run id: {run[:80]!r}")
    return run.rpartition("_")[0]


def sent_again(message_id: str) -> str:
    """The id under which the same message is sent in place of another: `<id>~2`, `<id>~3` and so on."""
    first, times = sent_before(message_id)
    return f"{first}~{times + 1}"


def sent_before(message_id: str) -> tuple[str, int]:
    """The id of the first of those messages, and which of them this is: 1 at first."""
    first, tilde, times = message_id.rpartition("~")
    return (first, int(times)) if tilde and re.fullmatch(r"[0-9]{1,6}", times) else (message_id, 1)
