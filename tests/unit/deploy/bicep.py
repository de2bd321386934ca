"""Reads Bicep as far as this repository writes it, and says what a deployment would make: resources, with their names.

Not a compiler: it knows the functions that are used here and raises Wrong for everything else, for parameters that are
missing, superfluous or of another type, and for names that mean nothing. What only Azure knows (an identity's id, say)
stays a text that says where it would come from.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import tree_sitter_bicep
from tree_sitter import Language, Node, Parser

SUBSCRIPTION = "/subscriptions/sub"
TYPES = {"string": str, "int": int, "bool": bool, "array": list, "object": dict}

AFTER = {"member_expression", "subscript_expression", "call_expression"}
OPERATORS = {"binary_expression", "unary_expression", "ternary_expression"}


class Wrong(Exception):
    """What a Bicep compiler, or Azure, would refuse; or what this file does not know."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource that is made, or (existing) referred to."""

    type: str
    version: str
    name: str
    id: str
    body: Mapping[str, Any]
    existing: bool
    scope: str
    file: str

    def __getitem__(self, key: str) -> Any:
        value: Any = self.body
        for part in key.split("."):
            value = value[part]
        return value


@dataclass
class Deployment:
    """Everything that was made, modules included."""

    made: list[Resource] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)

    def of(self, kind: str) -> list[Resource]:
        return [resource for resource in self.made if resource.type == kind]


def parse(path: Path) -> Node:
    """The tree of a file. Raises Wrong where it is no Bicep."""
    root = _parser().parse(path.read_bytes()).root_node
    if root.has_error:
        bad = next(node for node in walk(root) if node.type == "ERROR" or node.is_missing)
        raise Wrong(f"{path.name}:{bad.start_point[0] + 1}: not Bicep: {_text(bad)[:60]!r}")
    return root


def walk(node: Node) -> Iterator[Node]:
    """A node and everything below it."""
    yield node
    for child in node.children:
        yield from walk(child)


def deploy(path: Path, group: str, parameters: Mapping[str, Any]) -> tuple[Deployment, dict[str, Any]]:
    """What deploying a file into a resource group makes, and its outputs."""
    done = Deployment()
    return done, File(path, f"{SUBSCRIPTION}/resourceGroups/{group}", parameters, done).run()


@cache
def _parser() -> Parser:
    return Parser(Language(tree_sitter_bicep.language()))


def split(text: str, operator: str, at_most: int = -1) -> list[str]:
    """The parts of an expression between operators that stand in no brackets and no text."""
    parts: list[str] = []
    depth, quoted, start, at = 0, False, 0, 0
    while at < len(text):
        char = text[at]
        if quoted:
            at += char == "\\"
            quoted = char != "'"
            if text.startswith("${", at):
                at = _closing(text, at + 1)
        elif char == "'":
            quoted = True
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif depth == 0 and len(parts) != at_most and text.startswith(operator, at):
            parts.append(text[start:at].strip())
            start = at = at + len(operator)
            continue
        at += 1
    return [*parts, text[start:].strip()]


def _closing(text: str, at: int) -> int:
    depth = 0
    while True:
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return at
        at += 1


def _expression(text: str) -> Node:
    root = _parser().parse(f"var it = {text}\n".encode()).root_node
    if root.has_error:
        raise Wrong(f"not Bicep: {text}")
    return root.named_children[0].named_children[-1]


def _text(node: Node) -> str:
    return (node.text or b"").decode()


@dataclass(frozen=True)
class Module:
    outputs: dict[str, Any]


