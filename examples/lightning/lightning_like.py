"""A trainer of the kind that calls the module's hooks: the module says how to make a step, the trainer when."""

from collections.abc import Iterable

import torch
from torch import nn

Batch = tuple[torch.Tensor, torch.Tensor]


class Module(nn.Module):
    def training_step(self, batch: Batch) -> torch.Tensor:
        raise NotImplementedError

    def validation_step(self, batch: Batch) -> torch.Tensor:
        raise NotImplementedError

    def configure_optimizers(self) -> torch.optim.Optimizer:
        raise NotImplementedError


class Trainer:
    def __init__(self, max_epochs: int) -> None:
        self.max_epochs = max_epochs
        self.global_step = 0

    def fit(self, module: Module, loader: Iterable[Batch]) -> None:
        self.global_step = 0
        optimizer = module.configure_optimizers()
        module.train()
        for _ in range(self.max_epochs):
            for batch in loader:
                optimizer.zero_grad()
                module.training_step(batch).backward()
                optimizer.step()
                self.global_step += 1

    def validate(self, module: Module, loader: Iterable[Batch]) -> float:
        module.eval()
        with torch.no_grad():
            losses = [module.validation_step(batch).item() for batch in loader]
        return sum(losses)
