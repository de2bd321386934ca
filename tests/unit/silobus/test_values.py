"""A tensor's values come out of a file into its own memory, and go into one, whatever that memory is like.

Pieces are of 4 elements in all tests of `silobus` (conftest), so that small tensors have several.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import silobus
from silobus import tensors, values
from silobus.files import Entry, TensorFile, write_tensors
from silobus.tensors import NUMPY, PIECE, TORCH, Kind
from silobus.weights import divide
from tests.unit.silobus.by_hand import RoundByHand

Given = Callable[..., RoundByHand]
Run = Callable[..., RoundByHand]

SHAPES = [(), (0,), (0, 9), (3, 0, 2), (1,), (4,), (11,), (1, 11), (11, 1), (3, 5), (2, 3, 1, 4), (5, 2, 2)]
LAYOUTS = ["by row", "by column", "strided", "reversed"]  # the last is numpy's alone


def numbers(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(1, math.prod(shape) + 1, dtype=np.float32).reshape(shape)


def array(shape: tuple[int, ...], layout: str, dtype: Any = np.float32) -> np.ndarray:
    """Zeros, laid out so in memory."""
    match layout:
        case "by row":
            return np.zeros(shape, dtype)
        case "by column":
            return np.zeros(shape[::-1], dtype).T
        case "strided":
            return np.zeros((*shape, 2), dtype)[..., 1]
        case _:
            return np.zeros(shape, dtype)[(*[slice(None, None, -1)] * len(shape), ...)]


def tensor(shape: tuple[int, ...], layout: str) -> torch.Tensor:
    return torch.from_numpy(array(shape, layout))


def no_buffer(code: str, shape: tuple[int, ...]) -> Any:
    raise AssertionError(f"memory for {shape} of {code} was asked for")


# --- any memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "layout"), [*((array, one) for one in LAYOUTS), *((tensor, one) for one in LAYOUTS if one != "reversed")]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_come_in_and_go_out_again_whatever_the_memory(
    shape: tuple[int, ...], make: Callable[..., Any], layout: str, tmp_path: Path
) -> None:
    kind: Kind = NUMPY if make is array else TORCH
    value, expected = make(shape, layout), numbers(shape)
    entries = [Entry(name, "F32", shape, lambda: [expected.tobytes()]) for name in ("a", "b")]
    write_tensors(tmp_path / "in", entries, hashes=False)
    values.read_into(value, kind, TensorFile(tmp_path / "in"), "b")
    assert np.array_equal(np.asarray(value), expected)
    assert b"".join(values.raw_pieces(value, kind, "F32")) == expected.tobytes()
    along = [np.asarray(one).copy() for one in values.read_pieces(TensorFile(tmp_path / "in"), "b", value, kind)]
    assert np.array_equal(np.concatenate([one.reshape(-1) for one in along]), expected.reshape(-1))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_pieces_are_views_in_order_and_no_larger_than_allowed(shape: tuple[int, ...], layout: str) -> None:
    value = array(shape, layout)
    value[...] = numbers(shape)
    pieces = list(NUMPY.pieces(value))
    assert b"".join(piece.tobytes() for piece in pieces) == numbers(shape).tobytes()
    assert pieces[0].size == max(piece.size for piece in pieces) <= tensors.PIECE == 4
    assert not value.size or all(np.shares_memory(piece, value) for piece in pieces)


@pytest.mark.parametrize(
    ("kind", "plain"),
    [(NUMPY, np.zeros((3, 5), np.float32)), (TORCH, torch.zeros(3, 5)), (TORCH, nn.Linear(5, 3).weight)],
)
def test_plain_memory_is_read_into_where_it_lies(
    kind: Kind, plain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"w": torch.ones(3, 5)}, tmp_path / "w")
    monkeypatch.setattr(type(kind), "empty", staticmethod(no_buffer))
    values.read_into(plain, kind, TensorFile(tmp_path / "w"), "w")
    assert bool((plain == 1).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool])
@pytest.mark.parametrize("turned", [False, True])
def test_every_dtype_comes_in_bit_by_bit(dtype: torch.dtype, turned: bool, tmp_path: Path) -> None:
    expected = (torch.rand(5, 3) * 100 - 50).to(dtype)
    save_file({"w": expected}, tmp_path / "w")
    value = torch.zeros(3, 5, dtype=dtype).T if turned else torch.zeros(5, 3, dtype=dtype)
    values.read_into(value, TORCH, TensorFile(tmp_path / "w"), "w")
    assert torch.equal(value, expected)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.dtype(">f4"), np.dtype(">i8")])
def test_numpy_dtypes_of_others_and_of_the_other_byte_order_too(dtype: Any, tmp_path: Path) -> None:
    value = np.zeros((3, 5), dtype)
    code = NUMPY.code(value)
    expected = numbers((3, 5)).astype(value.dtype)
    write_tensors(
        tmp_path / "w", [Entry("w", code, (3, 5), lambda: values.raw_pieces(expected, NUMPY, code))], hashes=False
    )
    values.read_into(value, NUMPY, TensorFile(tmp_path / "w"), "w")
    assert np.array_equal(value, expected)
    assert np.array_equal(values.read(TensorFile(tmp_path / "w"), "w", NUMPY), expected)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_a_numpy_matrix_too(tmp_path: Path) -> None:
    matrix = np.asmatrix(np.zeros((2, 9), np.float32).T)
    write_tensors(tmp_path / "w", [Entry("w", "F32", (9, 2), lambda: [numbers((9, 2)).tobytes()])], hashes=False)
    values.read_into(matrix, NUMPY, TensorFile(tmp_path / "w"), "w")
    assert np.array_equal(matrix, numbers((9, 2)))
    assert b"".join(values.raw_pieces(matrix.T, NUMPY, "F32")) == numbers((9, 2)).T.tobytes()


def test_what_torch_only_notes_to_be_negative_is_written_and_read_as_it_is(tmp_path: Path) -> None:
    negated = torch._neg_view(torch.tensor([1.0, 2.0]))
    assert b"".join(values.raw_pieces(negated, TORCH, "F32")) == np.array([-1, -2], np.float32).tobytes()
    save_file({"w": torch.tensor([3.0, -4.0])}, tmp_path / "w")
    values.read_into(negated, TORCH, TensorFile(tmp_path / "w"), "w")
    assert negated.tolist() == [3.0, -4.0]


def test_a_class_of_its_own_says_itself_how_it_is_overwritten(tmp_path: Path) -> None:
    class Quantized(torch.Tensor):
        pass

    save_file({"w": torch.ones(3)}, tmp_path / "w")
    own = torch.zeros(3).as_subclass(Quantized)
    assert TORCH.memory(own) is None
    values.read_into(own, TORCH, TensorFile(tmp_path / "w"), "w")
    assert own.tolist() == [1, 1, 1]


# --- autograd ----------------------------------------------------------------------------------------------------


class Square(nn.Module):
    """Needs its weight on the way back."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3, 2), 5.0))

    def forward(self) -> torch.Tensor:
        return self.weight.square().sum()


