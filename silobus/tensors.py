"""One tensor, whichever library it is of: its shape, its dtype, its bytes.

Here lives all that differs between torch and numpy. Neither is imported before the script has done so: what is not
loaded cannot have made the value. Dtypes go by their code in safetensors files ("F32", "BF16").
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Hashable
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


class Kind(Protocol):
    """What is asked of a tensor library."""

    def code(self, tensor: Any) -> str:
        """The dtype's code; TypeError when it has none."""

    def identity(self, tensor: Any) -> Hashable:
        """Equal for two tensors that are one and the same piece of memory."""

    def raw(self, tensor: Any, code: str) -> Any:
        """The values as that dtype: a buffer of little-endian bytes in row-major order."""

    def read(self, raw: bytearray, code: str, shape: tuple[int, ...]) -> Any:
        """A tensor of these bytes. It may keep the buffer."""

    def fill(self, tensor: Any, source: Any) -> bool:
        """Copy the source's values into the tensor, in place; False when it cannot be written."""

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
        flat = tensor.detach().to("cpu", getattr(torch, name)).contiguous()
        if not flat.numel():
            return b""
        # Without numpy, which torch does not require, this is the way to the bytes that copies nothing.
        buffer = (ctypes.c_ubyte * (flat.numel() * size)).from_address(flat.data_ptr())
        buffer.owner = flat  # the memory lives as long as the buffer
        return buffer

    def read(self, raw: bytearray, code: str, shape: tuple[int, ...]) -> Any:
        import torch

        dtype = getattr(torch, DTYPES[code][0])
        return torch.frombuffer(raw, dtype=dtype).reshape(shape) if raw else torch.empty(shape, dtype=dtype)

    def fill(self, tensor: Any, source: Any) -> bool:
        import torch

        with torch.no_grad():
            tensor.copy_(source)
        return True

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

    def read(self, raw: bytearray, code: str, shape: tuple[int, ...]) -> Any:
        import numpy as np

        return np.frombuffer(raw, dtype=np.dtype(DTYPES[code][0])).reshape(shape)

    def fill(self, tensor: Any, source: Any) -> bool:
        if not tensor.flags.writeable:
            return False
        tensor[...] = source
        return True

    def copy(self, tensor: Any) -> Any:
        return tensor.copy()

    def minus(self, left: Any, right: Any) -> Any:
        import numpy as np

        wide = np.float64 if left.dtype == np.float64 else np.float32
        return left.astype(wide) - right.astype(wide)


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


def _code(dtype: str) -> str:
    try:
        return CODES[dtype]
    except KeyError:
        raise TypeError(f"tensors of {dtype} cannot be written; known are {', '.join(CODES)}") from None


def _bfloat16_bits(tensor: Any) -> Any:
    """The upper half of float32, rounded to nearest even; numpy itself has no bfloat16."""
    import numpy as np

    single = np.ascontiguousarray(tensor, dtype=np.float32)
    bits = single.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(single), np.uint16(0x7FC0), rounded).astype("<u2")
