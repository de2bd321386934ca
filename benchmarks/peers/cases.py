"""Strategies of Flower's and ours that should give the same: with which options, of which updates, how nearly.

The one place for it: `equality` asks Flower itself, tests/unit/aggregation/test_flower.py what Flower once gave
(`recorded`). Nothing here needs Flower. With float64 updates a difference is one of definition; with float32 ones it is
rounding, too: Flower sums in float32, we in float64. Where definitions differ, the case is brought to Flower's by
options where there are any, and `note` is the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from messages.fields import Scalar
from orchestrator.aggregation import combine, strategy_named

Model = Mapping[str, np.ndarray[Any, np.dtype[Any]]]

SILOS: Final = 7
ROUNDS: Final = 4
SAMPLES: Final = (10, 20, 30, 40, 50, 60, 70)
SHAPES: Final[dict[str, tuple[int, ...]]] = {"matrix": (13, 7), "vector": (31,), "scalar": (), "empty": (0, 3)}
SEED: Final = 4
"""One with which Krum and Multi-Krum choose others where a neighbour more, or fewer, is counted."""
EXACT: Final = 1e-12
"""How far apart two float64 models may be, relative to the largest number of the tensor."""
KEEPING: Final = 1e-7
"""The same, of strategies that keep float32 numbers from round to round."""
ROUNDED: Final = 2e-6
"""The same of two float32 models."""


@dataclass(frozen=True, slots=True)
class Case:
    """A strategy of Flower's and ours that should give the same, or (`why`) one where they do not."""

    name: str
    flower: str
    options: Mapping[str, Scalar]
    """Of Flower's."""
    ours: str
    our_options: Callable[[int], Mapping[str, Scalar]]
    """Of ours, in the round of that number, from 1."""
    note: str = ""
    equal: bool = True
    samples: Sequence[int] = SAMPLES
    keeps: bool = False
    """Whether it keeps numbers from round to round; ours are float32, so equality is to their rounding."""
    dtype: str = "float64"

    @property
    def label(self) -> str:
        """What tells it apart from every other."""
        return f"{self.name}-{self.dtype}"

    def passes(self, found: Difference) -> bool:
        """Whether so large a difference between ours and Flower's passes for equal."""
        if self.dtype == "int64":
            return found.absolute <= 0.5 + EXACT
        if self.dtype == "float32":
            return found.relative <= ROUNDED
        return found.relative <= (KEEPING if self.keeps else EXACT)

    def is_same(self, found: Difference) -> bool:
        """Whether Flower gives what it gave, when this is between the two; its mean of integers is float64."""
        return found.relative <= (ROUNDED if self.dtype == "float32" else EXACT)


def corrected(number: int) -> float:
    """Flower's learning rate of FedAdam in round `number`, where 0.05 is asked for."""
    return float(0.05 * np.sqrt(1 - 0.99 ** (number + 1)) / (1 - 0.9 ** (number + 1)))


