"""A small language model under a trainer class; its embedding and its output layer are one tied weight."""

import argparse
from pathlib import Path

import silobus
import torch
from torch import nn

from trainer import Trainer, TrainingArguments

ALPHABET = "abcdefghijklmnopqrstuvwxyz ."
LENGTH = 8


class NextLetter(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(ALPHABET), width)
        self.mix = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, len(ALPHABET))
        self.head.weight = self.embed.weight

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(self.embed(letters))[0])


def read(path: str) -> torch.Tensor:
    letters = [ALPHABET.index(letter) for letter in Path(path).read_text().lower() if letter in ALPHABET]
    return torch.tensor(letters[: len(letters) // LENGTH * LENGTH]).reshape(-1, LENGTH)


def loss(model: nn.Module, letters: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(letters[:, :-1]).flatten(0, 1), letters[:, 1:].flatten())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", required=True, help="a text file")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    text = read(args.train)
    test, train = text[::5], torch.cat([text[start::5] for start in range(1, 5)])
    model = NextLetter()
    trainer = Trainer(model, TrainingArguments(), train, test, loss)
    for rnd in silobus.rounds():
        rnd.load(model)
        rnd.score(loss=silobus.mean(trainer.evaluate()["eval_loss"] * len(test), len(test)))
        if rnd.trains:
            trainer.train()
            rnd.submit(model, samples=len(train), steps=trainer.state.global_step)
    metrics = trainer.evaluate()
    print(f"loss {metrics['eval_loss']:.4f} over {metrics['eval_samples']} lines")


if __name__ == "__main__":
    main()
