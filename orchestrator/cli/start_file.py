"""The file of `silobus start`: read, and looked at as an orchestrator will, before anything is sent.

What an orchestrator would set aside is a Complaint, as far as that can be known here: which silos there are, and which
strategies somebody installed beside the orchestrators, cannot.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

from messages import codec, settings
from messages.errors import Poison
from messages.experiments import StartExperiment
from orchestrator.cli.terminal import Complaint, warn

_FLOAT = "tag:yaml.org,2002:float"


class _Yaml(yaml.SafeLoader):
    """YAML that reads 1e-3 as the number everybody means, and NaN, which no message can have, as no text either."""


_Yaml.add_implicit_resolver(_FLOAT, re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+\Z"), list("-+.0123456789"))
_Yaml.add_implicit_resolver(
    _FLOAT, re.compile(r"[-+]?(nan|NaN|NAN|inf|Inf|INF|infinity|Infinity|INFINITY)\Z"), list("-+nNiI")
)


def read_start(file: str) -> StartExperiment:
    """The message in a file, checked. JSON is YAML too; `kind` may be left out."""
    said = _read(file)
    try:
        body = json.dumps({"kind": "start-experiment"} | said, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise Complaint(f"{file} holds what JSON cannot: {error}.") from None
    try:
        request: StartExperiment = codec.decode(body, StartExperiment)
    except Poison as problem:
        raise Complaint(f"{file}: {problem.description}{_meant(_name_said(said), problem)}") from None
    _check(request, file)
    return request


def _read(file: str) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Complaint(f"{file} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}.") from None
    try:
        root = yaml.compose(text, Loader=_Yaml)
        twice = next(settings.repeated_keys(root), None)
        unbounded = next(_not_finite(root), None)
        said = yaml.load(text, Loader=_Yaml)  # noqa: S506  (a SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}, line {mark.line + 1}" if mark else file
        raise Complaint(f"{where}: neither JSON nor YAML. {getattr(error, 'problem', '')}".strip()) from None
    except RecursionError:
        raise Complaint(f"{file} holds what JSON cannot: it is nested too deeply, or in itself.") from None
    except ValueError as error:  # a date that there is not, a number of too many digits
        raise Complaint(f"{file} holds what JSON cannot: {error}.") from None
    if twice is not None:
        raise Complaint(f"{file}, line {twice.start_mark.line + 1}: `{twice.value}` is there twice.")
    if unbounded is not None:
        raise Complaint(
            f"{file}, line {unbounded.start_mark.line + 1}: `{unbounded.value}` is no finite number, and JSON cannot "
            "have it. Give a number; or leave it out; or put it into quotes, if it is a text."
        )
    if not isinstance(said, dict):
        raise Complaint(f"{file} holds no message: it needs at least experiment, task and rounds.")
    return said


def _not_finite(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    match node:
        case yaml.MappingNode():
            for pair in node.value:
                for item in pair:
                    yield from _not_finite(item)
        case yaml.SequenceNode():
            for item in node.value:
                yield from _not_finite(item)
        case yaml.ScalarNode(tag=tag) if tag == _FLOAT:
            if not math.isfinite(SafeConstructor().construct_yaml_float(node)):
                yield node


def _check(request: StartExperiment, file: str) -> None:
    """Raises Complaint where the strategy does not go with the rest. One that is not to be had here is only named."""
    from orchestrator.aggregation import admitted, least_updates  # here, since few commands need numpy
    from orchestrator.experiment.membership import too_small_for_strategy

    try:
        least = least_updates(admitted(request))
        needed = _quorum(request)
        if needed is not None and needed < least:
            raise too_small_for_strategy(request, needed, least)
        if why := request.shares_nothing():
            raise Poison("nothing-shared", why)
        if needed is not None and (why := request.too_few_to_check(needed)):
            raise Poison("quorum-too-small", f"checks: {why}")
    except Poison as problem:
        match problem.reason:
            case "unknown-strategy" | "strategy-failed":  # of this machine, and perhaps not of the orchestrators'
                warn(
                    f"{file}: {problem.description}{_meant(request.strategy.name, problem)}\n"
                    "Its options could not be checked here. Orchestrators that have it check them; others set the "
                    "start aside."
                )
            case _:
                raise Complaint(f"{file}: {problem.description} ({problem.reason})") from None


def _quorum(request: StartExperiment) -> int | None:
    """The quorum, where it does not depend on who offers the task when the run begins."""
    if request.silos is not None:
        return request.quorum.needed(request.asked(len(request.silos)))
    return request.quorum.minimum if isinstance(request.quorum.minimum, int) else None


def _name_said(said: dict[str, Any]) -> str:
    strategy = said.get("strategy")
    name = strategy.get("name") if isinstance(strategy, dict) else None
    return name if isinstance(name, str) else ""


def _meant(name: str, problem: Poison) -> str:
    """A strategy whose name is nearly this one, where the name is what is wrong."""
    if problem.reason != "unknown-strategy" and "strategy.name: " not in problem.description:
        return ""
    from orchestrator.aggregation import supported

    by_letters = {_letters(known): known for known in supported()}
    near = difflib.get_close_matches(_letters(name[:80]), by_letters, n=1, cutoff=0.75)
    stop = "" if problem.description.endswith(".") else "."
    return f"{stop} Did you mean `{by_letters[near[0]]}`?" if near else ""


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())
