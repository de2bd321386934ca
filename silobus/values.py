"""A tensor's values out of a file and into one, without a second copy of them.

Where a tensor's own memory is as a file has it, the file is read right into it. Elsewhere (another device, strides,
another dtype, a difference) the values pass through one buffer of a piece's size. Which tensor and which file is not
known here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from silobus.files import TensorFile
from silobus.tensors import DTYPES, PIECE, Kind, shape_of


def read(file: TensorFile, name: str, kind: Kind) -> Any:
    """A new tensor of what a file has under the name."""
    value = kind.empty(file.code(name), file.shape(name))
    read_into(value, kind, file, name)
    return value


def read_into(value: Any, kind: Kind, file: TensorFile, name: str) -> None:
    """Overwrite a tensor of the file's shape and dtype. ValueError where the file ends: it is half overwritten then."""
    own = kind.memory(value)
    if own is not None:
        with file.reading(name) as take:
            take(own)
        return
    for piece, source in zip(kind.pieces(value), read_pieces(file, name, value, kind), strict=True):
        kind.fill(piece, source)


def read_pieces(file: TensorFile, name: str, like: Any, kind: Kind) -> Iterator[Any]:
    """What a file has under the name, in the pieces of a tensor of that shape. Each is there until the next is asked
    for: they share one buffer."""
    code = file.code(name)
    buffer = kind.empty(code, (min(math.prod(shape_of(like)), PIECE),))
    memory = kind.memory(buffer)
    assert memory is not None  # noqa: S101  # it was made to be read into
    with file.reading(name) as take:
        for piece in kind.pieces(like):
            shape = shape_of(piece)
            count = math.prod(shape)
            take(memory[: count * DTYPES[code][1]])
            yield buffer[:count].reshape(shape)


def raw_pieces(value: Any, kind: Kind, code: str) -> Iterator[Any]:
    """A tensor's bytes as that dtype, piece by piece."""
    return (kind.raw(piece, code) for piece in kind.pieces(value))
