"""How fast this machine could do a round's work at best, from speeds measured here and now.

The work that no program could leave out and keep what Silobus promises, for N silos, a model of M bytes and updates of
U bytes (other than M when they travel narrower than the model):

    each silo          read and hash the M bytes it was given, which it verifies; write its update, and hash it once
    the orchestrator   read and hash each update once, when it arrives; read each again and add it; write the new
                       weights and hash them

Three things take time and overlap perfectly at best, so the floor is the longest of them:

    cpu    all of that, on all cores without a gap, at the speeds that they have when all of them work
    disk   the N updates and the new weights, made durable: a round that an orchestrator has acknowledged must outlive
           a power cut
    chain  what cannot overlap, because SHA-256 is sequential and each step needs the result of the one before: a silo
           hashes what it was given, writes, hashes; its update is hashed again; it is added; the new weights are
           hashed. At the speeds that one core has alone

Files are written to memory that was not just freed, as a round's are: what was written before is still there. On a
virtual machine whose host takes back what is free, that costs several times as much as writing where a file just was.
Training is not in it, nor are messages, nor that the script reads the weights as well, nor that numbers are looked at
(whether they are finite).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np

_PIECE: Final = 4 << 20
_IN_CACHE: Final = 1 << 15
_TRIES: Final = 3
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True, slots=True)
class Speeds:
    """Bytes per second, the best of three tries: of one core while the others rest, or of all of them together."""

    hash: float
    read: float
    """Of a file in the page cache."""
    write: float
    """Into the page cache."""
    add: float
    """Bytes of the updates' dtype, widened and added to a sum that stays in the processor's cache."""
    disk: float
    """Written and durable."""

    @classmethod
    def measure(cls, directory: Path, dtype: str, cores: int = 1, megabytes: int = 256) -> Speeds:
        """Takes a few seconds, and leaves three files of so many megabytes for each core in `directory`, which is new
        and on the disk that rounds are written to."""
        directory.mkdir()
        size = megabytes * 1_000_000 // _PIECE * _PIECE
        pieces = size // _PIECE
        piece = np.random.default_rng(0).integers(0, 120, _PIECE, np.uint8)  # finite in every dtype
        numbers = piece.view(DTYPES[dtype])

        def hash_all(_path: Path) -> None:
            digest = hashlib.sha256()
            for _ in range(pieces):
                digest.update(piece.data)

        def write(path: Path) -> None:
            with path.open("xb", buffering=0) as file:
                for _ in range(pieces):
                    file.write(piece.data)

        def make_durable(path: Path) -> None:
            with path.open("rb+") as file:
                os.fsync(file.fileno())

        def read(path: Path) -> None:
            buffer = memoryview(bytearray(_PIECE))
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

        def add(_path: Path) -> None:
            total, wide = np.zeros(_IN_CACHE), np.empty(_IN_CACHE)
            for _ in range(pieces):
                for start in range(0, len(numbers), _IN_CACHE):
                    part = numbers[start : start + _IN_CACHE]
                    np.copyto(wide[: len(part)], part)
                    np.add(total[: len(part)], wide[: len(part)], out=total[: len(part)])

        with ThreadPoolExecutor(cores) as threads:
            tries = [[directory / f"{number}-{core}" for core in range(cores)] for number in range(_TRIES)]

            def seconds(work: Callable[[Path], None]) -> list[float]:
                taken = []
                for paths in tries:
                    began = time.perf_counter()
                    list(threads.map(work, paths))
                    taken.append(time.perf_counter() - began)
                return taken

            written, durable = seconds(write), seconds(make_durable)
            return cls(
                hash=cores * size / min(seconds(hash_all)),
                write=cores * size / min(written),
                read=cores * size / min(seconds(read)),
                add=cores * size / min(seconds(add)),
                disk=cores * size / min(map(sum, zip(written, durable, strict=True))),
            )


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine can do, as measured: one core while the others rest, and all of them together."""

    one: Speeds
    together: Speeds

    @classmethod
    def measured(cls, directory: Path, dtype: str) -> Machine:
        """Takes some seconds. Measure before a benchmark deletes anything: memory that was just freed is fast."""
        with tempfile.TemporaryDirectory(dir=directory) as folder:
            one = Speeds.measure(Path(folder, "one"), dtype)
            together = Speeds.measure(Path(folder, "all"), dtype, os.cpu_count() or 1)
        return cls(one, together)

    def floor(self, *, silos: int, model: float, update: float) -> Floor:
        """For so many silos, and so many bytes of the model and of an update."""
        one, together = self.one, self.together

        def silo(at: Speeds) -> float:
            return model / at.read + model / at.hash + update / at.write + update / at.hash

        arrival = update / together.read + update / together.hash
        adding = update / together.read + update / together.add
        result = model / together.write + model / together.hash
        return Floor(
            cpu_s=silos * (silo(together) + arrival + adding) + result,
            disk_s=(silos * update + model) / together.disk,
            chain_s=silo(one) + update / one.hash + update / one.add + model / one.hash,
        )


@dataclass(frozen=True, slots=True)
class Floor:
    """Seconds that a round takes at least."""

    cpu_s: float
    disk_s: float
    chain_s: float

    @property
    def seconds(self) -> float:
        """The longest of the three."""
        return max(self.cpu_s, self.disk_s, self.chain_s)
