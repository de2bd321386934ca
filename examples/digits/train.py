"""Handwritten digits: a small convolutional network, where each silo has hardly seen some of the ten.

The data are `images` (n, 8, 8) from 0 to 16 and `labels` (n), in a safetensors or npz file. Run it alone:

    python make_data.py /tmp/digits
    python train.py --train /tmp/digits/silo-0.safetensors --test /tmp/digits/test.safetensors --rounds 10

Everything is shared, the running statistics of its batch normalisation included: silos that know different digits do
better with the average of their statistics than each with its own.
"""

import argparse

import silobus
import torch
from torch import nn

DEFAULTS = {"lr": 0.1, "epochs": 1, "batch": 32}


def build() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 2 * 2, 10),
    )


def read(path: str) -> tuple[torch.Tensor, torch.Tensor]:
    if path.endswith(".npz"):
        import numpy as np

        with np.load(path) as arrays:
            images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    else:
        from safetensors.torch import load_file

        tensors = load_file(path)
        images, labels = tensors["images"], tensors["labels"]
    return images.float()[:, None] / 16, labels.long()


def fit(rnd, model, x, y):
    params = rnd.params
    optimizer = torch.optim.SGD(model.parameters(), lr=params["lr"])
    model.train()
    steps = 0
    for _ in range(params["epochs"]):
        for batch in torch.randperm(len(x)).split(params["batch"]):
            if len(batch) == 1:
                continue  # one image has no batch statistics
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            (loss + rnd.proximal(model)).backward()  # for FedProx; 0 with other strategies
            rnd.correct(model)  # for SCAFFOLD
            optimizer.step()
            steps += 1
            rnd.progress(steps)
    return len(x), steps


def evaluate(model, x, y):
    model.eval()
    with torch.no_grad():
        logits = model(x)
    guesses = logits.argmax(1)
    return {
        "loss": silobus.mean(nn.functional.cross_entropy(logits, y, reduction="sum"), len(y)),
        "accuracy": silobus.mean((guesses == y).sum(), len(y)),
        "confusion": silobus.confusion(y, guesses, classes=10),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="One silo's share of a digit classifier.")
    parser.add_argument("--train", help="file to train on, when run alone")
    parser.add_argument("--test", help="file to evaluate on, when run alone")
    parser.add_argument("--rounds", type=int, default=10, help="rounds, when run alone")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build()

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
