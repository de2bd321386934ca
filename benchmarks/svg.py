"""What pictures of measurements share: panels side by side as SVG, readable on white and on dark pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

WIDTH: Final = 440
HEIGHT: Final = 300
LEFT: Final = 48
RIGHT: Final = 12
TOP: Final = 34
BOTTOM: Final = 66
COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")
"""Of Okabe and Ito: told apart without seeing red or green."""


def document(panels: Mapping[str, Iterable[str]]) -> str:
    """The picture, of what is in each panel, by titles. A panel is drawn between LEFT, TOP and RIGHT, BOTTOM."""
    width = WIDTH * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{width}" height="{HEIGHT}" fill="white"/>',
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    for index, (title, elements) in enumerate(panels.items()):
        parts.append(f'<g transform="translate({index * WIDTH} 0)">')
        parts.append(f'<text x="{middle:.0f}" y="20" text-anchor="middle" font-size="13">{escape(title)}</text>')
        parts += [*elements, "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def level(y: float, label: str) -> Iterator[str]:
    """A horizontal line with its number."""
    yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
    yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'


def below(x: float, label: str, line: int = 1) -> str:
    """A word below the panel, in the first or second line."""
    return f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16 * line}" text-anchor="middle">{escape(label)}</text>'


def legend(names: Sequence[str]) -> Iterator[str]:
    """Which colour is whose, in the last line."""
    for index, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        at, line = LEFT + index * (WIDTH - RIGHT - LEFT) / len(names), HEIGHT - 14
        yield f'<rect x="{at:.0f}" y="{line - 6}" width="18" height="3" fill="{colour}"/>'
        yield f'<text x="{at + 23:.0f}" y="{line}">{escape(name)}</text>'
