"""Batches cover every number once, and ranges every byte they need once."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from messages.safetensors_layout import DTYPES, Layout, TensorSpec
from orchestrator.aggregation.plan import Piece, batches, ranges

sizes = st.lists(st.tuples(st.sampled_from(["F32", "F16", "I64", "U8"]), st.integers(0, 20)), max_size=12)


def a_layout(tensors: list[tuple[str, int]]) -> Layout:
    return Layout.of((f"t{number}", code, (size,)) for number, (code, size) in enumerate(tensors))


@given(sizes, st.integers(1, 30))
def test_batches_hold_every_number_once_in_order_and_are_full(tensors: list[tuple[str, int]], room: int) -> None:
    layout = a_layout(tensors)
    plan = list(batches(layout.in_file_order, room))
    numbers = [(p.tensor, n) for batch in plan for p in batch for n in range(p.start, p.stop)]
    assert numbers == [(s.name, n) for s in layout.in_file_order for n in range(s.elements)]
    held = [sum(p.stop - p.start for p in batch) for batch in plan]
    assert all(count == room for count in held[:-1])
    assert all(0 < count <= room for count in held)


@given(sizes, st.integers(1, 30), st.randoms())
def test_ranges_of_a_file_in_any_order_hold_the_pieces_bytes(
    tensors: list[tuple[str, int]], room: int, random: object
) -> None:
    model = a_layout(tensors)
    shuffled = list(model.tensors)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    position, specs = 0, []
    for s in shuffled:
        specs.append(TensorSpec(s.name, s.dtype, s.shape, position, position + s.end - s.begin))
        position += s.end - s.begin
    update = Layout(tuple(sorted(specs, key=lambda s: s.name)), 24)
    file = np.random.default_rng(0).bytes(24 + position)
    for batch in batches(model.in_file_order, room):
        spans = ranges(batch, update)
        assert sorted(index for span in spans for index, _ in span.pieces) == list(range(len(batch)))
        for one, after in itertools.pairwise(spans):
            assert one.offset + one.length < after.offset  # neighbours are one range
        for span in spans:
            raw = file[span.offset : span.offset + span.length]
            for index, offset in span.pieces:
                piece, spec = batch[index], update.by_name[batch[index].tensor]
                size = DTYPES[spec.dtype].itemsize
                begin = 24 + spec.begin + piece.start * size
                length = (piece.stop - piece.start) * size
                assert raw[offset : offset + length] == file[begin : begin + length]


@given(sizes, st.integers(1, 6), st.integers(6, 30))
def test_pieces_begin_at_a_multiple_and_no_batch_is_empty(
    tensors: list[tuple[str, int]], multiple: int, room: int
) -> None:
    layout = a_layout(tensors)
    plan = list(batches(layout.in_file_order, room, multiple))
    numbers = [(p.tensor, n) for batch in plan for p in batch for n in range(p.start, p.stop)]
    assert numbers == [(s.name, n) for s in layout.in_file_order for n in range(s.elements)]
    assert all(0 < sum(p.stop - p.start for p in batch) <= room for batch in plan)
    assert all(p.start % multiple == 0 for batch in plan for p in batch)


def test_small_tensors_are_read_together() -> None:
    layout = a_layout([("F32", 10)] * 1000)
    (batch,) = batches(layout.in_file_order, 1 << 20)
    assert [(span.offset, span.length) for span in ranges(batch, layout)] == [(layout.data_offset, 40_000)]


def test_a_large_tensor_is_cut() -> None:
    layout = a_layout([("F32", 10)])
    assert list(batches(layout.in_file_order, 4)) == [(Piece("t0", 0, 4),), (Piece("t0", 4, 8),), (Piece("t0", 8, 10),)]