class File:
    """One evaluation of one file."""

    def __init__(self, path: Path, group: str, parameters: Mapping[str, Any], done: Deployment) -> None:
        self.path, self.group, self.done = path, group, done
        declared = [n for n in parse(path).named_children if n.type.endswith("_declaration")]
        self.outputs = [n for n in declared if n.type == "output_declaration"]
        self.declared = {_name(n): n for n in declared if n.type != "output_declaration"}
        self.values: dict[str, Any] = {}
        known = {name for name, node in self.declared.items() if node.type == "parameter_declaration"}
        if unknown := set(parameters) - known:
            raise Wrong(f"{path.name} has no parameter {sorted(unknown)}")
        self._bind(parameters)

    def run(self) -> dict[str, Any]:
        for name in self.declared:
            self.value(name)
        told = {_name(n): self.eval(n.named_children[-1], {}) for n in self.outputs}
        if unused := {name for name in self.declared if not self._is_used(name)}:
            raise Wrong(f"{self.path.name}: nothing uses {sorted(unused)}")
        return told

    def _is_used(self, name: str) -> bool:
        """What makes nothing itself is there to be used; looked for in the text, where a choice has both its sides."""
        node = self.declared[name]
        makes = node.type not in ("parameter_declaration", "variable_declaration")
        if makes and not any(_text(child) == "existing" for child in node.children):
            return True
        return sum(n.type == "identifier" and _text(n) == name for n in walk(parse(self.path))) > 1

    def _bind(self, given: Mapping[str, Any]) -> None:
        decorators: list[Node] = []
        for node in parse(self.path).named_children:
            if node.type == "decorators":
                decorators = node.named_children
            elif node.type == "parameter_declaration":
                self._parameter(node, decorators, given)
                decorators = []
            elif node.type != "comment":
                decorators = []

    def _parameter(self, node: Node, decorators: list[Node], given: Mapping[str, Any]) -> None:
        name = _name(node)
        [kind] = [n for n in node.named_children if n.type == "type"]
        default = node.named_children[-1] if node.named_children[-1].type != "type" else None
        if name not in given and default is None:
            raise Wrong(f"{self.path.name} needs the parameter {name}")
        value = given[name] if name in given else self.eval(default, {})  # type: ignore[arg-type]
        wanted = TYPES[_text(kind)]
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise Wrong(f"{self.path.name}: {name} should be of type {_text(kind)} and is {value!r}")
        for decorator in decorators:
            call = decorator.named_children[0]
            if _text(call).startswith("allowed("):
                allowed = self.eval(call.named_children[1].named_children[0], {})
                if value not in allowed:
                    raise Wrong(f"{self.path.name}: {name} is {value!r}, and may be {allowed}")
        self.values[name] = value

    # --- names -------------------------------------------------------------------------------------------------------

    def value(self, name: str) -> Any:
        if name not in self.values:
            if name not in self.declared:
                raise Wrong(f"{self.path.name}: nothing is called {name}")
            self.values[name] = self._declare(self.declared[name])
        return self.values[name]

    def _declare(self, node: Node) -> Any:
        match node.type:
            case "variable_declaration":
                return self.eval(node.named_children[-1], {})
            case "resource_declaration":
                return self._each(node.named_children[-1], {}, lambda body, names: self._resource(node, body, names))
            case "module_declaration":
                return self._each(node.named_children[-1], {}, lambda body, names: self._module(node, body, names))
        raise Wrong(f"{self.path.name}: {node.type} {_name(node)}")

    def _each(self, node: Node, names: dict[str, Any], make: Callable[[Node, dict[str, Any]], Any]) -> Any:
        match node.type:
            case "for_statement":
                return list(self._loop(node, names, lambda body, inner: self._each(body, inner, make)))
            case "if_statement":
                condition, body = node.named_children
                return make(body, names) if self._truth(_text(condition), names) else None
            case "object":
                return make(node, names)
        raise Wrong(f"{self.path.name}: {node.type}")

    def _loop(self, node: Node, names: dict[str, Any], make: Callable[[Node, dict[str, Any]], Any]) -> Iterator[Any]:
        variables, items, body = node.named_children
        called = [_text(n) for n in variables.named_children] if variables.named_children else [_text(variables)]
        found = self.eval(items, names)
        if not isinstance(found, list):
            raise Wrong(f"{self.path.name}: {_text(items)} is no array")
        for index, item in enumerate(found):
            yield make(body, {**names, **dict(zip(called, (item, index), strict=False))})

    # --- resources ---------------------------------------------------------------------------------------------------

    def _resource(self, node: Node, body: Node, names: dict[str, Any]) -> Resource:
        kind, _, version = self.eval(node.named_children[1], {}).partition("@")
        existing = any(_text(child) == "existing" for child in node.children)
        said = self._object(body, names, skip={"dependsOn"})
        self._depends(body, names)
        parent, scope = said.pop("parent", None), said.pop("scope", None)
        name = f"{parent.name}/{said['name']}" if parent else said["name"]
        if parent and not kind.startswith(f"{parent.type}/"):
            raise Wrong(f"{self.path.name}: a {kind} is no child of a {parent.type}")
        within = scope.id if isinstance(scope, Resource) else self.group
        resource = Resource(kind, version, name, _id(within, kind, name), said, existing, within, self.path.name)
        if not existing:
            self.done.made.append(resource)
        return resource

    def _module(self, node: Node, body: Node, names: dict[str, Any]) -> Module:
        said = self._object(body, names, skip={"dependsOn"})
        self._depends(body, names)
        path = (self.path.parent / self.eval(node.named_children[1], {})).resolve()
        group = said["scope"]["id"] if "scope" in said else self.group
        if (label := f"{group}: {said['name']}") in self.done.modules:
            raise Wrong(f"{self.path.name}: two deployments are called {label}")
        if len(said["name"]) > 64:
            raise Wrong(f"{self.path.name}: the name of a deployment is too long: {said['name']}")
        self.done.modules.append(label)
        return Module(File(path, group, said.get("params", {}), self.done).run())

    def _depends(self, body: Node, names: dict[str, Any]) -> None:
        for prop in body.named_children:
            if prop.type == "object_property" and _text(prop.named_children[0]) == "dependsOn":
                for one in prop.named_children[1].named_children:
                    if _text(one) not in self.declared:
                        raise Wrong(f"{self.path.name}: depends on {_text(one)}, which is not there")

    # --- expressions -------------------------------------------------------------------------------------------------

    def eval(self, node: Node, names: dict[str, Any]) -> Any:
        if node.type in OPERATORS or (node.type in AFTER and node.named_children[0].type in OPERATORS):
            return self._operators(_text(node).strip(), names)
        match node.type:
            case "string":
                return "".join(self._piece(child, names) for child in node.named_children)
            case "number":
                return int(_text(node))
            case "boolean":
                return _text(node) == "true"
            case "null":
                return None
            case "parenthesized_expression":
                return self.eval(node.named_children[0], names)
            case "object":
                return self._object(node, names)
            case "array":
                return [self.eval(n, names) for n in node.named_children if n.type != "comment"]
            case "for_statement":
                return list(self._loop(node, names, self.eval))
            case "identifier":
                name = _text(node)
                return names[name] if name in names else self.value(name)
            case "member_expression":
                return self._member(self.eval(node.named_children[0], names), _text(node.named_children[1]))
            case "subscript_expression":
                return self._member(*(self.eval(n, names) for n in node.named_children))
            case "call_expression":
                return self._call(node, names)
        raise Wrong(f"{self.path.name}:{node.start_point[0] + 1}: {node.type}: {_text(node)[:60]}")

    def _operators(self, text: str, names: dict[str, Any]) -> Any:
        """By precedence, which the grammar does not know: it takes `a == b.c` for `(a == b).c`."""
        if len(parts := split(text, "?")) > 1:
            yes, no = split("?".join(parts[1:]), ":", at_most=1)
            return self._operators(yes if self._truth(parts[0], names) else no, names)
        if len(parts := split(text, "||")) > 1:
            return any(self._truth(part, names) for part in parts)
        if len(parts := split(text, "&&")) > 1:
            return all(self._truth(part, names) for part in parts)
        for operator in ("==", "!="):
            if len(parts := split(text, operator)) == 2:
                return (self._operators(parts[0], names) == self._operators(parts[1], names)) == (operator == "==")
        if text.startswith("!"):
            return not self._truth(text[1:], names)
        node = _expression(text)
        if node.type in OPERATORS:
            raise Wrong(f"{self.path.name}: {text}")
        return self.eval(node, names)

    def _truth(self, text: str, names: dict[str, Any]) -> bool:
        value = self._operators(text, names)
        if not isinstance(value, bool):
            raise Wrong(f"{self.path.name}: {text} is neither true nor false")
        return value

    def _piece(self, node: Node, names: dict[str, Any]) -> str:
        if node.type == "interpolation":
            value = self.eval(node.named_children[0], names)
            if not isinstance(value, str | int):
                raise Wrong(f"{self.path.name}: {_text(node)} is no text: {value!r}")
            return str(value)
        return _text(node).replace("\\'", "'").replace("\\n", "\n")

    def _object(
        self, node: Node, names: dict[str, Any], skip: frozenset[str] | set[str] = frozenset()
    ) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for prop in node.named_children:
            if prop.type == "comment":
                continue
            key, value = prop.named_children[0], prop.named_children[1]
            called = self.eval(key, names) if key.type == "string" else _text(key)
            if called in made:
                raise Wrong(f"{self.path.name}: {called} is there twice")
            if called not in skip:
                made[called] = self.eval(value, names)
        return made

    def _member(self, of: Any, key: Any) -> Any:
        match of:
            case Resource():
                if key in ("id", "name", "type"):
                    return of.name.rpartition("/")[2] if key == "name" else getattr(of, key)
                return Later(f"{of.id}.{key}", of.body.get(key))
            case Module(outputs=outputs):
                return outputs if key == "outputs" else outputs[key]
            case Later():
                known = of.known.get(key) if isinstance(of.known, dict) else None
                return known if known is not None else f"{of.called}.{key}"
            case dict() | list():
                try:
                    return of[key]
                except (KeyError, IndexError):
                    raise Wrong(f"{self.path.name}: there is no {key} in {of}") from None
        raise Wrong(f"{self.path.name}: {key} of {of!r}")

    def _argument(self, node: Node, names: dict[str, Any]) -> Any:
        """A value, or a function of one. Its body is read apart: the grammar takes `x => x.a` for `(x => x).a`."""
        if (function := re.fullmatch(r"(\w+) => (.+)", _text(node), re.DOTALL)) is None:
            return self.eval(node, names)
        variable, text = function.groups()
        body = _expression(text)
        return lambda item: self.eval(body, {**names, variable: item})

    def _call(self, node: Node, names: dict[str, Any]) -> Any:
        function, arguments = node.named_children
        called = _text(function)
        if called in ("loadJsonContent",):
            [path] = [self.eval(n, names) for n in arguments.named_children]
            return json.loads((self.path.parent / path).read_text())
        args = [self._argument(n, names) for n in arguments.named_children]
        if called == "resourceGroup":
            group = f"{SUBSCRIPTION}/resourceGroups/{args[-1]}" if args else self.group
            return {"id": group, "name": group.rpartition("/")[2], "location": "somewhere"}
        if called == "resourceId":
            *where, kind, name = args
            return _id(f"{SUBSCRIPTION}/resourceGroups/{where[-1]}" if where else self.group, kind, name)
        if called not in FUNCTIONS:
            raise Wrong(f"{self.path.name}: there is no function {called}")
        return FUNCTIONS[called](*args)


