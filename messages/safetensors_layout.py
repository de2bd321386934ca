"""What a safetensors file says of itself: names, dtypes, shapes, offsets. Pure; bytes in, a `Layout` out.

The header comes from another party. It is judged here, by us, before memory is spent on it: a hostile one costs no more
than its own bytes and some bookkeeping. No tensor's numbers are read here (`messages.safetensors_scan` does that), and
nothing is opened except by `read_layout`.

The format: 8 bytes little-endian length, that many bytes of JSON `{name: {dtype, shape, data_offsets}}`, then the data,
without gaps. `__metadata__` is allowed and ignored.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NoReturn

import ml_dtypes
import numpy as np

from messages.errors import InvalidWeights

MAX_HEADER_BYTES: Final = 25_000_000
MAX_TENSORS: Final = 100_000
MAX_NAME: Final = 500
MAX_DIMENSIONS: Final = 32
MAX_COMMAS: Final = 8 * MAX_TENSORS
"""JSON has hardly more values than commas; this many are what the most tensors need, of four dimensions on average."""
_LONGEST_DIMENSION: Final = 1 << 50

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype("<u1"),
    "I8": np.dtype("<i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
"""numpy's dtype for each code that Silobus takes."""
CODES: Final[Mapping[np.dtype[Any], str]] = {dtype: code for code, dtype in DTYPES.items()}
FLOATING: Final = frozenset({"F16", "BF16", "F32", "F64"})
TRANSFER: Final[Mapping[str, str]] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""The code for each transfer dtype an experiment may ask for."""


class WeightsFault(StrEnum):
    """What can be wrong with a weights file: the `reason` of every InvalidWeights."""

    TRUNCATED = "truncated"
    HEADER_TOO_LARGE = "header-too-large"
    HEADER_INVALID = "header-invalid"
    TOO_MANY_TENSORS = "too-many-tensors"
    UNKNOWN_DTYPE = "unknown-dtype"
    OFFSETS_INVALID = "offsets-invalid"
    DIGEST_MISMATCH = "digest-mismatch"
    SIZE_MISMATCH = "size-mismatch"
    LAYOUT_MISMATCH = "layout-mismatch"
    NOT_FINITE = "not-finite"


def refuse(fault: WeightsFault, description: str) -> NoReturn:
    """Raises InvalidWeights."""
    raise InvalidWeights(str(fault), description)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor: its name, safetensors' dtype code, shape, and where its bytes are in the data section."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        """How many numbers it holds: 1 for a scalar, 0 when a dimension is 0."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Layout:
    """Every tensor of a file, sorted by name. Two files with the same `digest` can be summed tensor by tensor."""

    tensors: tuple[TensorSpec, ...]
    data_offset: int
    """Where the data section begins in the file."""

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> Layout:
        """The layout of the file we would write for these names, dtypes and shapes: wide dtypes first, so all align."""
        return cls.in_order(sorted(tensors, key=lambda t: (-DTYPES[t[1]].itemsize, t[0])))

    @classmethod
    def in_order(cls, tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> Layout:
        """The layout of the file with these tensors one after the other."""
        specs: list[TensorSpec] = []
        position = 0
        for name, dtype, shape in tensors:
            end = position + math.prod(shape) * DTYPES[dtype].itemsize
            specs.append(TensorSpec(name, dtype, shape, position, end))
            position = end
        header = encode_header(specs)
        if len(header) - 8 > MAX_HEADER_BYTES:
            refuse(WeightsFault.HEADER_TOO_LARGE, f"{len(specs)} tensors need a header of {len(header)} bytes.")
        return cls(tuple(sorted(specs, key=lambda s: s.name)), len(header))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the compact ASCII JSON of [[name, dtype, shape], …], sorted by name. Offsets do not count."""
        rows = [[s.name, s.dtype, list(s.shape)] for s in self.tensors]
        return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()

    @cached_property
    def by_name(self) -> Mapping[str, TensorSpec]:
        """The tensors by their names."""
        return {s.name: s for s in self.tensors}

    @cached_property
    def in_file_order(self) -> tuple[TensorSpec, ...]:
        """The tensors in the order of their bytes."""
        return tuple(sorted(self.tensors, key=lambda s: (s.begin, s.end, s.name)))

    @property
    def data_bytes(self) -> int:
        """Length of the data section."""
        return max((s.end for s in self.tensors), default=0)

    def cast(self, dtype: str | None) -> Layout:
        """This layout with its floating tensors in a transfer dtype (`float32`, `bfloat16`, `float16`; None: as is)."""
        if dtype is None:
            return self
        code = TRANSFER[dtype]
        return Layout.of((s.name, code if s.dtype in FLOATING else s.dtype, s.shape) for s in self.tensors)

    def floating(self) -> Layout:
        """The floating tensors alone, as float32, in the order of this file."""
        return Layout.in_order((s.name, "F32", s.shape) for s in self.in_file_order if s.dtype in FLOATING)

    def difference(self, other: Layout) -> str | None:
        """How `other` differs from this layout, in a sentence naming the first few tensors; None when it does not."""
        if self.digest == other.digest:
            return None
        mine, theirs = self.by_name, other.by_name
        both = [(s, theirs[s.name]) for s in self.tensors if s.name in theirs]
        parts = (
            _some("missing", [s.name for s in self.tensors if s.name not in theirs]),
            _some("not expected", [s.name for s in other.tensors if s.name not in mine]),
            _some("of another shape", [f"{a.name} {b.shape}, not {a.shape}" for a, b in both if a.shape != b.shape]),
            _some("of another dtype", [f"{a.name} {b.dtype}, not {a.dtype}" for a, b in both if a.dtype != b.dtype]),
        )
        return "; ".join(part for part in parts if part) + "."


def encode_header(in_file_order: Iterable[TensorSpec]) -> bytes:
    """The 8 bytes of length and the JSON header, padded with spaces so that the data begins at a multiple of 8."""
    entries = {
        s.name: {"dtype": s.dtype, "shape": list(s.shape), "data_offsets": [s.begin, s.end]} for s in in_file_order
    }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def header_bytes(first: bytes, size: int) -> int:
    """How many bytes at the start of a file of `size` bytes hold length and header, judged by its first 8 bytes."""
    if size < 8 or len(first) < 8:
        refuse(WeightsFault.TRUNCATED, f"A safetensors file has at least 8 bytes; this one has {size}.")
    length = int.from_bytes(first[:8], "little")
    if length > MAX_HEADER_BYTES:
        refuse(WeightsFault.HEADER_TOO_LARGE, f"The header claims {length} bytes; {MAX_HEADER_BYTES} is the most.")
    if 8 + length > size:
        refuse(WeightsFault.TRUNCATED, f"The header claims {length} bytes, but the file has {size} in all.")
    return 8 + length


def parse_layout(prefix: bytes, size: int) -> Layout:
    """The layout of a file of `size` bytes from its first bytes, which must hold the whole header (more may follow)."""
    data_offset = header_bytes(prefix, size)
    if len(prefix) < data_offset:
        refuse(WeightsFault.TRUNCATED, f"The header has {data_offset} bytes; {len(prefix)} were read.")
    entries = _decode(prefix[8:data_offset])
    specs = [_spec(name, entry) for name, entry in entries.items() if name != "__metadata__"]
    _check_offsets(specs, size - data_offset)
    return Layout(tuple(sorted(specs, key=lambda s: s.name)), data_offset)


def read_layout(path: Path) -> Layout:
    """The layout of a local file. Reads the header only."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        first = file.read(8)
        return parse_layout(first + file.read(header_bytes(first, size) - 8), size)


def _decode(header: bytes) -> dict[str, Any]:
    if not header.startswith(b"{"):
        refuse(WeightsFault.HEADER_INVALID, "The header is not a JSON object: this is not a safetensors file.")
    if header.count(b",") > MAX_COMMAS or header.count(b"{") > MAX_TENSORS + 2:  # before it costs memory
        refuse(WeightsFault.TOO_MANY_TENSORS, f"The header holds more values than {MAX_TENSORS} tensors need.")
    try:
        entries = json.loads(header.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        refuse(WeightsFault.HEADER_INVALID, f"The header is not JSON: {str(error)[:120]}.")
    if not isinstance(entries, dict):  # pragma: no cover - it begins with a brace
        refuse(WeightsFault.HEADER_INVALID, "The header is not a JSON object.")
    if len(entries) - ("__metadata__" in entries) > MAX_TENSORS:
        refuse(WeightsFault.TOO_MANY_TENSORS, f"The header names {len(entries)} tensors; {MAX_TENSORS} is the most.")
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        refuse(WeightsFault.HEADER_INVALID, "The header has a key twice in one object.")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _spec(name: str, entry: Any) -> TensorSpec:
    shown = _show(name)
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        refuse(
            WeightsFault.HEADER_INVALID, f"A tensor's name has 1 to {MAX_NAME} printable characters; one is {shown}."
        )
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        refuse(WeightsFault.HEADER_INVALID, f"Tensor {shown} needs dtype, shape and data_offsets, nothing else.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        refuse(WeightsFault.UNKNOWN_DTYPE, f"Tensor {shown} has dtype {_show(dtype)}; known: {', '.join(DTYPES)}.")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        refuse(WeightsFault.HEADER_INVALID, f"The shape of {shown} is not a list of at most {MAX_DIMENSIONS} sizes.")
    if not _are_counts(offsets) or len(offsets) != 2:
        refuse(WeightsFault.OFFSETS_INVALID, f"The data_offsets of {shown} are not two positions.")
    begin, end = offsets
    if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        refuse(WeightsFault.OFFSETS_INVALID, f"Tensor {shown}: {dtype} {shape} does not fill bytes {begin} to {end}.")
    return TensorSpec(name, dtype, tuple(shape), begin, end)


def _check_offsets(specs: list[TensorSpec], available: int) -> None:
    position = 0
    for spec in sorted(specs, key=lambda s: (s.begin, s.end)):
        if spec.begin != position:
            fault = "overlaps the one before" if spec.begin < position else "leaves a gap before it"
            refuse(WeightsFault.OFFSETS_INVALID, f"Tensor {_show(spec.name)} at byte {spec.begin} {fault}.")
        position = spec.end
    if position > available:
        refuse(WeightsFault.TRUNCATED, f"The header describes {position} bytes of data; the file has {available}.")
    if position < available:
        refuse(WeightsFault.OFFSETS_INVALID, f"{available - position} bytes follow the last tensor; nothing may.")


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v <= _LONGEST_DIMENSION for v in value)


def _show(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _some(what: str, items: list[str]) -> str:
    if not items:
        return ""
    shown = ", ".join(item if len(item) <= 120 else item[:119] + "…" for item in items[:3])
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return f"{what}: {shown}{more}"
