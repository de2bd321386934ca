"""Lines with bands, in panels side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.svg import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, below, document, legend, level


@dataclass(frozen=True, slots=True)
class Band:
    """A line, and how far above and below it the band goes: one number per round, from round 1."""

    mean: Sequence[float]
    spread: Sequence[float]


def draw(panels: Mapping[str, Mapping[str, Band]], *, low: float, mark: float) -> str:
    """The picture. Panels by title hold bands by name; y goes from `low` to 1, with a dashed line at `mark`."""
    return document({title: _panel(bands, low, mark) for title, bands in panels.items()})


def _panel(bands: Mapping[str, Band], low: float, mark: float) -> Iterator[str]:
    rounds = max(len(band.mean) for band in bands.values())
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(number: float) -> float:
        return LEFT + (right - LEFT) * (number - 1) / max(rounds - 1, 1)

    def y(value: float) -> float:
        return bottom - (bottom - TOP) * (min(max(value, low), 1.0) - low) / (1 - low)

    def points(values: Sequence[float]) -> list[str]:
        return [f"{x(number):.1f},{y(value):.1f}" for number, value in enumerate(values, start=1)]

    for tick in range(6):
        value = low + (1 - low) * tick / 5
        yield from level(y(value), f"{value:.2f}")
    for number in (1, *(rounds * part // 4 for part in range(1, 5))):
        yield below(x(number), str(number))
    yield below((LEFT + right) / 2, "round", 2)
    for band, colour in zip(bands.values(), COLOURS, strict=False):
        above = points([m + s for m, s in zip(band.mean, band.spread, strict=True)])
        under = points([m - s for m, s in zip(band.mean, band.spread, strict=True)])
        yield f'<polygon points="{" ".join([*above, *reversed(under)])}" fill="{colour}" fill-opacity="0.12"/>'
    for band, colour in zip(bands.values(), COLOURS, strict=False):
        yield f'<polyline points="{" ".join(points(band.mean))}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
    yield from legend(list(bands))
    yield f'<line x1="{LEFT}" x2="{right}" y1="{y(mark):.1f}" y2="{y(mark):.1f}" stroke="#555" stroke-dasharray="5 4"/>'
