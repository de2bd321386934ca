"""Lines with bands as SVG, in panels side by side; readable on white and on dark pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Band:
    """A line, and how far above and below it the band goes: one number per round, from round 1."""

    mean: Sequence[float]
    spread: Sequence[float]


def draw(panels: Mapping[str, Mapping[str, Band]], *, low: float, mark: float) -> str:
    """The picture. Panels by title hold bands by name; y goes from `low` to 1, with a dashed line at `mark`."""
    width = WIDTH * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#333">',
        f'<rect width="{width}" height="{HEIGHT}" fill="white"/>',
    ]
    for index, (title, bands) in enumerate(panels.items()):
        parts += [f'<g transform="translate({index * WIDTH} 0)">', *_panel(title, bands, low, mark), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(title: str, bands: Mapping[str, Band], low: float, mark: float) -> Iterator[str]:
    rounds = max(len(band.mean) for band in bands.values())
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(number: float) -> float:
        return LEFT + (right - LEFT) * (number - 1) / max(rounds - 1, 1)

    def y(value: float) -> float:
        return bottom - (bottom - TOP) * (min(max(value, low), 1.0) - low) / (1 - low)

    def points(values: Sequence[float]) -> list[str]:
        return [f"{x(number):.1f},{y(value):.1f}" for number, value in enumerate(values, start=1)]

    yield f'<text x="{(LEFT + right) / 2:.0f}" y="20" text-anchor="middle" font-size="13">{escape(title)}</text>'
    for tick in range(6):
        value = low + (1 - low) * tick / 5
        yield f'<line x1="{LEFT}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>'
        yield f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2f}</text>'
    for number in (1, *(rounds * part // 4 for part in range(1, 5))):
        yield f'<text x="{x(number):.1f}" y="{bottom + 16}" text-anchor="middle">{number}</text>'
    yield f'<text x="{(LEFT + right) / 2:.0f}" y="{bottom + 32}" text-anchor="middle">round</text>'
    for band, colour in zip(bands.values(), COLOURS, strict=False):
        above = points([m + s for m, s in zip(band.mean, band.spread, strict=True)])
        below = points([m - s for m, s in zip(band.mean, band.spread, strict=True)])
        yield f'<polygon points="{" ".join([*above, *reversed(below)])}" fill="{colour}" fill-opacity="0.12"/>'
    for index, ((name, band), colour) in enumerate(zip(bands.items(), COLOURS, strict=False)):
        yield f'<polyline points="{" ".join(points(band.mean))}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
        at, line = LEFT + index * (right - LEFT) / len(bands), HEIGHT - 14
        yield f'<rect x="{at:.0f}" y="{line - 6}" width="18" height="3" fill="{colour}"/>'
        yield f'<text x="{at + 23:.0f}" y="{line}">{escape(name)}</text>'
    yield f'<line x1="{LEFT}" x2="{right}" y1="{y(mark):.1f}" y2="{y(mark):.1f}" stroke="#555" stroke-dasharray="5 4"/>'
