"""A model as named tensors: which are shared, filling them from a file, and writing what is to go out.

Here lives what a model's names mean: wrappers' prefixes, tied tensors, what is shared and what is private. Tensors
are filled in place and written piece by piece, so no second copy of one is made. Which file is which, and when, is
the round's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from silobus.files import Entry, TensorFile, Written, write_tensors
from silobus.share import is_shared
from silobus.tensors import CODES, DTYPES, FLOATS, Kind, kind_of, shape_of
from silobus.unmet import NothingShared
from silobus.values import raw_pieces, read, read_into, read_pieces


@dataclass(frozen=True)
class Tensor:
    """One piece of a model's memory, with every name it goes by: tied tensors have several."""

    names: tuple[str, ...]
    keys: tuple[str, ...]
    value: Any
    kind: Kind

    @property
    def code(self) -> str:
        try:
            return self.kind.code(self.value)
        except TypeError as error:
            raise TypeError(f"tensor {self.names[0]!r}: {error}") from None

    @property
    def shape(self) -> tuple[int, ...]:
        return shape_of(self.value)

    def names_in(self, file: TensorFile | None) -> list[str]:
        """The names a file has it under, or else the one it is written under."""
        there = [name for name in self.names if file is not None and name in file.names]
        return there or [self.names[0]]


@dataclass(frozen=True)
class Model:
    """A model's tensors, divided. `held` is the dictionary they came in, `owner` what made it."""

    owner: Any
    held: dict[str, Any]
    shared: tuple[Tensor, ...]
    private: tuple[Tensor, ...]

    def fill(self, tensor: Tensor, source: TensorFile | dict[str, Any]) -> None:
        """Overwrite a tensor with what the source has for it; one that cannot be written gives way to a new one."""
        value, kind = tensor.value, tensor.kind
        if kind.writable(value):
            if isinstance(source, TensorFile):
                read_into(value, kind, source, tensor.names_in(source)[0])
            else:
                kind.fill(value, source[tensor.names[0]])
            return
        new = read_as(tensor, source) if isinstance(source, TensorFile) else kind.copy(source[tensor.names[0]])
        for key in tensor.keys:
            self.held[key] = new

    def settle(self) -> None:
        """Give the filled tensors back. A module's are its own memory already; another owner's may be copies."""
        if self.owner is not self.held:
            self.owner.load_state_dict(self.held)


def divide(model: Any, *share: Sequence[str]) -> Model:
    """A model (anything with `state_dict()`, or a dict of tensors) as shared and private tensors."""
    stateful = hasattr(model, "state_dict") and hasattr(model, "load_state_dict")
    held = model.state_dict() if stateful else model
    if not isinstance(held, dict):
        raise TypeError(f"a model has state_dict() and load_state_dict(), or is a dict; not so {type(model).__name__}")
    shared: list[Tensor] = []
    private: list[Tensor] = []
    for tensor in _tensors(held, share):
        out = [name for name in tensor.names if is_shared(name, *share)]
        if out and len(out) < len(tensor.names):
            kept = sorted(set(tensor.names) - set(out))
            raise ValueError(
                f"{', '.join(out)} and {', '.join(kept)} are one tied tensor: share says that the first goes out "
                "and the second does not; name both or neither"
            )
        (shared if out else private).append(tensor)
    if not shared:
        raise NothingShared(f"of {len(private)} tensors none is shared by {' and '.join(map(repr, map(list, share)))}")
    return Model(model, held, tuple(shared), tuple(private))


def load(model: Model, received: TensorFile, *private: TensorFile | dict[str, Any] | None) -> None:
    """Fill what is shared from the weights received, and what is private from the first source that has it.

    Nothing is touched before all that is shared has been found to fit. A file that ends in the middle (ValueError) is
    found out only then: the model is left with tensors old, new and half of each, and is good for no round.
    """
    _load_shared(model, received)
    _load_private(model, private)
    model.settle()


def _load_shared(model: Model, file: TensorFile) -> None:
    """Fill every shared tensor, after all of them have been found to fit."""
    known = {name for tensor in (*model.shared, *model.private) for name in tensor.names}
    if unknown := sorted(file.names - known):
        raise ValueError(f"{file.path.name} has tensors that the model does not: {_listed(unknown, known)}")
    for tensor in model.shared:
        _check_fits(tensor, file)
    for tensor in model.shared:
        model.fill(tensor, file)


