"""A plain training loop, as most scripts have one: each epoch evaluates, trains and prints."""

import argparse
import csv

import torch
from torch import nn

LR = 0.05


def read(path: str) -> tuple[torch.Tensor, torch.Tensor]:
    with open(path, newline="") as file:
        table = torch.tensor([[float(cell) for cell in row] for row in list(csv.reader(file))[1:]])
    return table[:, :-1], table[:, -1:]


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> int:
    batches = torch.randperm(len(x)).split(16)
    for batch in batches:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return len(batches)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", required=True, help="CSV with a header; the last column is what to predict")
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = read(args.train)
    model = nn.Sequential(nn.Linear(x.shape[1], 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)

    for _epoch in range(args.epochs):
        with torch.no_grad():
            total = nn.functional.mse_loss(model(x), y, reduction="sum").item()
        print(f"loss {total / len(x):.4f}")
        steps = train_epoch(model, optimizer, x, y)
        print(f"{steps} steps")


if __name__ == "__main__":
    main()
