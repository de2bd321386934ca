"""Which bytes are read together. Pure: layouts in, ranges out.

The output is made batch by batch, in the order of its bytes. A batch is as many consecutive pieces of tensors as there
is room for, so that a huge tensor is cut and thousands of small ones are read at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from messages.safetensors_layout import Layout, TensorSpec


@dataclass(frozen=True, slots=True)
class Piece:
    """Numbers `start` to `stop` of a tensor."""

    tensor: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of one file that hold some pieces of a batch: for each its index in the batch and its offset in here."""

    offset: int
    length: int
    pieces: tuple[tuple[int, int], ...]


def batches(in_file_order: Iterable[TensorSpec], elements: int, multiple: int = 1) -> Iterator[tuple[Piece, ...]]:
    """Cuts tensors into batches of at most `elements` numbers. Empty tensors have no pieces.

    Every piece begins at a multiple of `multiple` in its tensor, of which there have to be as many `elements` at least.
    """
    batch: list[Piece] = []
    room = elements
    for spec in in_file_order:
        start = 0
        while start < spec.elements:
            stop = spec.elements if spec.elements - start <= room else start + room // multiple * multiple
            if stop > start:
                batch.append(Piece(spec.name, start, stop))
            room -= stop - start
            start = stop
            if start < spec.elements or not room:
                yield tuple(batch)
                batch, room = [], elements
    if batch:
        yield tuple(batch)


def ranges(batch: Sequence[Piece], layout: Layout) -> list[Range]:
    """Where the pieces of a batch are in a file with this layout; neighbours in one range."""
    spans: list[tuple[int, int, int]] = []
    for index, piece in enumerate(batch):
        spec = layout.by_name[piece.tensor]
        begin = layout.data_offset + spec.begin
        spans.append((begin + piece.start * spec.itemsize, begin + piece.stop * spec.itemsize, index))
    spans.sort()
    found: list[Range] = []
    offset, end, inside = 0, 0, list[tuple[int, int]]()
    for begin, stop, index in spans:
        if begin != end or not inside:
            if inside:
                found.append(Range(offset, end - offset, tuple(inside)))
            offset, inside = begin, []
        inside.append((index, begin - offset))
        end = stop
    if inside:
        found.append(Range(offset, end - offset, tuple(inside)))
    return found
