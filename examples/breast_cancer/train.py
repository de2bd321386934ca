"""Malignant or benign: a small network over the Wisconsin breast-cancer measurements, one hospital's rows at a time.

Each row of the CSV files is a patient: the 30 measurements by name, and `label` (1 is benign, as scikit-learn has
it). Run it alone:

    python make_data.py /tmp/hospitals
    python train.py --train /tmp/hospitals/north/train.csv --test /tmp/hospitals/test.csv --rounds 5
"""

import argparse
import csv
import json
from pathlib import Path

import silobus
import torch
from torch import nn

# Every hospital scales by the same published constants. Scaling by its own rows would give the same weight another
# meaning in each of them, and would tell the others about its patients.
STANDARD = json.loads(Path(__file__).with_name("standard.json").read_text())
DEFAULTS = {"lr": 0.1, "momentum": 0.9, "epochs": 2, "batch": 16}


def read(path: str) -> tuple[torch.Tensor, torch.Tensor]:
    with open(path, newline="") as file:
        rows = [
            [(float(row[c["column"]]) - c["mean"]) / c["sd"] for c in STANDARD] + [float(row["label"])]
            for row in csv.DictReader(file)
        ]
    table = torch.tensor(rows)
    return table[:, :-1], table[:, -1]


def fit(rnd, model, x, y):
    params = rnd.params
    optimizer = torch.optim.SGD(model.parameters(), lr=params["lr"], momentum=params["momentum"])
    steps = 0
    for _ in range(params["epochs"]):
        for batch in torch.randperm(len(x)).split(params["batch"]):
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(model(x[batch])[:, 0], y[batch])
            (loss + rnd.proximal(model)).backward()  # for FedProx; 0 with other strategies
            rnd.correct(model)  # for SCAFFOLD
            optimizer.step()
            steps += 1
            rnd.progress(steps)
    return len(x), steps


def evaluate(model, x, y):
    with torch.no_grad():
        logits = model(x)[:, 0]
    loss = nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="sum")
    right = ((logits > 0) == (y > 0.5)).sum()
    return {
        "loss": silobus.mean(loss, len(y)),
        "accuracy": silobus.mean(right, len(y)),
        "auroc": silobus.roc(y, torch.sigmoid(logits)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="One hospital's share of a breast-cancer model.")
    parser.add_argument("--train", help="CSV to train on, when run alone")
    parser.add_argument("--test", help="CSV to evaluate on, when run alone")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, when run alone")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(len(STANDARD), 16), nn.ReLU(), nn.Linear(16, 1))

    for rnd in silobus.rounds(rounds=args.rounds, params=DEFAULTS, data={"train": args.train, "test": args.test}):
        torch.manual_seed(rnd.seed)
        rnd.load(model)
        if rnd.evaluates:
            rnd.score(**evaluate(model, *read(rnd.data["test"])))
        if rnd.trains:
            samples, steps = fit(rnd, model, *read(rnd.data["train"]))
            rnd.submit(model, samples=samples, steps=steps, lr=rnd.params["lr"])


if __name__ == "__main__":
    main()
