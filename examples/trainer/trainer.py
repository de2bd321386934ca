"""A trainer class of the kind that model libraries bring: it owns the loop, the optimizer and the state of both."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class TrainingArguments:
    learning_rate: float = 0.01
    num_train_epochs: int = 3
    per_device_train_batch_size: int = 16


@dataclass
class TrainerState:
    global_step: int = 0


class Trainer:
    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        train_dataset: torch.Tensor,
        eval_dataset: torch.Tensor,
        compute_loss: Callable[[nn.Module, torch.Tensor], torch.Tensor],
    ) -> None:
        self.model = model
        self.args = args
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.compute_loss = compute_loss
        self.state = TrainerState()

    def train(self) -> None:
        self.state = TrainerState()
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.args.learning_rate)
        self.model.train()
        for _ in range(self.args.num_train_epochs):
            for batch in torch.randperm(len(self.train_dataset)).split(self.args.per_device_train_batch_size):
                optimizer.zero_grad()
                self.compute_loss(self.model, self.train_dataset[batch]).backward()
                optimizer.step()
                self.state.global_step += 1

    def evaluate(self) -> dict[str, float]:
        self.model.eval()
        with torch.no_grad():
            loss = self.compute_loss(self.model, self.eval_dataset).item()
        return {"eval_loss": loss, "eval_samples": len(self.eval_dataset)}