@dataclass(frozen=True)
class Later:
    """Properties of a resource: those that are written down, and those that Azure will say."""

    called: str
    known: Any


def _name(node: Node) -> str:
    return _text(next(n for n in node.named_children if n.type == "identifier"))


def _id(within: str, kind: str, name: str) -> str:
    provider, *types = kind.split("/")
    names = name.split("/")
    if len(types) != len(names):
        raise Wrong(f"a {kind} cannot be called {name}")
    return f"{within}/providers/{provider}/" + "/".join(f"{t}/{n}" for t, n in zip(types, names, strict=True))


def _union(*dicts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for one in dicts for key, value in one.items()}


def _subnet(prefix: str, size: int, index: int) -> str:
    return str(list(ipaddress.ip_network(prefix).subnets(new_prefix=size))[index])


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "cidrSubnet": _subnet,
    "concat": lambda *lists: [item for one in lists for item in one],
    "empty": lambda value: not value,
    "environment": lambda: {"suffixes": {"storage": "core.windows.net"}},
    "filter": lambda items, test: [item for item in items if test(item)],
    "flatten": lambda lists: [item for one in lists for item in one],
    "guid": lambda *parts: "guid-" + hashlib.sha256("|".join(parts).encode()).hexdigest()[:32],
    "json": json.loads,
    "map": lambda items, make: [make(item) for item in items],
    "replace": lambda text, old, new: text.replace(old, new),
    "string": json.dumps,
    "subscription": lambda: {"tenantId": "tenant", "subscriptionId": "sub"},
    "subscriptionResourceId": lambda kind, name: _id(SUBSCRIPTION, kind, name),
    "take": lambda text, count: text[:count],
    "union": _union,
    "uniqueString": lambda *parts: re.sub("[^a-z0-9]", "", hashlib.sha256("|".join(parts).encode()).hexdigest())[:13],
}
