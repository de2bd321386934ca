"""One tensor, whichever library it is of: its shape, its dtype, its bytes.

Here lives all that differs between torch and numpy. Neither is imported before the script has done so: what is not
loaded cannot have made the value. Dtypes go by their code in safetensors files ("F32", "BF16").
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Hashable, Iterator
from typing import Any, Protocol

DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
CODES = {name: code for code, (name, _) in DTYPES.items()}

PIECE = 1 << 18
"""Elements worked on at a time: 1 MB of float32, which stays in a processor's cache between one step and the next."""


class Kind(Protocol):
    """What is asked of a tensor library."""

    def code(self, tensor: Any) -> str:
        """The dtype's code; TypeError when it has none."""

    def identity(self, tensor: Any) -> Hashable:
        """Equal for two tensors that are one and the same piece of memory."""

    def raw(self, tensor: Any, code: str) -> Any:
        """The values as that dtype: a buffer of little-endian bytes in row-major order."""

    def pieces(self, tensor: Any) -> Iterator[Any]:
        """The tensor in row-major order, as views of no more than `PIECE` elements, the first the largest."""

    def empty(self, code: str, shape: tuple[int, ...]) -> Any:
        """A new tensor with whatever is in its memory, which is as a file has it."""

    def memory(self, tensor: Any) -> memoryview | None:
        """The tensor's own bytes, to be overwritten at once; None where they are not as a file has them."""

    def writable(self, tensor: Any) -> bool: ...

    def fill(self, tensor: Any, source: Any) -> None:
        """Copy the source's values into the tensor, in place."""

    def copy(self, tensor: Any) -> Any: ...

    def minus(self, left: Any, right: Any) -> Any:
        """The difference, in float32 or wider."""


class _Torch:
    def code(self, tensor: Any) -> str:
        import torch

        if tensor.layout != torch.strided or tensor.device.type == "meta":
            raise TypeError(f"a {tensor.layout} tensor on {tensor.device} has no values to write")
        return _code(str(tensor.dtype).removeprefix("torch."))

    def identity(self, tensor: Any) -> Hashable:
        if str(tensor.layout) != "torch.strided" or tensor.device.type == "meta" or not tensor.numel():
            return id(tensor)  # it has no memory, or not one piece of it
        return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype

    def raw(self, tensor: Any, code: str) -> Any:
        import torch

        name, size = DTYPES[code]
        return _bytes_of(tensor.detach().to("cpu", getattr(torch, name)).resolve_neg().contiguous(), size)

    def pieces(self, tensor: Any) -> Iterator[Any]:
        return _pieces(tensor.detach())

    def empty(self, code: str, shape: tuple[int, ...]) -> Any:
        import torch

        return torch.empty(shape, dtype=getattr(torch, DTYPES[code][0]))

    def memory(self, tensor: Any) -> memoryview | None:
        import torch

        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)  # a class of its own may keep its values elsewhere
        if not plain or tensor.device.type != "cpu" or tensor.is_neg() or not tensor.is_contiguous():
            return None
        # What copy_() would have done: autograd now refuses to go back through a graph that needs the old values.
        torch.autograd.graph.increment_version(tensor)
        return _bytes_of(tensor.detach(), tensor.element_size())

    def writable(self, tensor: Any) -> bool:
        return True

    def fill(self, tensor: Any, source: Any) -> None:
        import torch

        with torch.no_grad():
            tensor.copy_(source)

    def copy(self, tensor: Any) -> Any:
        return tensor.detach().clone()

    def minus(self, left: Any, right: Any) -> Any:
        import torch

        wide = torch.float64 if left.dtype == torch.float64 else torch.float32
        return left.detach().to("cpu", wide) - right.to("cpu", wide)


class _Numpy:
    def code(self, tensor: Any) -> str:
        return _code(tensor.dtype.name)

    def identity(self, tensor: Any) -> Hashable:
        if not tensor.size:
            return id(tensor)
        return tensor.__array_interface__["data"][0], tensor.shape, tensor.strides, tensor.dtype

    def raw(self, tensor: Any, code: str) -> Any:
        import numpy as np

        if code == "BF16" and tensor.dtype.name != "bfloat16":
            tensor = _bfloat16_bits(tensor)
        elif code != "BF16":
            tensor = tensor.astype(np.dtype(DTYPES[code][0]).newbyteorder("<"), copy=False)
        flat = np.ascontiguousarray(tensor).reshape(-1)
        return flat.view(np.uint8).data if flat.size else b""

    def pieces(self, tensor: Any) -> Iterator[Any]:
        import numpy as np

        return _pieces(np.asarray(tensor))  # a matrix's rows would be matrices again

    def empty(self, code: str, shape: tuple[int, ...]) -> Any:
        import numpy as np

        return np.empty(shape, np.dtype(DTYPES[code][0]).newbyteorder("<"))

    def memory(self, tensor: Any) -> memoryview | None:
        import numpy as np

        little = tensor.dtype == tensor.dtype.newbyteorder("<")
        if not (little and tensor.flags.c_contiguous and tensor.flags.writeable):
            return None
        flat = np.asarray(tensor).reshape(-1)
        return memoryview(flat.view(np.uint8).data) if flat.size else memoryview(b"")

    def writable(self, tensor: Any) -> bool:
        return bool(tensor.flags.writeable)

    def fill(self, tensor: Any, source: Any) -> None:
        tensor[...] = source

    def copy(self, tensor: Any) -> Any:
        return tensor.copy()

    def minus(self, left: Any, right: Any) -> Any:
        import numpy as np

        wide = np.float64 if left.dtype == np.float64 else np.float32
        return left.astype(wide, copy=False) - right.astype(wide, copy=False)


TORCH: Kind = _Torch()
NUMPY: Kind = _Numpy()


def kind_of(value: object) -> Kind | None:
    """The library this value is a tensor of, or None when it is no tensor."""
    for library, type_name, kind in (("torch", "Tensor", TORCH), ("numpy", "ndarray", NUMPY)):
        module = sys.modules.get(library)
        if module is not None and isinstance(value, getattr(module, type_name)):
            return kind
    return None


def shape_of(tensor: Any) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _pieces(tensor: Any) -> Iterator[Any]:
    shape = shape_of(tensor)
    row = math.prod(shape[1:])
    if math.prod(shape) <= PIECE:
        yield tensor
    elif row > PIECE:
        for at in range(shape[0]):
            yield from _pieces(tensor[at])
    else:
        for at in range(0, shape[0], PIECE // row):
            yield tensor[at : at + PIECE // row]


def _bytes_of(tensor: Any, size: int) -> memoryview:
    """A contiguous torch tensor's memory. Without numpy, which torch does not require, this copies nothing."""
    if not tensor.numel():
        return memoryview(b"")
    buffer = (ctypes.c_ubyte * (tensor.numel() * size)).from_address(tensor.data_ptr())
    buffer.owner = tensor  # the memory lives as long as the buffer
    return memoryview(buffer).cast("B")


def _code(dtype: str) -> str:
    try:
        return CODES[dtype]
    except KeyError:
        raise TypeError(f"tensors of {dtype} cannot be written; known are {', '.join(CODES)}") from None


def _bfloat16_bits(tensor: Any) -> Any:
    """The upper half of float32, rounded to nearest even; numpy itself has no bfloat16."""
    import numpy as np

    single = np.ascontiguousarray(tensor, dtype=np.float32)
    bits = single.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits  # what goes over the end was no number, see below
    rounded >>= 16
    upper = rounded.astype("<u2")
    upper[np.isnan(single)] = 0x7FC0
    return upper
