"""Examples of every message and document, with a value in every field that there is: made from the models themselves.

A field that is added to a model is in the next golden files without anybody thinking of it. What a model demands of
several fields at once is written down here by hand.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from messages import names
from messages.codec import Message
from messages.experiments import Checks, Quorum, Schedule, StartExperiment
from messages.schemas import ConfusionMetric, Head, HistogramMetric
from orchestrator import documents
from orchestrator.documents import ExperimentDocument
from orchestrator.experiment.effects import Effect
from orchestrator.experiment.state import Ended, RoundRecord, State

AT: Final = datetime(2026, 1, 31, 12, 0, 0, 250000, tzinfo=UTC)
RUN: Final = "bc_0123abcd"
DIGEST: Final = "ab" * 32
_TEXTS: Final = {
    names.NAME_PATTERN: "north",
    names.RUN_PATTERN: RUN,
    names.DIGEST_PATTERN: DIGEST,
    r"^[0-9a-f]{32}$": "cd" * 16,
    r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$": "lr",
    r"^!?[^\s!][^\s]{0,199}$": "!head.*",
}
"""A text that matches, by pattern."""
_BY_HAND: Final[dict[type[BaseModel], dict[str, Any]]] = {
    HistogramMetric: {"positive": [0, 3], "negative": [4, 1], "count": 8},
    ConfusionMetric: {"matrix": [[4, 1], [0, 3]], "count": 8},
    Schedule: {"by_round": {"1": 0.5, "4": 0.125}},
    Checks: {"max_norm_ratio": 5.0},
    Quorum: {"minimum": 3},
    StartExperiment: {"silos": ["coast", "harbour", "island", "mine", "north", "south"]},
}


def messages() -> dict[str, BaseModel]:
    """Every message, by kind."""
    return {str(model.model_fields["kind"].default): filled(model) for model in _models(Message)}


def kept() -> dict[str, BaseModel]:
    """Every document of the store, by a name that says which."""
    effects = [{"sequence": n, "effect": _dumped(model)} for n, model in enumerate(_models(Effect), 1)]
    made: dict[str, BaseModel] = {"head": filled(Head), "round": filled(RoundRecord), "run": filled(Ended)}
    for phase in _models(State):
        document = {"version": 1, "state": _dumped(phase), "sequence": len(effects), "outbox": effects}
        made[f"experiment-{phase.model_fields['phase'].default}"] = ExperimentDocument.model_validate(document)
    for name, model in inspect.getmembers(documents, inspect.isclass):
        apart = {documents._Document, documents.Numbered, ExperimentDocument}
        if issubclass(model, documents._Document) and model not in apart:
            made[name.lower()] = filled(model)
    return made


def filled(model: type[BaseModel]) -> BaseModel:
    """An example with a value in every field."""
    by_hand = _BY_HAND.get(model, {})
    values = {name: by_hand.get(name, _value(field.annotation, field)) for name, field in model.model_fields.items()}
    if model is StartExperiment:
        values["overrides"] = {"north": values["hyperparameters"]}
    return model.model_validate_json(_json(model.model_construct(**values)))


def _dumped(model: type[BaseModel]) -> Any:
    return filled(model).model_dump(mode="json")


def _json(model: BaseModel) -> str:
    return model.model_dump_json(warnings=False)


def _models(annotated: Any) -> tuple[type[BaseModel], ...]:
    found = get_args(annotated)[0] if get_origin(annotated) is Annotated else annotated
    return get_args(found)


def _value(kind: Any, field: FieldInfo | None = None) -> Any:  # one per kind of value
    """A value of this type that is not the default where there is a choice."""
    limits = list(field.metadata) if field else []
    while get_origin(kind) is Annotated:
        kind, *more = get_args(kind)
        limits += [each for one in more for each in (one.metadata if isinstance(one, FieldInfo) else [one])]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return inner[-1]
    if origin in {Union, types.UnionType}:
        return _value(next(one for one in inner if one is not types.NoneType))
    if origin in {list, tuple}:
        return [_value(one) for one in _alternatives(inner[0])]
    if origin in {dict, Mapping} or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return {f"{_value(inner[0])}{n or ''}": _value(one) for n, one in enumerate(_alternatives(inner[1]))}
    match kind:
        case typing.Any:
            return "any"
        case _ if issubclass(kind, BaseModel):
            return filled(kind)
        case _ if issubclass(kind, Enum):
            return list(kind)[-1]
        case _ if issubclass(kind, datetime):
            return AT
        case _ if issubclass(kind, bool):
            return True
        case _ if issubclass(kind, str):
            patterns = [p for p in (getattr(limit, "pattern", None) for limit in limits) if p]
            return _TEXTS[patterns[0]] if patterns else "words"
        case _ if issubclass(kind, int):
            return max([2, *(limit.ge for limit in limits if getattr(limit, "ge", None) is not None)])
        case _ if issubclass(kind, float):
            return 0.5
    raise TypeError(f"no example of {kind!r}: write one into tests/golden/examples.py")


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """What a list of this may hold, one of each."""
    found = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if get_origin(found) in {Union, types.UnionType}:
        return tuple(one for one in get_args(found) if one is not types.NoneType)
    return (kind,)
