"""How fast this machine could do a round's work at best, from speeds measured here and now.

The work that no program could leave out, for N silos, a model of M bytes and updates of U bytes (other than M when they
travel narrower than the model):

    each silo          read the M bytes it was given; write its update, and hash it once
    the orchestrator   read and hash each update once, when it arrives; read each again and add it; write the new
                       weights and hash them

Three things take time and overlap perfectly at best, so the floor is the longest of them:

    cpu    all of that, spread over all cores without a gap
    disk   the N updates and the new weights, made durable: a round that an orchestrator has acknowledged must outlive
           a power cut
    chain  what cannot overlap, because SHA-256 is sequential and each step needs the result of the one before: a silo
           reads, writes, hashes; its update is hashed again; it is added; the new weights are hashed

Training is not in it, nor are messages, nor that the agent looks at what it was given (its hash) and at its update's
numbers (whether they are finite).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np

_PIECE: Final = 4 << 20
_IN_CACHE: Final = 1 << 15
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True, slots=True)
class Speeds:
    """Bytes per second of one thread; `disk` of the machine."""

    hash: float
    read: float
    """Of a file in the page cache."""
    write: float
    """Into the page cache."""
    add: float
    """Bytes of the updates' dtype, widened and added to a sum that stays in the processor's cache."""
    disk: float
    """Written and durable."""
    cores: int

    @classmethod
    def measure(cls, directory: Path, dtype: str, megabytes: int = 256) -> Speeds:
        """Takes a few seconds. `directory` is on the disk that rounds are written to."""
        size = megabytes * 1_000_000 // _PIECE * _PIECE
        piece = np.random.default_rng(0).integers(0, 120, _PIECE, np.uint8)  # finite in every dtype
        pieces = size // _PIECE
        path = directory / "speed"

        def hash_all() -> None:
            digest = hashlib.sha256()
            for _ in range(pieces):
                digest.update(piece.data)

        def write() -> None:
            path.unlink(missing_ok=True)
            with path.open("xb", buffering=0) as file:
                for _ in range(pieces):
                    file.write(piece.data)

        def write_durably() -> None:
            write()
            with path.open("rb+") as file:
                os.fsync(file.fileno())

        def read() -> None:
            buffer = memoryview(bytearray(_PIECE))
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

        numbers = piece.view(DTYPES[dtype])
        total, wide = np.zeros(_IN_CACHE), np.empty(_IN_CACHE)

        def add() -> None:
            for start in range(0, len(numbers), _IN_CACHE):
                part = numbers[start : start + _IN_CACHE]
                np.copyto(wide[: len(part)], part)
                np.add(total[: len(part)], wide[: len(part)], out=total[: len(part)])

        try:
            disk = size / _best(write_durably)
            return cls(
                hash=size / _best(hash_all),
                write=size / _best(write),
                read=size / _best(read),
                add=_PIECE / _best(add, 9),
                disk=disk,
                cores=os.cpu_count() or 1,
            )
        finally:
            path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Floor:
    """Seconds that a round takes at least."""

    cpu_s: float
    disk_s: float
    chain_s: float

    @classmethod
    def of(cls, speeds: Speeds, *, silos: int, model: float, update: float) -> Floor:
        """For so many silos, and so many bytes of the model and of an update."""
        silo = model / speeds.read + update / speeds.write + update / speeds.hash
        arrival = update / speeds.read + update / speeds.hash
        adding = update / speeds.read + update / speeds.add
        result = model / speeds.write + model / speeds.hash
        return cls(
            cpu_s=(silos * (silo + arrival + adding) + result) / speeds.cores,
            disk_s=(silos * update + model) / speeds.disk,
            chain_s=silo + update / speeds.hash + update / speeds.add + model / speeds.hash,
        )

    @property
    def seconds(self) -> float:
        """The longest of the three."""
        return max(self.cpu_s, self.disk_s, self.chain_s)


def _best(work: Callable[[], None], tries: int = 3) -> float:
    """Seconds of the fastest try."""
    taken = []
    for _ in range(tries):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)
