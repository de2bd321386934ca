"""What an experiment says of its strategy, taken word by word: every mistake is Poison that says what to write instead.

A strategy asks for its options by name and type, then calls `end`, which refuses what nobody asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

from messages.errors import Poison
from messages.fields import Scalar


@final
class Options:
    """The options of one experiment's strategy, and what each silo counts by where that is given."""

    def __init__(self, strategy: str, given: Mapping[str, Scalar], weights: Mapping[str, float] | None = None) -> None:
        self.strategy = strategy
        self._given, self._weights = given, weights or {}
        self._known: list[str] = []
        self._takes_weights = False

    def has(self, name: str) -> bool:
        """Whether the option is given."""
        self._known.append(name)
        return name in self._given

    def number(
        self, name: str, default: float | None, *, least: float = -math.inf, above: float = -math.inf,
        below: float = math.inf, most: float = math.inf,
    ) -> float:  # fmt: skip
        """A finite number within these limits; one without a default has to be given."""
        words = [
            *([f"{least:g} or more"] if least > -math.inf else []),
            *([f"above {above:g}"] if above > -math.inf else []),
            *([f"below {below:g}"] if below < math.inf else []),
            *([f"{most:g} at most"] if most < math.inf else []),
        ]
        what = " ".join(["a number", " and ".join(words)]).strip()
        value = self._value(name, default, what)
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise self.refusal(f"{name} is {what}, not {_shown(value)}.")
        if value < least or value <= above or value >= below or value > most:
            raise self.refusal(f"{name} is {what}, not {_shown(value)}.")
        return float(value)

    def count(self, name: str, default: int | None, *, least: int = 0, most: int = 10_000) -> int:
        """A whole number; one without a default has to be given. No experiment has more than 10,000 silos."""
        what = f"a whole number, {least} or more and {most} at most"
        value = self._value(name, default, what)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.refusal(f"{name} is {what}, not {_shown(value)}.")
        return value

    def choice(self, name: str, default: str, *among: str) -> str:
        """One of these words."""
        what = "one of: " + ", ".join(among)
        value = self._value(name, default, what)
        if not isinstance(value, str) or value not in among:
            raise self.refusal(f"{name} is {what}; not {_shown(value)}.")
        return value

    def weights(self, wanted: bool) -> Mapping[str, float]:
        """What each silo counts by. Raises Poison when they are wanted and not there, or there and not wanted."""
        self._takes_weights = True
        if wanted and not self._weights:
            raise self.refusal("`weighting: given` needs `weights`, a number above 0 for each silo.")
        if self._weights and not wanted:
            raise self.refusal("`weights` count with the option `weighting: given` only. Add it, or leave them out.")
        return self._weights

    def end(self) -> None:
        """Raises Poison for what was given and not asked for."""
        if unknown := sorted(set(self._given) - set(self._known)):
            has = ", ".join(sorted(set(self._known))) or "none"
            raise self.refusal(f"there is no option {unknown[0]!r}; it has: {has}.")
        if self._weights and not self._takes_weights:
            raise self.refusal("it takes no `weights`; leave them out.")

    def refusal(self, description: str) -> Poison:
        """The error for options that make no sense."""
        return Poison("invalid-strategy-options", f"Strategy {self.strategy}: {description}")

    def _value(self, name: str, default: Scalar | None, what: str) -> Scalar:
        self._known.append(name)
        value = self._given.get(name, default)
        if value is None:
            raise self.refusal(f"it needs the option {name}, {what}.")
        return value


def _is_finite(value: float) -> bool:
    """Whether it is a float's number: a whole number of 400 digits is none."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _shown(value: Scalar) -> str:
    """For people; Python itself refuses to write whole numbers of thousands of digits."""
    return repr(value) if not isinstance(value, int) or abs(value) < 1 << 64 else "one of so many digits"