EVEN: Final = (50,) * SILOS
ADAM: Final = {"eta": 0.05, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}
BETAS: Final = {"beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}
START: Final = "v begins as 0; ours as τ², the least the paper allows (option variance)"

_CASES: Final = (
    Case("fedavg", "FedAvg", {}, "fedavg", lambda _: {}),
    Case("fedprox", "FedProx", {"proximal_mu": 0.1}, "fedprox", lambda _: {"mu": 0.1}, "the server's part is FedAvg"),
    Case(
        "fedavgm",
        "FedAvgM",
        {"server_learning_rate": 0.7, "server_momentum": 0.9},
        "fedavgm",
        lambda _: {"server_lr": 0.7, "momentum": 0.9},
        "its gradient is the mean change with the sign turned, and turned again",
        keeps=True,
    ),
    Case(
        "fedadagrad",
        "FedAdagrad",
        {"eta": 0.05, "tau": 1e-3},
        "fedadagrad",
        lambda _: {"server_lr": 0.05, "tau": 1e-3, "variance": 0.0},
        START,
        keeps=True,
    ),
    Case(
        "fedyogi",
        "FedYogi",
        ADAM,
        "fedyogi",
        lambda _: {"server_lr": 0.05, **BETAS, "variance": 0.0},
        START,
        keeps=True,
    ),
    Case(
        "fedadam",
        "FedAdam",
        ADAM,
        "fedadam",
        lambda number: {"server_lr": corrected(number), **BETAS, "variance": 0.0},
        f"{START}; Flower corrects bias by √(1 − β₂^(t+1)) / (1 − β₁^(t+1)), here given to ours as its rate",
        keeps=True,
    ),
    Case("median", "FedMedian", {}, "median", lambda _: {}),
    Case("trimmed-mean", "FedTrimmedAvg", {"beta": 0.2}, "trimmed-mean", lambda _: {"fraction": 0.2}),
    Case("krum", "Krum", {"num_malicious_nodes": 2}, "krum", lambda _: {"f": 2}),
    Case(
        "multi-krum",
        "MultiKrum",
        {"num_malicious_nodes": 2, "num_nodes_to_select": 4},
        "multi-krum",
        lambda _: {"f": 2, "m": 4},
        "with equal numbers of samples: Flower weighs the chosen by them, ours and the paper do not",
        samples=EVEN,
    ),
    Case(
        "fedavg-integers",
        "FedAvg",
        {},
        "fedavg",
        lambda _: {},
        "Flower's mean of integers is float64; ours is the same, rounded half to even to the tensor's dtype",
        dtype="int64",
    ),
    Case("fedadagrad-as-it-comes", "FedAdagrad", {}, "fedadagrad", lambda _: {}, START, equal=False),
    Case(
        "fedyogi-as-it-comes",
        "FedYogi",
        {},
        "fedyogi",
        lambda _: {"server_lr": 0.01},
        f"{START}; the rate is 0.01 there and 0.1 here, set to theirs",
        equal=False,
    ),
    Case(
        "fedadam-as-it-comes",
        "FedAdam",
        {},
        "fedadam",
        lambda _: {},
        "v begins as 0 and bias is corrected in Flower; in ours, as in the paper's Algorithm 2, neither",
        equal=False,
    ),
    Case(
        "multi-krum-by-samples",
        "MultiKrum",
        {"num_malicious_nodes": 2, "num_nodes_to_select": 4},
        "multi-krum",
        lambda _: {"f": 2, "m": 4},
        "Flower weighs the chosen by a number that each of them states; ours counts each the same",
        equal=False,
    ),
)


CASES: Final = (
    *_CASES,
    *(replace(case, dtype="float32") for case in _CASES if case.equal and case.dtype == "float64"),
)
"""Every case, those that should be equal in float64 and in float32."""
NOT_IN_FLOWER: Final = frozenset({"fednova", "geometric-median", "scaffold"})
"""Those of our strategies."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far apart two models are."""

    absolute: float
    relative: float
    """To the largest number of the tensor."""


def difference(ours: Model, theirs: Model) -> Difference:
    """The largest over all tensors, infinite where one has no number. Raises ValueError when names or shapes differ."""
    if ours.keys() != theirs.keys() or any(ours[name].shape != theirs[name].shape for name in ours):
        raise ValueError("the two models do not have the same tensors")
    absolute = relative = 0.0
    for name, array in theirs.items():
        if array.size:
            gap = float(np.max(np.abs(ours[name].astype(np.float64) - array.astype(np.float64))))
            if np.isnan(gap):
                return Difference(np.inf, np.inf)
            absolute = max(absolute, gap)
            relative = max(relative, gap / max(float(np.max(np.abs(array))), 1e-300))
    return Difference(absolute, relative)


def worst(pairs: Iterable[tuple[Model, Model]]) -> Difference:
    """The largest of rounds' (ours, theirs). Raises ValueError as `difference`."""
    found = [difference(*pair) for pair in pairs]
    return Difference(max(one.absolute for one in found), max(one.relative for one in found))


def updates(case: Case) -> tuple[Model, list[list[Model]]]:
    """The weights it starts with, and what each silo sends in each round: the same bits everywhere, always.

    Numbers are u = (r >> 11) / 2^52 - 1, where r are the 64-bit outputs of NumPy's PCG64 with seed `SEED`, whose stream
    NumPy promises to keep (its distributions' it does not): uniform over [-1, 1). Weights to start with are 2 u; an
    update is the start plus u / 2, whatever came of the round before. They are drawn by round, silo, tensor in the
    order of `SHAPES`, and row. Each is cast to the case's dtype; integers are 1000 times as far apart, cut towards 0.
    """
    stream = np.random.PCG64(SEED)
    scale = 1000.0 if case.dtype == "int64" else 1.0

    def drawn(around: Model, width: float) -> Model:
        model = {}
        for name, array in around.items():
            raw = np.asarray(stream.random_raw(array.size), np.uint64).reshape(array.shape)
            uniform = (raw >> np.uint64(11)).astype(np.float64) / 2.0**52 - 1
            model[name] = np.asarray(array + scale * width * uniform).astype(case.dtype)
        return model

    base = drawn({name: np.zeros(shape) for name, shape in SHAPES.items()}, 2.0)
    return base, [[drawn(base, 0.5) for _ in case.samples] for _ in range(ROUNDS)]


def ours(case: Case) -> Iterator[Model]:
    """Our model after each round."""
    base, rounds = updates(case)
    state: Mapping[str, Model] | None = None
    for number, models in enumerate(rounds, 1):
        strategy = strategy_named(case.ours, case.our_options(number))
        made = combine(strategy, models, samples=case.samples, base=base, state=state)
        base, state = made.model, made.state
        yield base
