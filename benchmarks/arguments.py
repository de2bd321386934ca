"""What commands of several benchmarks take."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_strategy(parser: argparse.ArgumentParser, help: str) -> None:  # as argparse calls it
    """`--strategy NAME --option NAME=JSON …`."""
    parser.add_argument("--strategy", default="fedavg", help=help)
    parser.add_argument(
        "--option", action="append", default=[], type=_option, metavar="NAME=JSON", help="of the strategy"
    )


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """The strategy's options that were given."""
    return dict(args.option)


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=JSON")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{value!r} is no JSON: {error}") from None
