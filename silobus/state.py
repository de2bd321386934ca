"""Private state that outlives a round and never leaves the silo: optimizers, schedulers, dicts.

Here lives how state dictionaries become safetensors and JSON, and back. Never pickles: reading state runs no code.
The JSON holds the structure with a place for each tensor, and is tagged throughout, so that no key or value of the
user's can be taken for a tag.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from silobus.files import Entry, TensorFile, write_json, write_tensors
from silobus.tensors import NUMPY, TORCH, kind_of, shape_of
from silobus.values import raw_pieces, read

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def checked_name(name: str) -> str:
    """A name becomes a file's name, so it must not be able to become anything else."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"keep({name!r}): a name has up to 64 letters, digits, dots, dashes and underscores")
    return name


def structure_of(obj: Any, name: str, tensors: dict[str, Any]) -> Any:
    """The object's state as JSON; its tensors go into `tensors`, named by number and path."""
    if isinstance(obj, dict):
        return _encode(obj, name, tensors)
    if not (hasattr(obj, "state_dict") and hasattr(obj, "load_state_dict")):
        raise TypeError(
            f"keep({name!r}): {type(obj).__name__} has no state_dict() and load_state_dict(), and is no dict"
        )
    return _encode(obj.state_dict(), name, tensors)


def restore(obj: Any, structure: Any, tensor: Callable[[str, str], Any]) -> None:
    """Put the state back into the object; `tensor` gives a tensor by name and library."""
    state = _decode(structure, tensor)
    if not isinstance(obj, dict):
        obj.load_state_dict(state)
        return
    for key, value in state.items():  # a dict's tensors stay on the device where the script put them
        old = obj.get(key)
        if old is not None and kind_of(value) is TORCH and kind_of(old) is TORCH:
            state[key] = value.to(old.device)
    obj.clear()
    obj.update(state)


def write_state(directory: Path, name: str, obj: Any) -> None:
    tensors: dict[str, Any] = {}
    structure = structure_of(obj, name, tensors)
    json_path, tensor_path = _paths(directory, name)
    write_tensors(tensor_path, [_entry(key, value) for key, value in tensors.items()], hashes=False)
    write_json(json_path, {"schema_version": 1, "state": structure})


def read_state(directory: Path, name: str, obj: Any) -> bool:
    """Restore the object from what was kept under the name; False when nothing was."""
    json_path, tensor_path = _paths(directory, name)
    if not json_path.exists():
        return False
    kept = json.loads(json_path.read_text(encoding="utf-8"))
    if kept["schema_version"] != 1:
        raise ValueError(f"{json_path} is of schema version {kept['schema_version']}; this silobus reads 1")
    file = TensorFile(tensor_path)

    def tensor(key: str, library: str) -> Any:
        if library == "torch":
            import torch  # noqa: F401  (a script that keeps torch tensors may import torch later than this)
        kind = TORCH if library == "torch" else NUMPY
        return read(file, key, kind)

    restore(obj, kept["state"], tensor)
    return True


class Origins:
    """What private state was before any round of this process touched it.

    A process kept warm still has the last round's state in memory, committed or not. Where the round's input has no
    state, this is what to start from instead.
    """

    def __init__(self) -> None:
        self._first: dict[str, object] = {}

    @property
    def used(self) -> bool:
        return bool(self._first)

    def first(self, name: str, take: Callable[[], T]) -> T:
        """What `take` gave when this was first called under the name. By name: scripts may build their objects anew."""
        if name not in self._first:
            self._first[name] = take()
        return self._first[name]  # type: ignore[return-value]  # a name is always taken by the same function


def _paths(directory: Path, name: str) -> tuple[Path, Path]:
    return directory / f"keep.{name}.json", directory / f"keep.{name}.safetensors"


def _entry(name: str, tensor: Any) -> Entry:
    kind = NUMPY if kind_of(tensor) is NUMPY else TORCH
    code = kind.code(tensor)
    return Entry(name, code, shape_of(tensor), lambda: raw_pieces(tensor, kind, code))


def _encode(value: Any, path: str, tensors: dict[str, Any]) -> Any:
    if kind := kind_of(value):
        kind.code(value)
        key = f"{len(tensors)}.{path}"
        tensors[key] = value
        return {"torch" if kind is TORCH else "numpy": key}
    if type(value).__module__ == "numpy":
        value = value.item()  # a numpy scalar
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"float": repr(value)}
        case list() | tuple():
            tag = "tuple" if isinstance(value, tuple) else "list"
            return {tag: [_encode(one, f"{path}.{at}", tensors) for at, one in enumerate(value)]}
        case dict():
            tag = "counter" if isinstance(value, Counter) else "dict"
            return {tag: [[_key(k, path), _encode(v, f"{path}.{k}", tensors)] for k, v in value.items()]}
        case _:
            raise TypeError(
                f"{path} is {type(value).__name__}: state is kept as tensors, numbers, strings, lists and dicts, "
                "never pickled"
            )


def _key(key: object, path: str) -> str | int:
    if isinstance(key, str | int) and not isinstance(key, bool):
        return key
    raise TypeError(f"{path} has the key {key!r}: keys are strings or whole numbers")


def _decode(structure: Any, tensor: Callable[[str, str], Any]) -> Any:
    if not isinstance(structure, dict):
        return structure
    ((tag, content),) = structure.items()
    match tag:
        case "torch" | "numpy":
            return tensor(content, tag)
        case "float":
            return float(content)
        case "list":
            return [_decode(one, tensor) for one in content]
        case "tuple":
            return tuple(_decode(one, tensor) for one in content)
        case "counter":
            return Counter(dict(content))
        case "dict":
            return {key: _decode(one, tensor) for key, one in content}
        case _:
            raise ValueError(f"kept state has the unknown tag {tag!r}")
