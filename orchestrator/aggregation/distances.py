"""How far updates are from the base and from each other: by their inner products, which one pass over them gives. Pure.

With dᵢ = wᵢ − base and the Gram matrix Gᵢⱼ = dᵢ·dⱼ all that robust strategies ask for follows:

    ‖dᵢ‖² = Gᵢᵢ        ‖wᵢ − wⱼ‖² = Gᵢᵢ + Gⱼⱼ − 2 Gᵢⱼ        cos(dᵢ, dⱼ) = Gᵢⱼ / √(Gᵢᵢ Gⱼⱼ)
    ‖dᵢ − z‖² = Gᵢᵢ − 2 Σⱼ αⱼ Gᵢⱼ + Σⱼₖ αⱼ αₖ Gⱼₖ        for z = Σ αⱼ dⱼ with Σ αⱼ = 1

Only floating tensors count. The products are made by BLAS, whose last bits differ from processor to processor;
`to_24_bits` keeps them out of results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Wide = np.ndarray[Any, np.dtype[np.float64]]
GRAM_BLOCK: Final = 1 << 13
"""Numbers multiplied at a time, counted from a tensor's first: so where chunks are cut does not change a bit. Fewer of
many silos: see `Gram.block`."""
_MOST_IN_ROWS: Final = 1 << 18
_LEAST_BLOCK: Final = 1 << 8
GREATEST: Final = 1e140
"""Float64 numbers beyond it count as this: so no product, and no sum of them, is infinite."""


@dataclass(frozen=True, slots=True, eq=False)
class Distances:
    """Of `n` updates, in silo order."""

    inner: Wide
    """The Gram matrix of the updates' changes to the base, n × n, symmetrical."""

    @property
    def norms(self) -> Wide:
        """The length of each update's change."""
        return np.sqrt(np.diag(self.inner))

    @property
    def squared(self) -> Wide:
        """The squared distance between each two updates, n × n."""
        diagonal = np.diag(self.inner)
        found: Wide = np.maximum(diagonal[:, None] + diagonal[None, :] - 2 * self.inner, 0.0)
        np.fill_diagonal(found, 0.0)
        return found

    @property
    def cosines(self) -> Wide:
        """The cosine of the angle between each two changes, n × n; 0 where one of them is no change at all."""
        norms = self.norms
        product = norms[:, None] * norms[None, :]
        return np.divide(self.inner, product, out=np.zeros_like(self.inner), where=product > 0)

    @property
    def to_others(self) -> tuple[float | None, ...]:
        """The cosine of each change to the mean direction of the others, each of which counts as having length 1.

        So one that is huge does not lead all others. None of no change, and where the others' directions cancel out.
        """
        cosines = self.cosines
        own, with_all = np.diag(cosines), cosines.sum(axis=1)
        squared = cosines.sum() - 2 * with_all + own
        known = (own > 0) & (squared > 1e-9 * len(own))
        found = np.divide(with_all - own, np.sqrt(np.maximum(squared, 0.0)), out=np.zeros_like(own), where=known)
        pairs = zip(np.clip(found, -1.0, 1.0).tolist(), known.tolist(), strict=True)
        return tuple(cosine if is_known else None for cosine, is_known in pairs)

    def to_mean(self, shares: Wide) -> Wide:
        """The distance of each update to Σ `shares`ⱼ wⱼ, whose shares add up to 1."""
        # Not by norms minus means: shares of what is huge are tiny, and only their products have a size.
        reached = self.inner * shares[None, :]
        squared = np.diag(self.inner) - 2 * reached.sum(axis=1) + (reached * shares[:, None]).sum()
        found: Wide = np.sqrt(np.maximum(squared, 0.0))
        return found


@final
class Gram:
    """Adds up the inner products of `silos` updates, chunk by chunk. A chunk begins at a multiple of `block`."""

    def __init__(self, silos: int) -> None:
        self.block: Final = gram_block(silos)
        self._total, self._product = np.zeros((silos, silos)), np.empty((silos, silos))
        self._rows = np.empty((silos, self.block))

    def add(self, chunks: Sequence[Array], base: Array | None) -> None:
        """The same chunk of every update: weights, or with no `base` changes."""
        clips = any(chunk.dtype == np.float64 for chunk in chunks)
        for start in range(0, len(chunks[0]), self.block):
            stop = min(start + self.block, len(chunks[0]))
            rows = self._rows[:, : stop - start]
            for row, chunk in zip(rows, chunks, strict=True):
                np.copyto(row, chunk[start:stop])
            if base is not None:
                rows -= base[start:stop].astype(np.float64)
            if clips:
                np.clip(rows, -GREATEST, GREATEST, out=rows)
            self._total += np.matmul(rows, rows.T, out=self._product)

    def distances(self) -> Distances:
        """What came of all chunks."""
        upper = np.triu(self._total)
        return Distances(upper + np.triu(self._total, 1).T)


def gram_bytes(silos: int) -> int:
    """What a `Gram` takes up, with what is made of it at the end: beyond some hundred silos, their square counts."""
    return 8 * (silos * gram_block(silos) + 6 * silos * silos)


def gram_block(silos: int) -> int:
    """Numbers that a `Gram` multiplies at a time: a power of two that depends on nothing else."""
    return max(_LEAST_BLOCK, min(GRAM_BLOCK, 1 << (_MOST_IN_ROWS // max(silos, 1)).bit_length() - 1))


def to_24_bits(number: float) -> float:
    """The number with the 24 leading bits of its mantissa: an error of 3e-8 at most, relative."""
    mantissa, exponent = math.frexp(number)
    return math.ldexp(round(math.ldexp(mantissa, 24)), exponent - 24)