RECEIVED = torch.arange(6.0).reshape(3, 2)


@pytest.mark.parametrize("as_dict", [False, True])
def test_gradients_after_a_load_are_those_of_the_weights_received(given: Given, run: Run, as_dict: bool) -> None:
    model = Square()
    loaded = dict(model.named_parameters()) if as_dict else model
    run(given("evaluate", weights={"weight": RECEIVED}), lambda rnd: rnd.load(loaded))
    model().backward()
    assert model.weight.is_leaf
    assert model.weight.grad is not None
    assert torch.equal(model.weight.grad, 2 * RECEIVED)


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_a_graph_that_needs_the_weights_of_before_is_refused(
    given: Given, run: Run, as_dict: bool, turned: bool
) -> None:
    model = Square()
    if turned:
        model.weight = nn.Parameter(torch.full((2, 3), 5.0).T)
    loaded = dict(model.named_parameters()) if as_dict else model
    before = model()
    run(given("evaluate", weights={"weight": RECEIVED}), lambda rnd: rnd.load(loaded))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        before.backward()


def test_a_parameter_is_filled_with_what_it_first_was() -> None:
    """A process kept warm starts a private parameter from there when no state is kept of it."""
    private = torch.ones(3, requires_grad=True)
    model = divide({"shared": torch.zeros(1), "private": private}, ["*", "!private"])
    model.fill(model.private[0], {"private": torch.tensor([1.0, 2.0, 3.0])})
    assert private.tolist() == [1, 2, 3]
    assert private.is_leaf


def test_a_graph_that_does_not_need_them_is_right_all_the_same(given: Given, run: Run) -> None:
    model = Square()
    before = (3 * model.weight).sum()
    run(given("evaluate", weights={"weight": RECEIVED}), lambda rnd: rnd.load(model))
    before.backward()
    assert model.weight.grad is not None
    assert torch.equal(model.weight.grad, torch.full((3, 2), 3.0))


# --- a file that ends in the middle ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [Square(), {"weight": np.zeros((3, 2), np.float32)}, {"weight": torch.zeros(2, 3).T}])
def test_a_file_that_ends_in_the_middle_ends_the_round(given: Given, run: Run, model: Any) -> None:
    made = given(weights={"weight": RECEIVED})
    graph = model() if isinstance(model, Square) else None

    def body(rnd: silobus.Round) -> None:
        path = made.source / "weights.safetensors"
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-6])
        with pytest.raises(ValueError, match=r"weights\.safetensors ends in the middle of tensor 'weight'"):
            rnd.load(model)
        if graph is not None:  # half of the weight is another now
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                graph.backward()
        rnd.submit(model, samples=1, steps=1)

    with pytest.raises(RuntimeError, match=r"submit\(\) came before load\(\)"):
        run(made, body)
    assert made.written == set()


# --- memory ------------------------------------------------------------------------------------------------------

WIDE = (3000, 3000)  # 36 MB: from 32 MB on, memory that is freed is given back at once
ROOM = 16 << 20


@pytest.fixture
def pieces_as_users_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "PIECE", PIECE)
    monkeypatch.setattr(values, "PIECE", PIECE)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is Linux's")
@pytest.mark.usefixtures("pieces_as_users_have_them")
@pytest.mark.parametrize("library", [np, torch])
@pytest.mark.parametrize(
    ("transfer", "turned"),
    [({"form": "weights", "dtype": "float16"}, False), ({"form": "delta", "dtype": "bfloat16"}, True)],
)
def test_no_second_copy_of_a_tensor_is_made(
    given: Given, run: Run, library: Any, transfer: dict[str, Any], turned: bool
) -> None:
    one = library.ones(WIDE, dtype=library.float32)
    one = one.T if turned else one
    peaks: list[int] = []

    def body(rnd: silobus.Round) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = memory("VmRSS")
        rnd.load({"w": one})
        peaks.append(memory("VmHWM") - before)
        rnd.submit({"w": one}, samples=1, steps=1)
        peaks.append(memory("VmHWM") - before)

    run(given(weights={"w": torch.zeros(WIDE)}, transfer=transfer), body)
    assert not one.any()
    assert max(peaks) < ROOM, peaks


def memory(field: str) -> int:
    """Bytes."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) * 1024
