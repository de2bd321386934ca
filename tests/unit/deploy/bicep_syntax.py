"""Bicep's syntax, as far as the grammar goes: trees of files and expressions, and where an operator divides a text."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import tree_sitter_bicep
from tree_sitter import Language, Node, Parser


class Wrong(Exception):
    """What a Bicep compiler, or Azure, would refuse; or what this file does not know."""


@cache
def parse(path: Path) -> Node:
    """The tree of a file. Raises Wrong where it is no Bicep."""
    root = _parser().parse(path.read_bytes()).root_node
    if root.has_error:
        bad = next(node for node in walk(root) if node.type == "ERROR" or node.is_missing)
        raise Wrong(f"{path.name}:{bad.start_point[0] + 1}: not Bicep: {text_of(bad)[:60]!r}")
    return root


def walk(node: Node) -> Iterator[Node]:
    """A node and everything below it."""
    yield node
    for child in node.children:
        yield from walk(child)


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


@cache
def expression(text: str) -> Node:
    root = _parser().parse(f"var it = {text}\n".encode()).root_node
    if root.has_error:
        raise Wrong(f"not Bicep: {text}")
    return root.named_children[0].named_children[-1]


def text_of(node: Node) -> str:
    return (node.text or b"").decode()


def name_of(node: Node) -> str:
    return text_of(next(n for n in node.named_children if n.type == "identifier"))
