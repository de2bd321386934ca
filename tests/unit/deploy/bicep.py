"""Reads Bicep as far as this repository writes it, and says what a deployment would make: resources, with their names.

Not a compiler: it knows the functions that are used here and raises Wrong for everything else, for parameters that are
missing, superfluous or of another type, and for names that mean nothing. What only Azure knows (an identity's id, say)
stays a text that says where it would come from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tree_sitter import Node

from tests.unit.deploy.bicep_syntax import Wrong, expression, name_of, parse, split, text_of, walk
from tests.unit.deploy.bicep_values import FUNCTIONS, SUBSCRIPTION, Later, Resource, resource_id

TYPES = {"string": str, "int": int, "bool": bool, "array": list, "object": dict}
AFTER = {"member_expression", "subscript_expression", "call_expression"}
OPERATORS = {"binary_expression", "unary_expression", "ternary_expression"}


@dataclass
class Deployment:
    """Everything that was made, modules included."""

    made: list[Resource] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)

    def of(self, kind: str) -> list[Resource]:
        return [resource for resource in self.made if resource.type == kind]


def deploy(path: Path, group: str, parameters: Mapping[str, Any]) -> tuple[Deployment, dict[str, Any]]:
    """What deploying a file into a resource group makes, and its outputs."""
    done = Deployment()
    return done, File(path, f"{SUBSCRIPTION}/resourceGroups/{group}", parameters, done).run()


@dataclass(frozen=True)
class Module:
    outputs: dict[str, Any]


class File:
    """One evaluation of one file."""

    def __init__(self, path: Path, group: str, parameters: Mapping[str, Any], done: Deployment) -> None:
        self.path, self.group, self.done = path, group, done
        declared = [n for n in parse(path).named_children if n.type.endswith("_declaration")]
        self.outputs = [n for n in declared if n.type == "output_declaration"]
        self.declared = {name_of(n): n for n in declared if n.type != "output_declaration"}
        self.values: dict[str, Any] = {}
        known = {name for name, node in self.declared.items() if node.type == "parameter_declaration"}
        if unknown := set(parameters) - known:
            raise Wrong(f"{path.name} has no parameter {sorted(unknown)}")
        self._bind(parameters)

    def run(self) -> dict[str, Any]:
        for name in self.declared:
            self.value(name)
        told = {name_of(n): self.eval(n.named_children[-1], {}) for n in self.outputs}
        if unused := {name for name in self.declared if not self._is_used(name)}:
            raise Wrong(f"{self.path.name}: nothing uses {sorted(unused)}")
        return told

    def _is_used(self, name: str) -> bool:
        """What makes nothing itself is there to be used; looked for in the text, where a choice has both its sides."""
        node = self.declared[name]
        makes = node.type not in ("parameter_declaration", "variable_declaration")
        if makes and not any(text_of(child) == "existing" for child in node.children):
            return True
        return sum(n.type == "identifier" and text_of(n) == name for n in walk(parse(self.path))) > 1

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
        name = name_of(node)
        [kind] = [n for n in node.named_children if n.type == "type"]
        default = node.named_children[-1] if node.named_children[-1].type != "type" else None
        if name not in given and default is None:
            raise Wrong(f"{self.path.name} needs the parameter {name}")
        value = given[name] if name in given else self.eval(default, {})  # type: ignore[arg-type]
        wanted = TYPES[text_of(kind)]
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise Wrong(f"{self.path.name}: {name} should be of type {text_of(kind)} and is {value!r}")
        for decorator in decorators:
            call = decorator.named_children[0]
            if text_of(call).startswith("allowed("):
                allowed = self.eval(call.named_children[1].named_children[0], {})
                if value not in allowed:
                    raise Wrong(f"{self.path.name}: {name} is {value!r}, and may be {allowed}")
        self.values[name] = value

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
        raise Wrong(f"{self.path.name}: {node.type} {name_of(node)}")

    def _each(self, node: Node, names: dict[str, Any], make: Callable[[Node, dict[str, Any]], Any]) -> Any:
        match node.type:
            case "for_statement":
                return list(self._loop(node, names, lambda body, inner: self._each(body, inner, make)))
            case "if_statement":
                condition, body = node.named_children
                return make(body, names) if self._truth(text_of(condition), names) else None
            case "object":
                return make(node, names)
        raise Wrong(f"{self.path.name}: {node.type}")

    def _loop(self, node: Node, names: dict[str, Any], make: Callable[[Node, dict[str, Any]], Any]) -> Iterator[Any]:
        variables, items, body = node.named_children
        called = [text_of(n) for n in variables.named_children] if variables.named_children else [text_of(variables)]
        found = self.eval(items, names)
        if not isinstance(found, list):
            raise Wrong(f"{self.path.name}: {text_of(items)} is no array")
        for index, item in enumerate(found):
            yield make(body, {**names, **dict(zip(called, (item, index), strict=False))})

    def _resource(self, node: Node, body: Node, names: dict[str, Any]) -> Resource:
        kind, _, version = self.eval(node.named_children[1], {}).partition("@")
        existing = any(text_of(child) == "existing" for child in node.children)
        said = self._object(body, names, skip={"dependsOn"})
        self._depends(body, names)
        parent, scope = said.pop("parent", None), said.pop("scope", None)
        name = f"{parent.name}/{said['name']}" if parent else said["name"]
        if parent and not kind.startswith(f"{parent.type}/"):
            raise Wrong(f"{self.path.name}: a {kind} is no child of a {parent.type}")
        within = scope.id if isinstance(scope, Resource) else self.group
        resource = Resource(
            kind, version, name, resource_id(within, kind, name), said, existing, within, self.path.name
        )
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
            if prop.type == "object_property" and text_of(prop.named_children[0]) == "dependsOn":
                for one in prop.named_children[1].named_children:
                    if text_of(one) not in self.declared:
                        raise Wrong(f"{self.path.name}: depends on {text_of(one)}, which is not there")

    def eval(self, node: Node, names: dict[str, Any]) -> Any:
        if node.type in OPERATORS or (node.type in AFTER and node.named_children[0].type in OPERATORS):
            return self._operators(text_of(node).strip(), names)
        match node.type:
            case "string":
                return "".join(self._piece(child, names) for child in node.named_children)
            case "number":
                return int(text_of(node))
            case "boolean":
                return text_of(node) == "true"
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
                name = text_of(node)
                return names[name] if name in names else self.value(name)
            case "member_expression":
                return self._member(self.eval(node.named_children[0], names), text_of(node.named_children[1]))
            case "subscript_expression":
                return self._member(*(self.eval(n, names) for n in node.named_children))
            case "call_expression":
                return self._call(node, names)
        raise Wrong(f"{self.path.name}:{node.start_point[0] + 1}: {node.type}: {text_of(node)[:60]}")

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
        node = expression(text)
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
                raise Wrong(f"{self.path.name}: {text_of(node)} is no text: {value!r}")
            return str(value)
        return text_of(node).replace("\\'", "'").replace("\\n", "\n")

    def _object(
        self, node: Node, names: dict[str, Any], skip: frozenset[str] | set[str] = frozenset()
    ) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for prop in node.named_children:
            if prop.type == "comment":
                continue
            key, value = prop.named_children[0], prop.named_children[1]
            called = self.eval(key, names) if key.type == "string" else text_of(key)
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
        if (function := re.fullmatch(r"(\w+) => (.+)", text_of(node), re.DOTALL)) is None:
            return self.eval(node, names)
        variable, text = function.groups()
        body = expression(text)
        return lambda item: self.eval(body, {**names, variable: item})

    def _call(self, node: Node, names: dict[str, Any]) -> Any:
        function, arguments = node.named_children
        called = text_of(function)
        if called in ("loadJsonContent",):
            [path] = [self.eval(n, names) for n in arguments.named_children]
            return json.loads((self.path.parent / path).read_text())
        args = [self._argument(n, names) for n in arguments.named_children]
        if called == "resourceGroup":
            group = f"{SUBSCRIPTION}/resourceGroups/{args[-1]}" if args else self.group
            return {"id": group, "name": group.rpartition("/")[2], "location": "somewhere"}
        if called == "resourceId":
            *where, kind, name = args
            return resource_id(f"{SUBSCRIPTION}/resourceGroups/{where[-1]}" if where else self.group, kind, name)
        if called not in FUNCTIONS:
            raise Wrong(f"{self.path.name}: there is no function {called}")
        return FUNCTIONS[called](*args)
