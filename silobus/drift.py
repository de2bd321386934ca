"""What keeps a silo's steps from drifting away from the others': FedProx's proximal term, SCAFFOLD's control variates.

Here lives the arithmetic on a model's torch parameters: those that are shared, trainable and floating. What each is
measured against is read from files, piece by piece where it is not held. Which file is which, and when, is the round's.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeGuard

from silobus.files import Entry, TensorFile, Written, write_tensors
from silobus.tensors import FLOATS, TORCH
from silobus.values import read, read_pieces
from silobus.weights import Model, Tensor, read_along, read_as


class Proximal:
    """The term μ/2 ‖w − wᵗ‖² of FedProx (Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020,
    arXiv:1812.06127, equation 2). wᵗ is what was received: one copy of the parameters, on their devices."""

    def __init__(self, model: Model, received: TensorFile) -> None:
        self.owner = model.owner
        self._pairs = [(p, read_as(tensor, received).to(p.device)) for p, tensor in _trainable(model)]

    def term(self, mu: float) -> Any:
        """A scalar to add to the loss; float32, or float64 where the parameters are."""
        terms = [_squared_distance()(parameter, reference) for parameter, reference in self._pairs]
        return mu / 2 * sum(term.to(terms[0].device) for term in terms)


class Control:
    """SCAFFOLD in a silo, with option II (Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated
    Learning, ICML 2020, arXiv:1910.06378, Algorithm 1): steps are corrected by c − cᵢ; then
    cᵢ⁺ = cᵢ − c + (x − yᵢ)/(Kη), and Δcᵢ = cᵢ⁺ − cᵢ is told. A file that is not there is all zeros.

    Held in memory is one copy of the parameters, c − cᵢ, and not before there is one."""

    def __init__(self, model: Model, received: TensorFile, common: TensorFile | None, own: TensorFile | None) -> None:
        self.owner = model.owner
        self.calls = 0
        self._received, self._common, self._own = received, common, own
        self._trained: set[str] = set()
        self._pairs: list[tuple[Any, Any]] = []
        for parameter, tensor in _trainable(model):
            self._trained.update(tensor.names)
            if common is not None or own is not None:
                name = tensor.names_in(received)[0]
                correction = _variate(common, name, tensor) - _variate(own, name, tensor)
                self._pairs.append((parameter, correction.to(parameter.device, parameter.dtype)))

    def correct(self) -> None:
        """Adds c − cᵢ to every gradient. A parameter without one moves by the correction alone, as in the paper."""
        self.calls += 1
        for parameter, correction in self._pairs:
            if parameter.grad is None:
                parameter.grad = correction.clone()
            else:
                parameter.grad.add_(correction)

    def write(self, model: Model, steps: int, lr: float, told: Path, kept: Path, *, hashes: bool) -> Written:
        """Writes Δcᵢ, which goes out, and cᵢ⁺, which stays; float32, a piece of a tensor in memory at a time.

        Δcᵢ has every floating tensor that is shared: those that were not trained by gradients, such as running
        statistics, as zeros.
        """
        floating = [tensor for tensor in model.shared if tensor.code in FLOATS]
        named = [(name, tensor) for tensor in floating for name in tensor.names_in(self._received)]
        changes = [Entry(name, "F32", t.shape, self._change(name, t, steps * lr)) for name, t in named]
        written = write_tensors(told, changes, hashes=hashes, durable=hashes)
        own = {t.names_in(self._received)[0]: t for t in floating if not self._trained.isdisjoint(t.names)}
        file = TensorFile(told)
        renewed = [Entry(name, "F32", t.shape, self._renewed(name, t, file)) for name, t in own.items()]
        write_tensors(kept, renewed, hashes=False)
        return written

    def _change(self, name: str, tensor: Tensor, moved_by: float) -> Callable[[], Iterator[Any]]:
        def raw() -> Iterator[Any]:
            pieces = TORCH.pieces(tensor.value)
            if self._trained.isdisjoint(tensor.names):
                yield from (bytes(4 * piece.numel()) for piece in pieces)
                return
            common = _variate_along(self._common, name, tensor)
            for piece, received, variate in zip(pieces, read_along(tensor, self._received), common, strict=False):
                yield TORCH.raw(TORCH.minus(received, piece).div_(moved_by).sub_(variate), "F32")

        return raw

    def _renewed(self, name: str, tensor: Tensor, changes: TensorFile) -> Callable[[], Iterator[Any]]:
        def raw() -> Iterator[Any]:
            own = _variate_along(self._own, name, tensor)
            for change, variate in zip(_variate_along(changes, name, tensor), own, strict=False):
                yield TORCH.raw(change + variate, "F32")

        return raw


def _variate(file: TensorFile | None, name: str, tensor: Tensor) -> Any:
    import torch

    return read(file, name, TORCH) if _has(file, name, tensor) else torch.zeros(tensor.shape)


def _variate_along(file: TensorFile | None, name: str, tensor: Tensor) -> Iterator[Any]:
    """A variate in the tensor's pieces, each there until the next is asked for; zeros without end where it is none."""
    return read_pieces(file, name, tensor.value, TORCH) if _has(file, name, tensor) else itertools.repeat(0.0)


def _has(file: TensorFile | None, name: str, tensor: Tensor) -> TypeGuard[TensorFile]:
    if file is None or name not in file.names:
        return False
    if file.code(name) != "F32" or file.shape(name) != tensor.shape:
        raise ValueError(f"{file.path.name}: {name!r} is no float32 control variate of shape {list(tensor.shape)}")
    return True


def _trainable(model: Model) -> list[tuple[Any, Tensor]]:
    """The parameters that are shared, floating and trained by gradients, each with the tensor that it is."""
    owner = model.owner
    if hasattr(owner, "parameters"):
        candidates = list(owner.parameters())
    elif owner is model.held:
        candidates = list(model.held.values())
    else:
        raise TypeError(f"{type(owner).__name__} has no parameters(), so there are no gradients to act on")
    shared = {t.kind.identity(t.value): t for t in model.shared if t.kind is TORCH and t.code in FLOATS}
    found = {
        id(one): (one, shared[key])
        for one in candidates
        if getattr(one, "requires_grad", False) and (key := TORCH.identity(one)) in shared
    }
    if not found:
        raise TypeError("none of the shared tensors is a torch parameter that is trained: see the training contract")
    return list(found.values())


@functools.cache
def _squared_distance() -> Callable[[Any, Any], Any]:
    import torch

    class SquaredDistance(torch.autograd.Function):
        """‖w − r‖². The difference is made again on the way back, so that no third copy of a model waits for it."""

        @staticmethod
        def forward(ctx: Any, parameter: Any, reference: Any) -> Any:
            ctx.save_for_backward(parameter, reference)
            wide = torch.float64 if parameter.dtype == torch.float64 else torch.float32
            return (parameter - reference).to(wide).square().sum()

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            parameter, reference = ctx.saved_tensors
            return (2 * grads[0] * (parameter - reference)).to(parameter.dtype), None

    apply: Callable[[Any, Any], Any] = SquaredDistance.apply
    return apply
