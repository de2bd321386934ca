"""Data-parallel training in several processes: torchrun --nproc-per-node 2 before.py --train rows.csv"""

import argparse
import csv

import silobus
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def read(path: str) -> tuple[torch.Tensor, torch.Tensor]:
    with open(path, newline="") as file:
        table = torch.tensor([[float(cell) for cell in row] for row in list(csv.reader(file))[1:]])
    return table[:, :-1], table[:, -1:]


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> int:
    steps = 0
    for batch in torch.arange(len(x)).split(16):
        mine = batch[dist.get_rank() :: dist.get_world_size()]
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[mine]), y[mine]).backward()
        optimizer.step()
        steps += 1
    return steps


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", required=True, help="CSV with a header; the last column is what to predict")
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    x, y = read(args.train)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(x.shape[1], 8), nn.Tanh(), nn.Linear(8, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    for rnd in silobus.rounds(rounds=args.epochs):
        rnd.load(model)
        with torch.no_grad():
            total = nn.functional.mse_loss(model(x), y, reduction="sum").item()
        print(f"rank {dist.get_rank()}: loss {total / len(x):.4f}")
        rnd.score(loss=silobus.mean(total, len(x)))
        if not rnd.trains:
            continue
        steps = train_epoch(model, optimizer, x, y)
        print(f"rank {dist.get_rank()}: {steps} steps")
        rnd.submit(model, samples=len(x), steps=steps)
    dist.barrier()  # gloo may abort a process that exits while its threads still hold the last gradients
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
