"""Seconds and memory over the size of the model, from what `benchmarks.peers --json` printed, as one picture.

    python -m benchmarks.peers.plot points.json [more.json …] --silos 3 > docs/performance.svg

Both axes are logarithmic. What a framework did not end has no point; of a point in several files the last counts.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.svg import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, below, document, legend, level

NAMES: Final = {"silobus": "Silobus", "nvflare": "NVIDIA FLARE", "flwr": "Flower"}
FLOOR: Final = "floor"
Lines = Mapping[str, Mapping[float, float]]


def lines(outcomes: Sequence[Mapping[str, Any]], silos: int, key: str) -> dict[str, dict[float, float]]:
    """By framework and megabytes, what was measured with so many silos."""
    found: dict[str, dict[float, float]] = {}
    for who, name in NAMES.items():
        there = [o for o in outcomes if o["who"] == who and o["silos"] == silos and o["round_s"] is not None]
        found[name] = {o["megabytes"]: o[key] for o in there if o[key]}
    if key == "round_s":
        ours = [o for o in outcomes if o["who"] == "silobus" and o["silos"] == silos]
        found[FLOOR] = {o["megabytes"]: o["floor_s"] for o in ours if o["floor_s"]}
    return {name: dict(sorted(points.items())) for name, points in found.items() if points}


def draw(outcomes: Sequence[Mapping[str, Any]], silos: int) -> str:
    """The picture. Raises ValueError when nothing was measured with so many silos."""
    panels = {
        f"seconds per round, {silos} silos": lines(outcomes, silos, "round_s"),
        f"server's peak memory in MiB, {silos} silos": lines(outcomes, silos, "server_mib"),
    }
    if not all(panels.values()):
        raise ValueError(f"there is no point with {silos} silos")
    return document({title: _panel(found) for title, found in panels.items()})


def _panel(found: Lines) -> Iterator[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    sizes = sorted({size for points in found.values() for size in points})
    values = [value for points in found.values() for value in points.values()]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    first, last = math.log10(sizes[0]), math.log10(sizes[-1])

    def x(size: float) -> float:
        return LEFT + 14 + (right - LEFT - 28) * (math.log10(size) - first) / ((last - first) or 1)

    def y(value: float) -> float:
        return bottom - (bottom - TOP) * (math.log10(value) - low) / ((high - low) or 1)

    for power in range(low, high + 1):
        yield from level(y(10.0**power), f"{10.0**power:g}")
    for size in sizes:
        yield below(x(size), f"{size:g}")
    yield below((LEFT + right) / 2, "megabytes of float32", 2)
    for (name, points), colour in zip(found.items(), COLOURS, strict=False):
        path = " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in points.items())
        dashed = ' stroke-dasharray="5 4"' if name == FLOOR else ""
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dashed}/>'
        for size, value in points.items():
            yield f'<circle cx="{x(size):.1f}" cy="{y(value):.1f}" r="2.5" fill="{colour}"/>'
    yield from legend(list(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--silos", type=int, default=3)
    args = parser.parse_args()
    at = {
        (outcome["who"], outcome["silos"], outcome["megabytes"]): outcome
        for file in args.files
        for outcome in json.loads(file.read_text())["outcomes"]
    }
    print(draw(list(at.values()), args.silos), end="")


if __name__ == "__main__":
    main()