def _load_private(model: Model, sources: Sequence[TensorFile | dict[str, Any] | None]) -> None:
    """Fill every private tensor; what no source has stays as it is."""
    for tensor in model.private:
        for source in sources:
            if isinstance(source, TensorFile) and not source.names.isdisjoint(tensor.names):
                _check_fits(tensor, source)
                model.fill(tensor, source)
                break
            if isinstance(source, dict) and tensor.names[0] in source:
                model.fill(tensor, source)
                break


def copy_private(model: Model) -> dict[str, Any]:
    return {tensor.names[0]: tensor.kind.copy(tensor.value) for tensor in model.private}


def write_private(path: Path, model: Model) -> None:
    write_tensors(path, [_entry(tensor.names[0], tensor, tensor.code) for tensor in model.private], hashes=False)


def write_update(
    path: Path,
    model: Model,
    received: TensorFile | None,
    *,
    hashes: bool,
    form: str = "weights",
    dtype: str | None = None,
) -> Written:
    """Write the shared tensors, or how they differ from those received, under the names those came with."""
    entries: list[Entry] = []
    for tensor in model.shared:
        if received is not None:
            _check_fits(tensor, received)
        floating = tensor.code in FLOATS
        code = CODES[dtype] if dtype and floating else tensor.code
        base = received if form == "delta" and floating else None
        entries.extend(_entry(name, tensor, code, base) for name in tensor.names_in(received))
    return write_tensors(path, entries, hashes=hashes, durable=hashes)  # who hashes it makes it durable


def _entry(name: str, tensor: Tensor, code: str, base: TensorFile | None = None) -> Entry:
    value, kind = tensor.value, tensor.kind

    def delta(base: TensorFile) -> Iterator[Any]:
        for piece, received in zip(kind.pieces(value), read_along(tensor, base), strict=True):
            yield kind.raw(kind.minus(piece, received), code)

    return Entry(name, code, tensor.shape, lambda: raw_pieces(value, kind, code) if base is None else delta(base))


def read_as(tensor: Tensor, file: TensorFile) -> Any:
    """What a file has for a tensor, by the first of its names that is there."""
    return read(file, tensor.names_in(file)[0], tensor.kind)


def read_along(tensor: Tensor, file: TensorFile) -> Iterator[Any]:
    """The same in the tensor's pieces, each there until the next is asked for."""
    return read_pieces(file, tensor.names_in(file)[0], tensor.value, tensor.kind)


def _check_fits(tensor: Tensor, file: TensorFile) -> None:
    for name in tensor.names_in(file):
        if name not in file.names:
            raise ValueError(f"{file.path.name} lacks tensors that the model shares: {_listed([name], file.names)}")
        expected = f"{DTYPES[tensor.code][0]} {list(tensor.shape)}"
        code = file.code(name)
        actual = f"{DTYPES[code][0] if code in DTYPES else code} {list(file.shape(name))}"
        if expected != actual:
            raise ValueError(f"tensor {name!r}: the model has {expected}, but {file.path.name} has {actual}")


def _listed(names: Sequence[str], others: set[str] | frozenset[str]) -> str:
    """A few of the names, and what may have been meant by the first."""
    text = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    near = get_close_matches(names[0], others, n=1)
    return f"{text} (the nearest name on the other side is {near[0]!r})" if near else text


def _tensors(held: dict[str, Any], share: Sequence[Sequence[str]]) -> Iterator[Tensor]:
    """The tensors by memory, in order of name. What is not a tensor may be there as long as it is not shared."""
    groups: dict[Any, list[tuple[str, str, Any, Kind]]] = {}
    for name, key in sorted(_canonical(list(held)).items()):
        value = held[key]
        kind = kind_of(value)
        if kind is not None:
            groups.setdefault((kind, kind.identity(value)), []).append((name, key, value, kind))
        elif is_shared(name, *share):
            raise TypeError(f"{name!r} is {type(value).__name__}, not a tensor; exclude it: share=[…, '!{name}']")
    for members in groups.values():
        _, _, value, kind = members[0]
        yield Tensor(tuple(name for name, *_ in members), tuple(key for _, key, *_ in members), value, kind)


def _canonical(keys: list[str]) -> dict[str, str]:
    """Names without what wrappers add: DistributedDataParallel's `module.`, torch.compile's `_orig_mod.`."""
    names = {key: ".".join(part for part in key.split(".") if part != "_orig_mod") for key in keys}
    while names and all(name.startswith("module.") for name in names.values()):
        names = {key: name.removeprefix("module.") for key, name in names.items()}
    by_name: dict[str, str] = {}
    for key, name in names.items():
        if name in by_name:
            raise ValueError(f"{by_name[name]!r} and {key!r} are both {name!r} once wrappers' prefixes are taken off")
        by_name[name] = key
    return by_name
