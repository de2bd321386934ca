"""One round, as a training script sees it: what every round has, and the rules that every round holds.

Here lives what is the same whether the script runs alone or for an agent: the attributes, and the checks of calls
that come in the wrong round or twice. What a call then does is in `alone` and `federated`.
"""

from __future__ import annotations

import math
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

from silobus.metrics import Metric
from silobus.share import checked
from silobus.state import checked_name

EVERYTHING = ("*",)
_METRIC_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Told:
    """What a script is told about a round."""

    round: int
    experiment: str
    run: str
    task: str
    purpose: str
    params: dict[str, Any]
    data: dict[str, Any]
    seed: int


class Round(ABC):
    """What `for rnd in silobus.rounds()` gives."""

    alone: bool
    """True when no agent runs this script."""

    def __init__(self, told: Told) -> None:
        self.round = told.round
        self.experiment = told.experiment
        self.run = told.run
        self.task = told.task
        self.purpose = told.purpose
        self.params = told.params
        self.data = told.data
        self.seed = told.seed
        self._loaded = False
        self._kept: dict[str, Any] = {}
        self._metrics: dict[tuple[str, str], Metric] = {}
        self._submitted: tuple[int, int] | None = None
        self._knows_mu = False

    @property
    def trains(self) -> bool:
        """Whether this round wants the model trained and submitted."""
        return self.purpose == "train"

    @property
    def evaluates(self) -> bool:
        """Whether this round wants to know how the weights received do here."""
        return self.purpose in ("train", "evaluate")

    def load(self, model: Any, share: Sequence[str] = EVERYTHING) -> None:
        """Fill the model: what is shared with the global weights, the rest with what this silo had.

        `share` names what may leave, by shell-style patterns over tensor names: `!` excludes, the last match wins.
        The model is anything with `state_dict()`, wrapped or not, or a dict of tensors. Alone, the model stays as
        it is. Tensors are overwritten where they lie: a loss from before this that needs their old values for its
        gradients is refused by torch. After a ValueError the model may be half overwritten, and is good for no round.
        """
        if self._loaded:
            raise RuntimeError("load() was called before in this round; put several models into one, as a ModuleDict")
        self._load(model, checked(share, whose="load()"))
        self._loaded = True

    def keep(self, name: str, obj: Any) -> None:
        """Make something part of this silo's private state: restored now, saved when the round has been trained.

        The object has `state_dict()` and `load_state_dict()` (optimizers, schedulers) or is a dict of tensors and
        JSON values. It is saved as it is when the loop body returns, and committed only together with the round.
        Each round that trains writes the whole state anew: what it did not keep is gone. An optimizer comes back as
        torch does it, learning rate included: where the round's params say another, set it after this.
        """
        if checked_name(name) in self._kept:
            raise RuntimeError(f"keep({name!r}) was called before in this round")
        self._kept[name] = obj
        self._restore(name, obj)

    def score(self, phase: str = "received", /, **metrics: Metric) -> None:
        """Report metrics: of the weights as they came ("received"), or after training here ("trained").

        In a round that neither trains nor evaluates nothing is asked for, and nothing is reported.
        """
        if phase not in ("received", "trained"):
            raise ValueError(f"a score is of the weights 'received' or 'trained', not {phase!r}")
        if phase == "trained" and self.purpose == "evaluate":
            raise RuntimeError("a round to evaluate has no trained weights to score")
        for name, metric in metrics.items():
            if not _METRIC_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name for a metric: letters, digits and _ . - only, 64 at most")
            if not isinstance(metric, Metric):
                raise TypeError(
                    f"score({name}=…) is {type(metric).__name__}, which cannot be pooled over silos without its count: "
                    f"give silobus.mean(total, n), or sum, roc or confusion"
                )
            if (name, phase) in self._metrics:
                raise RuntimeError(f"the {phase} {name} was scored before in this round")
            if self.evaluates:
                self._metrics[name, phase] = metric
        self._scored(phase, metrics)

    def progress(self, steps: SupportsIndex | None = None) -> None:
        """Say that training goes on, by the number of steps so far. Cheap: call it at every step."""
        self._progress(None if steps is None else operator.index(steps))

    def proximal(self, model: Any) -> Any:
        """What FedProx adds to the loss: `loss = loss + rnd.proximal(model)`. 0 where nobody asks for it, and alone.

        It is μ/2 times the squared distance of the shared, trainable parameters from the weights received. μ is
        `proximal_mu` of `rnd.params`: the strategy `fedprox` sets it, and with another an experiment may.
        """
        self._check_training("proximal()")
        mu = self.proximal_mu
        return self._proximal(model, mu) if mu else 0.0

    @property
    def proximal_mu(self) -> float:
        """FedProx's μ, for training without torch that adds μ (w − x) to its gradients itself; 0: nobody asks for it.

        A round that asks for it fails if its script neither reads this nor calls `proximal`: it would be FedAvg.
        """
        self._knows_mu = True
        mu = float(self.params.get("proximal_mu", 0.0))
        if not 0 <= mu < math.inf:
            raise ValueError(f"proximal_mu is {mu}: it is a number from 0")
        return mu

    def correct(self, model: Any) -> None:
        """What SCAFFOLD does to the gradients: call it after `backward()`, before each step of the optimizer.

        Does nothing with other strategies, and alone. The optimizer has to be SGD without momentum.
        """
        self._check_training("correct()")
        self._correct(model)

    def submit(self, model: Any, samples: SupportsIndex, steps: SupportsIndex, *, lr: float | None = None) -> None:
        """Hand in the trained model. `samples` is its weight in the average, `steps` counts optimizer steps.

        `lr` is the learning rate of those steps (their mean, if it changed): SCAFFOLD needs it, others do not.
        """
        if not self.trains:
            raise RuntimeError(f"a round to {self.purpose} takes no update: call submit() only if rnd.trains")
        if not self._loaded:
            raise RuntimeError("submit() came before load(): this training did not start from the weights received")
        if self._submitted:
            raise RuntimeError("submit() was called before in this round: a silo has one update")
        counts = operator.index(samples), operator.index(steps)
        if min(counts) < 1:
            raise ValueError(f"submit(samples={counts[0]}, steps={counts[1]}): both are at least 1")
        if lr is not None and not 0 < float(lr) < math.inf:
            raise ValueError(f"submit(lr={lr}): a learning rate is greater than 0")
        self._submit(model, *counts, None if lr is None else float(lr))
        self._submitted = counts

    def finish(self) -> None:
        """The loop body has returned. `rounds` calls this; scripts do not."""
        if self.trains and not self._submitted:
            raise RuntimeError("the loop body returned without submit() in a round that trains")
        if self.purpose == "initialise" and not self._loaded:
            raise RuntimeError("the loop body returned without load(): the initial weights are the model it is given")
        self._finish()

    def _check_training(self, what: str) -> None:
        if not self.trains or not self._loaded:
            why = f"is for rounds that train, not to {self.purpose}" if not self.trains else "came before load()"
            raise RuntimeError(f"{what} {why}")

    @abstractmethod
    def _load(self, model: Any, share: tuple[str, ...]) -> None: ...

    @abstractmethod
    def _restore(self, name: str, obj: Any) -> None: ...

    @abstractmethod
    def _scored(self, phase: str, metrics: Mapping[str, Metric]) -> None: ...

    @abstractmethod
    def _progress(self, steps: int | None) -> None: ...

    @abstractmethod
    def _proximal(self, model: Any, mu: float) -> Any: ...

    @abstractmethod
    def _correct(self, model: Any) -> None: ...

    @abstractmethod
    def _submit(self, model: Any, samples: int, steps: int, lr: float | None) -> None: ...

    @abstractmethod
    def _finish(self) -> None: ...
