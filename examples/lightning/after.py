"""A module with hooks and a trainer that calls them; the module's head is this site's own."""

import argparse
import csv

import silobus
import torch
from lightning_like import Batch, Module, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Regressor(Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Batch) -> torch.Tensor:
        x, y = batch
        return nn.functional.mse_loss(self(x), y)

    def validation_step(self, batch: Batch) -> torch.Tensor:
        x, y = batch
        return nn.functional.mse_loss(self(x), y, reduction="sum")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.02)


def read(path: str) -> TensorDataset:
    with open(path, newline="") as file:
        table = torch.tensor([[float(cell) for cell in row] for row in list(csv.reader(file))[1:]])
    return TensorDataset(table[:, :-1], table[:, -1:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", required=True, help="CSV with a header; the last column is what to predict")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = read(args.train)
    loader = DataLoader(rows, batch_size=16, shuffle=True, drop_last=True)
    test_loader = DataLoader(rows, batch_size=64)
    module = Regressor(rows.tensors[0].shape[1])
    trainer = Trainer(max_epochs=5)
    for rnd in silobus.rounds():
        rnd.load(module, share=["*", "!head.*"])
        rnd.score(loss=silobus.mean(trainer.validate(module, test_loader), len(rows)))
        if rnd.trains:
            trainer.fit(module, loader)
            rnd.submit(module, samples=len(rows), steps=trainer.global_step)
    print(f"loss {trainer.validate(module, test_loader) / len(rows):.4f}")


if __name__ == "__main__":
    main()
