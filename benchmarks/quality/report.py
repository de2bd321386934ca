"""What the study found, for readers, for pages and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

from benchmarks.quality.plot import Band, draw
from benchmarks.quality.study import BASELINE, SEEDS, SETTINGS, TARGET, Difference, Result

NAMES: Final = {"fedavg": "FedAvg", "fedprox": "FedProx", "scaffold": "SCAFFOLD", "fedadam": "FedAdam"}
BEGIN: Final = "<!-- python -m benchmarks.quality --write-docs: begin -->\n"
END: Final = "<!-- end -->\n"
COLUMNS: Final = (
    "setting",
    "method",
    "chosen",
    "accuracy at the end",
    "… against FedAvg",
    f"rounds to {TARGET:.2f}",
    "… against FedAvg",
    "kB a round",
    f"MB to {TARGET:.2f}",
    "verdict",
)


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """The table: a line for each method in each setting."""
    return [_row(result, _baseline(results, result)) for result in results]


def _baseline(results: Sequence[Result], result: Result) -> Result:
    (found,) = (one for one in results if one.setting == result.setting and one.method.strategy == BASELINE)
    return found


def _row(result: Result, baseline: Result) -> tuple[str, ...]:
    final, sooner = final_gain(result, baseline), rounds_saved(result, baseline)
    compared = result is not baseline
    options = "".join(f", {name} {value:g}" for name, value in result.method.options.items())
    rounds = len(result.curves[0].moved)
    return (
        result.setting.name,
        NAMES[result.method.strategy],
        f"lr {result.method.lr:g}{options}{' (edge of the grid)' if result.at_edge else ''}",
        _spread(result.final, 3),
        _gain(final, 3) if compared else "",
        _reached(result),
        _gain(None if sooner is None else Difference([-one for one in sooner.pairs]), 1) if compared else "",
        f"{result.curves[0].moved[-1] / rounds / 1e3:.0f}",
        _spread([moved / 1e6 for moved in result.moved(TARGET)], 1),
        verdict(final, sooner) if compared else "",
    )


def final_gain(result: Result, baseline: Result) -> Difference:
    """In accuracy at the end, by seed."""
    return Difference([one - other for one, other in zip(result.final, baseline.final, strict=True)])


def rounds_saved(result: Result, baseline: Result) -> Difference | None:
    """By seed how many rounds sooner it gets to the target; None where one of the two does not get there."""
    pairs = list(zip(result.reached(TARGET), baseline.reached(TARGET), strict=True))
    found = [other - one for one, other in pairs if one is not None and other is not None]
    return Difference(found) if len(found) == len(pairs) else None


def verdict(final: Difference, saved: Difference | None) -> str:
    """In words: a difference counts when its 95 % interval over the seeds leaves out 0."""
    found = []
    if final.shows:
        found.append("more accurate" if final.mean > 0 else "less accurate")
    if saved is not None and saved.shows:
        found.append("sooner" if saved.mean > 0 else "later")
    return ", ".join(found) or "no difference shown"


def _spread(values: Sequence[float], digits: int) -> str:
    if len(values) < len(SEEDS):
        return f"{len(values)} of {len(SEEDS)} seeds" + (f": {fmean(values):.{digits}f}" if values else "")
    return f"{fmean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def _reached(result: Result) -> str:
    return _spread([number for number in result.reached(TARGET) if number is not None], 1)


def _gain(difference: Difference | None, digits: int) -> str:
    if difference is None:
        return "not all reached it"
    return f"{round(difference.mean, digits) + 0.0:+.{digits}f} ± {difference.half_width:.{digits}f}"


def text(results: Sequence[Result]) -> str:
    """For a terminal."""
    found = [COLUMNS, *rows(results)]
    widths = [max(len(row[column]) for row in found) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in found
    )


def markdown(results: Sequence[Result]) -> str:
    """A table for each setting."""
    found = rows(results)
    parts = []
    for setting in SETTINGS:
        lines = [row[1:] for row in found if row[0] == setting.name]
        parts.append(f"**{setting.name[0].upper()}{setting.name[1:]}**\n")
        parts += [f"| {' | '.join(cells)} |" for cells in (COLUMNS[1:], ["---"] * (len(COLUMNS) - 1), *lines)]
        parts.append("")
    return "\n".join(parts)


def picture(results: Sequence[Result]) -> str:
    """SVG: for each setting the methods' mean accuracies by round, ± one standard deviation."""
    panels: dict[str, dict[str, Band]] = {}
    for result in results:
        each = list(zip(*(curve.accuracy for curve in result.curves), strict=True))
        band = Band([fmean(values) for values in each], [stdev(values) for values in each])
        panels.setdefault(result.setting.name, {})[NAMES[result.method.strategy]] = band
    return draw(panels, low=0.5, mark=TARGET)


def write(docs: Path, results: Sequence[Result]) -> None:
    """Puts the tables between the two marks in quality.md, and draws quality.svg."""
    page = docs / "quality.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n{markdown(results)}\n{END}{after}", encoding="utf-8")
    (docs / "quality.svg").write_text(picture(results), encoding="utf-8")


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Everything: choices, what was tried, curves."""
    return [
        {
            "setting": result.setting.name,
            "asked": result.setting.asked,
            "strategy": result.method.strategy,
            "lr": result.method.lr,
            "options": dict(result.method.options),
            "at_edge": result.at_edge,
            "tried": [{"lr": m.lr, **m.options, "validation": round(value, 5)} for m, value in result.tried],
            "final": [round(value, 5) for value in result.final],
            "target": TARGET,
            "reached": result.reached(TARGET),
            "bytes_to_target": result.moved(TARGET),
            "seeds": list(SEEDS),
            "accuracy": [[round(value, 5) for value in curve.accuracy] for curve in result.curves],
            "bytes": [curve.moved[-1] for curve in result.curves],
            "against_fedavg": verdict(
                final_gain(result, _baseline(results, result)), rounds_saved(result, _baseline(results, result))
            ),
        }
        for result in results
    ]
